"""What judges have in common: the verdict on what is not there, and the guard against a judge that does not work.

A part that does not exist (a thinking that was cut has no answer) cannot be judged: that is the trace's doing and is
counted beside the rate. A judge that is down, refuses or babbles is the judge's doing; when it happens too often the
numbers mean nothing, and the run fails.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, get_args

from demur.errors import UserError, WorkError
from demur.interfaces import Judge, Traces, stream
from demur.records import GradeLabel, Label, Part, Query, Record, Trace, Verdict, digest

NO_PART = "no "
ABSTAINS = "cannot tell: "
"""How the reason begins when the trace lacks the part, or when a working judge abstains: neither is its failure."""


class JudgeSetup(Record, frozen=True, kw_only=True):
    """As what a judge read a stage's replies."""

    judge: str
    part: Part
    model: str = ""  # Identity of the model that played it; empty: a program
    key: str  # Of its name and text, its part and its model: by it a calibration is found again
    departs: tuple[str, ...] = ()  # In what it left the set-up that its makers published


class BaseJudge:
    """A judge that works by itself, one trace after the other. A subclass gives `decide`."""

    name = "judge"
    labels: ClassVar[tuple[Label, ...]] = ()  # What its verdicts may say
    parts: ClassVar[tuple[Part, ...]] = ("thinking", "answer", "whole")
    queries: ClassVar[tuple[Query, ...]] = ("question", "sent")  # What it can judge, and beside which request

    def __init__(self, *, query: Query = "question", part: Part = "answer") -> None:
        for given, able in ((part, self.parts), (query, self.queries)):
            if given not in able:
                raise UserError(
                    f"judge '{self.name}' sees the {' or '.join(able)} and nothing else; {given} was asked for."
                )
        self.query, self.part = query, part

    def decide(self, trace: Trace, text: str) -> tuple[Label | None, str]:
        """The label of a part and why."""
        raise NotImplementedError

    def visible(self, trace: Trace) -> tuple[str | None, str]:
        """The text that it judges, or `None` and why there is none."""
        text = trace.part(self.part)
        if text is None:
            return None, f"{NO_PART}{self.part}: {trace.outcome}"
        if not text.strip():
            return None, f"{NO_PART}{self.part}: it is empty"
        return text, ""

    def new_verdict(
        self, trace: str, label: Label | None, reason: str, *, score: float | None = None, raw: str | None = None
    ) -> Verdict:
        """Its verdict on the trace of an id."""
        how: dict[str, Any] = {"judge": self.name, "query": self.query, "part": self.part}
        return Verdict(trace=trace, label=label, score=score, reason=reason, raw=raw, **how)

    def verdict(self, trace: Trace) -> Verdict:
        """The verdict on one trace."""
        text, reason = self.visible(trace)
        return self.new_verdict(trace.id, *((None, reason) if text is None else self.decide(trace, text)))

    async def verdicts(self, traces: Traces) -> AsyncIterator[Verdict]:
        """Exactly one verdict a trace, in the order of the traces."""
        async for trace in stream(traces):
            yield self.verdict(trace)


class Grader(BaseJudge):
    """The base of judges of right and wrong, which read the answer to a question."""

    labels = get_args(GradeLabel)
    parts, queries = ("answer",), ("question",)


def setup_of(judge: Judge) -> JudgeSetup:
    """As what a judge reads; its key is of all that makes it another judge."""
    text, player = getattr(judge, "text", ""), getattr(judge, "player", "")
    key = digest([judge.name, text, judge.part, player])[:16]
    departs = getattr(judge, "departs", ())
    return JudgeSetup(judge=judge.name, part=judge.part, model=player, key=key, departs=departs)


async def in_threads(traces: Traces, judge: Callable[[Trace], Verdict], *, workers: int) -> AsyncIterator[Verdict]:
    """Verdicts in the order of the traces, `workers` of them in the making at the same time."""
    pending: deque[asyncio.Future[Verdict]] = deque()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(workers) as threads:
        async for trace in stream(traces):
            pending.append(loop.run_in_executor(threads, judge, trace))
            while pending and (pending[0].done() or len(pending) > 16 * workers):
                yield await pending.popleft()
        while pending:
            yield await pending.popleft()


def asked(trace: Trace, query: Query) -> str:
    """The request as a judge is shown it: the bare question, or the last user's turn as it was sent."""
    if query == "question":
        return trace.prompt.question
    return next((m.content for m in reversed(trace.sent) if m.role == "user"), trace.prompt.text)


def failed(verdict: Verdict) -> bool:
    """Whether the judge itself failed on a trace."""
    return verdict.label is None and verdict.score is None and not verdict.reason.startswith((NO_PART, ABSTAINS))


def require(verdicts: Iterable[Verdict], *, max_unscored: float = 0.05, who: str = "the judge") -> None:
    """Fail the run when the judge failed on more than the declared share.

    Raises WorkError: with the share and the most frequent reasons.
    """
    total, counts = 0, Counter[str]()
    for total, verdict in enumerate(verdicts, 1):  # noqa: B007
        counts.update([verdict.reason] if failed(verdict) else ())
    broken = counts.total()
    if broken <= max_unscored * total:
        return
    often = "; ".join(f"{n}x {reason}" for reason, n in counts.most_common(3))
    raise WorkError(
        f"{who} gave no verdict on {broken} of {total} traces ({broken / total:.0%}; allowed {max_unscored:.0%}): {often}. "
        "Every reply is in the cache: mend the judge, or name another, and run the same command again; the target is not asked "
        "anew, and what could not be read is."
    )
