"""OR-Bench (Cui et al. 2024, arXiv 2405.20947): prompts that look toxic and are not, and toxic ones beside them."""

from __future__ import annotations

from msgspec.structs import replace

from demur.bench.load import plain
from demur.bench.metrics import HARM, OVER, SAFETY

COLUMNS = ("prompt", "category")
read_hard = plain(COLUMNS, "orbench_hard", intent="borderline")
read_toxic = plain(COLUMNS, "orbench_toxic")

ORBENCH_HARD = replace(
    SAFETY,
    name="orbench_hard",
    source="demur.bench.orbench:read_hard",
    count=1319,
    metrics=OVER,
    files=("or-bench-hard-1k.csv", "orbench_hard.csv", "or-bench-hard-1k.jsonl"),
    columns=COLUMNS,
    hub="bench-llm/or-bench:or-bench-hard-1k.csv",
    licence="CC-BY-4.0",
    paper="arXiv 2405.20947",
    about="about 1.3 k harmless prompts that many models refuse",
)
ORBENCH_TOXIC = replace(
    ORBENCH_HARD,
    name="orbench_toxic",
    source="demur.bench.orbench:read_toxic",
    count=655,
    metrics=HARM,
    files=("or-bench-toxic.csv", "orbench_toxic.csv", "or-bench-toxic.jsonl"),
    hub="bench-llm/or-bench:or-bench-toxic.csv",
    about="655 toxic prompts, the other axis of OR-Bench",
)
