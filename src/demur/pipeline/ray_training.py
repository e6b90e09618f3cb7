"""One training on several nodes of a Ray cluster: a place on each, torchrun in each place, and a rendezvous at the first.

The processes are those that torchrun starts on one machine (`train.parallel`), and so is the checkpoint. A lost node ends
them all; they start again where there is room, from the last whole checkpoint.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from demur.errors import WorkError
from demur.interfaces import Progress
from demur.train import parallel
from demur.train.settings import TrainSettings

ATTEMPTS = 6
"""Times that a training is started before a cluster that loses nodes is given up."""
PATIENCE = 120.0
"""Seconds to wait for room: for other stages to end, or for a node to come back."""
HANGING = 20.0
"""Seconds that the others of a lost one get to fail by themselves."""
Place = tuple[str, int]
"""A node's address and how many processes it takes."""


def rooms(ray: Any) -> list[Place]:
    """The nodes and how many processes each holds, the largest first: one a GPU, on a cluster without any one a CPU."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    kind = "GPU" if any(node["Resources"].get("GPU") for node in alive) else "CPU"
    found = [(str(node["NodeManagerAddress"]), int(node["Resources"].get(kind, 0))) for node in alive]
    return sorted(found, key=lambda place: -place[1])


def shares(places: Sequence[Place], processes: int) -> list[int]:
    """How many processes go on each of the fewest nodes that hold them; fewer in all: the cluster is too small."""
    left, found = processes, []
    for _, room in places:
        if left > 0 and room > 0:
            found.append(min(left, room))
            left -= found[-1]
    return found


def spread(job: Path, settings: TrainSettings, progress: Progress) -> tuple[str, int]:
    """Run a job's processes on as many nodes as they need: a `train.parallel.Runner`.

    Raises:
        WorkError: the cluster has not enough devices, or lost nodes again and again.
    """
    import ray

    for _ in range(ATTEMPTS):
        (job / "result.json").unlink(missing_ok=True)
        with _placed(ray, settings.processes) as group, contextlib.suppress(_Lost):
            return _run(ray, group, (job, settings), progress)
    raise WorkError(
        f"the training lost a node {ATTEMPTS} times. Run the same command to go on from its last checkpoint."
    )


class _Lost(Exception):
    """A node, or a worker on it, is gone."""


@contextlib.contextmanager
def _placed(ray: Any, processes: int) -> Iterator[Any]:
    """A placement group with one bundle a node.

    Raises:
        WorkError: there is no such room.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    until = time.monotonic() + PATIENCE
    while sum(found := shares(rooms(ray), processes)) < processes:
        if time.monotonic() > until:
            raise WorkError(
                f"train.processes={processes}, and the cluster has devices for {sum(found)}. Add nodes and run the same "
                "command to go on, or ask for fewer processes."
            )
        time.sleep(1)
    gpus = any(node["Resources"].get("GPU") for node in ray.nodes() if node["Alive"])
    group = placement_group([{"CPU": n} | ({"GPU": n} if gpus else {}) for n in found], strategy="STRICT_SPREAD")
    try:
        if not group.wait(timeout_seconds=24 * 3600):
            raise WorkError(f"no room for {processes} processes came free within a day.")
        yield group
    finally:
        remove_placement_group(group)


def _run(ray: Any, group: Any, work: tuple[Path, TrainSettings], progress: Progress) -> tuple[str, int]:
    """torchrun in every bundle, until all have ended.

    Raises:
        _Lost: one of them is gone; the others have been stopped.
    """
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    def within(function: Any, bundle: int, **needs: float) -> Any:
        where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
        return ray.remote(max_retries=0, scheduling_strategy=where, **needs)(function)

    told = ray.remote(num_cpus=0)(Mailbox).remote()
    sizes = [(int(bundle["CPU"]), int(bundle.get("GPU", 0))) for bundle in group.bundle_specs]
    agents: list[Any] = []
    try:
        meeting = ray.get(within(_meeting, 0, num_cpus=0).remote())
        for bundle, (cpus, gpus) in enumerate(sizes):
            flags = _flags(meeting, nodes=len(sizes), here=cpus, first=not bundle)
            agents.append(within(_agent, bundle, num_cpus=cpus, num_gpus=gpus).remote(*work, flags, told))
        left = list(agents)
        while left:
            ended, left = ray.wait(left, timeout=0.5)
            for step in ray.get(told.drain.remote()):
                progress(*step)
            ray.get(ended)
        ends = ray.get(agents)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise _Lost from error
    finally:
        # The processes of a lost one's peers fail by themselves; only those that hang are ended by force.
        _, hanging = ray.wait(agents, num_returns=len(agents), timeout=HANGING) if agents else ([], [])
        for agent in hanging:
            ray.cancel(agent, force=True)
    return "".join(noise for noise, _ in ends), max(code for _, code in ends)


def _flags(meeting: str, *, nodes: int, here: int, first: bool) -> list[str]:
    """How torchrun finds the others."""
    waits = "join_timeout=600,read_timeout=600"
    return [
        f"--nnodes={nodes}",
        f"--nproc-per-node={here}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={meeting}",
        f"--rdzv-id={meeting}",
        f"--rdzv-conf=is_host={int(first)},{waits}",
    ]


def _meeting() -> str:
    """An address and a free port of this node."""
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"


def _agent(job: Path, settings: TrainSettings, flags: list[str], told: Any) -> tuple[str, int]:
    """torchrun on one node, which ends with this worker."""
    import ray

    def progress(done: int, total: int | None, remark: str) -> None:
        told.put.remote((done, total, remark))

    here = f"--local-addr={ray.util.get_node_ip_address()}"
    return parallel.agent(job, [*flags, here], settings, progress, tied=True)


class Mailbox:
    """An actor that holds what others report until it is asked for."""

    def __init__(self) -> None:
        self._kept: list[tuple[Any, ...]] = []

    def put(self, report: tuple[Any, ...]) -> None:
        """Keep a report."""
        self._kept.append(report)

    def drain(self) -> list[tuple[Any, ...]]:
        """What was kept, which is then forgotten."""
        kept, self._kept = self._kept, []
        return kept
