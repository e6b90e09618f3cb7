"""AIME: the American Invitational Mathematics Examination, 30 problems a year whose answers are integers from 0 to 999.

Thirty problems are few: more samples a problem do not help much, because the problems are what differs. The interval,
clustered by problem, says so.
"""

from __future__ import annotations

from msgspec.structs import replace

from demur.bench.reasoning import maths, paper, readers

COLUMNS = ("problem|question|Problem", "answer|Answer|expected_answer")
read_bare, read, solutions = readers(COLUMNS, "aime")
"""The problems and nothing else; with the wish for a boxed answer; and, for `demur check bench`, their worked solutions."""

AIME24 = replace(
    maths("aime24", "demur.bench.aime:read", count=30, samples=4),
    files=("aime24.jsonl", "aime_2024.jsonl", "aime2024.jsonl"),
    columns=COLUMNS,
    hub="HuggingFaceH4/aime_2024:data/train-*.parquet",
    sha256="2f39415821ac5a4c2b68d75ad2b0b8292a32169526ebe239454ffe2b44cc750f",
    licence="problems of a public competition",
    paper="AIME I and II 2024",
    about="30 competition problems, four samples each",
)
AIME24_PAPER_V2 = paper(AIME24)
AIME25 = replace(
    maths("aime25", "demur.bench.aime:read", count=30, samples=4),
    files=("aime25.jsonl", "aime_2025.jsonl", "aime2025.jsonl"),
    columns=COLUMNS,
    hub="math-ai/aime25@563bb8404243c5f09de6ec262f2db674fe5bce9b:test.jsonl",
    licence="problems of a public competition",
    paper="AIME I and II 2025",
    about="30 competition problems, four samples each",
)
AIME25_PAPER_V2 = paper(AIME25)
