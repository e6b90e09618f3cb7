"""Repair: every trace with a pattern goes through the means in order until the detector finds nothing in what came out.

A means is a function from a trace and its findings to a candidate, or `None` where it cannot help. Nothing is lost:
originals stay beside the repaired traces, each with what was done to it and why. What counts is what the detector finds in
the outcome, read afresh; it is a count and no rate, since what it finds nothing in is what was accepted.
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
from demur.repair.cut import SENTENCE, going_on, place
from demur.repair.settings import RepairSettings

ASKS = ("reask", "continue")  # The means that ask a teacher
ROUNDS = 3  # A cut may lay bare what evidence did not name at first; so often is what is left read and cut again
Found = tuple[Finding, ...]
Candidates = list[tuple[Trace, Trace]]  # A trace, and what might stand in its place
Decides = Callable[[str], object]  # Whether a text decides what to do with the request; truthy when it does
CUT: tuple[Pattern, ...] = ("strong_vacillation", "weak_vacillation", "harmful_additions")
"""Patterns that can be cut out. What was never thought cannot be cut in."""
REOPENS = re.compile(
    r"\s*(?:but|wait|however|hmm|actually|then again|on the other hand|alternatively|maybe|perhaps)\b", re.I
)
WANTED: dict[Pattern, str] = {  # What a teacher is told about each pattern that was found
    "lack_of_safety_awareness": "Say in your reasoning, first of all, what harm the request could do.",
    "strong_vacillation": "Once you have seen the harm, do not weigh whether to deliver any of it. Decide at once.",
    "weak_vacillation": "Leave persona, story and format of the request aside, in the reasoning as in the answer.",
    "harmful_additions": "Name no method, part, step or detail that would help, not even in the reasoning.",
    "inconsistency": "Let the answer do exactly what the reasoning decided, and nothing besides.",
}


class Action(Record, frozen=True, kw_only=True):
    """What became of one trace."""

    trace: str  # Id of the original
    result: str | None  # Id of what stands in its place; `None` when it was dropped
    did: str  # clean, trim, align, trim+align, reask, drop, or left (nothing helped and nothing may be dropped)
    patterns: tuple[Pattern, ...] = ()  # What was found in the original
    tried: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Repaired:
    """The outcome, in the order of the traces given."""

    traces: tuple[Trace, ...]  # What to go on with: clean ones as they were, mended ones, and those left as they were
    originals: tuple[Trace, ...]  # Those that were mended or dropped
    findings: tuple[Finding, ...]  # On `traces`, by the detector, afterwards
    actions: tuple[Action, ...]
    failures: tuple[Failure, ...]
    counts: dict[str, int]  # How many traces were clean, mended by each means, left, dropped
    patterns: dict[Pattern, tuple[int, int]]  # In how many traces each was found: of those given, of those left


async def repair(
    traces: Sequence[Trace],
    *,
    findings: Iterable[Finding],
    settings: RepairSettings,
    detector: Detector,
    teacher: Model | None = None,
    progress: Progress = quiet,
) -> Repaired:
    """Mend or drop the traces in which a pattern was found.

    A trace without `findings` is diagnosed first. The detector reads every candidate, and only what it finds nothing in is accepted.
    `progress` is called with the traces settled, and those with a pattern.

    Raises UserError: `reask` without a teacher, or the teacher cannot honour the sampling.
    """
    work = _Work(settings, detector, teacher)
    await work.read(traces, findings)
    settled = work.clean(traces)
    for name in settings.means:
        open_ = [trace for trace in traces if trace.id not in work.actions]
        progress(len(work.actions) - settled, len(traces) - settled, name)
        await work.apply(name, open_)
    for trace in traces:
        if trace.id not in work.actions:
            work.settle(trace, trace, "left", reason="no means helped, and dropping was not asked for")
    progress(len(traces) - settled, len(traces) - settled, "")
    return work.result(traces)


class _Work:
    """A repair under way."""

    def __init__(self, settings: RepairSettings, detector: Detector, teacher: Model | None) -> None:
        self.settings, self.detector, self.teacher = settings, detector, teacher
        self.found: dict[str, Found] = {}
        self.actions: dict[str, Action] = {}
        self.results: dict[str, Trace] = {}
        self.tried: dict[str, None] = {}  # On every trace that is still open
        self.better: dict[str, Trace] = {}  # Of traces not mended yet: the version with the fewest patterns
        self.steps: dict[str, list[str]] = {}
        self.failures: list[Failure] = []
        if asks := [name for name in ASKS if name in settings.means]:
            if teacher is None:
                raise UserError(f"repair with '{asks[0]}' needs a teacher: give --teacher, or leave it out of 'with'.")
            teacher.check(settings.drawn())

    async def read(self, traces: Sequence[Trace], findings: Iterable[Finding]) -> None:
        """Take the findings as given; diagnose what has none."""
        given: dict[str, dict[Pattern, Finding]] = {}
        for finding in findings:
            given.setdefault(finding.trace, {})[finding.pattern] = finding
        self.found = {key: tuple(f[p] for p in PATTERNS) for key, f in given.items() if len(f) == len(PATTERNS)}
        await self.diagnose([trace for trace in traces if trace.id not in self.found])

    async def diagnose(self, traces: Sequence[Trace]) -> None:
        if traces:
            async for found in self.detector.findings(traces):
                self.found[found[0].trace] = found

    def patterns(self, trace: Trace) -> tuple[Pattern, ...]:
        return tuple(finding.pattern for finding in self.found[trace.id] if finding.present)

    def clean(self, traces: Sequence[Trace]) -> int:
        for trace in traces:
            if not self.patterns(trace):
                self.settle(trace, trace, "clean")
        return len(self.actions)

    def settle(self, trace: Trace, result: Trace | None, did: str, *, reason: str = "") -> None:
        self.actions[trace.id] = Action(
            trace=trace.id, result=result.id if result else None, did=did, patterns=self.patterns(trace),
            tried=tuple(self.tried), reason=reason,
        )  # fmt: skip
        if result is not None:
            self.results[trace.id] = result

    async def apply(self, name: str, traces: Sequence[Trace]) -> None:
        """One means for all traces that are still open."""
        self.tried[name] = None
        if name == "drop":
            for trace in traces:
                self.settle(trace, None, "drop", reason=f"nothing mended {', '.join(self.patterns(trace))}")
        elif name in ASKS:
            for attempt in range(self.settings.tries):
                await self._accept(name, await self._asked(name, traces, attempt))
        else:
            for _ in range(ROUNDS if name == "trim" else 1):
                await self._accept(name, self._cut(name, traces))

    def _cut(self, name: str, traces: Sequence[Trace]) -> Candidates:
        """The best version so far of each trace with one cut more, or with a new answer."""
        made = []
        for trace in traces:
            best = self.better.get(trace.id, trace)
            found, refusal = self.found[best.id], self.settings.refusal
            cut = trimmed(best, found, self.detector.decides) if name == "trim" else aligned(best, found, refusal)
            made += [(trace, cut)] if cut and trace.id not in self.actions else []
        return made

    async def _accept(self, name: str, candidates: Candidates) -> None:
        """Candidates in which the detector finds nothing take the place of their originals.

        Another that was cut stays as the best version when patterns are gone.
        """
        await self.diagnose([candidate for _, candidate in candidates])
        for trace, candidate in candidates:
            steps = [name] if name in ASKS else [*self.steps.get(trace.id, []), name]
            best = self.better.get(trace.id, trace)
            if self._sound(candidate):
                self.settle(trace, candidate, "+".join(dict.fromkeys(steps)))
            elif name not in ASKS and set(self.patterns(candidate)) <= set(self.patterns(best)):
                self.better[trace.id], self.steps[trace.id] = candidate, steps

    def _sound(self, trace: Trace) -> bool:
        """No pattern found, and awareness not in doubt."""
        found = {finding.pattern: finding.present for finding in self.found[trace.id]}
        return trace.outcome == "complete" and not any(found.values()) and found["lack_of_safety_awareness"] is False

    async def _asked(self, name: str, traces: Sequence[Trace], attempt: int) -> Candidates:
        """What the teacher makes of open traces: written again, or gone on with from before where they went wrong."""
        assert self.teacher is not None
        sampling, requests, kept = self.settings.drawn(), list[Request](), dict[int, str]()
        for index, trace in enumerate(traces):
            found, sample = self.found[trace.id], attempt * len(traces) + index
            before = place(trace, found, self.settings) if name == "continue" else ""
            if trace.id in self.actions or before is None:
                continue
            kept[index] = before
            begun = f"{before} {self.settings.insert}".strip()
            again = Request(messages=asked_again(trace, found), sampling=sampling, prompt=trace.prompt, sample=sample)
            requests.append(again if name == "reask" else going_on(trace, begun, sampling=sampling, sample=sample))
        made = []
        async for reply in self.teacher.answers(requests):
            if isinstance(reply, Failure):
                self.failures.append(reply)
                continue
            original, before = traces[reply.sample % len(traces)], kept[reply.sample % len(traces)]
            if name == "continue":  # what was inserted is new, and learnt; what was kept is how it began
                prefill = thinking.join(before, None) if before else None
                reply = msgspec.structs.replace(
                    reply, sampling=msgspec.structs.replace(reply.sampling, prefill=prefill)
                )
            notes = (*reply.notes, f"repair: {name}, from {original.id}")
            made.append((original, msgspec.structs.replace(reply, id="", strategy=original.strategy, notes=notes)))
        return made

    def result(self, traces: Sequence[Trace]) -> Repaired:
        """Everything in the order of the traces."""
        final = [self.results[trace.id] for trace in traces if trace.id in self.results]
        if len(self.actions) != len(traces):
            raise WorkError("two of the traces have the same id; give each trace once.")
        changed = [t for t in traces if self.actions[t.id].did not in ("clean", "left")]
        return Repaired(
            traces=tuple(final),
            originals=tuple(changed),
            findings=tuple(finding for trace in final for finding in self.found[trace.id]),
            actions=tuple(self.actions[trace.id] for trace in traces),
            failures=tuple(self.failures),
            counts=dict(sorted(Counter(action.did for action in self.actions.values()).items())),
            patterns={p: (self._with(p, traces), self._with(p, final)) for p in PATTERNS},
        )

    def _with(self, pattern: Pattern, traces: Sequence[Trace]) -> int:
        return sum(pattern in self.patterns(trace) for trace in traces)


def trimmed(trace: Trace, findings: Sequence[Finding], decides: Decides) -> Trace | None:
    """The trace without the sentences in which wavering, framing or detail were found, nor second thoughts after a decision."""
    text = trace.thinking or ""
    spans = [
        (s.start, s.end) for f in findings if f.present and f.pattern in CUT for s in f.spans if s.part == "thinking"
    ]
    if not spans:
        return None
    kept, decided = [], False
    for match in SENTENCE.finditer(text):
        sentence = match[0]
        hit = any(start < match.end() and end > match.start() for start, end in spans)
        second = decided and REOPENS.match(sentence) and not decides(sentence)
        if not hit and not second:
            kept.append(sentence)
            decided = decided or bool(sentence.strip() and decides(sentence))
    left = re.sub(r"\n{3,}", "\n\n", "".join(kept)).strip()
    if not left or not decides(left):
        return None
    return _changed(trace, left, trace.answer, "trim")


def aligned(trace: Trace, findings: Sequence[Finding], refusal: str) -> Trace | None:
    """The trace with a plain refusal for an answer, where reasoning and answer disagree.

    Whether the reasoning had decided to refuse shows when the detector reads the candidate: a reasoning that found the
    request fine disagrees with a refusal too, and the candidate fails.
    """
    if not any(f.present for f in findings if f.pattern == "inconsistency") or not (trace.thinking or "").strip():
        return None
    return _changed(trace, trace.thinking, refusal, "align")


def asked_again(trace: Trace, findings: Iterable[Finding]) -> tuple[Message, ...]:
    """What the teacher is sent: what was wrong, pattern by pattern, then the request."""
    wishes = "\n".join(f"- {WANTED[finding.pattern]}" for finding in findings if finding.present)
    content = f"Think about the request below, then answer it. Keep to this:\n{wishes}\n\nRequest:\n{trace.prompt.text}"
    return (Message(role="user", content=content),)


def _changed(trace: Trace, thought: str | None, answer: str | None, means: str) -> Trace:
    """A changed trace. Its tokens were never counted by a model, so they are unknown."""
    raw, notes = thinking.join(thought, answer, opened_by=trace.opened_by), f"repair: {means}, from {trace.id}"
    own = {"raw": raw, "thinking": thought, "answer": answer, "notes": (*trace.notes, notes)}
    return msgspec.structs.replace(trace, id="", tokens_out=None, tokens_thinking=None, **own)
