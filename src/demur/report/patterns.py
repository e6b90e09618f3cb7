"""How often the failure patterns occur in traces, before and after the filter, and what else is measured of a reasoning."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from demur import stats
from demur.diagnose import is_screen
from demur.diagnose.measures import Measures
from demur.records import CLASSES, PATTERNS, Estimate, Finding, Kept, Record, Trace
from demur.report.metrics import clipped
from demur.report.read import Run, given
from demur.storage.artifacts import Artifact
from demur.storage.records_file import project

TRUNCATED = ("cut_in_thinking", "cut_in_answer")
NO, YES, UNKNOWN, ABSENT = range(4)  # What findings say of a pattern in a trace; the last: nothing
MEASURES: dict[str, tuple[str, Callable[[Any], float | bool | None]]] = {
    "sentences": ("sentences", float), "first_awareness": ("first_awareness", lambda place: place),
    "key_sentence": ("key_sentence", lambda place: place), "after_decision": ("after_decision", float),
    "reopenings": ("reopenings", float), "loop": ("loop", bool),
    "language_switch": ("language_switches", lambda count: count > 0),
}  # fmt: skip
"""Name -> field of a trace's measures, and what it counts as; a place that does not exist is unscored."""


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
            for pattern in PATTERNS:
                if pattern in found.marks:
                    yield found.rate(name, those, pattern, (pattern,))
            for group, members in {**CLASSES, "any": PATTERNS}.items():
                yield found.rate(name, those, group, members)


def measures(run: Run) -> dict[str, dict[str, Estimate]]:
    """Means and shares of what the detectors measure besides the patterns, by set of traces."""
    found: dict[str, dict[str, Estimate]] = {}
    for source, stage in diagnosed(run):
        if stage.has("measures"):
            rows = list(project(stage.folder / "measures.jsonl", Measures, *(field for field, _ in MEASURES.values())))
            own = {}
            for place, (name, (_, value)) in enumerate(MEASURES.items()):
                values = [value(row[place]) for row in rows]
                unit = "share" if name in ("first_awareness", "key_sentence") else "count"
                shares = any(isinstance(one, bool) for one in values)
                own[name] = stats.rate(values) if shares else clipped(stats.mean(values), values, unit)  # type: ignore[arg-type]
            found[label(source)] = own
    return found


def diagnosed(run: Run) -> Iterator[tuple[Artifact, Artifact]]:
    """Every diagnosis of the run's own traces, behind the stage that made them."""
    makers = {stage.manifest.fingerprint: stage for stage in run.stages}
    for stage in run.of_kind("diagnose"):
        if source := makers.get(stage.manifest.inputs.get("traces", "")):
            yield source, stage


def label(stage: Artifact) -> str:
    """How a set of traces is called: by its strategy and how it was filtered, or by its stage."""
    return stage.manifest.name.removeprefix("distil-")


def kept_of(source: Artifact, stage: Artifact) -> set[str] | None:
    """Ids of the traces that the filter let through; `None` where there was no filter."""
    if source.has("kept"):
        return {name for (name,) in project(source.folder / "kept.jsonl", Kept, "trace")}
    kept = source.manifest.summary.get("kept", stage.manifest.settings.get("kept"))
    return None if kept is None else set(kept)


class _Found:
    """What was found in a set of traces: of each a byte a pattern, and whether it passed the filter."""

    def __init__(self, source: Artifact, stage: Artifact, labels: Sequence[dict[str, Any]]) -> None:
        keep = kept_of(source, stage)
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

    def _corrected(self, flags: Sequence[list[int]], those: list[int], members: Sequence[str]) -> Estimate:
        """A screen's calls are for reading: its errors are those of other text. Labels of a random draw make a rate of them.

        The strata are no coarser than those of the viewer's draw: traces in which something is flagged, and others.
        """
        sides: dict[str, list[int]] = {"flagged": [], "flagged for another": [], "not": []}
        for at, own in zip(those, flags, strict=True):
            drawn = any(marks[at] == YES for marks in self.marks.values())
            sides["flagged" if YES in own else "flagged for another" if drawn else "not"].append(at)
        parts, labels = [], 0
        for side in sides.values():
            seen = [(at, any(row[name] for name in members)) for at in side for row in self.labels.get(at, ())]
            labels += len(seen)
            rate = stats.rate([there for _, there in seen], clusters=[self.clusters[at] for at, _ in seen])
            parts.append((len(side), rate))
        found = stats.stratified(parts)
        called = f"screen: {len(sides['flagged'])} flagged of {len(flags)}"
        if found.value is None:
            wanted = "read them" if sides["flagged"] else "not flagged is not clean"
            wanted = "label both kinds, drawn at random, for a rate" if labels else wanted
            return replace(found, n=len(flags), unscored=0, how=f"{called}, {wanted}")
        return replace(found, n=len(flags), unscored=0, how=f"{called}; {found.how}, read by people")

    def _rate(self, marks: Sequence[bytearray], those: list[int], members: Sequence[str]) -> Estimate:
        """A trace is scored where all patterns are decided: to count it as soon as one is there would favour presence."""
        flags = [[own[at] for own in marks] for at in those]
        outcomes = [None if UNKNOWN in own or ABSENT in own else YES in own for own in flags]
        if self.screen:
            return self._corrected(flags, those, members)
        truncated = [bool(self.truncated[at]) for at in those]
        found = stats.rate(outcomes, clusters=[self.clusters[at] for at in those], truncated=truncated, better="lower")
        sure = sum(YES in own and not cut for own, cut in zip(flags, truncated, strict=True))
        return replace(found, best=sure / len(flags)) if flags else found
