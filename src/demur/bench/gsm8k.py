"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): 1,319 word problems of school arithmetic. The gold stands behind `####`."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from demur.bench.reasoning import maths, maths_prompts, paper, with_wish
from demur.records import Prompt

COLUMNS = ("question|problem", "answer")


def read_bare(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """The problems and nothing else; thousands are written without commas in the gold."""
    prompts = maths_prompts(path, COLUMNS, "gsm8k")
    return [replace(p, gold=(p.gold or "").rpartition("####")[2].strip().replace(",", "")) for p in prompts]


def read(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """The problems, with the wish for a boxed answer."""
    return with_wish(read_bare(path))


GSM8K = replace(
    maths("gsm8k", "demur.bench.gsm8k:read", count=1319),
    files=("gsm8k.jsonl", "gsm8k_test.jsonl"),
    columns=COLUMNS,
    hub="openai/gsm8k:main/test-*.parquet",
    licence="MIT",
    paper="arXiv 2110.14168",
    about="1,319 word problems of school arithmetic",
)
GSM8K_PAPER_V2 = paper(GSM8K)
