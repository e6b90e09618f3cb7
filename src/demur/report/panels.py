"""What stands below the first table: patterns, funnels, lengths, learnability, thinking against answer, judges.

Each panel exists when the stages that it is about do.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import combinations, product
from math import comb
from typing import Any

import msgspec

from demur import stats
from demur.records import CLASSES, PATTERNS, Estimate, Part, Record
from demur.report.cells import Cells, Column, Made, levels
from demur.report.read import Evaluation, Row, Run, light
from demur.storage.artifacts import Artifact

HARM = ("unsafe", "full_compliance")
"""Labels that say that a text serves a harmful request."""


class PatternRate(Record, frozen=True, kw_only=True):
    """How often a pattern (or a class of patterns) stands in a set of traces, before and after the filter."""

    traces: str
    pattern: str
    kind: str
    """pattern or class."""
    detector: str
    before: Estimate
    after: Estimate | None = None


class Lengths(Record, frozen=True, kw_only=True):
    """Tokens of thinking in a set of traces: the values at 0, 5, … 100 % of the traces."""

    traces: str
    n: int
    quantiles: tuple[float, ...]


class Curve(Record, frozen=True, kw_only=True):
    """Loss a response token over training steps."""

    arm: str
    seed: int | None
    series: str
    steps: tuple[float, ...]
    loss: tuple[float, ...]


class Crossing(Record, frozen=True, kw_only=True):
    """Thinking against answer, by one judge, over harmful prompts."""

    arm: str
    bench: str
    attack: str
    judge: str
    thinking: str
    """safe or unsafe."""
    answer: str
    estimate: Estimate
    examples: tuple[str, ...] = ()
    """Ids of some traces."""


class Agreement(Record, frozen=True, kw_only=True):
    """How often two judges of the same part say the same of harm."""

    part: str
    a: str
    b: str
    same: Estimate
    kappa: float | None


class Tries(Record, frozen=True, kw_only=True):
    """The share of questions that at least one of k attempts gets through to, from all attempts made."""

    arm: str
    bench: str
    attack: str
    share: tuple[float, ...]
    """For k = 1, 2, …"""


class Published(Record, frozen=True, kw_only=True):
    """A number that the paper printed for the same protocol, base and format; not ours."""

    base: str
    arm: str
    bench: str
    attack: str
    metric: str
    value: float


def _diagnosed(run: Run) -> Iterator[tuple[Artifact, Artifact]]:
    """Every diagnosis of the run's own traces, behind the stage that made them."""
    makers = {stage.manifest.fingerprint: stage for stage in run.stages}
    for stage in run.of_kind("diagnose"):
        if source := makers.get(stage.manifest.inputs.get("traces", "")):
            yield source, stage


def patterns(run: Run) -> Iterator[PatternRate]:
    """Pattern rates of every set of traces that was diagnosed."""
    for source, stage in _diagnosed(run):
        told = _Told(source, stage)
        for pattern in PATTERNS:
            if pattern in told.marks:
                yield told.rate(pattern, "pattern", told.marks[pattern])
        for group, members in CLASSES.items():
            if there := [told.marks[pattern] for pattern in members if pattern in told.marks]:
                yield told.rate(group, "class", bytes(map(_any, *there)))


NO, YES, UNKNOWN, ABSENT = range(4)
"""What findings say of a pattern in a trace; the last: there is none."""


class _Told:
    """What was found in a set of traces: of each a byte a pattern, and whether it passed the filter."""

    def __init__(self, source: Artifact, stage: Artifact) -> None:
        kept = source.manifest.summary.get("kept")
        keep = None if kept is None else set(kept)
        place: dict[int, int] = {}
        self.clusters, passed = array("q"), bytearray()
        for line in light(source, "traces", _Line):
            if line.prompt.intent in ("harmful", "borderline"):
                place[hash(line.id)] = len(place)
                self.clusters.append(hash(line.prompt.cluster))
                passed.append(keep is not None and line.id in keep)
        self.passed = None if keep is None else passed
        self.marks: dict[str, bytearray] = {}
        self.detector, self.name = "", label(source)
        for finding in light(stage, "findings", _Found):
            at = place.get(hash(finding.trace))
            if at is not None:
                marks = self.marks.setdefault(finding.pattern, bytearray([ABSENT]) * len(place))
                marks[at] = UNKNOWN if finding.present is None else finding.present
            self.detector = finding.detector

    def rate(self, pattern: str, kind: str, marks: Sequence[int]) -> PatternRate:
        """How often, before and after the filter."""
        there, passed = [at for at, mark in enumerate(marks) if mark != ABSENT], self.passed
        return PatternRate(
            traces=self.name, pattern=pattern, kind=kind, detector=self.detector, before=self._rate(marks, there),
            after=None if passed is None else self._rate(marks, [at for at in there if passed[at]]),
        )  # fmt: skip

    def _rate(self, marks: Sequence[int], those: list[int]) -> Estimate:
        outcomes = [None if marks[at] == UNKNOWN else marks[at] == YES for at in those]
        return stats.rate(outcomes, clusters=[self.clusters[at] for at in those], better="lower")


def _any(*marks: int) -> int:
    """Whether any holds; unknown when none does and one is unknown."""
    return YES if YES in marks else UNKNOWN if UNKNOWN in marks or ABSENT in marks else NO


class _Whose(msgspec.Struct, gc=False):
    cluster: str
    intent: str


class _Line(msgspec.Struct, gc=False):
    id: str
    prompt: _Whose


class _Found(msgspec.Struct, gc=False):
    trace: str
    pattern: str
    present: bool | None
    detector: str


def measures(run: Run) -> dict[str, dict[str, Estimate]]:
    """What the detectors count besides the patterns, such as sentences after the decision."""
    told = ((label(source), stage.manifest.summary.get("measures")) for source, stage in _diagnosed(run))
    return {name: msgspec.convert(given, dict[str, Estimate]) for name, given in told if given}


def label(stage: Artifact) -> str:
    """How a set of traces is called: by its strategy and how it was filtered, or by its stage."""
    if "strategy" in stage.manifest.summary:
        return stage.manifest.name.removeprefix("distil-")
    return stage.manifest.name


def funnels(run: Run) -> dict[str, dict[str, int]]:
    """Asked, answered, dropped and why, kept, of every distillation."""
    found: dict[str, dict[str, int]] = {}
    for stage in run.of_kind("distil"):
        funnel = stage.manifest.summary.get("funnel")
        if funnel is not None:
            found[stage.manifest.name.removeprefix("distil-")] = _in_order(funnel, ("asked", "answered", "failed"))
    return found


def mixes(run: Run) -> dict[str, list[dict[str, Any]]]:
    """The account of every mix: given, dropped and why, taken, by share."""
    tables = {s.manifest.name.removeprefix("mix-"): s.manifest.summary.get("table") for s in run.of_kind("mix")}
    return {name: [_in_order(row, ("share", "given")) for row in table] for name, table in tables.items() if table}


def _in_order(row: dict[str, Any], first: tuple[str, ...]) -> dict[str, Any]:
    """A row whose outcome stands last: what is kept or taken."""
    last = [key for key in ("kept", "taken") if key in row]
    middle = [key for key in row if key not in first and key not in last]
    return {key: row[key] for key in (*first, *middle, *last) if key in row}


def lengths(run: Run) -> Iterator[Lengths]:
    """Lengths of thinking, of what teachers wrote and of what was kept apart from what models answered."""
    groups: dict[str, list[int]] = {}
    for stage in run.of_kind("distil"):
        tokens = [r.tokens_thinking for r in light(stage, "traces", Row) if r.tokens_thinking is not None]
        groups[f"{stage.manifest.name.removeprefix('distil-')} (teacher)"] = tokens
    for evaluation in run.evaluations:
        tokens = [row.tokens_thinking for row in evaluation.rows if row.tokens_thinking is not None]
        groups.setdefault(evaluation.arm, []).extend(tokens)
    for name, tokens in groups.items():
        if tokens:
            ordered = sorted(tokens)
            points = tuple(float(ordered[round(q / 20 * (len(ordered) - 1))]) for q in range(21))
            yield Lengths(traces=name, n=len(tokens), quantiles=points)


def learnability(run: Run) -> Iterator[Curve]:
    """Loss a response token while training: of the rows trained on, and of rows held out, by part."""
    for stage in run.of_kind("train"):
        settings = stage.manifest.settings
        arm, seed = run.split(str(settings.get("arm", stage.manifest.name)))[0], settings.get("seed")
        series: dict[str, list[_Loss]] = {}
        for row in light(stage, "metrics", _Loss):
            series.setdefault("training rows", []).append(row)
        for row in light(stage, "learnability", _Loss):
            series.setdefault(f"held-out rows, {row.part or 'whole'}", []).append(row)
        for name, rows in sorted(series.items()):
            steps, loss = tuple(row.step for row in rows), tuple(row.loss for row in rows)
            yield Curve(arm=arm, seed=seed, series=name, steps=steps, loss=loss)


class _Loss(msgspec.Struct):
    step: float
    loss: float
    part: str = ""


def crossing(run: Run) -> Iterator[Crossing]:
    """Thinking and answer judged apart and crossed, where one judge saw both."""
    groups: dict[tuple[str, str, str, str], list[tuple[Row, Made, str, str]]] = {}
    for e in run.evaluations:
        for judge in dict.fromkeys(judge for judge, _ in e.judges):
            for row, one, two in _sided(e, (judge, "thinking"), (judge, "answer")):
                groups.setdefault((e.arm, e.bench, e.attack, judge), []).append((row, (e.base, e.seed), one, two))
    for (arm, bench, attack, judge), members in groups.items():
        for thinking, answer in product(("safe", "unsafe"), repeat=2):
            hits = [(t, a) == (thinking, answer) for _, _, t, a in members]
            made = levels([made for _, made, *_ in members])[0]
            estimate = stats.rate(hits, clusters=[row.prompt.cluster for row, *_ in members], seeds=made)
            ids = tuple(m[0].id for m, hit in zip(members, hits, strict=True) if hit)[:5]
            yield Crossing(
                arm=arm, bench=bench, attack=attack, judge=judge, thinking=thinking, answer=answer,
                estimate=estimate, examples=ids,
            )  # fmt: skip


def _sided(e: Evaluation, *judges: tuple[str, Part]) -> Iterator[tuple[Row, str, str]]:
    """Replies to harmful prompts of which two verdicts each say on which side of harm they are."""
    for row in e.rows:
        one, two = (_side(v.label) if (v := row.verdicts.get(judge)) else None for judge in judges)
        if row.prompt.intent == "harmful" and one and two:
            yield row, one, two


def _side(label: str | None) -> str | None:
    """Which side of harm a label is on; `None` where it says nothing of it."""
    if label in HARM:
        return "unsafe"
    return "safe" if label in ("safe", "full_refusal", "partial_refusal") else None


def agreement(run: Run) -> Iterator[Agreement]:
    """Every two judges that saw the same parts."""
    pairs: dict[tuple[str, str, str], list[tuple[str, str, str]]] = {}
    for e in run.evaluations:
        for (a, part), (b, other) in combinations(e.judges, 2):
            for row, one, two in _sided(e, (a, part), (b, part)) if part == other else ():
                pairs.setdefault((part, a, b), []).append((row.prompt.cluster, one, two))
    for (judged, a, b), rows in pairs.items():
        same = stats.rate([x == y for _, x, y in rows], clusters=[c for c, _, _ in rows], better="higher")
        kappa = stats.kappa([x for _, x, _ in rows], [y for _, _, y in rows])
        yield Agreement(part=judged, a=a, b=b, same=same, kappa=kappa)


def tries(found: Cells, columns: Sequence[Column]) -> Iterator[Tries]:
    """Success within k attempts, where questions were attempted more than once: unbiased, over all orders of attempts."""
    for column in columns:
        for arm in found if column.metric == "attack_success" else ():
            cell = found[arm].get(column)
            groups: dict[tuple[str, int | None], list[bool]] = {}
            for row, value, made in zip(cell.rows, cell.values, cell.made, strict=True) if cell else ():
                if value is not None:
                    groups.setdefault((row.key[0], made[1]), []).append(bool(value))
            shortest = min((len(group) for group in groups.values()), default=0)
            if shortest > 1:
                shares = tuple(
                    sum(1 - comb(len(g) - sum(g), k) / comb(len(g), k) for g in groups.values()) / len(groups)
                    for k in range(1, min(shortest, 50) + 1)
                )
                yield Tries(arm=arm, bench=column.bench, attack=column.attack, share=shares)


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


def plain(record: Record) -> dict[str, Any]:
    """A record as plain data, defaults left out."""
    data: dict[str, Any] = msgspec.to_builtins(record)
    return data
