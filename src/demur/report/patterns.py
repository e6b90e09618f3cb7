"""How often the failure patterns occur in traces, before and after the filter, and other measures of a reasoning."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from demur import stats
from demur.diagnose import is_screen
from demur.diagnose.measures import Measures
from demur.records import CLASSES, PATTERNS, Estimate, Finding, Kept, Pattern, Record, Trace
from demur.report.metrics import clipped
from demur.report.read import Run, label, people_labels
from demur.storage.artifacts import Artifact
from demur.storage.records_file import project

TRUNCATED = ("cut_in_thinking", "cut_in_answer")
NO, YES, UNKNOWN, MISSING = range(4)  # The finding on a pattern in a trace; the last: there is none
MEASURES = {
    "sentences": ("sentences", "count"), "first_awareness": ("first_awareness", "share"),
    "key_sentence": ("key_sentence", "share"), "after_decision": ("after_decision", "count"),
    "reopenings": ("reopenings", "count"), "loop": ("loop", ""), "language_switch": ("language_switches", ""),
}  # fmt: skip
"""Name -> field of a trace's measures, and its unit; without a unit: whether there is any. `None` is unscored."""


class PatternRate(Record, frozen=True, kw_only=True):
    """How often a pattern, one of a class or any occurs in a set of traces, before and after the filter."""

    traces: str
    pattern: str
    kind: str  # pattern, class or any
    detector: str
    before: Estimate
    after: Estimate | None = None


def patterns(run: Run) -> Iterator[PatternRate]:
    """Rates of patterns, of classes and of any, for every set of traces that was diagnosed: harmful prompts alone."""
    for source, stage in diagnosed(run):
        traces = _Traces(source, stage, people_labels(stage.folder.parents[1], "patterns"))
        for strategy, places in traces.groups.items():
            name = f"{label(source)}: {strategy or 'none'}" if len(traces.groups) > 1 else label(source)
            sets: dict[str, tuple[Pattern, ...]] = {p: (p,) for p in PATTERNS if p in traces.marks}
            for pattern, members in {**sets, **CLASSES, "any": PATTERNS}.items():
                yield traces.rate(name, places, pattern, members)


def measures(run: Run) -> dict[str, dict[str, Estimate]]:
    """Means and shares of the detectors' other measures, by set of traces."""
    sets: dict[str, dict[str, Estimate]] = {}
    for source, stage in diagnosed(run):
        if stage.has("measures"):
            rows = list(project(stage.folder / "measures.jsonl", Measures, *(field for field, _ in MEASURES.values())))
            estimates = sets[label(source)] = {}
            for (name, (_, unit)), column in zip(MEASURES.items(), zip(*rows, strict=True), strict=False):
                values: list[Any] = [None if v is None else float(v) if unit else bool(v) for v in column]
                estimates[name] = clipped(stats.mean(values), values, unit) if unit else stats.rate(values)
    return sets


def diagnosed(run: Run) -> Iterator[tuple[Artifact, Artifact]]:
    """Every stage of the run whose traces were diagnosed, with the diagnosis."""
    makers = {(stage.folder.parent, stage.manifest.fingerprint): stage for stage in run.stages}
    for stage in run.of_kind("diagnose"):
        if source := makers.get((stage.folder.parent, stage.manifest.inputs.get("traces", ""))):
            yield source, stage


class _Traces:
    """The findings on a set of traces: of each trace a byte a pattern, and whether it passed the filter."""

    def __init__(self, source: Artifact, stage: Artifact, labels: Sequence[dict[str, Any]]) -> None:
        kept = source.manifest.summary.get("kept", stage.manifest.settings.get("kept"))  # `None`: there was no filter
        if source.has("kept"):
            kept = (name for (name,) in project(source.folder / "kept.jsonl", Kept, "trace"))
        keep = set(kept or ())
        self.screen = is_screen(str(stage.manifest.settings.get("detector", "llm")))
        place: dict[int, int] = {}
        self.clusters, self.truncated, passed = array("q"), bytearray(), bytearray()
        self.groups: dict[str, array[int]] = {}  # Places of traces by strategy
        fields = ("id", "prompt.cluster", "prompt.intent", "strategy", "outcome")
        for name, cluster, intent, strategy, outcome in project(source.folder / "traces.jsonl", Trace, *fields):
            if intent in ("harmful", "borderline"):
                self.groups.setdefault(strategy, array("q")).append(len(place))
                place[hash(name)] = len(place)
                self.clusters.append(hash(cluster))
                self.truncated.append(outcome in TRUNCATED)
                passed.append(name in keep)
        self.passed = None if kept is None else passed
        self.labels: dict[int, list[dict[str, Any]]] = {}  # People's labels, by place
        for row in labels:
            if (at := place.get(hash(row["id"]))) is not None:
                self.labels.setdefault(at, []).append(row)
        self.marks: dict[str, bytearray] = {}
        self.detector = ""
        path = stage.folder / "findings.jsonl"
        for trace, pattern, present, self.detector in project(path, Finding, "trace", "pattern", "present", "detector"):
            if (at := place.get(hash(trace))) is not None:
                marks = self.marks.setdefault(pattern, bytearray([MISSING]) * len(place))
                marks[at] = UNKNOWN if present is None else present

    def rate(self, name: str, places: Sequence[int], pattern: str, members: Sequence[str]) -> PatternRate:
        """How often at least one of some patterns occurs, before and after the filter."""
        marks = [self.marks[member] for member in members if member in self.marks]
        before = [at for at in places if any(pattern_marks[at] != MISSING for pattern_marks in marks)]
        after = None if self.passed is None else [at for at in before if self.passed[at]]
        kind = "pattern" if pattern in PATTERNS else "any" if pattern == "any" else "class"
        return PatternRate(
            traces=name, pattern=pattern, kind=kind, detector=self.detector, before=self._rate(marks, before, members),
            after=None if after is None else self._rate(marks, after, members),
        )  # fmt: skip

    def _rate(self, marks: Sequence[bytearray], places: list[int], members: Sequence[str]) -> Estimate:
        """A trace is scored where all patterns are decided: to score it at the first one would favour presence."""
        flags = [[pattern_marks[at] for pattern_marks in marks] for at in places]
        if self.screen:
            return self._of_screen(flags, places, members)
        outcomes = [None if UNKNOWN in row or MISSING in row else YES in row for row in flags]
        truncated = [bool(self.truncated[at]) for at in places]
        rate = stats.rate(outcomes, clusters=[self.clusters[at] for at in places], truncated=truncated, better="lower")
        sure = sum(YES in row and not cut for row, cut in zip(flags, truncated, strict=True))
        return replace(rate, best=sure / len(flags)) if flags else rate

    def _of_screen(self, flags: Sequence[list[int]], places: list[int], members: Sequence[str]) -> Estimate:
        """A screen flags traces for reading and has no rate. Labels of a random draw give one, by the draw's strata."""
        strata: dict[str, list[int]] = {"flagged": [], "flagged for another": [], "not": []}
        for at, row in zip(places, flags, strict=True):
            other = any(marks[at] == YES for marks in self.marks.values())
            strata["flagged" if YES in row else "flagged for another" if other else "not"].append(at)
        parts = []
        for stratum in strata.values():
            seen = [(at, any(row[name] for name in members)) for at in stratum for row in self.labels.get(at, ())]
            rate = stats.rate([present for _, present in seen], clusters=[self.clusters[at] for at, _ in seen])
            parts.append((len(stratum), rate))
        result, how = stats.stratified(parts), f"screen: {len(strata['flagged'])} flagged of {len(flags)}"
        if result.value is not None:
            how = f"{how}; {result.how}, read by people"
        elif any(self.labels.get(at) for at in places):
            how += ", label both kinds, drawn at random, for a rate"
        else:
            how += ", read them" if strata["flagged"] else ", not flagged is not clean"
        return replace(result, n=len(flags), unscored=0, how=how)
