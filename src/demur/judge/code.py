"""The grader of code: the program in the answer part, run in isolation on every test of its problem.

A program is right when it passes all tests; the first that fails ends it, and is named with the way it failed. The program
is the last fenced block of the answer that is marked as Python, else its last fenced block, else the whole answer if it
begins like a program. Fences inside the thinking are not looked at, and a heading such as `### Answer` ends nothing.
"""

import hashlib
import json
import os
import re
import textwrap
import zlib
from collections.abc import AsyncIterator
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

import msgspec

from demur.errors import UserError
from demur.interfaces import Traces
from demur.judge import isolation
from demur.judge.base import Grader, in_threads
from demur.judge.isolation import Limits, Run, run_program
from demur.records import Part, Query, Trace, Verdict
from demur.storage.artifacts import cache_folder

TESTS = "tests"  # Folder of the cache in which benchmarks keep their tests, each as `HASH.json.zz`
_FENCE = re.compile(r"(?:^[ \t]*(?:[-*+] |\d+[.)] )?|[:.] *)(?P<fence>`{3,}|~{3,})[ \t]*(?P<mark>[\w+-]*)[^\n`]*$")
_PROGRAM = re.compile(r"(?:import|from|def|class|#|for|print\(|[a-zA-Z_][\w, ]*? ?=(?!=) ?|@)")
_FUTURE = re.compile(r"^from __future__ import [^\n]+$", re.MULTILINE)
_NAMES = "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json builtins typing"
HEADER = (  # What contest programs take for granted
    "".join(f"from {name} import *\n" for name in _NAMES.split())
    + "".join(f"import {name}\n" for name in _NAMES.split())
    + "sys.setrecursionlimit(50000)\nsys.set_int_max_str_digits(0)\n"
)
DRIVER = """

def _demur_drive():
    import json, sys
    given = [json.loads(line) for line in sys.stdin.read().split("\\n") if line.strip()]
    owner = globals().get("Solution")
    call = getattr(owner(), "{name}") if owner else globals()["{name}"]
    sys.stdout.write("\\n" + json.dumps(call(*given)) + "\\n")
_demur_drive()
"""


class CodeJudge(Grader):
    """Correct, wrong or no_answer. Refuses to exist without isolation."""

    name = "code"
    missing = staticmethod(isolation.missing)

    def __init__(
        self,
        *,
        query: Query = "question",
        part: Part = "answer",
        workers: int | None = None,
        limits: Limits = isolation.STANDARD,
    ) -> None:
        """Make sure that programs can be isolated here.

        Raises UserError: there is no bubblewrap; WorkError: it does not work on this machine.
        """
        super().__init__(query=query, part=part)
        run_program("", limits=limits)
        self._workers, self._limits = workers or os.cpu_count() or 1, limits

    async def verdicts(self, traces: Traces) -> AsyncIterator[Verdict]:
        """Exactly one verdict a trace, in the order of the traces."""
        async for verdict in in_threads(traces, self.verdict, workers=self._workers):
            yield verdict

    def verdict(self, trace: Trace) -> Verdict:
        """The verdict on one trace. Raises UserError: its prompt has no tests, or they are not in the cache."""
        tests = load_tests(trace.prompt.gold)
        if trace.answer is None or trace.outcome == "cut_in_answer":
            return self.new_verdict(trace.id, "no_answer", f"no program: {trace.outcome}")
        program = extract(trace.answer)
        if program is None:
            return self.new_verdict(trace.id, "no_answer", "no program in the answer")
        fault = self.fault(program, tests)
        if fault:
            return self.new_verdict(trace.id, "wrong", fault)
        return self.new_verdict(trace.id, "correct", f"{len(tests['tests'])} tests passed")

    def fault(self, program: str, tests: dict[str, Any]) -> str:
        """The first test that a program fails, and how; empty when it passes all."""
        name = tests["func_name"]
        future = "\n".join(_FUTURE.findall(program))
        source = f"{future}\n{HEADER}\n{_FUTURE.sub('', program)}"
        if name is not None:
            source += DRIVER.replace("{name}", name)
        source += tests.get("check", "")  # assertions that end by printing what is expected
        same = printed_last if "check" in tests else same_value if name else same_output
        for number, test in enumerate(tests["tests"], 1):
            run = run_program(source, stdin=test["input"].encode("utf-8", "replace"), limits=self._limits)
            if run.ending != "ok" or not same(run, test["output"]):
                how: str = "wrong output" if run.ending == "ok" else run.ending
                if run.ending == "error":  # the last words of an exception
                    how += f" ({_last(run.stderr)[:200] or f'exit {run.exit}'})"
                return f"test {number} of {len(tests['tests'])}: {how}"
        return ""


def _last(printed: bytes) -> str:
    """The last line of what was printed."""
    return printed.decode("utf-8", "replace").strip().rpartition("\n")[2]


@lru_cache(maxsize=8)
def load_tests(gold: str | None) -> dict[str, Any]:
    """The tests that a gold holds, or that it names by their hash in the cache.

    Raises UserError: there are none, or what is in the cache is not what was put there.
    """
    try:
        found: dict[str, Any] = json.loads(gold or "")
        if isinstance(found["tests"], str):
            found = json.loads(_kept(found["tests"]))
        if found["func_name"] is not None and not str(found["func_name"]).isidentifier():
            raise ValueError("func_name is no name")
        msgspec.convert(found["tests"], list[dict[str, str]])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"a prompt's gold holds no tests ({error}): it cannot be graded.") from None
    return found


def _kept(sha: str) -> bytes:
    file = cache_folder() / TESTS / f"{sha}.json.zz"
    try:
        data = zlib.decompress(file.read_bytes())
    except (OSError, zlib.error):
        data = b""
    if hashlib.sha256(data).hexdigest() != sha:
        raise UserError(
            f"{file}: the tests of this benchmark are not in the cache. Load the benchmark again on this machine, by `demur check "
            "bench livecodebench --data FILE`; they are too large to travel with the traces."
        )
    return data


def extract(answer: str) -> str | None:
    """The program of an answer, as the head of this module says; `None` when there is none."""
    blocks, before = _blocks(answer.lstrip("\ufeff"))
    marked = [text for mark, text in blocks if mark in ("python", "python3", "py") and text.strip()]
    if marked or blocks:
        return (marked or [text for _, text in blocks])[-1].strip().removeprefix("python\n") or None
    return before.strip() if _PROGRAM.match(before.strip()) else None


def _blocks(answer: str) -> tuple[list[tuple[str, str]], str]:
    """Mark and text of the fenced blocks, closed or not, and what stands before the first fence."""
    blocks: list[tuple[str, str]] = []
    before: list[str] = []
    lines: list[str] = []
    fence = mark = ""
    for line in answer.split("\n"):
        bare = line.strip().rstrip("}")
        opening = _FENCE.search(line)
        if not fence and opening:
            fence, mark, lines = opening["fence"], opening["mark"].lower(), []
        elif not fence:
            before += [] if blocks else [line]
        elif bare == fence[0] * len(bare) and len(bare) >= len(fence):
            blocks, fence = [*blocks, (mark, textwrap.dedent("\n".join(lines)))], ""
        elif bare.endswith(fence) and bare.count(fence) == 1:
            lines.append(line.rstrip().removesuffix(fence))
            blocks, fence = [*blocks, (mark, textwrap.dedent("\n".join(lines)))], ""
        elif opening and opening["mark"] and len(opening["fence"]) >= len(fence):
            fence, mark, lines = opening["fence"], opening["mark"].lower(), []  # One that nobody closed.
        else:
            lines.append(line)
    if fence and any(map(str.strip, lines)):
        blocks.append((mark, textwrap.dedent("\n".join(lines))))
    inner = [found for _, text in blocks for found in (_blocks(text)[0] if "```" in text or "~~~" in text else ())]
    return blocks + inner, "\n".join(before)


def printed_last(run: Run, expected: str) -> bool:
    """Whether the last line that a program printed is the expected one."""
    return _last(run.stdout).endswith(expected)


def same_output(run: Run, expected: str) -> bool:
    """Whether a program printed what was expected: the same lines, space at their ends aside, or the same numbers."""
    given, wanted = (text.strip().split("\n") for text in (run.stdout.decode("utf-8", "replace"), expected))
    return len(given) == len(wanted) and all(map(_same_line, given, wanted))


def _same_line(given: str, wanted: str) -> bool:
    if given.strip() == wanted.strip():
        return True
    try:
        return [*map(Decimal, given.split())] == [*map(Decimal, wanted.split())]
    except (InvalidOperation, ValueError):
        return False


def same_value(run: Run, expected: str) -> bool:
    """Whether a function gave the expected JSON value; the driver prints it as the last line. Tuples are lists."""
    try:
        return bool(json.loads(_last(run.stdout), parse_int=_whole) == json.loads(expected, parse_int=_whole))
    except (ValueError, RecursionError):
        return False


def _whole(digits: str) -> int | str:
    """An integer; one that Python would not read is compared by its digits."""
    return int(digits) if len(digits) < 4000 else digits
