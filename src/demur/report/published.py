"""The paper's numbers, where base, format and protocol are the paper's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files

from demur.records import Record
from demur.report.read import Run


class Published(Record, frozen=True, kw_only=True):
    """A number that the paper printed for the same protocol, base and format; not ours."""

    base: str
    arm: str
    bench: str
    attack: str
    metric: str
    value: float


def published(run: Run) -> Iterator[Published]:
    """The paper's numbers, where base, format and protocol are the paper's."""
    table = json.loads(files("demur.report").joinpath("published.json").read_text())
    base = str(run.study.get("base", "")).rstrip("/").rpartition("/")[2]
    places = (
        ("advbench@paper-v2", "none", "attack_success"),
        ("advbench@paper-v2", "pap", "attack_success"),
        ("advbench@paper-v2", "pair", "attack_success"),
        ("xstest@paper-v2", "none", "over_refusal"),
    )
    measured = {(e.arm, e.bench, e.attack) for e in run.evaluations}
    for arm, values in table.get(base, {}).items():
        for (bench, attack, metric), value in zip(places, values, strict=True):
            if (arm, bench, attack) in measured:
                yield Published(base=base, arm=arm, bench=bench, attack=attack, metric=metric, value=value / 100)
