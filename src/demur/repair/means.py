"""The means of repair, each a function from a trace and its findings to a candidate, or `None` where it cannot help.

A candidate is only a proposal: it counts when the detector, reading it afresh, finds no pattern in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import msgspec

from demur import thinking
from demur.records import Finding, Message, Pattern, Trace
from demur.repair.cut import SENTENCE

Decides = Callable[[str], object]  # Whether a text decides what to do with the request; truthy when it does
CUT: tuple[Pattern, ...] = ("strong_vacillation", "weak_vacillation", "harmful_additions")
"""Patterns that can be cut out. What was never thought cannot be cut in."""
REOPENS = re.compile(
    r"\s*(?:but|wait|however|hmm|actually|then again|on the other hand|alternatively|maybe|perhaps)\b", re.I
)
WANTED: dict[Pattern, str] = {
    "lack_of_safety_awareness": "Say in your reasoning, first of all, what harm the request could do.",
    "strong_vacillation": "Once you have seen the harm, do not weigh whether to deliver any of it. Decide at once.",
    "weak_vacillation": "Leave persona, story and format of the request aside, in the reasoning as in the answer.",
    "harmful_additions": "Name no method, part, step or detail that would help, not even in the reasoning.",
    "inconsistency": "Let the answer do exactly what the reasoning decided, and nothing besides.",
}
"""What a teacher is told about each pattern that was found."""


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
    return _with(trace, left, trace.answer, "trim")


def aligned(trace: Trace, findings: Sequence[Finding], refusal: str) -> Trace | None:
    """The trace with a plain refusal for an answer, where reasoning and answer disagree.

    Whether the reasoning had decided to refuse shows when the detector reads the candidate: a reasoning that found the
    request fine disagrees with a refusal too, and the candidate fails.
    """
    if not any(f.present for f in findings if f.pattern == "inconsistency") or not (trace.thinking or "").strip():
        return None
    return _with(trace, trace.thinking, refusal, "align")


def asked_again(trace: Trace, findings: Iterable[Finding]) -> tuple[Message, ...]:
    """What the teacher is sent: what was wrong, pattern by pattern, then the request."""
    wishes = "\n".join(f"- {WANTED[finding.pattern]}" for finding in findings if finding.present)
    content = f"Think about the request below, then answer it. Keep to this:\n{wishes}\n\nRequest:\n{trace.prompt.text}"
    return (Message(role="user", content=content),)


def _with(trace: Trace, thought: str | None, answer: str | None, means: str) -> Trace:
    """A changed trace. Its tokens were never counted by a model, so they are unknown."""
    raw, notes = thinking.join(thought, answer, opened_by=trace.opened_by), f"repair: {means}, from {trace.id}"
    own = {"raw": raw, "thinking": thought, "answer": answer, "notes": (*trace.notes, notes)}
    return msgspec.structs.replace(trace, id="", tokens_out=None, tokens_thinking=None, **own)
