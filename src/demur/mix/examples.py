"""Traces to training examples."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from demur import thinking
from demur.errors import UserError
from demur.records import UNSAFE, Example, ExamplePart, Origin, Trace

NoThinking = Literal["drop", "empty", "masked"]


class Unfit(NamedTuple):
    """A trace that cannot be trained on, and why."""

    trace: str
    reason: str


def unfit(trace: Trace, *, no_thinking: NoThinking = "drop") -> str:
    """Why a trace cannot be trained on; empty where it can."""
    if UNSAFE in trace.notes:
        return "its file marks the reply as harmful"
    return incomplete(trace, no_thinking=no_thinking)


def incomplete(trace: Trace, *, no_thinking: NoThinking = "empty") -> str:
    """Why a trace is not a whole reply; empty where it is."""
    if trace.outcome == "no_thinking":
        return "it has no thinking" if no_thinking == "drop" or not trace.answer else ""
    if trace.outcome != "complete":
        return f"its text is {trace.outcome.replace('_', ' ')}"
    return "" if trace.answer else "its answer is empty"


def example_of(trace: Trace, *, share: str, no_thinking: NoThinking = "empty", begun: str | None = None) -> Example:
    """The prompt and the reply as an example, with loss on thinking and answer alone.

    A strategy's instruction is left out; any other system text is part of the conversation. A reply without thinking
    gets an empty block, without loss where `masked`. There is no loss on how the thinking was `begun` (by a prefill).

    Raises UserError: the trace is truncated or malformed, or its answer is empty.
    """
    if reason := incomplete(trace, no_thinking=no_thinking):
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
    about: dict[str, Any] = {name: getattr(prompt, name) for name in ("source", "category", "attack", "intent")}
    about |= {name: getattr(trace, name) for name in ("strategy", "model")}
    about["repairs"] = tuple(note for note in trace.notes if note.startswith("repair"))
    about["question"] = prompt.question if prompt.question != prompt.text else ""
    origin = Origin(prompt=prompt.id, trace=trace.id, **about)
    return Example(parts=parts, origin=origin, share=share, cluster=prompt.cluster)


def _begun(trace: Trace) -> str:
    """How the prefill began the thinking: that is context, without loss."""
    prefilled = thinking.split(trace.sampling.prefill or "", finish="length").thinking or ""
    return prefilled if (trace.thinking or "").startswith(prefilled) else ""


def examples_of(
    traces: Iterable[Trace], *, share: str, no_thinking: NoThinking = "drop"
) -> tuple[list[Example], list[Unfit]]:
    """The examples of all traces that can be trained on, and the reasons why others cannot."""
    reasons = [(trace, unfit(trace, no_thinking=no_thinking)) for trace in traces]
    examples = [example_of(trace, share=share, no_thinking=no_thinking) for trace, reason in reasons if not reason]
    return examples, [Unfit(trace.id, reason) for trace, reason in reasons if reason]
