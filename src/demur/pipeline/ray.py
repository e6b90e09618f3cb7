"""The same stages as tasks of a Ray cluster: `demur run STUDY --on ray` (this machine) or `--on ray://ADDRESS`.

Artifacts lie in the run's folder, which every node must see (a shared POSIX folder). SQLite and network file systems do
not go together, so a stage writes its replies to a cache of its own beside the run's, and the driver merges it when the
stage has ended. A stage whose worker or node was lost is started again by Ray; it finds that cache and asks nothing
twice that was answered. One training over several nodes is torchrun's work.
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
from demur.pipeline.run import Event, Job, Pool, Watch, do
from demur.pipeline.sizes import devices
from demur.pipeline.stage import Stage
from demur.registry import missing
from demur.storage.reply_cache import ReplyCache

RETRIES = 5  # Times that a stage is started again after its worker or node was lost


@contextlib.contextmanager
def ray_pool(address: str, *, cache: Path, say: Watch) -> Iterator[RayPool]:
    """Workers on a Ray cluster while the block lasts: `ray`, the one that this machine is part of (or a new one), or `ray://HOST:PORT`.

    Raises UserError: Ray is not installed, or the cluster is not there.
    """
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
        yield RayPool(ray, cache, say)
    finally:
        if ours:
            ray.shutdown()


class RayPool(Pool):
    """Workers that are Ray tasks."""

    def __init__(self, ray: Any, cache: Path, say: Watch) -> None:
        super().__init__(say)
        self._ray, self._cache = ray, cache
        self._jobs: dict[Any, Job] = {}  # Task -> its job

    @property
    def slots(self) -> int:  # type: ignore[override]
        """One stage a CPU of the cluster, as it is now."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def submit(self, job: Job) -> None:
        """Start a stage as a task; its resources follow from its kind."""
        own = job._replace(way=job.way._replace(cache=self._cache / "stages" / job.planned.folder.name))
        gpus = self._gpus(job.planned.stage)
        self._jobs[self._ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_task).remote(own)] = own
        self._say(Event(job.planned.name, "started"))

    def _gpus(self, stage: Stage[Any]) -> int:
        """What a stage gets of one node: a training at most what the largest has; what no node can hold, Ray would wait for."""
        most = max(int(node["Resources"].get("GPU", 0)) for node in self._ray.nodes() if node["Alive"])
        wanted = stage.gpus() if most else 0
        if wanted > most and not stage.trains:
            raise UserError(f"{stage.name} takes {wanted} GPUs of one node, and no node has more than {most}.")
        return min(wanted, most)

    def wait(self) -> Sequence[tuple[str, float | Exception]]:
        """Block until a stage has ended; its replies are merged into the run's cache."""
        ended = []
        for task in self._ray.wait(list(self._jobs), num_returns=1)[0]:
            (name, own), lost = ((job := self._jobs.pop(task)).planned.name, job.way.cache), f"lost {RETRIES + 1} times"
            try:
                took, failed = self._ray.get(task)
            except self._ray.exceptions.RayError as error:
                took, failed = 0.0, f"{lost} ({type(error).__name__}). Run the same command to go on."
            if own.is_dir():
                with ReplyCache(self._cache) as cache:
                    cache.merge(own)
                shutil.rmtree(own, ignore_errors=True)
            ended.append((name, WorkError(f"{name}: {failed}") if failed else float(took)))
        return ended


def _task(job: Job) -> tuple[float, str]:
    """Run one stage on the cards that Ray gave it; the seconds, and what went wrong in words (a lost node raises instead)."""
    devices.cache_clear()  # a worker gets other cards for another stage
    try:
        places, problem = place(needs_of(job.planned), devices())
        if problem:
            return 0.0, problem
        with contextlib.closing(Servers()) as running:
            return do(job._replace(way=job.way._replace(reach=running.move_to(Phase((), places)))), quiet), ""
    except DemurError as error:
        return 0.0, str(error)
