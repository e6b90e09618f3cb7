"""What judges are worth: how far people agree with them, and rates without their errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from demur import stats
from demur.bench.metrics import HARM
from demur.errors import UserError
from demur.judge import note, requires_model
from demur.records import Estimate, Record
from demur.report import format
from demur.report.metrics import Column
from demur.report.read import given, protocol_of

UNKNOWN = "uncalibrated: no replies that it judged were labelled by people (demur view RUN)"


class Correction(Record, frozen=True, kw_only=True):
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
    labels: int


def corrections(
    folder: Path, arms: Sequence[str], columns: Iterable[Column], numbers: Mapping[tuple[str, ...], Estimate]
) -> Iterator[Correction]:
    """Every headline rate whose judge's verdicts were labelled by people in this run."""
    rows = {kind: given(folder, kind) for kind in ("refusal", "harm")}
    for column in columns:
        bench = protocol_of(column.bench)
        metric = next((m for m in bench.metrics if m.name == column.metric), None) if bench else None
        if metric is None or column.part != "answer":
            continue
        pairs = [
            (row["label"] in metric.labels, row[f"{column.judge}_label"] in metric.labels, str(row["id"]))
            for row in rows["harm" if set(metric.family) & set(HARM) else "refusal"]
            if row.get(f"{column.judge}_label") and (not metric.intents or row["intent"] in metric.intents)
        ]
        yes, no = (
            stats.rate([said == gold for gold, said, _ in own], clusters=[name for *_, name in own])
            for own in ([pair for pair in pairs if pair[0] is side] for side in (True, False))
        )
        for arm in arms if pairs else ():
            if (observed := numbers.get((arm, *column[:5]))) is not None:
                yield Correction(
                    arm=arm, bench=column.bench, attack=column.attack, metric=column.metric, judge=column.judge, observed=observed,
                    corrected=stats.corrected(observed, yes, no), sensitivity=yes, specificity=no, labels=len(pairs),
                )  # fmt: skip


def notes(judges: Iterable[str], corrected: Sequence[Correction] = ()) -> dict[str, str]:
    """What has to be said beside the rates of a judge, by its name; nothing of programs that need no calibration."""
    known = {one.judge: one for one in reversed(corrected)}
    found = {}
    for judge in dict.fromkeys(judges):
        try:
            said, model = note(judge), requires_model(judge)
        except UserError:  # of another's making, or not here any more
            said, model = "", False
        if one := known.get(judge):
            right = (
                f"sensitivity {format.interval(one.sensitivity)} %, specificity {format.interval(one.specificity)} %"
            )
            said = "; ".join(
                filter(
                    None,
                    (
                        said,
                        f"{format.metric(one.metric)}: {right} by {format.plural(one.labels, 'label')} of this run's replies",
                    ),
                )
            )
        if said or model:
            found[judge] = said or UNKNOWN
    return found
