"""Repair: the means are applied in order to every trace with a pattern, until the detector finds none in the result.

A means makes a candidate from a trace and its findings, or nothing where it cannot help. Nothing is lost: originals are
kept beside the repaired traces, each with what was done to it and why. The patterns afterwards are counts of what the
detector still finds, not estimates of a rate: a result is accepted because it finds none.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from demur import thinking
from demur.errors import UserError, WorkError
from demur.interfaces import Detector, Model, Progress, Request, quiet
from demur.records import PATTERNS, Failure, Finding, Message, Pattern, Record, Trace
from demur.repair.cut import SENTENCE, continuation, cut_for_repair
from demur.repair.settings import RepairSettings

ASKS = ("reask", "continue")  # The means that ask a teacher
ROUNDS = 3  # How often `trim` cuts: a cut may reveal evidence that was not found at first
Findings = tuple[Finding, ...]
Candidates = list[tuple[Trace, Trace]]  # A trace, and its possible replacement
Decides = Callable[[str], object]  # Whether a text decides what to do with the request
CUT: tuple[Pattern, ...] = ("strong_vacillation", "weak_vacillation", "harmful_additions")  # Can be cut out
REOPENS = re.compile(
    r"\s*(?:but|wait|however|hmm|actually|then again|on the other hand|alternatively|maybe|perhaps)\b", re.I
)
WANTED: dict[Pattern, str] = {  # The instruction to a teacher for each pattern that was found
    "lack_of_safety_awareness": "Say in your reasoning, first of all, what harm the request could do.",
    "strong_vacillation": "Once you have seen the harm, do not weigh whether to deliver any of it. Decide at once.",
    "weak_vacillation": "Leave persona, story and format of the request aside, in the reasoning as in the answer.",
    "harmful_additions": "Name no method, part, step or detail that would help, not even in the reasoning.",
    "inconsistency": "Let the answer do exactly what the reasoning decided, and nothing besides.",
}


class Action(Record, frozen=True, kw_only=True):
    """The outcome for one trace."""

    trace: str  # Id of the original
    result: str | None  # Id of the trace in its place; `None` where it was dropped
    did: str  # clean, trim, align, trim+align, reask, drop, or left (nothing helped, and `drop` is not a means)
    patterns: tuple[Pattern, ...] = ()  # Those of the original
    tried: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Repaired:
    """The outcome, in the order of the given traces."""

    traces: tuple[Trace, ...]  # The traces to use: clean ones, repaired ones, and those left as they were
    originals: tuple[Trace, ...]  # Those that were repaired or dropped
    findings: tuple[Finding, ...]  # On `traces`
    actions: tuple[Action, ...]
    failures: tuple[Failure, ...]
    counts: dict[str, int]  # How many traces were clean, repaired by each means, left, dropped
    patterns: dict[Pattern, tuple[int, int]]  # The number of traces with each pattern: of those given, of `traces`


async def repair(
    traces: Sequence[Trace],
    *,
    findings: Iterable[Finding],
    settings: RepairSettings,
    detector: Detector,
    teacher: Model | None = None,
    progress: Progress = quiet,
) -> Repaired:
    """Repair or drop the traces in which a pattern was found.

    A trace without `findings` is diagnosed first. A candidate is accepted where the detector finds no pattern in it.
    `progress` is called with the number of settled traces and of traces with a pattern.

    Raises UserError: `reask` or `continue` without a teacher, or the teacher cannot honour the sampling.
    """
    work = _Repair(settings, detector, teacher)
    await work.read(traces, findings)
    clean = work.settle_clean(traces)
    for name in settings.means:
        remaining = [trace for trace in traces if trace.id not in work.actions]
        progress(len(work.actions) - clean, len(traces) - clean, name)
        await work.apply(name, remaining)
    for trace in traces:
        if trace.id not in work.actions:
            work.settle(trace, trace, "left", reason="no means helped, and dropping was not asked for")
    progress(len(traces) - clean, len(traces) - clean, "")
    return work.result(traces)


class _Repair:
    """A repair in progress."""

    def __init__(self, settings: RepairSettings, detector: Detector, teacher: Model | None) -> None:
        self.settings, self.detector, self.teacher = settings, detector, teacher
        self.findings: dict[str, Findings] = {}
        self.actions: dict[str, Action] = {}
        self.results: dict[str, Trace] = {}
        self.tried: dict[str, None] = {}  # The means so far, each once
        self.better: dict[str, Trace] = {}  # Of traces not repaired yet: the version with the fewest patterns
        self.steps: dict[str, list[str]] = {}
        self.failures: list[Failure] = []
        if asks := [name for name in ASKS if name in settings.means]:
            if teacher is None:
                raise UserError(f"repair with '{asks[0]}' needs a teacher: give --teacher, or leave it out of 'with'.")
            teacher.check(settings.drawn())

    async def read(self, traces: Sequence[Trace], findings: Iterable[Finding]) -> None:
        """Take the given findings, and diagnose the traces without."""
        given: dict[str, dict[Pattern, Finding]] = {}
        for finding in findings:
            given.setdefault(finding.trace, {})[finding.pattern] = finding
        self.findings = {key: tuple(f[p] for p in PATTERNS) for key, f in given.items() if len(f) == len(PATTERNS)}
        await self.diagnose([trace for trace in traces if trace.id not in self.findings])

    async def diagnose(self, traces: Sequence[Trace]) -> None:
        if traces:
            async for findings in self.detector.findings(traces):
                self.findings[findings[0].trace] = findings

    def patterns(self, trace: Trace) -> tuple[Pattern, ...]:
        return tuple(finding.pattern for finding in self.findings[trace.id] if finding.present)

    def settle_clean(self, traces: Sequence[Trace]) -> int:
        """Settle the traces without a pattern, and return their number."""
        for trace in traces:
            if not self.patterns(trace):
                self.settle(trace, trace, "clean")
        return len(self.actions)

    def settle(self, trace: Trace, result: Trace | None, did: str, *, reason: str = "") -> None:
        after, patterns, tried = result.id if result else None, self.patterns(trace), tuple(self.tried)
        action = Action(trace=trace.id, result=after, did=did, patterns=patterns, tried=tried, reason=reason)
        self.actions[trace.id] = action
        if result is not None:
            self.results[trace.id] = result

    async def apply(self, name: str, traces: Sequence[Trace]) -> None:
        """Apply one means to all traces that are not settled."""
        self.tried[name] = None
        if name == "drop":
            for trace in traces:
                self.settle(trace, None, "drop", reason=f"nothing mended {', '.join(self.patterns(trace))}")
        elif name in ASKS:
            for attempt in range(self.settings.tries):
                await self._accept(name, await self._replies(name, traces, attempt))
        else:
            for _ in range(ROUNDS if name == "trim" else 1):
                await self._accept(name, self._edits(name, traces))

    def _edits(self, name: str, traces: Sequence[Trace]) -> Candidates:
        """The best version so far of each trace with another cut (`trim`), or with a new answer (`align`)."""
        candidates = []
        for trace in traces:
            best = self.better.get(trace.id, trace)
            found, refusal = self.findings[best.id], self.settings.refusal
            edit = trimmed(best, found, self.detector.decides) if name == "trim" else aligned(best, found, refusal)
            if edit and trace.id not in self.actions:
                candidates.append((trace, edit))
        return candidates

    async def _accept(self, name: str, candidates: Candidates) -> None:
        """Replace originals by the candidates that pass; an edit with fewer patterns becomes the best version."""
        await self.diagnose([candidate for _, candidate in candidates])
        for trace, candidate in candidates:
            steps = [name] if name in ASKS else [*self.steps.get(trace.id, []), name]
            best = self.better.get(trace.id, trace)
            if self._passes(candidate):
                self.settle(trace, candidate, "+".join(dict.fromkeys(steps)))
            elif name not in ASKS and set(self.patterns(candidate)) <= set(self.patterns(best)):
                self.better[trace.id], self.steps[trace.id] = candidate, steps

    def _passes(self, trace: Trace) -> bool:
        """Whether no pattern was found, and awareness is certain."""
        present = {finding.pattern: finding.present for finding in self.findings[trace.id]}
        aware = present["lack_of_safety_awareness"] is False
        return trace.outcome == "complete" and not any(present.values()) and aware

    async def _replies(self, name: str, traces: Sequence[Trace], attempt: int) -> Candidates:
        """The teacher's replies on traces that are not settled: new ones, or continuations from before the pattern."""
        assert self.teacher is not None
        sampling, requests, beginnings = self.settings.drawn(), list[Request](), dict[int, str]()
        for index, trace in enumerate(traces):
            found, sample = self.findings[trace.id], attempt * len(traces) + index
            kept = cut_for_repair(trace, found, self.settings) if name == "continue" else ""
            if trace.id in self.actions or kept is None:
                continue
            beginnings[index] = kept
            if name == "continue":
                begun = f"{kept} {self.settings.insert}".strip()
                requests.append(continuation(trace, begun, sampling=sampling, sample=sample))
            else:
                messages = asked_again(trace, found)
                requests.append(Request(messages=messages, sampling=sampling, prompt=trace.prompt, sample=sample))
        candidates = []
        async for reply in self.teacher.answers(requests):
            if isinstance(reply, Failure):
                self.failures.append(reply)
                continue
            original, kept = traces[reply.sample % len(traces)], beginnings[reply.sample % len(traces)]
            sampling = reply.sampling
            if name == "continue":  # no loss on what was kept, but on what was inserted: the prefill ends before it
                sampling = msgspec.structs.replace(sampling, prefill=thinking.join(kept, None) if kept else None)
            notes = (*reply.notes, f"repair: {name}, from {original.id}")
            known = {"sampling": sampling, "strategy": original.strategy, "notes": notes}
            candidates.append((original, msgspec.structs.replace(reply, id="", **known)))
        return candidates

    def result(self, traces: Sequence[Trace]) -> Repaired:
        """Everything in the order of the traces."""
        final = [self.results[trace.id] for trace in traces if trace.id in self.results]
        if len(self.actions) != len(traces):
            raise WorkError("two of the traces have the same id; give each trace once.")
        changed = [t for t in traces if self.actions[t.id].did not in ("clean", "left")]
        return Repaired(
            traces=tuple(final),
            originals=tuple(changed),
            findings=tuple(finding for trace in final for finding in self.findings[trace.id]),
            actions=tuple(self.actions[trace.id] for trace in traces),
            failures=tuple(self.failures),
            counts=dict(sorted(Counter(action.did for action in self.actions.values()).items())),
            patterns={p: (self._with(p, traces), self._with(p, final)) for p in PATTERNS},
        )

    def _with(self, pattern: Pattern, traces: Sequence[Trace]) -> int:
        return sum(pattern in self.patterns(trace) for trace in traces)


def trimmed(trace: Trace, findings: Sequence[Finding], decides: Decides) -> Trace | None:
    """The trace without sentences that are evidence of a pattern in `CUT`, and without doubts after the decision."""
    spans = [span for f in findings if f.present and f.pattern in CUT for span in f.spans if span.part == "thinking"]
    if not spans:
        return None
    kept, decided = [], False
    for match in SENTENCE.finditer(trace.thinking or ""):
        sentence = match[0]
        evidence = any(span.start < match.end() and span.end > match.start() for span in spans)
        doubt = decided and REOPENS.match(sentence) and not decides(sentence)
        if not evidence and not doubt:
            kept.append(sentence)
            decided = decided or bool(sentence.strip() and decides(sentence))
    text = re.sub(r"\n{3,}", "\n\n", "".join(kept)).strip()
    if not text or not decides(text):
        return None
    return _changed(trace, text, trace.answer, "trim")


def aligned(trace: Trace, findings: Sequence[Finding], refusal: str) -> Trace | None:
    """The trace with a plain refusal as its answer, where reasoning and answer disagree.

    A reasoning that accepts the request disagrees with a refusal too; the detector then rejects the candidate.
    """
    if not any(f.present for f in findings if f.pattern == "inconsistency") or not (trace.thinking or "").strip():
        return None
    return _changed(trace, trace.thinking, refusal, "align")


def asked_again(trace: Trace, findings: Iterable[Finding]) -> tuple[Message, ...]:
    """The messages to the teacher: an instruction for each pattern that was found, then the request."""
    rules = "\n".join(f"- {WANTED[finding.pattern]}" for finding in findings if finding.present)
    content = f"Think about the request below, then answer it. Keep to this:\n{rules}\n\nRequest:\n{trace.prompt.text}"
    return (Message(role="user", content=content),)


def _changed(trace: Trace, thought: str | None, answer: str | None, means: str) -> Trace:
    """An edited trace. Its numbers of tokens are unknown, since no model counted them."""
    raw, note = thinking.join(thought, answer, opened_by=trace.opened_by), f"repair: {means}, from {trace.id}"
    edited = {"raw": raw, "thinking": thought, "answer": answer, "notes": (*trace.notes, note)}
    return msgspec.structs.replace(trace, id="", tokens_out=None, tokens_thinking=None, **edited)
