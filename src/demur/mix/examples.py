"""Traces to training examples."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from demur import thinking
from demur.errors import UserError
from demur.records import UNSAFE, Example, ExamplePart, Origin, Trace

NoThinking = Literal["drop", "empty", "masked"]


class Unfit(NamedTuple):
    """A trace that cannot be trained on, and why."""

    trace: str
    reason: str


def unfit(trace: Trace, *, no_thinking: NoThinking = "drop") -> str:
    """Why a trace cannot be trained on; empty when it can."""
    return "its file marks the reply as harmful" if UNSAFE in trace.notes else unformed(trace, no_thinking=no_thinking)


def unformed(trace: Trace, *, no_thinking: NoThinking = "empty") -> str:
    """Why a trace is no whole reply; empty when it is."""
    if trace.outcome == "no_thinking":
        return "it has no thinking" if no_thinking == "drop" or not trace.answer else ""
    if trace.outcome != "complete":
        return f"its text is {trace.outcome.replace('_', ' ')}"
    return "" if trace.answer else "its answer is empty"


def example_of(trace: Trace, *, share: str, no_thinking: NoThinking = "empty", begun: str | None = None) -> Example:
    """The prompt and the response as an example: loss falls on thinking and answer alone.

    What a strategy sent beside the prompt is dropped; a system text that is no strategy's is part of the conversation and
    stays. A reply without thinking gets an empty block, on which no loss falls when it is `masked`; none falls on how a thinking was
    `begun` either (default: with what the model was given).

    Raises UserError: the trace is truncated or malformed, or its answer is empty.
    """
    if reason := unformed(trace, no_thinking=no_thinking):
        raise UserError(f"trace {trace.id} cannot be trained on: {reason}.")
    prompt = trace.prompt
    system = () if trace.strategy else (turn.content for turn in trace.sent if turn.role == "system")
    trained = trace.thinking is not None or no_thinking != "masked"
    begun = _begun(trace) if begun is None else begun
    parts = (
        *(ExamplePart(role="system", text=text, train=False) for text in system),
        ExamplePart(role="user", text=prompt.text, train=False),
        *([ExamplePart(role="thinking", text=begun, train=False)] if begun else []),
        ExamplePart(role="thinking", text=(trace.thinking or "")[len(begun) :], train=trained),
        ExamplePart(role="answer", text=trace.answer or "", train=True),
    )
    repairs = tuple(note for note in trace.notes if note.startswith("repair"))
    origin = Origin(
        prompt=prompt.id, trace=trace.id, strategy=trace.strategy, model=trace.model, repairs=repairs, source=prompt.source,
        question=prompt.question if prompt.question != prompt.text else "", category=prompt.category, attack=prompt.attack,
        intent=prompt.intent,
    )  # fmt: skip
    return Example(parts=parts, origin=origin, share=share, cluster=prompt.cluster)


def _begun(trace: Trace) -> str:
    """What the thinking was begun with for the model: it is context, and no loss falls on it."""
    given = thinking.split(trace.sampling.prefill or "", finish="length").thinking or ""
    return given if given and (trace.thinking or "").startswith(given) else ""


def examples_of(
    traces: Iterable[Trace], *, share: str, no_thinking: NoThinking = "drop"
) -> tuple[list[Example], list[Unfit]]:
    """The examples of all traces that can be trained on, and the others with the reason."""
    reasons = [(trace, unfit(trace, no_thinking=no_thinking)) for trace in traces]
    made = [example_of(trace, share=share, no_thinking=no_thinking) for trace, reason in reasons if not reason]
    return made, [Unfit(trace.id, reason) for trace, reason in reasons if reason]
