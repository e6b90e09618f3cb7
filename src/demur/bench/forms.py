"""Forms of benchmarks: how the rows of a local copy become prompts. Differences between releases of one form are data.

Columns are named as releases spell them. `a|b` is the first of these that the file has, in any case of letters; `a&b`
is both, joined by a comma; a leading `?` marks a column that may be missing. Of a cell that holds a conversation the
first turn counts.
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
    """The rows of a copy as text, under the keys of `columns`. `where` has the allowed values of columns.

    Raises UserError: an empty file, or a missing column.
    """
    allowed = {column: [value.lower() for value in values] for column, values in (where or {}).items()}
    for row in raw_rows(path):
        if all(cell(pick(row, f"?{column}", path)).lower() in values for column, values in allowed.items()):
            yield {key: _joined(row, names, path) for key, names in columns.items()}


def raw_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, or of a folder's files. The keys `ADDED` hold the file's stem and `FILE:NUMBER`."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        count = 0
        for number, row in readers.rows(file):
            count += 1
            yield row | dict(zip(ADDED, (file.stem, f"{file}:{number}"), strict=True))
        if not count:
            raise UserError(f"{file}: it has no rows.")


def pick(row: Mapping[str, Any], names: str, where: object) -> Any:
    """The cell of a row's first column of `a|b`; `None` where `?` lets it be missing. Raises NoColumn otherwise."""
    column = column_of(row, names.removeprefix("?"))
    if column is None and not names.startswith("?"):
        present = ", ".join(str(key) for key in row if key not in ADDED)
        raise NoColumn(f"{where}: no column {' or '.join(names.split('|'))}; there are: {present}.")
    return None if column is None else row[column]


def listed(value: Any, column: str, where: object) -> list[Any]:
    """The list in a cell, which may be JSON text. Raises UserError: it is not a list."""
    with contextlib.suppress(ValueError):
        items = json.loads(value) if isinstance(value, str) else value
        if isinstance(items, list):
            return items
    raise UserError(f'{where}: column {column}: a list is wanted, such as ["a", "b"]; this is {str(value)[:60]!r}.')


def column_of(row: Mapping[str, Any], names: str) -> str | None:
    """The first column of `a|b` that a row has, as the row spells it."""
    columns = {str(key).lower(): key for key in row}
    return next((columns[name.lower()] for name in names.split("|") if name.lower() in columns), None)


def text(bench: Bench, path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """One request a row: `prompt`, and if present `category`, `context`, `pair` and `question`.

    A context is put before the request, and alone into `gold`. Options: `intent`, one of `records.Intent`, or a mapping
    from the values of column `intent`; `where`, which rows; `unique`, each request once.
    """
    options, prompts, name = bench.options, [], bench.name.partition("@")[0]
    for row in rows(path, bench.columns, options.get("where")):
        request, context, pair = row["prompt"], row.get("context", ""), row.get("pair", "")
        if not request and bench.count is None:
            continue  # only a user's file has rows without a question
        text = f"{context}\n\n---\n\n{request}" if context else request
        question, intent = row.get("question") or request, _intent(bench, row, path)
        source, cluster = path.stem if options.get("unique") else name, f"{name}-{pair}" if pair else ""
        fields: dict[str, Any] = {"category": row.get("category", ""), "pair": pair, "gold": context or None}
        prompts.append(Prompt(text=text, question=question, intent=intent, source=source, cluster=cluster, **fields))
    return list({prompt.id: prompt for prompt in prompts}.values()) if options.get("unique") else prompts


def maths(bench: Bench, path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """One problem a row: `problem`, `answer` (behind `####`, if it has that) and perhaps `category`.

    Option: `boxed`, whether a boxed answer is asked for; the question remains the bare problem.
    """
    prompts, source = [], bench.name.partition("@")[0]
    for row in rows(path, bench.columns):
        _, separator, gold = row["answer"].rpartition("####")
        gold = gold.strip().replace(",", "") if separator else gold.strip()
        problem, category = row["problem"], row.get("category", "")
        prompt = Prompt(text=problem, intent="maths", source=source, category=category, gold=gold)
        if bench.options.get("boxed", True):
            prompt = replace(prompt, id="", text=f"{problem}\n\n{BOXED}", cluster=prompt.cluster)
        prompts.append(prompt)
    return prompts


def solutions(bench: Bench, path: Path) -> dict[str, str]:
    """Problem -> its worked solution, where the release has a column `solution`."""
    columns = {"problem": bench.columns["problem"], "solution": "?solution"}
    return {row["problem"]: row["solution"] for row in rows(path, columns) if row["solution"]}


def _intent(bench: Bench, row: Row, path: Path) -> Intent:
    intents: Intent | dict[str, Intent] = bench.options["intent"]
    if isinstance(intents, str):
        return intents
    if (value := row["intent"]).lower() in intents:
        return intents[value.lower()]
    unclear = f"a row of {bench.name} does not say whether it is harmful: '{value}' in {bench.columns['intent']}"
    raise UserError(f"{path}: {unclear}. Known: {', '.join(intents)}.")


def _joined(row: Mapping[str, Any], names: str, where: object) -> str:
    optional = "?" if names.startswith("?") else ""
    cells = [cell(pick(row, optional + name, where)) for name in names.removeprefix("?").split("&")]
    return ", ".join(dict.fromkeys(filter(None, cells)))


def cell(value: Any) -> str:
    """A cell as text: empty for `None`, the first turn for a conversation."""
    if isinstance(value, list):
        turn = value[0] if value else ""
        return cell(turn.get("content") or turn.get("value")) if isinstance(turn, dict) else cell(turn)
    return "" if value is None else str(value).strip()
