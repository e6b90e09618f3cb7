"""Forms of benchmarks: how the rows of a copy become prompts. What differs between releases of one form is data.

A column is named by what releases call it: `a|b` is the first of these that the file has, whatever its case, `a&b` both
joined by a comma, and a leading `?` says that a file may lack it. A cell that holds a conversation stands for its first turn.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from demur.bench.spec import Bench
from demur.errors import UserError
from demur.records import Intent, Prompt
from demur.storage import readers

Row = dict[str, str]
Form = Callable[..., list[Prompt]]
FORMS = {  # Name -> `module:function(bench, path, *, n, seed)`, which returns prompts
    "text": "demur.bench.forms:text",
    "maths": "demur.bench.forms:maths",
    "choice": "demur.bench.choice:read",
    "livecodebench": "demur.bench.livecodebench:read",
    "humaneval": "demur.bench.livecodebench:humaneval",
    "ifeval": "demur.bench.ifeval:read",
}
ADDED = ("_file", "_at")
BOXED = "Please think it through step by step, and give the final answer in \\boxed{}."


class NoColumn(UserError):
    """A copy lacks a column."""


def rows(path: Path, columns: Mapping[str, str], where: Mapping[str, Sequence[str]] | None = None) -> Iterator[Row]:
    """The rows of a copy under the names of `columns`, as text; those alone whose cells are among the values of `where`.

    Raises UserError: an empty file, or a column that is missing.
    """
    for row in raw_rows(path):
        asked = {name: cell(pick(row, f"?{name}", path)).lower() for name in where or {}}
        if all(asked[name] in map(str.lower, allowed) for name, allowed in (where or {}).items()):
            yield {name: _joined(row, said, path) for name, said in columns.items()}


def raw_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a copy as they are, of a folder table by table, with what `ADDED` names: the stem of its file, and its place."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        count = 0
        for number, row in readers.rows(file):
            count += 1
            yield row | dict(zip(ADDED, (file.stem, f"{file}:{number}"), strict=True))
        if not count:
            raise UserError(f"{file}: it has no rows.")


def pick(row: Mapping[str, Any], said: str, where: object) -> Any:
    """The cell of the first of some columns `a|b` that a row has, whatever its case; `None` where a `?` allows none.

    Raises NoColumn: there is none.
    """
    column = column_of(row, said.removeprefix("?"))
    if column is not None:
        return row[column]
    if said.startswith("?"):
        return None
    shown = ", ".join(str(key) for key in row if key not in ADDED)
    raise NoColumn(f"{where}: no column {' or '.join(said.split('|'))}; there are: {shown}.")


def listed(value: Any, said: str, where: object) -> list[Any]:
    """The list that a cell holds, also as a text of JSON. Raises UserError: it holds none."""
    with contextlib.suppress(ValueError):
        if isinstance(found := json.loads(value) if isinstance(value, str) else value, list):
            return found
    raise UserError(f'{where}: column {said}: a list is wanted, such as ["a", "b"]; this is {str(value)[:60]!r}.')


def column_of(row: Mapping[str, Any], said: str) -> str | None:
    """The first of some columns `a|b` that a row has, as it writes it."""
    there = {str(key).lower(): key for key in row}
    return next((there[name.lower()] for name in said.split("|") if name.lower() in there), None)


def text(bench: Bench, path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """One request a row: `prompt`, and where there are such columns `category`, `context`, `pair` and `question`.

    A context stands before the request, and alone in `gold`. Options: `intent`, one of `records.Intent` or a mapping of
    column `intent`'s values to intents; `where`, which rows; `unique`, each request once.
    """
    options, made = bench.options, []
    for row in rows(path, bench.columns, options.get("where")):
        request, context = row["prompt"], row.get("context", "")
        if not request and bench.count is None:
            continue  # a row of one's own file without a question; a release has none
        name, pair = bench.name.partition("@")[0], row.get("pair", "")
        made.append(Prompt(
            text=f"{context}\n\n---\n\n{request}" if context else request, question=row.get("question") or request,
            gold=context or None, intent=_intent(bench, row, path), category=row.get("category", ""), pair=pair,
            source=path.stem if options.get("unique") else name, cluster=f"{name}-{pair}" if pair else "",
        ))  # fmt: skip
    return list({prompt.id: prompt for prompt in made}.values()) if options.get("unique") else made


def maths(bench: Bench, path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """One problem a row: `problem`, `answer`, and perhaps `category`; what stands before `####` in a gold is working.

    Options: `boxed`, whether a boxed answer is asked for; the question stays the bare problem.
    """
    made = []
    for row in rows(path, bench.columns):
        gold, problem = row["answer"].rpartition("####")[2].strip(), row["problem"]
        if "####" in row["answer"]:
            gold = gold.replace(",", "")
        source = bench.name.partition("@")[0]
        prompt = Prompt(text=problem, intent="maths", source=source, category=row.get("category", ""), gold=gold)
        if bench.options.get("boxed", True):
            prompt = replace(prompt, id="", text=f"{problem}\n\n{BOXED}", cluster=prompt.cluster)
        made.append(prompt)
    return made


def solutions(bench: Bench, path: Path) -> dict[str, str]:
    """Problem -> its worked solution, where the release has a column `solution`."""
    found = rows(path, {"problem": bench.columns["problem"], "solution": "?solution"})
    return {row["problem"]: row["solution"] for row in found if row["solution"]}


def _intent(bench: Bench, row: Row, path: Path) -> Intent:
    intents = bench.options["intent"]
    found: Intent | None = intents if isinstance(intents, str) else intents.get(row["intent"].lower())  # type: ignore[assignment]
    if found is None:
        told = f"{path}: a row of {bench.name} does not say whether it is harmful: '{row['intent']}'"
        raise UserError(f"{told} in {bench.columns['intent']}. Known: {', '.join(intents)}.")
    return found


def _joined(row: Mapping[str, Any], said: str, where: object) -> str:
    optional = "?" if said.startswith("?") else ""
    cells = [cell(pick(row, optional + part, where)) for part in said.removeprefix("?").split("&")]
    return ", ".join(dict.fromkeys(filter(None, cells)))


def cell(value: Any) -> str:
    """A cell as text; nothing is the empty text, a conversation its first turn."""
    if isinstance(value, list):
        turn = value[0] if value else ""
        return cell(turn.get("content") or turn.get("value")) if isinstance(turn, dict) else cell(turn)
    return "" if value is None else str(value).strip()
