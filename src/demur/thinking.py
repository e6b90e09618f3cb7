"""Raw text to (thinking, answer, outcome) and back. The only module that knows the tags.

A reasoning model thinks between `<think>` and `</think>`, then answers. Chat templates differ in who writes the opening
tag, budgets end texts anywhere, and some servers hand the thinking over apart from the answer. Every peer that strips
"whatever stands between both tags" scores unfinished thoughts as answers; here every text gets exactly one outcome:

    complete         thinking and answer are there and the model stopped by itself
    cut_in_thinking  the budget ended inside the thinking: there is no answer
    cut_in_answer    the budget ended inside the answer
    no_thinking      an answer without any thinking
    malformed        stopped inside the thinking, several blocks, or an opening tag in mid-text

Nothing is thrown away: `join` of a `Split` is the raw text again, to the byte.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from demur.records import Finish, Message, OpenedBy, Outcome, Prompt, Sampling, Trace

OPEN = "<think>"
CLOSE = "</think>"
ECHO_REACH = 400
"""How many characters of template may stand before and behind the user's text in an echoed prompt."""


class Seams(NamedTuple):
    """The white space around the parts, so that nothing is lost."""

    before_open: str = ""
    after_open: str = "\n"
    before_close: str = "\n"
    after_close: str = "\n\n"
    end: str = ""


CANONICAL = Seams()
"""How R1-like models write: `<think>\\nthinking\\n</think>\\n\\nanswer`."""


class Split(NamedTuple):
    """A raw text, taken apart."""

    thinking: str | None
    answer: str | None
    outcome: Outcome
    opened_by: OpenedBy | None
    seams: Seams = CANONICAL


def split(raw: str, *, finish: Finish = "stop", opened: bool = False) -> Split:
    """Take a reply apart.

    Args:
        raw: the reply as received.
        finish: why the generation ended; `length` makes an unfinished text a cut one.
        opened: whether the prompt ended in an opening tag, so that the reply starts inside the thinking.
    """
    body = raw.lstrip()
    before = raw[: len(raw) - len(body)]
    if body.startswith(OPEN):
        return _inside(body[len(OPEN) :], before, finish, "model")
    if opened or (CLOSE in raw and OPEN not in raw.partition(CLOSE)[0]):
        return _inside(raw, "", finish, "prompt")
    answer, lead, end = _strip(raw)
    seams = Seams(lead, "", "", "", end)
    if OPEN in raw and CLOSE in raw:
        # Text, then a block: everything is kept where it will be judged, and the outcome says that the form is wrong.
        return Split(None, answer, "malformed", None, seams)
    return Split(None, answer, "cut_in_answer" if finish == "length" else "no_thinking", None, seams)


def traced(prompt: Prompt, raw: str, *, finish: Finish = "stop", opened: bool = False, **known: Any) -> Trace:
    """A reply as a record; `known` are its other fields. What was sent is the bare prompt unless they say otherwise."""
    parts = split(raw, finish=finish, opened=opened)
    usual: dict[str, Any] = {"sampling": Sampling(), "sent": (Message(role="user", content=prompt.text),)}
    return Trace(
        prompt=prompt,
        raw=raw,
        thinking=parts.thinking,
        answer=parts.answer,
        outcome=parts.outcome,
        opened_by=parts.opened_by,
        finish=finish,
        **(usual | known),
    )


def join(
    thinking: str | None, answer: str | None, *, opened_by: OpenedBy | None = "model", seams: Seams = CANONICAL
) -> str:
    """Put thinking and answer together again; the inverse of `split`."""
    if thinking is None:
        return f"{seams.before_open}{answer or ''}{seams.end}"
    start = f"{seams.before_open}{OPEN}" if opened_by == "model" else ""
    text = f"{start}{seams.after_open}{thinking}"
    if answer is None:
        return f"{text}{seams.end}"
    return f"{text}{seams.before_close}{CLOSE}{seams.after_close}{answer}{seams.end}"


def from_fields(
    reasoning: str | None, content: str | None, *, finish: Finish = "stop", opened: bool = False
) -> tuple[str, Split]:
    """Raw text and parts of a reply whose server may have taken the thinking out of the content already.

    Args:
        reasoning: the server's own thinking field; `None` or empty when it has none.
        content: the message's content; `None` where the server sent null.
    """
    if not reasoning:
        return content or "", split(content or "", finish=finish, opened=opened)
    thinking = reasoning.strip()
    if not content or not content.strip():
        outcome: Outcome = "cut_in_thinking" if finish == "length" else "malformed"
        part = Split(thinking, None, outcome, "model")
        return join(thinking, None), part
    answer = content.strip()
    state: Outcome = "cut_in_answer" if finish == "length" else "complete"
    if answer.startswith(OPEN):
        state = "malformed"
    return join(thinking, answer), Split(thinking, answer, state, "model")


def opens_thinking(prompt: str) -> bool:
    """Whether a rendered prompt ends in an opening tag, so that the reply starts inside the thinking."""
    return prompt.rstrip().endswith(OPEN)


def strip_echo(content: str, user: str) -> str | None:
    """The reply behind an echoed prompt, or `None` when there is no echo.

    `transformers serve` repeats the whole rendered prompt before the reply when the template opens the thinking. An echo
    is recognised by the user's text near the start, with an opening tag near behind it; the reply starts after that tag.
    """
    at = content.find(user) if user else -1
    if not 0 < at <= ECHO_REACH:
        return None
    behind = content[at + len(user) :]
    tag = behind.find(OPEN)
    return behind[tag + len(OPEN) :] if 0 <= tag <= ECHO_REACH else None


def _inside(body: str, before: str, finish: Finish, opened_by: OpenedBy) -> Split:
    """Split a text that starts inside the thinking."""
    end, blocks = _end_of_thinking(body)
    if end is None:
        thinking, lead, trail = _strip(body)
        outcome: Outcome = "cut_in_thinking" if finish == "length" else "malformed"
        return Split(thinking, None, outcome, opened_by, Seams(before, lead, "", "", trail))
    thinking, lead, trail = _strip(body[:end])
    answer, gap, tail = _strip(body[end + len(CLOSE) :])
    if blocks > 1:
        outcome = "malformed"
    else:
        outcome = "cut_in_answer" if finish == "length" else "complete"
    return Split(thinking, answer, outcome, opened_by, Seams(before, lead, trail, gap, tail))


def _end_of_thinking(body: str) -> tuple[int | None, int]:
    """Where the closing tag of the thinking stands, and how many blocks the thinking has.

    One tag closes a thinking, so that a tag quoted in the answer cuts nothing off. More are taken in when blocks are
    nested, or when what follows the tag opens the next block.
    """
    end = body.find(CLOSE)
    if end < 0:
        return None, 1
    blocks = 1
    for _ in range(body.count(OPEN, 0, end)):
        further = body.find(CLOSE, end + len(CLOSE))
        if further < 0:
            break
        end, blocks = further, blocks + 1
    while body[end + len(CLOSE) :].lstrip().startswith(OPEN):
        further = body.find(CLOSE, end + len(CLOSE))
        if further < 0:
            break
        end, blocks = further, blocks + 1
    return end, blocks


def _strip(text: str) -> tuple[str, str, str]:
    """The text without surrounding white space, and that space; all of it leads when there is nothing else."""
    left = text.lstrip()
    lead = text[: len(text) - len(left)]
    core = left.rstrip()
    return core, lead, left[len(core) :]
