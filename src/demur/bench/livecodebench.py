"""Programs to be written: LiveCodeBench's contest problems (Jain et al. 2024, arXiv 2403.07974) by date, HumanEval's functions.

A problem is solved when a program passes all its tests, public and private. The release packs the private ones (base64 of
zlib of a pickled text). Nothing of a download is unpickled here: the one text in the pickle is read out of its opcodes.
Tests are megabytes a problem, so a prompt's gold is their hash; they lie in the cache folder, as `TESTS/HASH.json.zz`:

    {"func_name": null or the method to call, "tests": [{"input": "…", "output": "…"}, …]}

Wording of the request is ours, so that figures are close to the leaderboard's and not to the digit the same.
"""

import base64
import binascii
import hashlib
import json
import pickletools
import zlib
from pathlib import Path
from typing import Any

from demur.bench.forms import Row, rows
from demur.bench.spec import Bench
from demur.errors import UserError
from demur.records import Prompt
from demur.storage.artifacts import atomic_write, cache_folder

TESTS = "tests"  # Folder, in the cache, of the tests
LARGEST = 1 << 30  # Bytes that packed tests may unpack to
STDIN = "Write a Python 3 program that reads from standard input and prints to standard output."
FUNCTION = "Complete this Python 3 code; do not read any input:\n\n```python\n{starter}\n```"
FENCED = "Give the whole program at the end, in one block that opens with ```python."
COMPLETE = "Complete this Python 3 function. Give it whole, with its imports, in one block that opens with ```python.\n\n```python\n{prompt}\n```"
CHECK = "\n\n{before}\n{test}\n\ncheck({name})\nprint('\\n{done}')\n"
"""What is run behind a program. Helpers that the prompt defines before the function are defined again."""
_TEXTS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")
_HARMLESS = (*_TEXTS, "PROTO", "FRAME", "MEMOIZE", "BINPUT", "PUT", "STOP")


def read(bench: Bench, path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """The problems of contests on or after the option `first` and before `end`; their tests are put into the cache."""
    first, end = bench.options.get("first", ""), bench.options.get("end", "9999")
    made = []
    for row in (row for row in rows(path, bench.columns) if first <= row["date"][:10] < end):
        question, kind, tests = row["question"], row["difficulty"], _tests(row, f"{path}: problem {row['id']}")
        form = FUNCTION.format(starter=row["starter"]) if row["starter"] else STDIN
        known = {"question": question, "source": "livecodebench", "category": kind, "gold": _keep(tests)}
        made.append(Prompt(text=f"{question}\n\n{form}\n\n{FENCED}", intent="code", **known))
    return made


def _keep(tests: dict[str, Any]) -> str:
    """Put tests into the cache; returns the gold that names them."""
    data = json.dumps(tests, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass")
    sha = hashlib.sha256(data).hexdigest()
    folder = cache_folder() / TESTS
    file = folder / f"{sha}.json.zz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(file, zlib.compress(data, 6))
    return json.dumps({"tests": sha, "count": len(tests["tests"])})


def _tests(row: Row, where: str) -> dict[str, Any]:
    """All tests of a problem, the public ones first."""
    cases = [*_json(row["public"], where), *private_tests(row["private"], where)]
    kinds = {str(case.get("testtype")) for case in cases}
    func = (_json(row["metadata"] or "{}", where) or {}).get("func_name")
    if not cases or not kinds <= {"stdin", "functional"} or len(kinds) != 1 or ("functional" in kinds) != bool(func):
        raise UserError(f"{where}: its tests are of kinds {sorted(kinds)} with func_name {func!r}; one was expected.")
    return {"func_name": func, "tests": [{"input": str(c["input"]), "output": str(c["output"])} for c in cases]}


def private_tests(packed: str, where: str) -> list[dict[str, Any]]:
    """The private tests: plain JSON, or base64 of zlib of a pickle that holds one text and does nothing.

    Raises UserError: it is neither. A pickle that would do anything at all is refused and not loaded.
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
        told = f"its private tests are a pickle that is not one text ({', '.join(strange)})"
        raise UserError(f"{where}: {told}; it was not loaded.")
    unpacked: list[dict[str, Any]] = _json(str(texts[0]), where)
    return unpacked


def _json(source: str, where: str) -> Any:
    try:
        return json.loads(source)
    except ValueError as error:
        raise UserError(f"{where}: no JSON: {error}.") from None


def humaneval(bench: Bench, path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """HumanEval (Chen et al. 2021, arXiv 2107.03374). One function a row: `prompt` (its head), `name`, `test` (which defines `check`)."""
    made = []
    for row in rows(path, bench.columns):
        code, name = row["prompt"], row["name"]
        done = hashlib.sha256(f"passed {name} {row['test']}".encode()).hexdigest()
        before = code[: code.rfind(f"def {name}(")]
        check = CHECK.format(before=before, test=row["test"], name=name, done=done)
        gold = {"func_name": None, "tests": [{"input": "", "output": done}], "check": check}
        text, known = COMPLETE.format(prompt=code), json.dumps(gold)
        made.append(Prompt(text=text, question=code, intent="code", source="humaneval", gold=known))
    return made
