"""Runs a graph of stages: in this process, in one-thread workers that stay alive, or on a Ray cluster.

Stages that are published under the same fingerprint are reused. Workers are processes with one thread each: independent
trainings in parallel beat one training on two threads (and two threads on a busy machine can be ten times slower). They
stay alive because importing the training libraries takes seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Container, Iterator, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, cast

from demur.errors import UserError, WorkError, scrubbed
from demur.interfaces import Progress
from demur.models.config import ModelConfig, Remote
from demur.pipeline.dag import Planned, plan, write_graph
from demur.pipeline.placement import Phase, Servers, key_of, schedule
from demur.pipeline.stage import Context, Stage
from demur.storage import artifacts
from demur.storage.artifacts import Artifact, Manifest
from demur.storage.reply_cache import ReplyCache

CACHE = "replies"  # The folder of a run's replies


class Event(NamedTuple):
    """A report on the progress of a stage."""

    name: str  # Of the stage
    state: str  # reused, started, progress, done or failed
    done: int = 0
    total: int | None = None
    remark: str = ""
    seconds: float = 0.0


Watch = Callable[[Event], None]


def execute(
    stages: Sequence[Stage[Any]], *, out: Path, cache: Path | None = None, workers: int | Pool = 1,
    watch: Watch | None = None, add: bool = True,
) -> dict[str, Artifact]:  # fmt: skip
    """Run some stages and all that they read, as far as they are not done yet; returns all artifacts by stage name.

    `workers` is a number of processes of this machine (1: this one), for models without cards, or a pool elsewhere. Replies are
    stored in `cache`, by default in the run's folder `out`. With `add` the run's other stages stay in its graph.
    Raises WorkError: a stage failed; finished stages are kept, and the same call continues from there.
    """
    watch = watch or (lambda event: None)
    with artifacts.locked(out):
        planned = plan(stages, out)
        write_graph(planned, out, add=add)
        done = {item.name for item in planned if item.done}
        todo = [item for item in planned if item.name not in done]
        for item in planned:
            if item.name in done:
                watch(Event(item.name, "reused"))
        environment = Environment(cache or out / CACHE, time.time())
        check_servers(todo, environment.cache)
        phases = schedule(planned) if isinstance(workers, int) else []
        if any(phase.places for phase in phases):
            _run_phases(phases, done, environment, watch)
        elif not isinstance(workers, int):
            _run_all(todo, done, environment, workers, watch)
        else:
            with local_pool(min(workers, len(todo)), watch) as pool:
                _run_all(todo, done, environment, pool, watch)
        return {item.name: Artifact(item.folder) for item in planned}


def check_servers(todo: Sequence[Planned], cache: Path, *, retried: Container[str] = ()) -> None:
    """Raises UserError: an outside server is down that has no cached replies, or whose address is in `retried` (asked again)."""
    asks = ((item.stage, ask.part) for item in todo for ask in item.stage.estimate() if ask.requests)
    asked = ((part, stage.models.get(part)) for stage, part in asks)
    servers = {model.where: (part, model) for part, model in asked if isinstance(model, Remote) and not model.missing()}

    async def check() -> list[str]:
        from demur.models.transport import why_unreachable

        return await asyncio.gather(*(why_unreachable(model) for _, model in servers.values()))

    reasons = asyncio.run(check()) if servers else []
    down = [(part, model, why) for (part, model), why in zip(servers.values(), reasons, strict=True) if why]
    lines: list[str] = []
    if down:
        with ReplyCache(cache) as replies:
            for part, model, why in down:
                if model.where in retried or not replies.answered(model.cache_identity(model.model)):
                    lines.append(f"{part}: {model.where} cannot be reached: {why}.")
    if lines:
        raise UserError("\n".join([*lines, "Nothing was asked. Start what is down, and run the same command."]))


def _run_phases(phases: Sequence[Phase], done: set[str], environment: Environment, watch: Watch) -> None:
    """Follow a schedule, each phase with its models up and one process for each target (this one if there is one target)."""
    if problems := [phase.problem for phase in phases if phase.problem]:
        raise UserError("\n".join(dict.fromkeys(problems)))
    with contextlib.closing(Servers()) as servers:
        for phase in phases:
            here = environment._replace(reach=servers.move_to(phase), generating=phase.generating)
            with local_pool(sum(place.need.part == "target" for place in phase.places), watch) as pool:
                # A phase that only asks finishes no stage.
                _run_all(phase.stages, set(done) if phase.generating else done, here, pool, watch)


class Environment(NamedTuple):
    """What the stages of a run, or of one of its phases, share."""

    cache: Path
    began: float  # Start of the run, to tell cached replies of earlier runs from its own
    reach: Callable[[ModelConfig], ModelConfig] | None = None  # A model -> how it is asked, where servers are up
    generating: bool = False  # Only ask, publish nothing


class Task(NamedTuple):
    """A stage to run, with all that a worker needs. It can be pickled."""

    planned: Planned
    environment: Environment

    @property
    def lock(self) -> str:
        """Tasks with the same lock run one at a time: those of one target, where a schedule gives it cards."""
        target = self.planned.stage.players(self.planned.folders).get("target") if self.environment.reach else None
        return key_of(target) if target is not None else self.planned.name


def run_task(task: Task, progress: Progress) -> float:
    """Run one stage and publish it; returns the seconds it took."""
    (stage, fingerprint, folder, inputs, folders), (cache, began, reach, generating) = task
    with artifacts.drafted(folder, fresh=not stage.resumable) as (draft, start):
        read = {part: Artifact(path) for part, path in folders.items()}
        context = Context(stage, inputs=read, draft=draft, cache=cache, progress=progress)
        context.since, context.reach, context.generating = began, reach or context.reach, generating
        try:
            if (work := stage.run(context)) is not None:
                asyncio.run(_awaited(context, work))
        finally:
            _release(trained=stage.trains)
        seconds = time.monotonic() - start
        if generating:
            return seconds
        if context.cache and context.cache.hits:
            draft.line += f"; {context.cache.hits:,} repl{'y' if context.cache.hits == 1 else 'ies'} from the cache"
        manifest = Manifest(
            name=stage.name, kind=stage.kind, version=stage.version, fingerprint=fingerprint, inputs=inputs,
            settings=stage.settings.model_dump(mode="json", by_alias=True), seconds=round(seconds, 3),
            models={part: model.model_dump(mode="json", exclude_defaults=True) for part, model in stage.models.items()},
        )  # fmt: skip
        draft.publish(manifest)
    return seconds


def _release(*, trained: bool) -> None:
    """Free memory: a server, a training or another worker may need it next."""
    if (torch := sys.modules.get("torch")) is None:
        return
    if trained or torch.cuda.is_initialized():
        gc.collect()
    torch.cuda.empty_cache()  # does nothing without an accelerator
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        # Freed tensors fragment the heap: a worker kept 3.8 of the 4.3 GB that training a model of 135M takes.
        libc.malloc_trim(0)


async def _awaited(context: Context, work: Awaitable[None]) -> None:
    """Await a stage's work, then close its models."""
    async with context:
        await work


class Pool:
    """Runs stages in this process, each when it is submitted. Subclasses run them elsewhere."""

    slots = 1  # Stages at the same time

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._ended: list[tuple[str, float | Exception]] = []

    def submit(self, task: Task) -> None:
        """Start a stage."""
        try:
            outcome: float | Exception = run_task(task, reported(task.planned.name, self._watch))
        except Exception as error:
            outcome = error
        self._ended = [(task.planned.name, outcome)]

    def wait(self) -> Sequence[tuple[str, float | Exception]]:
        """Block until at least one stage has ended; returns the ended ones with their seconds, or the errors they raised."""
        return self._ended


def _run_all(todo: Sequence[Planned], done: set[str], environment: Environment, pool: Pool, watch: Watch) -> None:
    """Run stages as their inputs become ready; after a failure start none, and raise it when the running ones have ended."""
    waiting = {item.name: Task(item, environment) for item in todo}
    running: dict[str, Task] = {}
    failure: Exception | None = None
    while waiting or running:
        locks = {task.lock for task in running.values()}
        for name, task in list(waiting.items()):
            ready = all(stage.name in done for stage in task.planned.stage.inputs.values())
            if ready and not failure and len(running) < pool.slots and (lock := task.lock) not in locks:
                running[name] = waiting.pop(name)
                pool.submit(task)
                locks.add(lock)
        if not running:
            break
        for name, outcome in pool.wait():
            task = running.pop(name)
            if isinstance(outcome, Exception):
                watch(Event(name, "failed", remark=scrubbed(str(outcome) or type(outcome).__name__)))
                outcome.add_note(f"in stage {name}")
                failure = failure or outcome
                continue
            done.add(name)
            if not environment.generating:
                line = str(Artifact(task.planned.folder).manifest.summary.get("line", ""))
                watch(Event(name, "done", remark=line, seconds=outcome))
    if failure is not None:
        raise failure


class _Workers(Pool):
    """One-thread worker processes on this machine, each kept for many stages; one that is killed fails its stage."""

    def __init__(self, slots: int, watch: Watch) -> None:
        super().__init__(watch)
        self.slots = slots
        self._idle: list[Connection] = []
        self._running: dict[Connection, str] = {}  # Connection to a worker -> its stage
        self._processes: dict[Connection, BaseProcess] = {}

    def submit(self, task: Task) -> None:
        worker = self._idle.pop() if self._idle else self._start()
        worker.send(task)
        self._running[worker] = task.planned.name

    def _start(self) -> Connection:
        spawn = multiprocessing.get_context("spawn")
        here, there = spawn.Pipe()
        process = spawn.Process(target=_work, args=(there, os.getpid()), daemon=False)
        process.start()
        there.close()
        self._processes[here] = process
        return here

    def wait(self) -> Sequence[tuple[str, float | Exception]]:
        """Pass on the events of workers until some stages have ended."""
        ended: list[tuple[str, float | Exception]] = []
        while not ended:
            for worker in cast("list[Connection]", connection.wait(list(self._running))):
                try:
                    message = worker.recv()
                    self._idle += [] if isinstance(message, Event) else [worker]
                except (EOFError, OSError):
                    message = WorkError(KILLED)
                    self._processes.pop(worker).join(1)
                if isinstance(message, Event):
                    self._watch(message)
                else:
                    ended.append((self._running.pop(worker), message))
        return ended

    def stop(self) -> None:
        """End all workers within seconds: the idle ones leave by themselves, a training may write a checkpoint first."""
        for worker, process in self._processes.items():
            worker.close()
            if worker in self._running:
                process.terminate()
        until = time.monotonic() + GRACE
        for process in self._processes.values():
            process.join(max(0.1, until - time.monotonic()))
            process.kill()


KILLED = (
    "a worker process was killed (out of memory, or a signal). What was finished is kept; run the same command to go on, "
    "with fewer workers (--set workers=1) or cards (CUDA_VISIBLE_DEVICES) if memory was short."
)
GRACE = 5.0  # Seconds that workers have to end when a run is stopped
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


@contextlib.contextmanager
def local_pool(slots: int, watch: Watch) -> Iterator[Pool]:
    """One-thread worker processes on this machine, stopped at the end of the block; this process if one is enough."""
    if slots <= 1:
        yield Pool(watch)
        return
    pool, before = _Workers(slots, watch), {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))  # inherited by the workers
    try:
        yield pool
    finally:
        pool.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _work(parent: Connection, pid: int) -> None:
    """The main function of a worker: run tasks until the parent has no more. It ends with its parent and ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != pid:
        os._exit(1)
    with contextlib.suppress(EOFError, OSError):
        while True:
            task = parent.recv()
            try:
                outcome: Any = run_task(task, reported(task.planned.name, parent.send))
            except Exception as error:
                outcome = error if _is_picklable(error) else WorkError(f"{type(error).__name__}: {error}")
            parent.send(outcome)


def _is_picklable(error: Exception) -> bool:
    try:
        return isinstance(pickle.loads(pickle.dumps(error)), type(error))  # noqa: S301
    except Exception:
        return False


def reported(name: str, watch: Watch) -> Progress:
    """Report that a stage has started; returns its progress function, which reports at most five times a second."""
    last = 0.0

    def progress(done: int, total: int | None, remark: str) -> None:
        nonlocal last
        if time.monotonic() - last > 0.2 or done == total:
            last = time.monotonic()
            watch(Event(name, "progress", done, total, remark))

    watch(Event(name, "started"))
    return progress
