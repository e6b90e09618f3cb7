"""The process that compares answers by math-verify, and its keeper, who may kill it.

A model can write an answer on which no comparison ever ends (towers of powers) or which eats all memory. So every
comparison runs in a process of its own kind: warm, limited in memory, and killed when it takes too long. `python -m
demur.judge.grader` is that process: a JSON line `[gold, answer]` in, a JSON line `[equal or null, reason]` out.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import queue
import resource
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

from demur.interfaces import Traces, stream
from demur.records import Trace, Verdict

SECONDS = 5.0
"""Wall time of one comparison."""
MEMORY = 2 << 30
"""Bytes of address space of a worker; it needs about 0.5 GB."""
LONGEST = 1000
"""Characters beyond which an answer is none: the longest gold of MATH has 159."""


class Graded(NamedTuple):
    """Whether two answers are equal; `None`: it cannot be told, for the reason given."""

    equal: bool | None
    reason: str = ""


async def in_threads(traces: Traces, judge: Callable[[Trace], Verdict], *, workers: int) -> AsyncIterator[Verdict]:
    """Verdicts in the order of the traces, `workers` of them in the making at the same time."""
    pending: deque[asyncio.Future[Verdict]] = deque()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(workers) as threads:
        async for trace in stream(traces):
            pending.append(loop.run_in_executor(threads, judge, trace))
            while pending and (pending[0].done() or len(pending) > 16 * workers):
                yield await pending.popleft()
        while pending:
            yield await pending.popleft()


class Graders:
    """Warm workers, started when first needed. Any thread may ask; one that is killed is replaced."""

    def __init__(self, *, workers: int = 2, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self.workers = workers
        self._seconds, self._memory = seconds, memory
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(workers):
            self._idle.put(None)

    def __enter__(self) -> Graders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for _ in range(self.workers):
            worker = self._idle.get()
            if worker is not None:
                worker.end()

    def grade(self, gold: str, answer: str) -> Graded:
        """Whether an answer equals the gold, in that order: math-verify is asymmetric by design."""
        if len(answer) > LONGEST:
            return Graded(False, f"{len(answer)} characters are no answer")
        worker = self._idle.get()
        try:
            fresh = worker is None
            worker = worker or _Worker(self._memory)
            found = worker.ask(gold, answer, self._seconds)
            if found is None and not fresh:
                # It may have died of what came before: once more, in a new one.
                worker.end()
                worker = _Worker(self._memory)
                found = worker.ask(gold, answer, self._seconds)
            if found is None or found.reason == TOO_LONG:
                worker.end()
                worker = None
            return found or Graded(None, "the comparison ran out of memory or crashed")
        finally:
            self._idle.put(worker)


TOO_LONG = "the comparison took too long"


class _Worker:
    """One process."""

    def __init__(self, memory: int) -> None:
        command = [sys.executable, "-m", "demur.judge.grader", str(memory)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._out, selectors.EVENT_READ)
        self._out.readline()  # It has imported everything.

    def ask(self, gold: str, answer: str, seconds: float) -> Graded | None:
        """The comparison; `None` when the process died of it."""
        try:
            self._in.write(json.dumps([gold, answer]).encode() + b"\n")
            self._in.flush()
        except OSError:
            return None
        if not self._selector.select(seconds):
            return Graded(None, TOO_LONG)
        line = self._out.readline()
        return Graded(*json.loads(line)) if line.endswith(b"\n") else None

    def end(self) -> None:
        """Kill it and wait: what hangs does not listen to anything milder."""
        self._selector.close()
        self._process.kill()
        self._process.wait()
        self._in.close()
        self._out.close()


def compare(gold: str, answer: str) -> Graded:
    """Whether math-verify finds two answers equal. Runs in a worker: it may hang, crash or take all memory."""
    from math_verify import LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig(boxed_match_priority=0)]
    right = parse(f"\\boxed{{{gold}}}", config, parsing_timeout=None)
    if not right:
        return Graded(None, "the gold cannot be read")
    given = parse(f"\\boxed{{{answer}}}", config, parsing_timeout=None)
    if not given:
        return Graded(False, "the answer cannot be read as mathematics")
    return Graded(bool(verify(right, given, timeout_seconds=None)))


def main() -> None:
    """Serve until standard input ends, or the parent dies."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a hanging worker must not outlive a killed run.
    logging.disable()
    compare("1", "1")
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.write("\n")
    sys.stdout.flush()
    for line in sys.stdin:
        gold, answer = json.loads(line)
        try:
            found = compare(gold, answer)
        except MemoryError:
            return
        except RecursionError:
            found = Graded(False, "the answer is nested too deeply to be one")
        except Exception as error:
            found = Graded(None, f"math-verify failed: {type(error).__name__}")
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
