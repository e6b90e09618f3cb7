"""HarmBench (Mazeika et al. 2024, arXiv 2402.04249): 200 standard and 100 contextual behaviours.

Copyright behaviours need a matcher of their own and are left out. A contextual behaviour comes with a passage; it is
sent before the request, and the classifier sees it apart.
"""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from demur.bench.load import Row, read_rows, text
from demur.bench.metrics import SAFETY
from demur.records import Prompt

STANDARD = ("prompt|Behavior",)
CONTEXTUAL = ("prompt|Behavior", "context|ContextString")
KINDS = {"standard", "contextual", "copyright"}


def read(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """The standard behaviours of a copy: a plain list, the hub's table, or the original CSV with all kinds."""
    return [_prompt(row, source="harmbench") for row in read_rows(path, STANDARD) if _kind(row) in ("", "standard")]


def read_contextual(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """The contextual behaviours, the passage before the request as the original does; the question is both together.

    The context is kept in `gold`, so that the classifier's contextual form can show it apart.
    """
    rows = [row for row in read_rows(path, CONTEXTUAL) if _kind(row) in ("", "contextual")]
    found = [(row, text(row, "context")) for row in rows]
    return [_prompt(row, source="harmbench_contextual", context=context) for row, context in found if context]


def _prompt(row: Row, *, source: str, context: str = "") -> Prompt:
    behaviour = text(row, "prompt")
    return Prompt(
        text=f"{context}\n\n---\n\n{behaviour}" if context else behaviour,
        question=behaviour,
        gold=context or None,
        intent="harmful",
        source=source,
        category=str(row["_row"].get("category") or row["_row"].get("SemanticCategory") or ""),
    )


def _kind(row: Row) -> str:
    """The original CSV's functional category; empty where a file holds one kind."""
    kind = str(row["_row"].get("FunctionalCategory") or "").strip()
    return kind if kind in KINDS else ""


HARMBENCH = replace(
    SAFETY,
    name="harmbench",
    source="demur.bench.harmbench:read",
    count=200,
    files=("harmbench200.txt", "harmbench.csv", "harmbench_behaviors_text_all.csv", "harmbench_standard.jsonl"),
    columns=STANDARD,
    hub="walledai/HarmBench:standard/train-*.parquet",
    licence="MIT",
    paper="arXiv 2402.04249",
    attacks=("none", "pap", "pair", "template"),
    about="200 standard behaviours",
)
HARMBENCH_CONTEXTUAL = replace(
    HARMBENCH,
    name="harmbench_contextual",
    source="demur.bench.harmbench:read_contextual",
    count=100,
    files=("harmbench_contextual.jsonl", "harmbench_contextual.csv", "harmbench_behaviors_text_all.csv"),
    columns=CONTEXTUAL,
    hub="walledai/HarmBench:contextual/train-*.parquet",
    about="100 behaviours that come with a passage of context",
)
