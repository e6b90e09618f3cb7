"""Harmful requests that you bring: any table with a column of questions, or the questions that an earlier run attacked."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from demur.bench.load import read_rows, text
from demur.bench.metrics import SAFETY
from demur.records import Prompt

COLUMNS = ("question|query|goal|prompt|Behavior|behavior|Goal|instruction|forbidden_prompt|text",)


def read(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """The requests of a table, each once; its column `category` is kept."""
    found: dict[str, Prompt] = {}
    for row in read_rows(path, COLUMNS):
        category = str(row["_row"].get("category") or "")
        prompt = Prompt(text=text(row, "question"), intent="harmful", source=path.stem, category=category)
        found.setdefault(prompt.id, prompt)
    return list(found.values())


HARMFUL = replace(
    SAFETY,
    name="harmful",
    source="demur.bench.harmful:read",
    count=None,
    files=("harmful.jsonl", "harmful.csv"),
    columns=COLUMNS,
    attacks=("none", "pap", "pair", "template"),
    about="your own harmful requests, by --data",
)
REPLAYED = replace(
    HARMFUL,
    name="replayed",
    source="demur.attack.replay:read",
    files=("traces.jsonl",),
    columns=(),
    attacks=("replay",),
    about="the questions that an earlier run attacked",
)
