"""MATH-500: 500 problems of MATH (Hendrycks et al. 2021, arXiv 2103.03874), drawn by Lightman et al. 2023 (arXiv 2305.20050)."""

from __future__ import annotations

from msgspec.structs import replace

from demur.bench.reasoning import maths, paper, readers

COLUMNS = ("problem", "answer")
read_bare, read, solutions = readers(COLUMNS, "math500", category="subject")
"""The problems and nothing else; with the wish for a boxed answer; and, for `demur check bench`, their worked solutions."""

MATH500 = replace(
    maths("math500", "demur.bench.math500:read", count=500),
    files=("math500.jsonl", "MATH-500.jsonl", "math_500.jsonl"),
    columns=COLUMNS,
    hub="HuggingFaceH4/MATH-500:test.jsonl",
    sha256="a669e53a90f88537ebe2a20072024b976211350724677dc3173800e1e3c53739",
    licence="MIT",
    paper="arXiv 2103.03874, 2305.20050",
    about="500 problems of MATH in seven subjects",
)
MATH500_PAPER_V2 = paper(MATH500)
