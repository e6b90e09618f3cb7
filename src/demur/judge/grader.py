"""Comparing two answers by math-verify, in processes that may be killed.

A model can write an answer on which no comparison ever ends (towers of powers) or which takes all memory. So every
comparison runs in a warm worker with a limit on its memory and on its CPU time: another process that keeps the machine
busy changes no verdict.
"""

import multiprocessing
import os
import resource
import signal
from concurrent.futures import CancelledError, TimeoutError
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

from demur.errors import WorkError

SECONDS = 5  # CPU time of one comparison. An answer that needs more is not the gold.
WALL = 120.0  # Seconds after which a comparison that uses no CPU is given up
MEMORY = 2 << 30  # Bytes of address space of a worker; it needs about 0.5 GB
LONGEST = 1000  # Characters beyond which an answer is none: the longest gold of MATH has 159


class Graded(NamedTuple):
    """Whether two answers are equal; `None`: it cannot be told, for the reason given."""

    equal: bool | None
    reason: str = ""


class Graders(AbstractContextManager["Graders"]):
    """Warm workers, started when first needed. Any thread may ask; a worker that is killed is replaced."""

    def __init__(self, *, workers: int = 2, seconds: int = SECONDS, memory: int = MEMORY) -> None:
        from pebble import ProcessPool

        self.workers = workers
        self._compare = partial(_compare, seconds=seconds)
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPool(workers, initializer=_ready, initargs=(memory,), context=context)

    def __exit__(self, *why: object) -> None:
        self._pool.stop()
        self._pool.join()

    def grade(self, gold: str, answer: str) -> Graded:
        """Whether an answer equals the gold, in that order: math-verify is asymmetric by design."""
        from pebble import ProcessExpired

        if len(answer) > LONGEST:
            return Graded(False, f"{len(answer)} characters are no answer")
        try:
            found: Graded = self._pool.schedule(self._compare, args=(gold, answer), timeout=WALL).result()
            return found
        except ProcessExpired as error:
            if error.exitcode == -signal.SIGXCPU:
                return Graded(False, "the comparison took too long: no answer")
            return Graded(None, f"the comparison crashed ({error.exitcode})")
        except TimeoutError:
            return Graded(None, "the comparison hung")
        except CancelledError:
            raise WorkError("the graders were stopped while they worked.") from None


def _ready(memory: int) -> None:
    """Make a worker ready: it dies with its parent, its memory is limited, and the libraries are loaded."""
    import ctypes
    import logging

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()
    compare("1", "1")
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _compare(gold: str, answer: str, *, seconds: int) -> Graded:
    """One comparison in a worker; the kernel ends the worker when its CPU time is up."""
    used = os.times()
    end = int(used.user + used.system) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (end, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    try:
        return compare(gold, answer)
    except MemoryError:
        return Graded(False, "the comparison took too much memory: no answer")
    except RecursionError:
        return Graded(False, "the answer is nested too deeply to be one")
    except Exception as error:
        return Graded(None, f"math-verify failed: {type(error).__name__}")


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
    same = bool(verify(right, given, timeout_seconds=None))
    if same and "%" not in gold + answer and "_" not in gold + answer and _apart(right[0], given[0]):
        return Graded(False, "the numbers differ by more than rounding")
    return Graded(same)


def _apart(one: Any, other: Any) -> bool:
    """Whether two numbers differ relatively, where math-verify looks at six decimals alone."""
    if not (getattr(one, "is_number", False) and getattr(other, "is_number", False)):
        return False
    left, right = one.evalf(30), other.evalf(30)
    if not (left.is_Float and right.is_Float):
        return False
    return bool(abs(left - right) > 1e-5 * max(abs(left), abs(right)))
