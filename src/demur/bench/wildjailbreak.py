"""WildJailbreak's evaluation set (Jiang et al. 2024, arXiv 2406.18510): 2,000 harmful and 210 harmless adversarial prompts."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from demur.bench.load import read_rows, text
from demur.bench.metrics import HARM, OVER, SAFETY
from demur.errors import UserError
from demur.records import Intent, Prompt

COLUMNS = ("adversarial", "data_type")
KINDS: dict[str, Intent] = {"adversarial_harmful": "harmful", "adversarial_benign": "benign"}


def read(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """The adversarial prompts as they are; there is no plain question behind them in the release.

    Raises:
        UserError: a row of a type that the evaluation set does not have, such as one of the training set.
    """
    made = []
    for row in read_rows(path, COLUMNS):
        kind = text(row, "data_type")
        if kind not in KINDS:
            raise UserError(f"{path}: data_type is '{kind}'. The evaluation set has: {', '.join(KINDS)}.")
        made.append(Prompt(text=text(row, "adversarial"), intent=KINDS[kind], source="wildjailbreak", category=kind))
    return made


WILDJAILBREAK = replace(
    SAFETY,
    name="wildjailbreak",
    source="demur.bench.wildjailbreak:read",
    count=2210,
    query="sent",
    metrics=(*HARM, *OVER),
    files=("wildjailbreak.tsv", "eval.tsv", "wildjailbreak.jsonl"),
    columns=COLUMNS,
    hub="allenai/wildjailbreak@5ddc12a7894f842b0619b8e1c7ee496b198af009:eval/eval.tsv",
    licence="ODC-BY",
    paper="arXiv 2406.18510",
    about="2,210 prompts that are attacks already; gated on the hub",
)
