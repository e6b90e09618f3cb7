"""How often the failure patterns occur in traces, before and after the filter, and what else is measured of a reasoning."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from demur import stats
from demur.diagnose import is_screen
from demur.diagnose.measures import Measures
from demur.records import CLASSES, PATTERNS, Estimate, Finding, Kept, Pattern, Record, Trace
from demur.report.metrics import clipped
from demur.report.read import Run, given, label
from demur.storage.artifacts import Artifact
from demur.storage.records_file import project

TRUNCATED = ("cut_in_thinking", "cut_in_answer")
NO, YES, UNKNOWN, ABSENT = range(4)  # What findings say of a pattern in a trace; the last: nothing
MEASURES = {
    "sentences": ("sentences", "count"), "first_awareness": ("first_awareness", "share"), "key_sentence": ("key_sentence", "share"),
    "after_decision": ("after_decision", "count"), "reopenings": ("reopenings", "count"), "loop": ("loop", ""),
    "language_switch": ("language_switches", ""),
}  # fmt: skip
"""Name -> field of a trace's measures, and its unit; without one, whether there is any. A place that does not exist is unscored."""


class PatternRate(Record, frozen=True, kw_only=True):
    """How often a pattern (or a class of patterns, or any) stands in a set of traces, before and after the filter."""

    traces: str
    pattern: str
    kind: str  # pattern, class or any
    detector: str
    before: Estimate
    after: Estimate | None = None


def patterns(run: Run) -> Iterator[PatternRate]:
    """Rates of patterns, of classes and of any, for every set of traces that was diagnosed: harmful prompts alone."""
    for source, stage in diagnosed(run):
        found = _Found(source, stage, given(run.folder, "patterns"))
        for strategy, those in found.groups.items():
            several = len(found.groups) > 1
            name = f"{label(source)}: {strategy or 'none'}" if several else label(source)
            sets: dict[str, tuple[Pattern, ...]] = {p: (p,) for p in PATTERNS if p in found.marks}
            for what, members in {**sets, **CLASSES, "any": PATTERNS}.items():
                yield found.rate(name, those, what, members)


def measures(run: Run) -> dict[str, dict[str, Estimate]]:
    """Means and shares of what the detectors measure besides the patterns, by set of traces."""
    found: dict[str, dict[str, Estimate]] = {}
    for source, stage in diagnosed(run):
        if stage.has("measures"):
            rows = list(project(stage.folder / "measures.jsonl", Measures, *(field for field, _ in MEASURES.values())))
            own = found[label(source)] = {}
            for (name, (_, unit)), column in zip(MEASURES.items(), zip(*rows, strict=True), strict=False):
                values = [None if value is None else float(value) if unit else bool(value) for value in column]
                own[name] = clipped(stats.mean(values), values, unit) if unit else stats.rate(values)  # type: ignore[arg-type]
    return found


def diagnosed(run: Run) -> Iterator[tuple[Artifact, Artifact]]:
    """Every diagnosis of the run's own traces, behind the stage that made them."""
    makers = {(stage.folder.parent, stage.manifest.fingerprint): stage for stage in run.stages}
    for stage in run.of_kind("diagnose"):
        if source := makers.get((stage.folder.parent, stage.manifest.inputs.get("traces", ""))):
            yield source, stage


class _Found:
    """What was found in a set of traces: of each a byte a pattern, and whether it passed the filter."""

    def __init__(self, source: Artifact, stage: Artifact, labels: Sequence[dict[str, Any]]) -> None:
        kept = source.manifest.summary.get("kept", stage.manifest.settings.get("kept"))
        if source.has("kept"):
            kept = (name for (name,) in project(source.folder / "kept.jsonl", Kept, "trace"))
        keep = None if kept is None else set(kept)  # ids that the filter let through; `None`: there was none
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
                passed.append(keep is not None and name in keep)
        self.passed = None if keep is None else passed
        self.labels: dict[int, list[dict[str, Any]]] = {}  # What people said of traces, by place
        for row in labels:
            if (at := place.get(hash(row["id"]))) is not None:
                self.labels.setdefault(at, []).append(row)
        self.marks: dict[str, bytearray] = {}
        self.detector = ""
        path = stage.folder / "findings.jsonl"
        for trace, pattern, present, self.detector in project(path, Finding, "trace", "pattern", "present", "detector"):
            at = place.get(hash(trace))
            if at is not None:
                marks = self.marks.setdefault(pattern, bytearray([ABSENT]) * len(place))
                marks[at] = UNKNOWN if present is None else present

    def rate(self, name: str, those: Sequence[int], what: str, members: Sequence[str]) -> PatternRate:
        """How often at least one of some patterns is there, before and after the filter."""
        marks = [self.marks[pattern] for pattern in members if pattern in self.marks]
        there = [at for at in those if any(own[at] != ABSENT for own in marks)]
        kept = None if self.passed is None else [at for at in there if self.passed[at]]
        kind = "pattern" if what in PATTERNS else "any" if what == "any" else "class"
        return PatternRate(
            traces=name, pattern=what, kind=kind, detector=self.detector, before=self._rate(marks, there, members),
            after=None if kept is None else self._rate(marks, kept, members),
        )  # fmt: skip

    def _rate(self, marks: Sequence[bytearray], those: list[int], members: Sequence[str]) -> Estimate:
        """A trace is scored where all patterns are decided: to count it as soon as one is there would favour presence."""
        flags = [[own[at] for own in marks] for at in those]
        if self.screen:
            return self._corrected(flags, those, members)
        outcomes = [None if UNKNOWN in own or ABSENT in own else YES in own for own in flags]
        truncated = [bool(self.truncated[at]) for at in those]
        found = stats.rate(outcomes, clusters=[self.clusters[at] for at in those], truncated=truncated, better="lower")
        sure = sum(YES in own and not cut for own, cut in zip(flags, truncated, strict=True))
        return replace(found, best=sure / len(flags)) if flags else found

    def _corrected(self, flags: Sequence[list[int]], those: list[int], members: Sequence[str]) -> Estimate:
        """A screen's calls are for reading: its errors are those of other text. Labels of a random draw make a rate of them.

        The strata are no coarser than those of the viewer's draw: traces in which something is flagged, and others.
        """
        sides: dict[str, list[int]] = {"flagged": [], "flagged for another": [], "not": []}
        for at, own in zip(those, flags, strict=True):
            drawn = any(marks[at] == YES for marks in self.marks.values())
            sides["flagged" if YES in own else "flagged for another" if drawn else "not"].append(at)
        parts = []
        for side in sides.values():
            seen = [(at, any(row[name] for name in members)) for at in side for row in self.labels.get(at, ())]
            rate = stats.rate([there for _, there in seen], clusters=[self.clusters[at] for at, _ in seen])
            parts.append((len(side), rate))
        found, how = stats.stratified(parts), f"screen: {len(sides['flagged'])} flagged of {len(flags)}"
        if found.value is not None:
            how = f"{how}; {found.how}, read by people"
        elif any(self.labels.get(at) for at in those):
            how += ", label both kinds, drawn at random, for a rate"
        else:
            how += ", read them" if sides["flagged"] else ", not flagged is not clean"
        return replace(found, n=len(flags), unscored=0, how=how)
