"""SafeBench of FigStep (Gong et al. 2023, arXiv 2311.05608): 500 harmful questions, fifty in each of ten policies."""

from __future__ import annotations

from msgspec.structs import replace

from demur.bench.load import plain
from demur.bench.metrics import SAFETY

COLUMNS = ("question", "category_name")
read = plain(COLUMNS, "safebench")
"""The plain questions; the imperative form that FigStep draws as a picture is not used."""

SAFEBENCH = replace(
    SAFETY,
    name="safebench",
    source="demur.bench.safebench:read",
    count=500,
    files=("safebench.csv", "SafeBench.csv"),
    columns=COLUMNS,
    sha256="9560485c4acb05ada134312e9a48e35d5e5fb49394e5069c2929a112de0949f1",
    licence="MIT",
    paper="arXiv 2311.05608",
    attacks=("none", "template", "pap"),
    about="500 harmful questions in 10 policies, legal, medical and financial advice among them",
)
