"""Compares two answers by math-verify, in processes that may be killed.

A model can write an answer whose comparison never ends (towers of powers) or takes all memory. So every comparison runs
in a warm worker process with limits on memory and CPU time. CPU time, unlike wall time, does not depend on the load of
the machine, and so neither do verdicts.
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
WALL = 120.0  # Seconds after which a comparison that uses no CPU time is abandoned
MEMORY = 2 << 30  # Bytes of address space of a worker; it needs about 0.5 GB
LONGEST = 1000  # Characters of an answer, at most: the longest gold of MATH has 159


class Graded(NamedTuple):
    """Whether two answers are equal; `None`: undecided, for the reason given."""

    equal: bool | None
    reason: str = ""


class Graders(AbstractContextManager["Graders"]):
    """Worker processes, started when first needed. Any thread may use them; one that was killed is replaced."""

    def __init__(self, *, workers: int = 2, seconds: int = SECONDS, memory: int = MEMORY) -> None:
        from pebble import ProcessPool

        self._compare = partial(_compare, seconds=seconds)
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPool(workers, initializer=_ready, initargs=(memory,), context=context)

    def __exit__(self, *why: object) -> None:
        self._pool.stop()
        self._pool.join()

    def grade(self, gold: str, answer: str) -> Graded:
        """Whether an answer equals the gold. The order matters: math-verify is asymmetric by design."""
        from pebble import ProcessExpired

        if len(answer) > LONGEST:
            return Graded(False, f"{len(answer)} characters are no answer")
        try:
            graded: Graded = self._pool.schedule(self._compare, args=(gold, answer), timeout=WALL).result()
            return graded
        except ProcessExpired as error:
            if error.exitcode == -signal.SIGXCPU:
                return Graded(False, "the comparison took too long: no answer")
            return Graded(None, f"the comparison crashed ({error.exitcode})")
        except TimeoutError:
            return Graded(None, "the comparison hung")
        except CancelledError:
            raise WorkError("the graders were stopped while they worked.") from None


def _ready(memory: int) -> None:
    """Prepare a worker: it ends with its parent, its libraries are loaded, and its memory is limited."""
    import ctypes
    import logging

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()
    compare("1", "1")
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _compare(gold: str, answer: str, *, seconds: int) -> Graded:
    """One comparison in a worker; the kernel kills the worker when its CPU time is used up."""
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
    """Whether math-verify finds two answers equal. For a worker only: it may hang, crash or take all memory."""
    from math_verify import LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig(boxed_match_priority=0)]
    right = parse(f"\\boxed{{{gold}}}", config, parsing_timeout=None)
    if not right:
        return Graded(None, "the gold cannot be read")
    given = parse(f"\\boxed{{{answer}}}", config, parsing_timeout=None)
    if not given:
        return Graded(False, "the answer cannot be read as mathematics")
    same = bool(verify(right, given, timeout_seconds=None))
    if same and "%" not in gold + answer and "_" not in gold + answer and _differ(right[0], given[0]):
        return Graded(False, "the numbers differ by more than rounding")
    return Graded(same)


def _differ(first: Any, second: Any) -> bool:
    """Whether two numbers differ by more than a relative 1e-5; math-verify compares only six decimals."""
    if not (getattr(first, "is_number", False) and getattr(second, "is_number", False)):
        return False
    left, right = first.evalf(30), second.evalf(30)
    if not (left.is_Float and right.is_Float):
        return False
    return bool(abs(left - right) > 1e-5 * max(abs(left), abs(right)))
