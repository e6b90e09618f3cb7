"""Labels that people give in the viewer: files that `demur calibrate` reads, one for each kind of label.

    RUN/labels/refusal.jsonl    prompt, completion, label         RUN/labels/harm.jsonl   prompt, completion, label
    RUN/labels/patterns.jsonl   prompt, response, one 0 or 1 for each pattern

Of judges they say what they are worth: how far people agree with them, and rates without their errors. Each row says who gave it, and of a trace that was drawn at random from which band of how many (`band`, `of`). The same trace may be labelled by several people; how far they agree is part of the answer.
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
from demur.judge.calibrate import Calibration, errors_of, kept, weights
from demur.records import PATTERNS, Estimate, Record, Trace, Verdict, encode
from demur.report import format
from demur.report.index import Stratum
from demur.report.metrics import Cell, Cells, Column
from demur.report.read import Judged, Row, band, given, protocol_of
from demur.storage import artifacts as runs
from demur.storage.artifacts import Artifact, atomic_write

KINDS: dict[str, tuple[str, ...]] = {"refusal": REFUSAL, "harm": HARM, "patterns": PATTERNS}
ASSUMED = 0.1  # How often a judge without probabilities is taken to err before there are labels
UNKNOWN = "uncalibrated: no labels of people are known for it with this text and model (demur calibrate, demur view)"


class Labels:
    """The labels of a run."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "labels"
        self._rows = {kind: self._read(kind) for kind in KINDS}

    def _read(self, kind: str) -> dict[tuple[str, str], dict[str, Any]]:
        return {(row["id"], row["by"]): row for row in given(self.folder.parent, kind)}

    def put(
        self, trace: Trace, *, kind: str, value: str | list[str] | None, by: str, verdicts: Sequence[Verdict] = (),
        drawn: tuple[str, int] | None = None,
    ) -> None:  # fmt: skip
        """Set one person's label of a trace (for patterns: the list of those present), or take it back by `None`.

        What judges said of the answer stands beside it as `JUDGE_label`, so that calibration shows them side by side; and of
        a trace that was drawn at random its band, and how many traces that has.

        Raises UserError: no such kind or label.
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
        with runs.locked(self.folder):  # others may have written meanwhile
            rows = self._rows[kind] = self._read(kind)
            rows.pop((trace.id, by), None)
            if value is not None:
                rows[trace.id, by] = row
            atomic_write(self.folder / f"{kind}.jsonl", b"".join(encode(each) + b"\n" for each in rows.values()))

    def of(self, trace: str) -> dict[str, dict[str, str | list[str]]]:
        """Kind -> person -> label of a trace."""
        found: dict[str, dict[str, str | list[str]]] = {}
        for kind, rows in self._rows.items():
            for (name, by), row in rows.items():
                if name == trace:
                    own: str | list[str] = [p for p in PATTERNS if row[p]] if kind == "patterns" else str(row["label"])
                    found.setdefault(kind, {})[by] = own
        return found

    def ids(self) -> set[str]:
        """The traces that anybody labelled."""
        return {name for rows in self._rows.values() for name, _ in rows}

    def agreement(self) -> dict[str, dict[str, Any]]:
        """For each kind: labels given, and where two people labelled the same traces, how far they agree."""
        summary: dict[str, dict[str, Any]] = {}
        for kind, rows in self._rows.items():
            fields = PATTERNS if kind == "patterns" else ("label",)
            values = {at: "".join(str(row[field]) for field in fields) for at, row in rows.items()}
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


def corrections(folder: Path, found: Cells, columns: Iterable[Column]) -> Iterator[Correction]:
    """Every headline rate whose judge's verdicts were labelled by people in this run.

    An arm with labels in each of its bands has a rate of its own; else the judge's errors on all labelled replies are taken out.
    """
    rows = {kind: list(zip(own := given(folder, kind), weights(own), strict=True)) for kind in ("refusal", "harm")}
    for column in columns:
        bench = protocol_of(column.bench)
        metric = next((m for m in bench.metrics if m.name == column.metric), None) if bench else None
        if metric is None or column.part != "answer":
            continue
        labelled = [(str(row["id"]), row["label"] in metric.labels, row[f"{column.judge}_label"] in metric.labels, weight)
                    for row, weight in rows["harm" if set(metric.family) & set(HARM) else "refusal"]
                    if weight[0] and row.get(f"{column.judge}_label") and row["intent"] in (metric.intents or [row["intent"]])]  # fmt: skip
        if not labelled:
            continue
        yes, no = errors_of([(gold, said) for _, gold, said, _ in labelled], [weight for *_, weight in labelled])
        for arm, cell in ((arm, cells[column]) for arm, cells in found.items() if column in cells):
            observed, ours = cell.estimate(column), _of_bands(cell, labelled)
            yield Correction(
                arm=arm, bench=column.bench, attack=column.attack, metric=column.metric, judge=column.judge, observed=observed,
                corrected=stats.corrected(observed, yes, no) if ours.value is None else ours,
                sensitivity=yes, specificity=no, labels=len(labelled),
            )  # fmt: skip


def _of_bands(cell: Cell, labelled: Sequence[tuple[str, bool, object, object]]) -> Estimate:
    """What people say of a cell's replies, from those of each band that they labelled."""
    people: dict[str, list[bool]] = {}
    for name, positive, *_ in labelled:
        people.setdefault(name, []).append(positive)
    bands: dict[str, list[Row]] = {}
    for row in cell.rows:
        first = next((said for (_, part), said in row.verdicts.items() if part != "thinking"), Judged(None))
        bands.setdefault(band(*first), []).append(row)
    parts = []
    for own in bands.values():
        seen = [(positive, row.cluster) for row in own for positive in people.get(row.id, ())]
        parts.append((len(own), stats.rate([p for p, _ in seen], clusters=[cluster for _, cluster in seen])))
    return stats.stratified(parts)


def widths(strata: Sequence[Stratum], labels: Sequence[int] = (30, 100, 300)) -> dict[int, float | None]:
    """How wide the rate of a draw's traces will be, to either side, behind so many labels over its bands in turn.

    As if the judge erred as often as its own probabilities say, or in `ASSUMED` of its calls where it has none.
    """
    found: dict[int, float | None] = {}
    for count in labels:
        parts = []
        for _, size, errs, called in strata:
            taken, wrong, positive = min(size, count // len(strata)), ASSUMED if errs is None else errs, called or 0.0
            hits = round(taken * (positive * (1 - wrong) + (1 - positive) * wrong))
            parts.append((size, stats.rate([place < hits for place in range(taken)])))
        rate = stats.stratified(parts)
        found[count] = None if rate.low is None or rate.high is None else (rate.high - rate.low) / 2
    return found


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
        worth = [f"{_right(c)} on the {c.setup.part} by {format.plural(c.n, 'label')} of {c.labels}{', to which the judge was fitted' * c.fitted}"
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
