"""The paper's numbers, where base, format and protocol are the paper's (arXiv 2505.15404 v2, tables 1 to 3)."""

from __future__ import annotations

import json
from collections.abc import Collection
from importlib.resources import files
from typing import Any

from demur.report.metrics import ALL, Cells

PAPERS = {"safety": 1000, "benign": 100, "train": {"lr": 5e-6, "epochs": 1}}
"""What an arm of another name is made of where it is the paper's row of its format: one point of each ablation is."""


def published(study: dict[str, Any], found: Cells) -> dict[str, float]:
    """What the paper printed for the arms and columns of a run: `ARM|BENCH|ATTACK|METRIC` -> share."""
    table = json.loads(files("demur.report").joinpath("published.json").read_text())
    places = [tuple(place) for place in table["columns"]]
    own = table["rows"].get(str(study.get("base", "")).rstrip("/").rpartition("/")[2], {})
    numbers: dict[str, float] = {}
    for arm, columns in found.items():
        values = own.get(_row(arm, study, own), ())
        theirs = {at: value / 100 for at, value in zip(places, values, strict=bool(values))}
        asked = dict.fromkeys((c.bench, c.attack, c.metric) for c in columns)
        there = {at: theirs[key] for at in asked if (key := (at[0], at[1].partition("@")[0], at[2])) in theirs}
        whole = {at: value for at, value in theirs.items() if at[0] == ALL and there}
        numbers |= {"|".join((arm, *at)): value for at, value in (there | whole).items()}
    return numbers


def _row(arm: str, study: dict[str, Any], rows: Collection[str]) -> str:
    """The paper's row of an arm: by its name, or by what it is made of; of another teacher the row that names it."""
    settings = (study.get("arms") or {}).get(arm) or {}
    same = all(settings.get(key) == PAPERS[key] for key in ("safety", "benign"))
    train = {**(study.get("train") or {}), **(settings.get("train") or {})}
    same &= all(train.get(key, value) == value for key, value in PAPERS["train"].items()) and "repair" not in settings  # type: ignore[attr-defined]
    name = str(settings.get("format")) if same and arm not in rows else arm
    teachers = (study.get("distil") or {}).get("teachers") or {}
    teacher = (study.get("models") or {}).get(teachers.get(name, teachers.get("default", "teacher"))) or {}
    return next(
        (
            row
            for row in rows
            if row != name and row.partition("_")[0] == name and row.partition("_")[2] in str(teacher)
        ),
        name,
    )
