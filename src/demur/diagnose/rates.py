"""How often the patterns occur: by pattern and by class, before and after the filter, by group; each with its interval."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from demur.records import CLASSES, PATTERNS, Estimate, Finding, Record, Trace
from demur.stats import rate

By = Literal["", "strategy", "source", "model"]
ROWS: tuple[str, ...] = (*PATTERNS, *CLASSES, "any")
"""What is counted: five patterns, three classes, and whether a trace shows anything at all."""
When = Literal["all", "before", "after"]
WHEN: tuple[When, ...] = ("all", "before", "after")


class PatternRate(Record, frozen=True, kw_only=True):
    """One rate."""

    what: str
    """A pattern, a class, or `any`."""
    group: str
    """Strategy, source or model, as asked for; empty: all together."""
    when: When
    """`before` and `after` the filter; `all` where there was none."""
    estimate: Estimate


class _Seen:
    """The traces of a group, seventeen bytes each."""

    def __init__(self) -> None:
        self.clusters = array("q")
        """By their hashes."""
        self.outcomes = bytearray()
        """One of each of `ROWS` a trace; 2: it cannot be told."""
        self.cut = 0

    def rate(self, row: int) -> Estimate:
        """How often one of `ROWS` is there."""
        outcomes = [None if outcome == 2 else bool(outcome) for outcome in self.outcomes[row :: len(ROWS)]]
        return rate(outcomes, clusters=self.clusters, truncated=self.cut)


class Tally:
    """Counts findings as they come, in little memory."""

    def __init__(self, *, by: By = "strategy", kept: Collection[str] | None = None) -> None:
        self._by = by
        self._kept = None if kept is None else frozenset(kept)
        self._seen: dict[tuple[str, When], _Seen] = defaultdict(_Seen)
        self.harmless = 0
        """Traces of harmless prompts: the patterns are about harmful ones, so these are not counted."""

    def add(self, trace: Trace, findings: Sequence[Finding]) -> None:
        """Count a trace's five findings."""
        if trace.prompt.intent not in ("harmful", "borderline"):
            self.harmless += 1
            return
        group = {"": "", "strategy": trace.strategy, "source": trace.prompt.source, "model": trace.model}[self._by]
        present = dict(zip(PATTERNS, (finding.present for finding in findings), strict=True))
        outcomes = [*present.values(), *(_any(present[p] for p in members) for members in CLASSES.values())]
        outcomes.append(_any(present.values()))
        row = bytes(2 if outcome is None else outcome for outcome in outcomes)
        when: list[When] = ["all"] if self._kept is None else ["before"]
        if self._kept is not None and trace.id in self._kept:
            when.append("after")
        for one in when:
            seen = self._seen[group, one]
            seen.clusters.append(hash(trace.prompt.cluster))
            seen.outcomes += row
            seen.cut += trace.truncated

    def rates(self) -> list[PatternRate]:
        """A rate for every pattern, class and `any`, in every group, before and after."""
        return [
            PatternRate(what=what, group=group, when=when, estimate=seen.rate(index))
            for (group, when), seen in sorted(self._seen.items(), key=lambda item: (item[0][0], WHEN.index(item[0][1])))
            for index, what in enumerate(ROWS)
        ]


def rates(
    traces: Iterable[Trace],
    findings: Iterable[Finding],
    *,
    kept: Collection[str] | None = None,
    by: By = "strategy",
) -> list[PatternRate]:
    """Rates of patterns and classes over traces with their findings.

    Args:
        traces: all that were diagnosed.
        findings: theirs, in any order.
        kept: ids that passed the filter; rates are then given before and after it.
        by: what to group by.
    """
    found: dict[str, dict[str, Finding]] = {}
    for finding in findings:
        found.setdefault(finding.trace, {})[finding.pattern] = finding
    tally = Tally(by=by, kept=kept)
    for trace in traces:
        if trace.id in found:
            tally.add(trace, [found[trace.id][pattern] for pattern in PATTERNS])
    return tally.rates()


def _any(values: Iterable[bool | None]) -> bool | None:
    """Whether any is true; `None` when none is and not all are known."""
    seen = list(values)
    return True if True in seen else None if None in seen else False
