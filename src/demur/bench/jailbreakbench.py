"""JailbreakBench (Chao et al. 2024, arXiv 2404.01318): 100 harmful behaviours and 100 harmless twins on the same topics.

A behaviour and its twin share a cluster: they are not independent of each other.
"""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from demur.bench.load import read_rows, text
from demur.bench.metrics import HARM, OVER, SAFETY
from demur.errors import UserError
from demur.records import Intent, Prompt
from demur.storage.readers import Row

COLUMNS = ("Goal", "Behavior", "Category", "Index")


def read(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """Both halves: one table with a split column, or a folder with `harmful-behaviors.csv` and `benign-behaviors.csv`.

    Raises:
        UserError: a row does not say which half it belongs to.
    """
    if path.is_dir():
        return [p for half in ("harmful", "benign") for p in _half(path / f"{half}-behaviors.csv", half)]
    return _half(path, path.stem.partition("-")[0])


def _half(path: Path, named: str) -> list[Prompt]:
    made = []
    for row in read_rows(path, COLUMNS):
        half = _which(row["_row"], named)
        if half is None:
            raise UserError(
                f"{path}: a row does not say whether it is harmful or benign: keep the hub's split as column "
                "'split', or give the folder with harmful-behaviors.csv and benign-behaviors.csv."
            )
        made.append(
            Prompt(
                text=text(row, "Goal"),
                intent=half,
                source="jailbreakbench",
                category=text(row, "Category"),
                cluster=f"jbb-{text(row, 'Index')}",
            )
        )
    return made


def _which(row: Row, named: str) -> Intent | None:
    said = str(row.get("split") or row.get("_split") or row.get("type") or named).strip().lower()
    return "harmful" if said.startswith("harmful") else "benign" if said.startswith("benign") else None


JAILBREAKBENCH = replace(
    SAFETY,
    name="jailbreakbench",
    source="demur.bench.jailbreakbench:read",
    count=200,
    metrics=(*HARM, *OVER),
    files=("jailbreakbench.jsonl", "jailbreakbench.csv", "jbb-behaviors"),
    columns=COLUMNS,
    hub="JailbreakBench/JBB-Behaviors@886acc352a31533ffbcf4ef22c744658688086fc:data/harmful-behaviors.csv,"
    "JailbreakBench/JBB-Behaviors@886acc352a31533ffbcf4ef22c744658688086fc:data/benign-behaviors.csv",
    licence="MIT",
    paper="arXiv 2404.01318",
    attacks=("none", "pair", "template", "prefill"),
    about="100 harmful behaviours and their 100 harmless twins",
)
