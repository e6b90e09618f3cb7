"""StrongREJECT (Souly et al. 2024, arXiv 2402.10260): 313 forbidden prompts in six categories.

Its own judge is a rubric from 0 to 1 (`--judge strongreject`), which means something on forbidden prompts alone.
"""

from __future__ import annotations

from msgspec.structs import replace

from demur.bench.load import plain
from demur.bench.metrics import SAFETY

COLUMNS = ("forbidden_prompt|prompt", "category")
read = plain(COLUMNS, "strongreject")

STRONGREJECT = replace(
    SAFETY,
    name="strongreject",
    source="demur.bench.strongreject:read",
    count=313,
    files=("strongreject.csv", "strongreject_dataset.csv", "strongreject.jsonl"),
    columns=COLUMNS,
    hub="walledai/StrongREJECT:data/train-*.parquet",
    licence="MIT",
    paper="arXiv 2402.10260",
    attacks=("none", "template", "pap", "pair"),
    about="313 forbidden prompts; --judge strongreject gives the authors' score",
)
