"""Runs a graph of stages: in this process, in one-thread workers that stay alive, or on a Ray cluster.

What is published under the same fingerprint is reused. Workers are separate processes with one thread each: independent
trainings in parallel beat one training on two threads (and two threads on a busy machine can be ten times slower), and
they stay alive because importing the training libraries takes seconds.
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
from collections.abc import Awaitable, Callable, Iterator, Sequence
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
    """What a running stage reports."""

    name: str
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
    """Do what is not done yet of some stages and all that they read; returns all artifacts by stage name.

    `workers` are so many processes of this machine (1: this one) where no model has cards, or a pool elsewhere. Replies are kept in
    `cache`, by default in the run's folder `out`. With `add` the run's other stages stay in its graph; else these are the whole of it.

    Raises WorkError: a stage failed; what was finished is kept and the same call goes on from there.
    """
    say = watch or (lambda event: None)
    with artifacts.locked(out):
        planned = plan(stages, out)
        write_graph(planned, out, add=add)
        done = {item.name for item in planned if item.done}
        todo = [item for item in planned if item.name not in done]
        for name in (item.name for item in planned if item.name in done):
            say(Event(name, "reused"))
        way = Way(cache or out / CACHE, time.time())
        _reach(todo, way.cache)
        phases = schedule(planned) if isinstance(workers, int) else []
        if any(phase.places for phase in phases):
            _in_phases(phases, done, way, say)
        elif not isinstance(workers, int):
            _drive(todo, done, way, workers, say)
        else:
            with local_pool(min(workers, len(todo)), say) as pool:
                _drive(todo, done, way, pool, say)
        return {item.name: Artifact(item.folder) for item in planned}


def _reach(todo: Sequence[Planned], cache: Path) -> None:
    """See that the servers that others started are up, but for those whose replies are kept. Raises UserError: one is not."""
    every = ((item.stage.models, ask) for item in todo for ask in item.stage.estimate() if ask.requests)
    asks = [(ask.part, models.get(ask.part)) for models, ask in every]
    asked = {one.where: (part, one) for part, one in asks if isinstance(one, Remote) and not one.missing()}

    async def looked() -> list[str]:
        from demur.models.transport import silent

        return await asyncio.gather(*(silent(model) for _, model in asked.values()))

    told = asyncio.run(looked()) if asked else []
    down = [(*one, why) for one, why in zip(asked.values(), told, strict=True) if why]
    if down:
        with ReplyCache(cache) as kept:
            down = [one for one in down if not kept.answered(one[1].known_by(one[1].model))]
    if down:
        lines = [f"{part}: {model.where} cannot be reached: {why}." for part, model, why in down]
        raise UserError("\n".join([*lines, "Nothing was asked. Start what is down, and run the same command."]))


def _in_phases(phases: Sequence[Phase], done: set[str], way: Way, say: Watch) -> None:
    """Follow a schedule, each phase with its models up and a process for each target, this one where there are no two."""
    if problems := [phase.problem for phase in phases if phase.problem]:
        raise UserError("\n".join(dict.fromkeys(problems)))
    with contextlib.closing(Servers()) as running:
        for phase in phases:
            here = way._replace(reach=running.move_to(phase), generating=phase.generating)
            with local_pool(sum(place.need.part == "target" for place in phase.places), say) as pool:
                # Who only asks publishes nothing.
                _drive(phase.stages, set(done) if phase.generating else done, here, pool, say)


class Way(NamedTuple):
    """How the stages of a run, or of a phase of it, are done."""

    cache: Path
    began: float  # When the run did: what is in the cache since is its own
    reach: Callable[[ModelConfig], ModelConfig] | None = None  # What a model is asked by, where servers are up
    generating: bool = False  # Only ask; nothing is published


class Job(NamedTuple):
    """Everything a worker needs, to be sent."""

    planned: Planned
    way: Way

    @property
    def lane(self) -> str:
        """Of stages with the same, one is at work at a time: their target, where a schedule gives it its cards."""
        target = self.planned.stage.played(self.planned.folders).get("target") if self.way.reach else None
        return key_of(target) if target is not None else self.planned.name


def do(job: Job, progress: Progress) -> float:
    """Run one stage and publish it; returns the seconds it took."""
    (stage, mark, folder, marks, inputs), (cache, since, reach, generating) = job
    with artifacts.drafted(folder, fresh=not stage.resumable) as (draft, began):
        there = {part: Artifact(path) for part, path in inputs.items()}
        context = Context(stage, inputs=there, draft=draft, cache=cache, progress=progress)
        context.since, context.reach, context.generating = since, reach or context.reach, generating
        try:
            if (work := stage.run(context)) is not None:
                asyncio.run(_finished(context, work))
        finally:
            _release(trained=stage.trains)
        seconds = time.monotonic() - began
        if generating:
            return seconds
        if context.cache and context.cache.found:
            draft.line += f"; {context.cache.found:,} repl{'y' if context.cache.found == 1 else 'ies'} from the cache"
        manifest = Manifest(
            name=stage.name, kind=stage.kind, version=stage.version, fingerprint=mark, inputs=marks,
            settings=stage.settings.model_dump(mode="json", by_alias=True), seconds=round(seconds, 3),
            models={part: one.model_dump(mode="json", exclude_defaults=True) for part, one in stage.models.items()},
        )  # fmt: skip
        draft.publish(manifest)
    return seconds


def _release(*, trained: bool) -> None:
    """Give memory back: a server, a training or another worker may need it next."""
    if (torch := sys.modules.get("torch")) is None:
        return
    if trained or torch.cuda.is_initialized():
        gc.collect()
    torch.cuda.empty_cache()  # nothing where there is no accelerator
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        # Freed tensors leave holes in the heap: a worker kept 3.8 of the 4.3 GB that training a model of 135M takes.
        libc.malloc_trim(0)


async def _finished(context: Context, work: Awaitable[None]) -> None:
    """A stage's work to its end; its models are closed with it."""
    async with context:
        await work


class Pool:
    """Who runs stages: this process, one stage at a time, done when it is submitted. Others work elsewhere."""

    slots = 1  # Stages at the same time

    def __init__(self, say: Watch) -> None:
        self._say = say
        self._ended: list[tuple[str, float | Exception]] = []

    def submit(self, job: Job) -> None:
        """Start a stage."""
        try:
            outcome: float | Exception = do(job, reported(job.planned.name, self._say))
        except Exception as error:
            outcome = error
        self._ended = [(job.planned.name, outcome)]

    def wait(self) -> Sequence[tuple[str, float | Exception]]:
        """Block until at least one has ended; returns those that have, with the seconds they took or what they raised."""
        return self._ended


def _drive(todo: Sequence[Planned], done: set[str], way: Way, pool: Pool, say: Watch) -> None:
    """Run stages as their inputs become ready; the first failure stops new ones and is raised when the rest have ended."""
    waiting = {item.name: Job(item, way) for item in todo}
    running: dict[str, Job] = {}
    failure: Exception | None = None
    while waiting or running:
        busy = {job.lane for job in running.values()}
        for name, job in list(waiting.items()):
            ready = all(one.name in done for one in job.planned.stage.inputs.values())
            if ready and not failure and len(running) < pool.slots and (lane := job.lane) not in busy:
                running[name] = waiting.pop(name)
                pool.submit(job)
                busy.add(lane)
        if not running:
            break
        for name, outcome in pool.wait():
            job = running.pop(name)
            if isinstance(outcome, Exception):
                say(Event(name, "failed", remark=scrubbed(str(outcome) or type(outcome).__name__)))
                outcome.add_note(f"in stage {name}")
                failure = failure or outcome
                continue
            done.add(name)
            if not way.generating:
                line = str(Artifact(job.planned.folder).manifest.summary.get("line", ""))
                say(Event(name, "done", remark=line, seconds=outcome))
    if failure is not None:
        raise failure


class _Workers(Pool):
    """One-thread worker processes on this machine. They stay alive from stage to stage; one that dies fails its stage."""

    def __init__(self, slots: int, say: Watch) -> None:
        super().__init__(say)
        self.slots = slots
        self._idle: list[Connection] = []
        self._running: dict[Connection, str] = {}
        self._processes: dict[Connection, BaseProcess] = {}

    def submit(self, job: Job) -> None:
        here = self._idle.pop() if self._idle else self._start()
        here.send(job)
        self._running[here] = job.planned.name

    def _start(self) -> Connection:
        spawn = multiprocessing.get_context("spawn")
        here, there = spawn.Pipe()
        process = spawn.Process(target=_worker, args=(there, os.getpid()), daemon=False)
        process.start()
        there.close()
        self._processes[here] = process
        return here

    def wait(self) -> Sequence[tuple[str, float | Exception]]:
        """Pass on what workers report until some stages have ended."""
        ended: list[tuple[str, float | Exception]] = []
        while not ended:
            for here in cast("list[Connection]", connection.wait(list(self._running))):
                try:
                    message = here.recv()
                    self._idle += [] if isinstance(message, Event) else [here]
                except (EOFError, OSError):
                    message = WorkError(KILLED)
                    self._processes.pop(here).join(1)
                if isinstance(message, Event):
                    self._say(message)
                else:
                    ended.append((self._running.pop(here), message))
        return ended

    def stop(self) -> None:
        """End all workers within seconds; a training may write a checkpoint first."""
        for here, process in self._processes.items():
            here.close()
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
def local_pool(slots: int, say: Watch) -> Iterator[Pool]:
    """Worker processes on this machine, of one thread each, ended with the block; this process where one is enough."""
    if slots <= 1:
        yield Pool(say)
        return
    pool, before = _Workers(slots, say), {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))  # child processes are born with them
    try:
        yield pool
    finally:
        pool.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _worker(parent: Connection, pid: int) -> None:
    """A worker: it runs what it is sent until its parent has no more. It dies with it, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != pid:
        os._exit(1)
    with contextlib.suppress(EOFError, OSError):
        while True:
            job = parent.recv()
            try:
                ended: Any = do(job, reported(job.planned.name, parent.send))
            except Exception as error:
                ended = error if _can_be_sent(error) else WorkError(f"{type(error).__name__}: {error}")
            parent.send(ended)


def _can_be_sent(error: Exception) -> bool:
    try:
        return isinstance(pickle.loads(pickle.dumps(error)), type(error))  # noqa: S301
    except Exception:
        return False


def reported(name: str, say: Watch) -> Progress:
    """Says that a stage has started; returns its progress, which is passed on at most five times a second."""
    last = 0.0

    def progress(done: int, total: int | None, remark: str) -> None:
        nonlocal last
        if time.monotonic() - last > 0.2 or done == total:
            last = time.monotonic()
            say(Event(name, "progress", done, total, remark))

    say(Event(name, "started"))
    return progress
