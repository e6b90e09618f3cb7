"""Runs a graph of stages: in this process, in one-thread workers that stay alive, or on a Ray cluster.

A `Node` is a stage to be done: plain data. Its fingerprint follows from its kind's version, its settings, the
fingerprints of its inputs and the content of the outside files it reads, so the whole graph is known before anything
starts; what is published under the same fingerprint is reused. Workers are separate processes with one thread each:
independent trainings in parallel beat one training on two threads (and two threads on a busy machine can be ten times
slower), and they stay alive because importing the training libraries takes seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from demur.errors import UserError, WorkError
from demur.interfaces import Progress
from demur.records import Record
from demur.registry import resolve
from demur.storage import artifacts as runs
from demur.storage.artifacts import Artifact, Draft


class Node(Record, frozen=True, kw_only=True):
    """A stage to be done."""

    name: str
    """Unique in the graph, such as `train-improved-s0`; the folder is NAME-HASH."""
    kind: str
    """Key of `stages.KINDS`."""
    settings: dict[str, Any]
    inputs: dict[str, str] = {}
    """Role -> name of the node whose artifact is read."""
    files: dict[str, str] = {}
    """Role -> path of a file or folder from outside; its content, not its place, enters the fingerprint."""


class Kind(NamedTuple):
    """What a kind of stage is: its function, and a version that is raised when its results change."""

    function: str
    """`module:function`, called with a `Task`."""
    version: int
    resumable: bool = False
    """Whether what an interrupted attempt left in the folder is of use to the next."""


class Task(NamedTuple):
    """What a stage function gets."""

    node: Node
    inputs: dict[str, Artifact]
    files: dict[str, Path]
    draft: Draft
    journal: Path
    progress: Progress


class Planned(NamedTuple):
    """A node with its fingerprint, its folder, and the fingerprints of all that it reads."""

    node: Node
    fingerprint: str
    folder: Path
    inputs: dict[str, str]

    @property
    def done(self) -> bool:
        """Whether its artifact is there already."""
        return runs.is_published(self.folder)


class Event(NamedTuple):
    """What a running stage reports."""

    name: str
    state: str
    """reused, started, progress, done or failed."""
    done: int = 0
    total: int | None = None
    remark: str = ""
    seconds: float = 0.0


Watch = Callable[[Event], None]


def plan(nodes: Sequence[Node], kinds: Mapping[str, Kind], out: Path) -> list[Planned]:
    """Fingerprints and folders of all nodes, in an order in which inputs come first.

    Raises:
        UserError: an outside file is missing.
    """
    planned: dict[str, Planned] = {}
    hashes: dict[str, str] = {}
    waiting = {node.name: node for node in nodes}
    assert len(waiting) == len(nodes), "two stages of one name"
    while waiting:
        ready = [node for node in waiting.values() if all(name in planned for name in node.inputs.values())]
        assert ready, f"a circle or a missing input among {sorted(waiting)}"
        for node in ready:
            inputs = {role: planned[name].fingerprint for role, name in node.inputs.items()}
            inputs |= {f"file:{role}": _hash(path, hashes) for role, path in node.files.items()}
            kind = kinds[node.kind]
            mark = runs.fingerprint(kind=node.kind, version=kind.version, settings=node.settings, inputs=inputs)
            planned[node.name] = Planned(node, mark, out / "stages" / f"{node.name}-{mark[:8]}", inputs)
            del waiting[node.name]
    return list(planned.values())


def _hash(path: str, known: dict[str, str]) -> str:
    """Content hash of an outside file, once for each."""
    if path not in known:
        if not Path(path).exists():
            raise UserError(f"{path}: no such file or folder.")
        known[path] = runs.hash_path(Path(path))
    return known[path]


def execute(
    nodes: Sequence[Node],
    *,
    kinds: Mapping[str, Kind],
    out: Path,
    journal: Path | None = None,
    workers: int | Pool = 1,
    watch: Watch | None = None,
) -> dict[str, Artifact]:
    """Do what is not done yet and give all artifacts by node name.

    Args:
        nodes: the graph.
        kinds: what each kind of stage is.
        out: the run's folder.
        journal: where replies are kept; default: in the run's folder.
        workers: processes on this machine (1: this process), or a pool of workers elsewhere.
        watch: told of every event.

    Raises:
        WorkError: a stage failed; what was finished is kept and the same call goes on from there.
    """
    say = watch or (lambda event: None)
    with runs.locked(out):
        planned = plan(nodes, kinds, out)
        todo = [item for item in planned if not item.done]
        for item in planned:
            if item.done:
                say(Event(item.node.name, "reused"))
        context = _Context({item.node.name: item for item in planned}, kinds, journal or out / "journal")
        if not isinstance(workers, int):
            _drive(todo, context, workers, say)
        elif workers <= 1 or len(todo) <= 1:
            for item in todo:
                _run_here(item, context, say)
        else:
            with local_pool(min(workers, len(todo)), say) as pool:
                _drive(todo, context, pool, say)
        return {item.node.name: Artifact(item.folder) for item in planned}


class _Context(NamedTuple):
    planned: dict[str, Planned]
    kinds: Mapping[str, Kind]
    journal: Path

    def ready(self, item: Planned) -> bool:
        """Whether all inputs of a stage are published."""
        return all(self.planned[name].done for name in item.node.inputs.values())

    def job(self, item: Planned) -> Job:
        node = item.node
        inputs = {role: self.planned[name] for role, name in node.inputs.items()}
        folders = {role: there.folder for role, there in inputs.items()}
        return Job(node, self.kinds[node.kind], folders, item.inputs, item.folder, self.journal)


class Job(NamedTuple):
    """Everything a worker needs: plain data, so that it can be sent."""

    node: Node
    kind: Kind
    inputs: dict[str, Path]
    marks: dict[str, str]
    folder: Path
    journal: Path


def do(job: Job, progress: Progress) -> float:
    """Run one stage and publish it; gives the seconds it took."""
    function = resolve("stage", job.kind.function, {})
    inputs = {role: Artifact(folder) for role, folder in job.inputs.items()}
    files = {role: Path(path) for role, path in job.node.files.items()}
    with runs.drafted(job.folder, fresh=not job.kind.resumable) as (draft, began):
        try:
            function(Task(job.node, inputs, files, draft, job.journal, progress))
        except BaseException:
            if not job.kind.resumable:
                shutil.rmtree(job.folder, ignore_errors=True)
            raise
        seconds = time.monotonic() - began
        draft.publish(
            name=job.node.name,
            kind=job.node.kind,
            version=job.kind.version,
            settings=job.node.settings,
            inputs=job.marks,
            seconds=seconds,
        )
    return seconds


def _run_here(item: Planned, context: _Context, say: Watch) -> None:
    """Run one stage in this process."""
    name = item.node.name
    say(Event(name, "started"))

    def progress(done: int, total: int | None, remark: str) -> None:
        say(Event(name, "progress", done, total, remark))

    try:
        seconds = do(context.job(item), progress)
    except BaseException:
        say(Event(name, "failed"))
        raise
    say(Event(name, "done", remark=_summary(item), seconds=seconds))


def _summary(item: Planned) -> str:
    """The line a stage wants said when it is done."""
    return str(Artifact(item.folder).manifest.summary.get("line", ""))


class Pool(Protocol):
    """Workers that run stages."""

    @property
    def slots(self) -> int:
        """Stages at the same time."""
        ...

    def submit(self, job: Job) -> Any:
        """Start a stage; gives a handle."""
        ...

    def wait(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Block until at least one has ended; gives those that have."""
        ...

    def seconds(self, handle: Any) -> float:
        """How long an ended stage took; raises what it raised."""
        ...


def _drive(todo: list[Planned], context: _Context, pool: Pool, say: Watch) -> None:
    """Run stages as their inputs become ready; the first failure stops new ones and is raised when the rest have ended."""
    waiting = {item.node.name: item for item in todo}
    running: dict[Any, Planned] = {}
    failure: BaseException | None = None
    while waiting or running:
        ready = [] if failure else [item for item in waiting.values() if context.ready(item)]
        for item in ready[: pool.slots - len(running)]:
            running[pool.submit(context.job(item))] = item
            del waiting[item.node.name]
        if not running:
            break
        for handle in pool.wait(list(running)):
            failure = _settle(pool, handle, running.pop(handle), say) or failure
    if failure is not None:
        raise failure


def _settle(pool: Pool, handle: Any, item: Planned, say: Watch) -> BaseException | None:
    """Say how a stage ended; gives its error, told as the stage's."""
    try:
        seconds = pool.seconds(handle)
    except BaseException as error:
        say(Event(item.node.name, "failed"))
        error.add_note(f"in stage {item.node.name}")
        return error
    say(Event(item.node.name, "done", remark=_summary(item), seconds=seconds))
    return None


class _Local:
    """Worker processes on this machine."""

    def __init__(self, pool: ProcessPoolExecutor, slots: int) -> None:
        self.pool, self.slots = pool, slots

    def submit(self, job: Job) -> Future[float]:
        return self.pool.submit(_work, job)

    def wait(self, handles: Sequence[Future[float]]) -> Sequence[Future[float]]:
        return list(wait(handles, return_when=FIRST_COMPLETED).done)

    def seconds(self, handle: Future[float]) -> float:
        try:
            return handle.result()
        except BrokenProcessPool:
            raise WorkError(
                "a worker process was killed (out of memory, or a signal). What was finished is kept; run the same "
                "command to go on, with --set workers=1 if memory was short."
            ) from None


@contextlib.contextmanager
def local_pool(slots: int, say: Watch) -> Iterator[Pool]:
    """One-thread worker processes that stay alive; they are ended at once when the block is left by an error."""
    spawn = multiprocessing.get_context("spawn")
    events: Any = spawn.Queue()
    stop = threading.Event()
    listener = threading.Thread(target=_listen, args=(events, say, stop), daemon=True)
    listener.start()
    pool = ProcessPoolExecutor(slots, mp_context=spawn, initializer=_start_worker, initargs=(events, os.getpid()))
    try:
        with one_thread():
            yield _Local(pool, slots)
    except BaseException as error:
        if not isinstance(error, Exception):
            # Stopped by hand: stages under way are not published and start again next time.
            for process in list((pool._processes or {}).values()):
                process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        stop.set()
        listener.join(timeout=5)
        events.close()


def _listen(events: Any, say: Watch, stop: threading.Event) -> None:
    """Pass on what workers report."""
    while not stop.is_set():
        with contextlib.suppress(queue.Empty, EOFError, OSError):
            say(Event(*events.get(timeout=0.2)))


_events: Any = None
"""In a worker: where its progress goes. Set once when the worker starts."""


def _start_worker(events: Any, parent: int) -> None:
    """Prepare a worker: it dies with its parent, leaves Ctrl-C to it, and keeps to one thread."""
    global _events
    _events = events
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _work(job: Job) -> float:
    """Run one stage in a worker."""
    return do(job, reported(job.node.name, _events.put))


def reported(name: str, put: Callable[[tuple[Any, ...]], object]) -> Progress:
    """Says that a stage has started; gives its progress, which is told at most five times a second."""
    last = 0.0

    def progress(done: int, total: int | None, remark: str) -> None:
        nonlocal last
        if time.monotonic() - last > 0.2 or done == total:
            last = time.monotonic()
            put(tuple(Event(name, "progress", done, total, remark)))

    put(tuple(Event(name, "started")))
    return progress


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """An environment whose child processes use one thread for numerics."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
