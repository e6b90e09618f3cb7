"""The same stages as tasks of a Ray cluster: `demur run STUDY --on ray` (this machine) or `--on ray://ADDRESS`.

The run's folder must be a POSIX folder that all nodes share. SQLite does not work on network file systems, so each stage
writes its replies to a cache of its own beside the run's, and the driver merges it when the stage has ended. Ray restarts a
stage whose worker or node was lost; it finds that cache and asks nothing twice. For one training over several nodes use
torchrun.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from demur.errors import DemurError, UserError, WorkError
from demur.interfaces import quiet
from demur.pipeline.placement import Phase, Servers, needs_of, place
from demur.pipeline.run import Event, Pool, Task, Watch, run_task
from demur.pipeline.sizes import devices
from demur.pipeline.stage import Stage
from demur.registry import missing
from demur.storage.reply_cache import ReplyCache

RETRIES = 5  # Restarts of a stage whose worker or node was lost


@contextlib.contextmanager
def ray_pool(address: str, *, cache: Path, watch: Watch) -> Iterator[RayPool]:
    """Workers on a Ray cluster, for the block: `ray` (the cluster of this machine, or a new one) or `ray://HOST:PORT`.
    Raises UserError: Ray is not installed, or the cluster cannot be reached."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise missing(error, "--on ray") from error
    ours = not ray.is_initialized()
    if ours:
        try:
            where = None if address == "ray" and not os.environ.get("RAY_ADDRESS") else address
            environment = {"env_vars": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}}
            ray.init(where, runtime_env=environment, log_to_driver=False, include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"--on {address}: {error}. Start one with `ray start --head`, or use --on ray.") from None
    try:
        yield RayPool(ray, cache, watch)
    finally:
        if ours:
            ray.shutdown()


class RayPool(Pool):
    """Workers that are Ray tasks."""

    def __init__(self, ray: Any, cache: Path, watch: Watch) -> None:
        super().__init__(watch)
        self._ray, self._cache = ray, cache
        self._tasks: dict[Any, Task] = {}  # Ray's reference to the outcome -> the task

    @property
    def slots(self) -> int:  # type: ignore[override]
        """One stage for each CPU of the cluster, as it is now."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def submit(self, task: Task) -> None:
        """Start a stage as a task of Ray, with the resources of its kind and a reply cache of its own."""
        cache = self._cache / "stages" / task.planned.folder.name
        task = task._replace(environment=task.environment._replace(cache=cache))
        gpus = self._gpus(task.planned.stage)
        reference = self._ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_run_on_node).remote(task)
        self._tasks[reference] = task
        self._watch(Event(task.planned.name, "started"))

    def _gpus(self, stage: Stage[Any]) -> int:
        """The GPUs of one node that a stage gets; for a training at most those of the largest node."""
        most = max(int(node["Resources"].get("GPU", 0)) for node in self._ray.nodes() if node["Alive"])
        wanted = stage.gpus() if most else 0
        if wanted > most and not stage.trains:  # Ray would wait for such a node
            raise UserError(f"{stage.name} takes {wanted} GPUs of one node, and no node has more than {most}.")
        return min(wanted, most)

    def wait(self) -> Sequence[tuple[str, float | Exception]]:
        """Block until a stage has ended; its replies are merged into the run's cache."""
        ended = []
        for reference in self._ray.wait(list(self._tasks), num_returns=1)[0]:
            task = self._tasks.pop(reference)
            name, own_cache = task.planned.name, task.environment.cache
            try:
                seconds, reason = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                lost = f"lost {RETRIES + 1} times ({type(error).__name__})"
                seconds, reason = 0.0, f"{lost}. Run the same command to go on."
            if own_cache.is_dir():
                with ReplyCache(self._cache) as cache:
                    cache.merge(own_cache)
                shutil.rmtree(own_cache, ignore_errors=True)
            ended.append((name, WorkError(f"{name}: {reason}") if reason else float(seconds)))
        return ended


def _run_on_node(task: Task) -> tuple[float, str]:
    """Run one stage on the GPUs that Ray assigned; returns the seconds, and why it failed (a lost node raises instead)."""
    devices.cache_clear()  # a worker gets other GPUs for another stage
    try:
        places, problem = place(needs_of(task.planned), devices())
        if problem:
            return 0.0, problem
        with contextlib.closing(Servers()) as servers:
            here = task.environment._replace(reach=servers.move_to(Phase((), places)))
            return run_task(task._replace(environment=here), quiet), ""
    except DemurError as error:
        return 0.0, str(error)
