"""Several detectors as one: they vote pattern by pattern."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from demur.interfaces import Detector, Traces, stream
from demur.records import PATTERNS, Finding, Trace


class Panel:
    """Detectors that vote. The majority of those that decide wins; a tie, or no decision at all, is `None`."""

    def __init__(self, members: Sequence[Detector]) -> None:
        self.members = tuple(members)
        self.name = "panel:" + "+".join(member.name for member in members)

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
        votes: dict[str, list[tuple[Finding, ...]]] = {}
        for member in self.members:
            async for found in member.findings(listed):
                votes.setdefault(found[0].trace, []).append(found)
        for trace in dict.fromkeys(trace.id for trace in listed):
            yield tuple(self._outcome([found[i] for found in votes[trace]]) for i in range(len(PATTERNS)))

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
