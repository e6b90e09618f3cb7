"""Attack success without the judge's errors, where people labelled enough of its verdicts in the viewer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from demur import stats
from demur.records import Estimate
from demur.report.data import Report
from demur.report.labels import KINDS, given
from demur.report.metrics import bench_of


class Correction(NamedTuple):
    """A rate as its judge gave it, and as it would be by people's labels."""

    arm: str
    bench: str
    attack: str
    metric: str
    judge: str
    observed: Estimate
    corrected: Estimate
    sensitivity: Estimate
    specificity: Estimate


def corrections(report: Report, run: Path) -> Iterator[Correction]:
    """Every headline rate whose judge's verdicts were labelled by people in this run."""
    rows = {kind: given(run, kind) for kind in ("refusal", "harm")}
    for column in report.columns:
        bench = bench_of(column.bench)
        metric = next((m for m in bench.metrics if m.name == column.metric), None) if bench else None
        if metric is None or column.part != "answer":
            continue
        said_harm = any(row.get(f"{column.judge}_label") for row in rows["harm"])
        kind = "harm" if said_harm and set(metric.labels) & set(KINDS["harm"]) else "refusal"
        pairs = [
            (row["label"] in metric.labels, row[f"{column.judge}_label"] in metric.labels, str(row["id"]))
            for row in rows[kind]
            if row.get(f"{column.judge}_label") and (not metric.intents or row["intent"] in metric.intents)
        ]
        right = {
            side: stats.rate(
                [said == gold for gold, said, _ in pairs if gold == side],
                clusters=[name for gold, _, name in pairs if gold == side],
            )
            for side in (True, False)
        }
        for arm in report.arms:
            observed = report.find(arm, column)
            if observed is not None and pairs:
                repaired = stats.corrected(observed, right[True], right[False])
                yield Correction(arm, *column[:4], observed, repaired, right[True], right[False])
