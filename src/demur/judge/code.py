"""The grader of code: the program of an answer, run in isolation on every test of its problem.

A program is correct when it passes all tests. The first test that fails ends the run, and the verdict says how it
failed. The program is the last fenced block of the answer that is marked as Python, else its last fenced block, else
the whole answer if it begins like a program. Fences inside the thinking are ignored, and a heading such as `### Answer`
ends no block.
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
from demur.judge.isolation import STANDARD, Limits, Run, run_program
from demur.records import Part, Query, Trace, Verdict
from demur.storage.artifacts import cache_folder

TESTS = "tests"  # Folder of the cache in which benchmarks store their tests, each as `HASH.json.zz`
_FENCE = re.compile(r"(?:^[ \t]*(?:[-*+] |\d+[.)] )?|[:.] *)(?P<fence>`{3,}|~{3,})[ \t]*(?P<mark>[\w+-]*)[^\n`]*$")
_PROGRAM = re.compile(r"(?:import|from|def|class|#|for|print\(|[a-zA-Z_][\w, ]*? ?=(?!=) ?|@)")
_FUTURE = re.compile(r"^from __future__ import [^\n]+$", re.MULTILINE)
_NAMES = "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json builtins typing"
HEADER = (  # Imports and limits that contest programs rely on
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
    """Correct, wrong or no_answer."""

    name = "code"
    missing = staticmethod(isolation.missing)

    def __init__(
        self, *, query: Query = "question", part: Part = "answer", workers: int | None = None, limits: Limits = STANDARD
    ) -> None:
        """Raises UserError: bubblewrap is not installed; WorkError: it does not work on this machine."""
        super().__init__(query=query, part=part)
        run_program("", limits=limits)
        self._workers, self._limits = workers or os.cpu_count() or 1, limits

    async def verdicts(self, traces: Traces) -> AsyncIterator[Verdict]:
        """Exactly one verdict a trace, in the order of the traces."""
        async for verdict in in_threads(traces, self.verdict, workers=self._workers):
            yield verdict

    def verdict(self, trace: Trace) -> Verdict:
        """The verdict on one trace. Raises UserError: its prompt has no tests, or they are missing from the cache."""
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
        passes = printed_last if "check" in tests else same_value if name else same_output
        for number, test in enumerate(tests["tests"], 1):
            run = run_program(source, stdin=test["input"].encode("utf-8", "replace"), limits=self._limits)
            if run.ending == "ok" and passes(run, test["output"]):
                continue
            how: str = "wrong output" if run.ending == "ok" else run.ending
            if run.ending == "error":  # with the last line of the exception
                how += f" ({_last_line(run.stderr)[:200] or f'exit {run.exit}'})"
            return f"test {number} of {len(tests['tests'])}: {how}"
        return ""


def _last_line(output: bytes) -> str:
    return output.decode("utf-8", "replace").strip().rpartition("\n")[2]


@lru_cache(maxsize=8)
def load_tests(gold: str | None) -> dict[str, Any]:
    """The tests in a gold, or those in the cache by its hash. Raises UserError: they are missing or damaged."""
    try:
        tests: dict[str, Any] = json.loads(gold or "")
        if isinstance(tests["tests"], str):
            tests = json.loads(_cached(tests["tests"]))
        if tests["func_name"] is not None and not str(tests["func_name"]).isidentifier():
            raise ValueError("func_name is not an identifier")
        msgspec.convert(tests["tests"], list[dict[str, str]])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"a prompt's gold holds no tests ({error}): it cannot be graded.") from None
    return tests


def _cached(sha: str) -> bytes:
    file = cache_folder() / TESTS / f"{sha}.json.zz"
    try:
        data = zlib.decompress(file.read_bytes())
    except (OSError, zlib.error):
        data = b""
    if hashlib.sha256(data).hexdigest() != sha:
        raise UserError(
            f"{file}: the tests of this benchmark are not in the cache. Load the benchmark again on this machine, by "
            "`demur check bench livecodebench --data FILE`; they are too large to travel with the traces."
        )
    return data


def extract(answer: str) -> str | None:
    """The program of an answer, by the rules in this module's docstring; `None` when there is none."""
    blocks, before = _blocks(answer.lstrip("\ufeff"))
    if not blocks:
        return before.strip() if _PROGRAM.match(before.strip()) else None
    python = [text for mark, text in blocks if mark in ("python", "python3", "py") and text.strip()]
    program = python[-1] if python else blocks[-1][1]
    return program.strip().removeprefix("python\n") or None


def _blocks(answer: str) -> tuple[list[tuple[str, str]], str]:
    """Language and text of the fenced blocks, closed or not, and the text before the first fence."""
    blocks, before, lines = list[tuple[str, str]](), list[str](), list[str]()
    fence = mark = ""
    for line in answer.split("\n"):
        bare = line.strip().rstrip("}")
        opening = _FENCE.search(line)
        if not fence and opening:
            fence, mark, lines = opening["fence"], opening["mark"].lower(), []
        elif not fence:
            if not blocks:
                before.append(line)
        elif bare == fence[0] * len(bare) and len(bare) >= len(fence):
            blocks, fence = [*blocks, (mark, textwrap.dedent("\n".join(lines)))], ""
        elif bare.endswith(fence) and bare.count(fence) == 1:
            lines.append(line.rstrip().removesuffix(fence))
            blocks, fence = [*blocks, (mark, textwrap.dedent("\n".join(lines)))], ""
        elif opening and opening["mark"] and len(opening["fence"]) >= len(fence):
            fence, mark, lines = opening["fence"], opening["mark"].lower(), []  # The block before was never closed
        else:
            lines.append(line)
    if fence and any(map(str.strip, lines)):
        blocks.append((mark, textwrap.dedent("\n".join(lines))))
    nested = [block for _, text in blocks if "```" in text or "~~~" in text for block in _blocks(text)[0]]
    return blocks + nested, "\n".join(before)


def printed_last(run: Run, expected: str) -> bool:
    """Whether the last line that a program printed ends with the expected text."""
    return _last_line(run.stdout).endswith(expected)


def same_output(run: Run, expected: str) -> bool:
    """Whether a program printed the expected lines: equal but for white space at the ends, or as numbers."""
    printed = run.stdout.decode("utf-8", "replace").strip().split("\n")
    lines = expected.strip().split("\n")
    return len(printed) == len(lines) and all(map(_same_line, printed, lines))


def _same_line(printed: str, expected: str) -> bool:
    if printed.strip() == expected.strip():
        return True
    try:
        return [*map(Decimal, printed.split())] == [*map(Decimal, expected.split())]
    except (InvalidOperation, ValueError):
        return False


def same_value(run: Run, expected: str) -> bool:
    """Whether a function returned the expected JSON value. The driver prints it as the last line; tuples are lists."""
    try:
        return bool(json.loads(_last_line(run.stdout), parse_int=_integer) == json.loads(expected, parse_int=_integer))
    except (ValueError, RecursionError):
        return False


def _integer(digits: str) -> int | str:
    """An integer; one with more digits than Python converts is compared as text."""
    return int(digits) if len(digits) < 4000 else digits
