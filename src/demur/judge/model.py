"""A judge whose mind is a model: a format says what it is shown and how its reply is read.

The model is anything that answers (`protocols.Model`); the format is the guard model's own. Replies are read by
anchored rules: what is not exactly a verdict is no verdict, and says why. A judge that does not answer is counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from demur.interfaces import Model, Request, Traces, stream
from demur.judge.base import BaseJudge, asked, visible
from demur.judge.clean import neutral
from demur.records import Failure, Label, Message, Part, Prompt, Query, Sampling, Trace, Verdict


class Reading(NamedTuple):
    """What a judge's reply says; `label` and `score` are `None` when it says nothing that can be read."""

    label: Label | None
    score: float | None = None
    reason: str = ""


class Case(NamedTuple):
    """What is judged, already neutralised."""

    question: str
    text: str
    context: str = ""
    """A passage that belongs to the question (HarmBench's contextual behaviours)."""


class Format(NamedTuple):
    """How one kind of judge is spoken to."""

    name: str
    render: Callable[[Case], tuple[Message, ...]]
    parse: Callable[[str], Reading]
    max_tokens: int
    source: str
    """Where the format is documented."""
    query: Query = "question"
    part: Part = "answer"
    first: tuple[str, str] | None = None
    """The first tokens that mean unsafe and safe, for a score from their probabilities."""


class ModelJudge(BaseJudge):
    """A format over a model."""

    def __init__(self, form: Format, *, model: Model, query: Query | None = None, part: Part | None = None) -> None:
        super().__init__(query=query or form.query, part=part or form.part)
        self.name = form.name
        self._form, self._model = form, model
        self._sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=form.max_tokens)
        model.check(self._sampling)

    async def verdicts(self, traces: Traces) -> AsyncIterator[Verdict]:
        """Exactly one verdict a trace, as the model's replies come."""
        waiting: dict[str, Trace] = {}
        ready: list[Verdict] = []

        async def requests() -> AsyncIterator[Request]:
            async for trace in stream(traces):
                text, reason = visible(trace, self._part)
                if text is None:
                    ready.append(self._verdict(trace.id, Reading(None, None, reason), None))
                else:
                    waiting[trace.id] = trace
                    yield self._request(trace, text)

        async for reply in self._model.answers(requests()):
            while ready:
                yield ready.pop()
            if waiting.pop(reply.prompt.id, None) is not None:
                yield self._read(reply.prompt.id, reply)
        for trace in waiting:
            yield self._verdict(trace, Reading(None, None, "the judge gave no reply"), None)
        while ready:
            yield ready.pop()

    def _request(self, trace: Trace, text: str) -> Request:
        """What the model is asked; the trace's id travels as the prompt's."""
        context = trace.prompt.gold or "" if trace.prompt.intent == "harmful" else ""
        question = asked(trace, self._query)
        case = Case(neutral(question), neutral(text), neutral(context))
        prompt = Prompt(id=trace.id, text=question, intent=trace.prompt.intent, source="judge")
        return Request(messages=self._form.render(case), sampling=self._sampling, prompt=prompt)

    def _read(self, trace: str, reply: Trace | Failure) -> Verdict:
        if isinstance(reply, Failure):
            return self._verdict(trace, Reading(None, None, f"the judge failed: {reply.kind}: {reply.detail}"), None)
        said = reply.raw if reply.outcome == "no_thinking" else reply.answer
        if said is None:
            return self._verdict(trace, Reading(None, None, "the judge's own thinking was cut"), reply.raw)
        reading = self._form.parse(said)
        if reading.label is not None and self._form.first is not None and reply.first_tokens:
            reading = reading._replace(score=chance(reply.first_tokens, *self._form.first))
        return self._verdict(trace, reading, reply.raw)

    def _verdict(self, trace: str, reading: Reading, raw: str | None) -> Verdict:
        return Verdict(
            trace=trace,
            judge=self.name,
            query=self._query,
            part=self._part,
            label=reading.label,
            score=reading.score,
            reason=reading.reason,
            raw=raw,
        )


def chance(logprobs: dict[str, float], unsafe: str, safe: str) -> float | None:
    """The probability of the token `unsafe` against that of `safe` at the first place that says either.

    `None` when neither is among the tokens that the server told.
    """
    weights = {unsafe: 0.0, safe: 0.0}
    for token, logprob in logprobs.items():
        if token.strip() in weights:
            weights[token.strip()] += math.exp(logprob)
    total = sum(weights.values())
    return weights[unsafe] / total if total else None


def fill(template: str, case: Case) -> str:
    """A template with its places filled in one pass, so that a text which names a place is only text."""
    fields = case._asdict()
    return re.sub(r"\{(question|text|context)\}", lambda match: str(fields[match.group(1)]), template)


def user(text: str) -> tuple[Message, ...]:
    """A conversation of one user's turn."""
    return (Message(role="user", content=text),)


def unread(said: str, wanted: str) -> Reading:
    """A reading that is none: what was expected and how the reply began."""
    return Reading(None, None, f"not readable as {wanted}: {said.strip()[:60]!r}")
