"""What judges are worth: how far people agree with them, and rates without their errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from demur import stats
from demur.bench.metrics import HARM
from demur.errors import UserError
from demur.judge import note, requires_model
from demur.judge.base import JudgeSetup
from demur.judge.calibrate import Calibration, errors_of, kept
from demur.records import Estimate, Record
from demur.report import format
from demur.report.metrics import Column
from demur.report.read import given, protocol_of
from demur.storage.artifacts import Artifact

UNKNOWN = (
    "uncalibrated: no labels of people are known for it with this text and model (demur calibrate, demur view RUN)"
)


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
        yes, no = errors_of([(gold, said) for gold, said, _ in pairs], [name for *_, name in pairs])
        for arm in arms if pairs else ():
            if (observed := numbers.get((arm, *column[:5]))) is not None:
                yield Correction(
                    arm=arm, bench=column.bench, attack=column.attack, metric=column.metric, judge=column.judge, observed=observed,
                    corrected=stats.corrected(observed, yes, no), sensitivity=yes, specificity=no, labels=len(pairs),
                )  # fmt: skip


def notes(judges: Iterable[str], stages: Sequence[Artifact], corrected: Sequence[Correction] = ()) -> dict[str, str]:
    """What has to be said beside the rates of a judge in some stages; nothing of programs that need no calibration."""
    known = {one.judge: one for one in reversed(corrected)}
    setups = [setup for stage in stages if stage.has("judges") for setup in stage.read("judges", JudgeSetup)]
    files = {key: one for run in {stage.folder.parents[1] for stage in stages} for key, one in kept(run).items()}
    found = {}
    for judge in dict.fromkeys(judges):
        try:
            kind = judge.partition("+")[0]  # of one with another text
            said, model = [note(kind)], requires_model(kind)
        except UserError:  # of another's making, or not here any more
            said, model = [], False
        own = [setup for setup in setups if setup.judge == judge]
        worth = [f"{_right(c)} on the {c.setup.part} by {format.plural(c.n, 'label')} of {c.labels}"
                 for key in dict.fromkeys(s.key for s in own) if (c := files.get(key))]  # fmt: skip
        if one := known.get(judge):
            count = format.plural(one.labels, "label")
            worth.append(f"{format.metric(one.metric)}: {_right(one)} by {count} of this run's replies")
        said += worth or [UNKNOWN] * model
        left = dict.fromkeys(departure for setup in own for departure in setup.departs)
        said += [f"left its original set-up: {', '.join(left)}"] if left else []
        if text := "; ".join(filter(None, said)):
            found[judge] = text
    return found


def _right(one: Correction | Calibration) -> str:
    """How often a judge is right, of either kind of reply."""
    return f"sensitivity {format.interval(one.sensitivity)} %, specificity {format.interval(one.specificity)} %"
