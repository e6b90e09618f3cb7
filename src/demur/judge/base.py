"""What judges have in common: the verdict on a missing part, and the check that the judge itself works.

A part that does not exist (a trace that was truncated in its thinking has no answer) cannot be judged. Such traces are
counted beside the rate. A judge that is down, refuses or writes nonsense is another matter: when it fails too often the
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
"""How a reason begins when the trace lacks the part, or when a working judge abstains: the judge did not fail."""


class JudgeSetup(Record, frozen=True, kw_only=True):
    """How a judge was set up when it read a stage's replies."""

    judge: str
    part: Part
    model: str = ""  # Identity of the judge model; empty: a program
    key: str  # Hash of name, text, part and model: a calibration is looked up by it
    departs: tuple[str, ...] = ()  # Differences from the set-up that its makers published


class BaseJudge:
    """A judge that takes one trace after the other. A subclass implements `decide`, or replaces `verdicts`."""

    name = "judge"
    labels: ClassVar[tuple[Label, ...]] = ()  # Labels that its verdicts may have
    parts: ClassVar[tuple[Part, ...]] = ("thinking", "answer", "whole")
    queries: ClassVar[tuple[Query, ...]] = ("question", "sent")  # Forms of the request that it can be shown

    def __init__(self, *, query: Query = "question", part: Part = "answer") -> None:
        for wanted, allowed in ((part, self.parts), (query, self.queries)):
            if wanted not in allowed:
                raise UserError(f"judge '{self.name}' sees only the {' or '.join(allowed)}; {wanted} was asked for.")
        self.query, self.part = query, part

    def decide(self, trace: Trace, text: str) -> tuple[Label | None, str]:
        """The label of a part, and the reason for it."""
        raise NotImplementedError

    def visible(self, trace: Trace) -> tuple[str | None, str]:
        """The text to judge, or `None` and the reason why there is none."""
        text = trace.part(self.part)
        if text is None:
            return None, f"{NO_PART}{self.part}: {trace.outcome}"
        if not text.strip():
            return None, f"{NO_PART}{self.part}: it is empty"
        return text, ""

    def new_verdict(
        self, trace: str, label: Label | None, reason: str, *, score: float | None = None, raw: str | None = None
    ) -> Verdict:
        """This judge's verdict on the trace with this id."""
        setup: dict[str, Any] = {"judge": self.name, "query": self.query, "part": self.part}
        return Verdict(trace=trace, label=label, score=score, reason=reason, raw=raw, **setup)

    def verdict(self, trace: Trace) -> Verdict:
        """The verdict on one trace."""
        text, reason = self.visible(trace)
        if text is None:
            return self.new_verdict(trace.id, None, reason)
        return self.new_verdict(trace.id, *self.decide(trace, text))

    async def verdicts(self, traces: Traces) -> AsyncIterator[Verdict]:
        """Exactly one verdict a trace, in the order of the traces."""
        async for trace in stream(traces):
            yield self.verdict(trace)


class Grader(BaseJudge):
    """The base of judges that grade an answer as correct or wrong."""

    labels = get_args(GradeLabel)
    parts, queries = ("answer",), ("question",)


def setup_of(judge: Judge) -> JudgeSetup:
    """The set-up of a judge. Its key does not cover which form of the request it is shown."""
    text, model = getattr(judge, "text", ""), getattr(judge, "model_identity", "")
    key = digest([judge.name, text, judge.part, model])[:16]
    return JudgeSetup(judge=judge.name, part=judge.part, model=model, key=key, departs=getattr(judge, "departs", ()))


async def in_threads(traces: Traces, judge: Callable[[Trace], Verdict], *, workers: int) -> AsyncIterator[Verdict]:
    """Verdicts in the order of the traces, made by `workers` threads."""
    pending: deque[asyncio.Future[Verdict]] = deque()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(workers) as threads:
        async for trace in stream(traces):
            pending.append(loop.run_in_executor(threads, judge, trace))
            while pending and (pending[0].done() or len(pending) > 16 * workers):
                yield await pending.popleft()
        while pending:
            yield await pending.popleft()


def request_text(trace: Trace, query: Query) -> str:
    """The request that a judge is shown: the bare question, or the last user turn as it was sent."""
    if query == "question":
        return trace.prompt.question
    return next((m.content for m in reversed(trace.sent) if m.role == "user"), trace.prompt.text)


def failed(verdict: Verdict) -> bool:
    """Whether a verdict is missing because the judge failed, not because of the trace."""
    return verdict.label is None and verdict.score is None and not verdict.reason.startswith((NO_PART, ABSTAINS))


def require(verdicts: Iterable[Verdict], *, max_unscored: float = 0.05, who: str = "the judge") -> None:
    """Raise WorkError, with the most frequent reasons, if the judge failed on more than the share `max_unscored`."""
    total, reasons = 0, Counter[str]()
    for verdict in verdicts:
        total += 1
        reasons.update([verdict.reason] if failed(verdict) else ())
    failures = reasons.total()
    if failures <= max_unscored * total:
        return
    frequent = "; ".join(f"{count}x {reason}" for reason, count in reasons.most_common(3))
    raise WorkError(
        f"{who} gave no verdict on {failures} of {total} traces ({failures / total:.0%}; allowed {max_unscored:.0%}): "
        f"{frequent}. Every reply is in the cache: mend the judge, or name another, and run the same command again. "
        "The target is not asked again; the judge is asked again where its reply could not be read."
    )
