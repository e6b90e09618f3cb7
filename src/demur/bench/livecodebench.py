"""LiveCodeBench (Jain et al. 2024, arXiv 2403.07974): problems of programming contests, by the date of the contest.

A problem is solved when a program passes all its tests, public and private. The release packs the private ones (base64 of
zlib of a pickled text). Nothing of a download is unpickled here: the one text in the pickle is read out of its opcodes.
Tests are megabytes a problem, so a prompt's gold is their hash; they lie in the cache folder, as `TESTS/HASH.json.zz`:

    {"func_name": null or the method to call, "tests": [{"input": "…", "output": "…"}, …]}

Wording of the request is ours, so that figures are close to the leaderboard's and not to the digit the same.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import pickletools
import zlib
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from demur.bench.load import read_rows, text
from demur.bench.reasoning import ACCURACY, NO_ANSWER, REASONING
from demur.bench.spec import Bench
from demur.errors import UserError
from demur.records import Prompt
from demur.storage.artifacts import atomic_write, cache_folder

COLUMNS = ("question_content", "question_id", "contest_date", "public_test_cases", "private_test_cases", "starter_code")
TESTS = "tests"
"""Folder, in the cache, of the tests."""
LARGEST = 1 << 30
"""Bytes that packed tests may unpack to."""
STDIN = "Write a Python 3 program that reads from standard input and prints to standard output."
FUNCTION = "Complete this Python 3 code; do not read any input:\n\n```python\n{starter}\n```"
FENCED = "Give the whole program at the end, in one block that opens with ```python."
_TEXTS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")
_HARMLESS = (*_TEXTS, "PROTO", "FRAME", "MEMOIZE", "BINPUT", "PUT", "STOP")


def read(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """All problems of a copy; its tests are put into the cache."""
    return _between(path, "", "9999")


def read_paper(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """Contests from October 2024 to January 2025, as in the paper."""
    return _between(path, "2024-10-01", "2025-02-01")


def read_r1(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """Contests from August 2024 to January 2025, as for DeepSeek-R1."""
    return _between(path, "2024-08-01", "2025-02-01")


def _between(path: Path, first: str, end: str) -> list[Prompt]:
    """The problems of contests on or after `first` and before `end`."""
    rows = read_rows(path, COLUMNS)
    return [_prompt(row, path) for row in rows if first <= text(row, "contest_date")[:10] < end]


def _prompt(row: dict[str, Any], path: Path) -> Prompt:
    question, starter = text(row, "question_content"), text(row, "starter_code")
    where = f"{path}: problem {text(row, 'question_id')}"
    return Prompt(
        text="\n\n".join([question, FUNCTION.format(starter=starter) if starter else STDIN, FENCED]),
        question=question,
        intent="code",
        source="livecodebench",
        category=str(row["_row"].get("difficulty") or ""),
        gold=_keep(_tests(row, where)),
    )


def _keep(tests: dict[str, Any]) -> str:
    """Put tests into the cache; gives the gold that names them."""
    data = json.dumps(tests, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass")
    sha = hashlib.sha256(data).hexdigest()
    folder = cache_folder() / TESTS
    file = folder / f"{sha}.json.zz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(file, zlib.compress(data, 6))
    return json.dumps({"tests": sha, "count": len(tests["tests"])})


def _tests(row: dict[str, Any], where: str) -> dict[str, Any]:
    """All tests of a problem, the public ones first."""
    cases = [*_json(text(row, "public_test_cases"), where), *private_tests(text(row, "private_test_cases"), where)]
    kinds = {str(case.get("testtype")) for case in cases}
    func = (_json(str(row["_row"].get("metadata") or "{}"), where) or {}).get("func_name")
    if not cases or not kinds <= {"stdin", "functional"} or len(kinds) != 1 or ("functional" in kinds) != bool(func):
        raise UserError(
            f"{where}: its tests are of kinds {sorted(kinds)} with func_name {func!r}; one kind was expected."
        )
    return {"func_name": func, "tests": [{"input": str(c["input"]), "output": str(c["output"])} for c in cases]}


def private_tests(packed: str, where: str) -> list[dict[str, Any]]:
    """The private tests: plain JSON, or base64 of zlib of a pickle that holds one text and does nothing.

    Raises:
        UserError: it is neither. A pickle that would do anything at all is refused and not loaded.
    """
    if not packed or packed.lstrip().startswith("["):
        found: list[dict[str, Any]] = _json(packed or "[]", where)
        return found
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(base64.b64decode(packed, validate=True), LARGEST)
        steps = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(data)]
    except (binascii.Error, zlib.error, ValueError) as error:
        raise UserError(f"{where}: its private tests cannot be unpacked: {error}.") from None
    texts = [argument for name, argument in steps if name in _TEXTS]
    strange = sorted({name for name, _ in steps} - set(_HARMLESS))
    if strange or len(texts) != 1:
        raise UserError(
            f"{where}: its private tests are a pickle that is not one text ({', '.join(strange)}); it was not loaded."
        )
    unpacked: list[dict[str, Any]] = _json(str(texts[0]), where)
    return unpacked


def _json(source: str, where: str) -> Any:
    try:
        return json.loads(source)
    except ValueError as error:
        raise UserError(f"{where}: no JSON: {error}.") from None


LIVECODEBENCH = Bench(
    name="livecodebench",
    version=1,
    source="demur.bench.livecodebench:read",
    count=None,
    sampling=REASONING,
    judge="code",
    query="question",
    part="answer",
    metrics=(ACCURACY, NO_ANSWER),
    files=("livecodebench.jsonl", "livecodebench_v5.jsonl", "test5.jsonl"),
    columns=COLUMNS,
    hub="lighteval/code_generation_lite:release_v5/test-*.parquet",
    licence="CC-BY-4.0",
    paper="arXiv 2403.07974",
    about="contest problems, all dates of the copy; needs bubblewrap",
)
LIVECODEBENCH_R1 = replace(
    LIVECODEBENCH,
    name="livecodebench@r1",
    source="demur.bench.livecodebench:read_r1",
    sampling=replace(REASONING, n=16),
    paper="arXiv 2501.12948",
    about="contests of August 2024 to January 2025, 16 samples each",
)
LIVECODEBENCH_PAPER_V2 = replace(
    LIVECODEBENCH,
    name="livecodebench@paper-v2",
    source="demur.bench.livecodebench:read_paper",
    count=166,
    sampling=replace(REASONING, max_tokens=30_000),
    paper="arXiv 2505.15404v2",
    about="contests of October 2024 to January 2025: 166 problems of release v5",
)
