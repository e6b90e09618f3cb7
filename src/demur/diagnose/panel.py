"""Several detectors as one: they vote pattern by pattern, and how far they agree is told."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping, Sequence

from demur.interfaces import Detector, Traces, stream
from demur.records import PATTERNS, Finding, Pattern, Record, Trace
from demur.stats import kappa


class Agreement(Record, frozen=True, kw_only=True):
    """How far pairs of detectors agree on a pattern, where both decided. `kappa` is Cohen's, averaged over pairs."""

    pattern: Pattern
    n: int
    """Decisions compared, over all pairs."""
    share: float | None
    kappa: float | None
    """`None` where chance alone would make every pair agree."""


class Panel:
    """Detectors that vote. The majority of those that decide wins; a tie, or no decision at all, is `None`."""

    def __init__(self, members: Sequence[Detector]) -> None:
        self.members = tuple(members)
        self.name = "panel:" + "+".join(member.name for member in members)
        self.votes: dict[str, list[tuple[Finding, ...]]] = {}
        """Trace id -> what each member found; what `agreement` reads."""

    @property
    def english(self) -> bool:
        """As its members."""
        return all(member.english for member in self.members)

    def decides(self, text: str) -> bool:
        """As its first member."""
        return self.members[0].decides(text)

    async def findings(self, traces: Traces) -> AsyncIterator[tuple[Finding, ...]]:
        """For each trace one `Finding` a pattern, in the order the traces came."""
        listed: list[Trace] = [trace async for trace in stream(traces)]
        for member in self.members:
            async for found in member.findings(listed):
                self.votes.setdefault(found[0].trace, []).append(found)
        for trace in dict.fromkeys(trace.id for trace in listed):
            yield tuple(self._outcome([found[i] for found in self.votes[trace]]) for i in range(len(PATTERNS)))

    def _outcome(self, votes: Sequence[Finding]) -> Finding:
        yes = [vote for vote in votes if vote.present is True]
        no = [vote for vote in votes if vote.present is False]
        present = None if len(yes) == len(no) else len(yes) > len(no)
        spans = tuple(dict.fromkeys(span for vote in yes for span in vote.spans)) if present else ()
        reason = f"{len(yes)} yes, {len(no)} no, {len(votes) - len(yes) - len(no)} undecided"
        first = votes[0]
        return Finding(
            trace=first.trace, pattern=first.pattern, present=present, detector=self.name, spans=spans, reason=reason
        )

    def agreement(self) -> list[Agreement]:
        """How far the members agree, pattern by pattern, over all traces voted on so far."""
        return agreement(self.votes)


def agreement(votes: Mapping[str, Sequence[tuple[Finding, ...]]]) -> list[Agreement]:
    """Agreement between detectors from their findings on the same traces."""
    result: list[Agreement] = []
    for index, pattern in enumerate(PATTERNS):
        pairs: dict[tuple[str, str], list[tuple[bool, bool]]] = {}
        for found in votes.values():
            for one, other in itertools.combinations([f[index] for f in found], 2):
                if one.present is not None and other.present is not None:
                    pairs.setdefault((one.detector, other.detector), []).append((one.present, other.present))
        compared = list(itertools.chain.from_iterable(pairs.values()))
        kappas = [_kappa(pair) for pair in pairs.values()]
        known = [value for value in kappas if value is not None]
        result.append(
            Agreement(
                pattern=pattern,
                n=len(compared),
                share=sum(a == b for a, b in compared) / len(compared) if compared else None,
                kappa=sum(known) / len(known) if known else None,
            )
        )
    return result


def _kappa(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    return kappa([str(a) for a, _ in pairs], [str(b) for _, b in pairs])
