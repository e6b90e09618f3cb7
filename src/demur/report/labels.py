"""Labels that people give in the viewer: files that `demur calibrate` reads, one for each kind of label.

    RUN/labels/refusal.jsonl, harm.jsonl    prompt, completion, label
    RUN/labels/patterns.jsonl               prompt, response, one 0 or 1 for each pattern

A row has the author of the label (`by`) and, for a trace that was drawn at random, its band and the size of that band
(`band`, `of`). Several people may label the same trace. The labels measure judges: their agreement with people, and
rates without their errors.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from demur import stats
from demur.bench.metrics import HARM, REFUSAL
from demur.errors import UserError
from demur.judge import note, requires_model
from demur.judge.base import JudgeSetup
from demur.judge.calibrate import Calibration, errors_of, saved, weights
from demur.records import PATTERNS, Estimate, Record, Trace, Verdict, encode
from demur.report import format
from demur.report.index import Stratum
from demur.report.metrics import Cell, Cells, Column
from demur.report.read import Judged, Row, band, grouped, people_labels, protocol_of
from demur.storage import artifacts as runs
from demur.storage.artifacts import Artifact, atomic_write

KINDS: dict[str, tuple[str, ...]] = {"refusal": REFUSAL, "harm": HARM, "patterns": PATTERNS}
ASSUMED = 0.1  # The assumed error rate of a judge without probabilities, before there are labels
FITTED = ", to which the judge was fitted"
UNKNOWN = "uncalibrated: no labels of people are known for it with this text and model (demur calibrate, demur view)"


class Labels:
    """The labels of a run."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "labels"
        self._rows = {kind: self._read(kind) for kind in KINDS}

    def _read(self, kind: str) -> dict[tuple[str, str], dict[str, Any]]:
        return {(row["id"], row["by"]): row for row in people_labels(self.folder.parent, kind)}

    def put(
        self, trace: Trace, *, kind: str, value: str | list[str] | None, by: str, verdicts: Sequence[Verdict] = (),
        drawn: tuple[str, int] | None = None,
    ) -> None:  # fmt: skip
        """Set one person's label of a trace (for patterns: the list of those present), or remove it by `None`.

        The judges' labels of the answer are kept with it as `JUDGE_label`, for calibration. `drawn`: the band of a
        randomly drawn trace, and its size. Raises UserError: no such kind or label.
        """
        if kind not in KINDS:
            raise UserError(f"unknown kind of label '{kind}'. Allowed: {', '.join(KINDS)}.")
        values = [] if value is None else value if isinstance(value, list) else [value]
        if set(values) - set(KINDS[kind]) or (kind != "patterns" and len(values) > 1):
            raise UserError(f"no label {values} of {kind}. Allowed: {', '.join(KINDS[kind])}.")
        row: dict[str, Any] = {"id": trace.id, "by": by, "intent": trace.prompt.intent, "prompt": trace.prompt.question}
        if kind == "patterns":
            row |= {"response": trace.raw} | {pattern: int(pattern in values) for pattern in PATTERNS}
        else:
            row |= {"completion": trace.answer or "", "label": "".join(values)}
            row |= {f"{v.judge}_label": v.label for v in verdicts if v.part == "answer" and v.label in KINDS[kind]}
        row |= dict(zip(("band", "of"), drawn or (), strict=False))
        self.folder.mkdir(exist_ok=True)
        with runs.locked(self.folder):  # Others may have written meanwhile
            rows = self._rows[kind] = self._read(kind)
            rows.pop((trace.id, by), None)
            if value is not None:
                rows[trace.id, by] = row
            atomic_write(self.folder / f"{kind}.jsonl", b"".join(encode(each) + b"\n" for each in rows.values()))

    def of(self, trace: str) -> dict[str, dict[str, str | list[str]]]:
        """Kind -> person -> label of a trace."""
        labels: dict[str, dict[str, str | list[str]]] = {}
        for kind, rows in self._rows.items():
            for (name, by), row in rows.items():
                if name == trace:
                    patterns: list[str] = [pattern for pattern in PATTERNS if row.get(pattern)]
                    labels.setdefault(kind, {})[by] = patterns if kind == "patterns" else str(row["label"])
        return labels

    def ids(self) -> set[str]:
        """The traces that have a label."""
        return {name for rows in self._rows.values() for name, _ in rows}

    def agreement(self) -> dict[str, dict[str, Any]]:
        """For each kind: labels given and, where two people labelled the same traces, their agreement."""
        summary: dict[str, dict[str, Any]] = {}
        for kind, rows in self._rows.items():
            fields = PATTERNS if kind == "patterns" else ("label",)
            values = {key: "".join(str(row[field]) for field in fields) for key, row in rows.items()}
            people = sorted({by for _, by in rows})
            summary[kind] = {"labels": len(rows), "people": people, "pairs": []}
            for a, b in combinations(people, 2):
                if both := [(values[name, a], values[name, b]) for name, by in rows if by == a and (name, b) in rows]:
                    same, kappa = stats.rate([x == y for x, y in both]), stats.kappa(*zip(*both, strict=True))
                    summary[kind]["pairs"].append({"a": a, "b": b, "n": len(both), "same": same, "kappa": kappa})
        return summary


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


def corrections(folder: Path, table: Cells, columns: Iterable[Column]) -> Iterator[Correction]:
    """Every headline rate whose judge has labels of people in this run.

    With labels in each of its bands an arm's rate is from them; else the judge's errors on all labels are taken out.
    """
    rows = {kind: people_labels(folder, kind) for kind in ("refusal", "harm")}
    for column in columns:
        bench = protocol_of(column.bench)
        metric = next((m for m in bench.metrics if m.name == column.metric), None) if bench else None
        if metric is None or column.part != "answer":
            continue
        name, kind = f"{column.judge}_label", "harm" if set(metric.family) & set(HARM) else "refusal"
        labelled = [
            (str(row["id"]), row["label"] in metric.labels, row[name] in metric.labels, weight)
            for row, weight in zip(rows[kind], weights(rows[kind]), strict=True)
            if weight[0] and row.get(name) and row["intent"] in (metric.intents or [row["intent"]])
        ]
        if not labelled:
            continue
        yes, no = errors_of([(gold, label) for _, gold, label, _ in labelled], [weight for *_, weight in labelled])
        for arm, cell in ((arm, cells[column]) for arm, cells in table.items() if column in cells):
            observed, by_people = cell.estimate(column), _by_people(cell, labelled)
            yield Correction(
                arm=arm, bench=column.bench, attack=column.attack, metric=column.metric, judge=column.judge,
                corrected=stats.corrected(observed, yes, no) if by_people.value is None else by_people,
                observed=observed, sensitivity=yes, specificity=no, labels=len(labelled),
            )  # fmt: skip


def _by_people(cell: Cell, labelled: Sequence[tuple[str, bool, object, object]]) -> Estimate:
    """The rate of a cell by people's labels, from those in each band."""
    labels: dict[str, list[bool]] = {}
    for name, positive, *_ in labelled:
        labels.setdefault(name, []).append(positive)

    def band_of(row: Row) -> str:
        return band(*next((verdict for (_, part), verdict in row.verdicts.items() if part != "thinking"), Judged(None)))

    parts = []
    for rows in grouped(cell.rows, band_of).values():
        seen = [(positive, row.cluster) for row in rows for positive in labels.get(row.id, ())]
        parts.append((len(rows), stats.rate([p for p, _ in seen], clusters=[cluster for _, cluster in seen])))
    return stats.stratified(parts)


def widths(strata: Sequence[Stratum], labels: Sequence[int] = (30, 100, 300)) -> dict[int, float | None]:
    """Labels -> half the width of the rate's interval, when so many are given over the bands of a draw in turn.

    The judge is assumed to err as often as its own probabilities say, or in `ASSUMED` of its calls where it has none.
    """
    halves: dict[int, float | None] = {}
    for count in labels:
        parts = []
        for _, size, errs, called in strata:
            taken, wrong, positive = min(size, count // len(strata)), ASSUMED if errs is None else errs, called or 0.0
            hits = round(taken * (positive * (1 - wrong) + (1 - positive) * wrong))
            parts.append((size, stats.rate([place < hits for place in range(taken)])))
        rate = stats.stratified(parts)
        halves[count] = None if rate.low is None or rate.high is None else (rate.high - rate.low) / 2
    return halves


def notes(judges: Iterable[str], stages: Sequence[Artifact], corrected: Sequence[Correction] = ()) -> dict[str, str]:
    """Judge -> a note on its rates in some stages: its kind, its calibration, departures from its original set-up."""
    by_judge = {correction.judge: correction for correction in reversed(corrected)}
    setups = [setup for stage in stages if stage.has("judges") for setup in stage.read("judges", JudgeSetup)]
    calibrations = {key: c for run in {stage.folder.parents[1] for stage in stages} for key, c in saved(run).items()}
    texts = {}
    for judge in dict.fromkeys(judges):
        kind = judge.partition("+")[0]  # The judge without a text of the user's
        try:
            parts, needs_model = [note(kind)], requires_model(kind)
        except UserError:  # A plug-in, or not here any more
            parts, needs_model = [], False
        used = [setup for setup in setups if setup.judge == judge]
        worth = [f"{_right(c)} on the {c.setup.part} by {format.plural(c.n, 'label')} of {c.labels}{FITTED * c.fitted}"
                 for key in dict.fromkeys(setup.key for setup in used) if (c := calibrations.get(key))]  # fmt: skip
        if correction := by_judge.get(judge):
            count = format.plural(correction.labels, "label")
            worth.append(f"{format.metric(correction.metric)}: {_right(correction)} by {count} of this run's replies")
        parts += worth or [UNKNOWN] * needs_model
        departures = dict.fromkeys(departure for setup in used for departure in setup.departs)
        parts += [f"left its original set-up: {', '.join(departures)}"] if departures else []
        if text := "; ".join(filter(None, parts)):
            texts[judge] = text
    return texts


def _right(rates: Correction | Calibration) -> str:
    """How often a judge is right, on either kind of reply."""
    return f"sensitivity {format.interval(rates.sensitivity)} %, specificity {format.interval(rates.specificity)} %"
