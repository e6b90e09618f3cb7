"""The paper's numbers, where base, format and protocol are the paper's (arXiv 2505.15404 v2, tables 1 to 3)."""

from __future__ import annotations

import json
from importlib.resources import files

from demur.report.metrics import ALL, Cells


def published(base: str, found: Cells) -> dict[str, float]:
    """What the paper printed for the arms and columns of a run: `ARM|BENCH|ATTACK|METRIC` -> share."""
    table = json.loads(files("demur.report").joinpath("published.json").read_text())
    places = [tuple(place) for place in table["columns"]]
    own = table["rows"].get(base.rstrip("/").rpartition("/")[2], {})
    numbers = {}
    for arm, values in own.items():
        for bench, attack, metric in dict.fromkeys((c.bench, c.attack, c.metric) for c in found.get(arm, {})):
            at = (bench, attack.partition("@")[0], metric)
            if at in places:
                numbers["|".join((arm, bench, attack, metric))] = values[places.index(at)] / 100
        if numbers:
            for at, value in zip(places, values, strict=True):
                if at[0] == ALL:
                    numbers["|".join((arm, *at))] = value / 100
    return numbers
