"""Programs to write: LiveCodeBench's contest problems (Jain et al. 2024, arXiv 2403.07974) and HumanEval's functions.

A problem is solved when a program passes all its tests, public and private. The release packs the private ones (base64
of zlib of a pickled text). Nothing is unpickled here: the one text in the pickle is read from its opcodes. The tests of
a problem are megabytes, so a prompt's gold holds their hash, and they are in the cache folder, as `TESTS/HASH.json.zz`:

    {"func_name": null or the method to call, "tests": [{"input": "…", "output": "…"}, …]}

The request is in demur's words, so figures are close to the leaderboard's, not equal.
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

TESTS = "tests"  # Folder of the cache that holds the tests
LARGEST = 1 << 30  # Bytes that packed tests may unpack to
STDIN = "Write a Python 3 program that reads from standard input and prints to standard output."
FUNCTION = "Complete this Python 3 code; do not read any input:\n\n```python\n{starter}\n```"
FENCED = "Give the whole program at the end, in one block that opens with ```python."
COMPLETE = "Complete this Python 3 function. Give it whole, with its imports, in one block that opens with ```python."
CHECK = "\n\n{before}\n{test}\n\ncheck({name})\nprint('\\n{done}')\n"
"""Code that is appended to a program. `before` are the helpers that the prompt defines before the function."""
_TEXTS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")
_HARMLESS = (*_TEXTS, "PROTO", "FRAME", "MEMOIZE", "BINPUT", "PUT", "STOP")


def read(bench: Bench, path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """The problems of contests on or after the option `first` and before `end`; their tests are put into the cache."""
    first, end = bench.options.get("first", ""), bench.options.get("end", "9999")
    prompts = []
    for row in rows(path, bench.columns):
        if not first <= row["date"][:10] < end:
            continue
        question, tests = row["question"], _tests(row, f"{path}: problem {row['id']}")
        form = FUNCTION.format(starter=row["starter"]) if row["starter"] else STDIN
        fields = {"source": "livecodebench", "category": row["difficulty"], "gold": _stored(tests)}
        prompts.append(Prompt(text=f"{question}\n\n{form}\n\n{FENCED}", question=question, intent="code", **fields))
    return prompts


def _stored(tests: dict[str, Any]) -> str:
    """Put tests into the cache. Returns the gold that holds their hash."""
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

    Raises UserError: it is neither. The pickle is never loaded.
    """
    if not packed or packed.lstrip().startswith("["):
        tests: list[dict[str, Any]] = _json(packed or "[]", where)
        return tests
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(base64.b64decode(packed, validate=True), LARGEST)
        steps = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(data)]
    except (binascii.Error, zlib.error, ValueError) as error:
        raise UserError(f"{where}: its private tests cannot be unpacked: {error}.") from None
    texts = [argument for name, argument in steps if name in _TEXTS]
    strange = sorted({name for name, _ in steps} - set(_HARMLESS))
    if strange or len(texts) != 1:
        unsafe = f"its private tests are a pickle that is not one text ({', '.join(strange)})"
        raise UserError(f"{where}: {unsafe}; it was not loaded.")
    tests = _json(str(texts[0]), where)
    return tests


def _json(source: str, where: str) -> Any:
    try:
        return json.loads(source)
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}.") from None


def humaneval(bench: Bench, path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """HumanEval (Chen et al. 2021, arXiv 2107.03374): one function a row, by `prompt` (its head), `name` and `test`."""
    prompts = []
    for row in rows(path, bench.columns):
        code, name = row["prompt"], row["name"]
        done = hashlib.sha256(f"passed {name} {row['test']}".encode()).hexdigest()
        before = code[: code.rfind(f"def {name}(")]
        check = CHECK.format(before=before, test=row["test"], name=name, done=done)
        tests = {"func_name": None, "tests": [{"input": "", "output": done}], "check": check}
        text, gold = f"{COMPLETE}\n\n```python\n{code}\n```", json.dumps(tests)
        prompts.append(Prompt(text=text, question=code, intent="code", source="humaneval", gold=gold))
    return prompts
