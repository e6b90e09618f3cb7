"""Raw text to (thinking, answer, outcome) and back. The only module that knows the tags (`thinking.toml` has them by family).

A reasoning model thinks between two marks, then answers. Model families use different marks; either the model or its chat
template writes the opening one; budgets end texts anywhere; some servers return the thinking apart from the answer. A tool
that strips "whatever is between the tags" scores unfinished thoughts as answers. Here every text gets exactly one outcome:

    complete         thinking and answer are present and the model stopped by itself
    cut_in_thinking  the budget ended inside the thinking: there is no answer
    cut_in_answer    the budget ended inside the answer
    no_thinking      an answer without any thinking
    malformed        stopped inside the thinking, several blocks, or an opening mark in mid-text

A mark inside code or quotation marks is text. Nothing is lost: `join` of a `Split` gives the raw text back, to the byte.
Time is linear in the length of the text.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from demur.errors import WorkError
from demur.records import Finish, Message, OpenedBy, Outcome, Prompt, Sampling, Trace

OPEN = "<think>"
CLOSE = "</think>"
REACH = 400  # Characters at the end of a rendered prompt that are searched for an opening mark
UNPARSED = 0.05  # Share of a model's replies with an unparsed mark above which the run stops
AS_TEXT = "marks of thinking are text, as declared"  # The note of traces of models with `thinking: none`
FILED_AGAIN = "filed again as thinking: this server's template opens it"
"""The note of a trace without tags that other replies of its model show to be thinking."""


class Marks(NamedTuple):
    """How a family of models marks its thinking, as regular expressions."""

    open: str
    close: str  # Includes the mark that opens the answer, if any
    end: str = ""  # May follow the answer


_TAG = r"(?:[a-z]{1,8}:)?(?:think|thinking|thoughts?|reasoning)"
_TABLE: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
FAMILIES = {  # Marks by family
    name: Marks(**{part: pattern.replace("TAG", _TAG) for part, pattern in patterns.items()})
    for name, patterns in _TABLE["families"].items()
}
ALL = tuple(FAMILIES)
_OPENS = {name: re.compile(marks.open, re.I if name == "tags" else 0) for name, marks in FAMILIES.items()}
_CLOSES = {name: re.compile(marks.close, re.I if name == "tags" else 0) for name, marks in FAMILIES.items()}
_ENDS = {name: re.compile(rf"(?:{marks.end})\Z", re.I) for name, marks in FAMILIES.items() if marks.end}
_ALONE = {name: re.compile(rf"^(?:{marks.close})(?=[ \t]*$)", re.I | re.M) for name, marks in FAMILIES.items()}
_LEAD = re.compile(r"(?:[\s\ufeff\u200b\u2060]|<s>|<\|im_start\|>assistant|<[|｜]assistant[|｜]>)*", re.I)
"""White space and tokens that servers leave before a reply."""
FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_details", "thinking_blocks")
"""Fields of a message that hold the thinking apart from the content."""
_LOOKS_LIKE = re.compile(_TABLE["looks_like"].replace("TAG", _TAG), re.IGNORECASE | re.MULTILINE)
_TEXTUAL = re.compile(r"str|NoneType|(?!redacted)(\w+[_.])?(text|thinking|reasoning|thought|summary)s?")
_TEXTS = ("thinking", "reasoning", "text", "summary", "content", "value")  # Keys of the text in a part of a message
_CODE = re.compile(r"^ {0,3}(`{3,}(?=[^`\n]*$)|~{3,})([^\n]*)$|(`+)|\n", re.MULTILINE)
QUOTES = "\"'“‘„«"
_QUOTED = re.compile(rf"(?:^|[^\w.,!?…])[{QUOTES}][\"'”’“»]\Z")
"""The characters around a mark that is quoted: one that opens, one that closes."""


class Seams(NamedTuple):
    """The marks and the white space around the parts, from which `join` restores the raw text."""

    before_open: str = ""
    after_open: str = "\n"
    before_close: str = "\n"
    after_close: str = "\n\n"
    end: str = ""
    open: str = OPEN
    close: str = CLOSE


CANONICAL = Seams()
"""The format of R1-like models: `<think>\\nthinking\\n</think>\\n\\nanswer`."""


class Split(NamedTuple):
    """The parts of a raw text."""

    thinking: str | None
    answer: str | None
    outcome: Outcome
    opened_by: OpenedBy | None
    seams: Seams = CANONICAL

    @property
    def notes(self) -> tuple[str, ...]:
        """The note for a trace whose marks are not the usual tags."""
        if self.thinking is None or (self.seams.open == OPEN and self.seams.close == CLOSE):
            return ()
        marks = [self.seams.open] * (self.opened_by == "model") + [self.seams.close] * (self.answer is not None)
        unusual = "".join(marks).replace(OPEN, "").replace(CLOSE, "").strip()
        return (f"thinking marked by {' … '.join(marks)}",) if unusual else ()


def split(raw: str, *, finish: Finish = "stop", opened: bool = False, family: str = "") -> Split:
    """Split a reply into thinking and answer.

    Args:
        raw: the reply as received.
        finish: why the generation ended; with `length` an unfinished text is truncated.
        opened: whether the prompt ended in an opening mark, so that the reply starts inside the thinking.
        family: the marks to look for, one of `FAMILIES`, or `none`; empty: all of them.
    """
    names = (family,) * (family != "none") if family else ALL
    lead = _LEAD.match(raw).end()  # type: ignore[union-attr]
    for name in names:
        if mark := _OPENS[name].match(raw, lead):
            return _inside(raw, mark.end(), finish, "model", name, (raw[:lead], mark[0]))
    code = _code(raw)
    firsts = {name: mark for name in names if (mark := next(_marks(raw, _CLOSES[name], code), None))}
    name = min(firsts, key=lambda name: firsts[name].start(), default="tags")
    before = firsts[name].start() if firsts else len(raw)
    if not opened and any(next(_marks(raw, _OPENS[other], code, end=before), None) for other in names):
        # Text, then a block: everything stays in the answer, which is judged, and the outcome marks the wrong form.
        return _plain(raw, "malformed")
    if opened or firsts:
        return _inside(raw, 0, finish, "prompt", name)
    return _plain(raw, "cut_in_answer" if finish == "length" else "no_thinking")


def join(
    thinking: str | None, answer: str | None, *, opened_by: OpenedBy | None = "model", seams: Seams = CANONICAL
) -> str:
    """Put thinking and answer together again; the inverse of `split`."""
    if thinking is None:
        return f"{seams.before_open}{answer or ''}{seams.end}"
    start = f"{seams.before_open}{seams.open}" if opened_by == "model" else ""
    text = f"{start}{seams.after_open}{thinking}"
    if answer is None:
        return f"{text}{seams.end}"
    return f"{text}{seams.before_close}{seams.close}{seams.after_close}{answer}{seams.end}"


def traced(
    prompt: Prompt, raw: str, *, finish: Finish = "stop", opened: bool = False, family: str = "", **known: Any
) -> Trace:
    """A reply as a record; `known` are its other fields. Without `sent` among them the bare prompt was sent."""
    parts = split(raw, finish=finish, opened=opened, family=family)
    known["sampling"] = known.get("sampling") or Sampling()
    known["sent"] = known.get("sent") or (Message(role="user", content=prompt.text),)
    known["notes"] = (*known.get("notes", ()), *parts.notes)
    return Trace(prompt=prompt, raw=raw, finish=finish, **known, **fields(parts))


def fields(parts: Split) -> dict[str, Any]:
    """The fields of a trace that a split decides, except its notes."""
    return dict(zip(Split._fields[:4], parts[:4], strict=True))


def from_fields(
    reasoning: str | None, content: str | None, *, finish: Finish = "stop", opened: bool = False, family: str = ""
) -> tuple[str, Split]:
    """Raw text and parts of a reply whose server may have moved the thinking out of the content.

    Such a server may still leave a closing mark, an empty block or the whole block in the content, and may put a truncated
    thought into both fields.

    Args:
        reasoning: the server's own thinking field; `None` or empty when it has none.
        content: the message's content; `None` where the server sent null.
        finish, opened, family: as for `split`.
    """
    if not reasoning:
        return content or "", split(content or "", finish=finish, opened=opened, family=family)
    thinking, answer = reasoning.strip(), (content or "").strip()
    inner = split(thinking, finish=finish, family=family)
    if inner.thinking is not None and not (inner.answer and answer):  # marks, or the whole reply, in the field
        thinking, answer = inner.thinking, answer or inner.answer or ""
    parts = split(answer, finish=finish, family=family)
    repeated = parts.thinking in ("", thinking)
    if parts.thinking and not repeated:
        thinking = f"{thinking}\n\n{parts.thinking}"
    if not answer or answer == thinking or parts.answer is None:
        unfinished: Outcome = "cut_in_thinking" if finish == "length" else "malformed"
        return join(thinking, None), Split(thinking, None, unfinished, "model")
    outcome: Outcome = "cut_in_answer" if finish == "length" else "complete"
    if parts.outcome == "malformed" or (parts.opened_by == "model" and not repeated):
        outcome = "malformed"
    return join(thinking, parts.answer), Split(thinking, parts.answer, outcome, "model")


def from_parts(content: Sequence[Any]) -> tuple[str | None, str | None, list[str]]:
    """Reasoning and content of a message whose content is a list of typed parts, and the types of parts that are neither.

    Reasoning and content are `None` where there is no such part. Raises ValueError: the text of a part is not a string.
    """
    reasoning: list[str] = []
    answer: list[str] = []
    others = []
    for part in content:
        kind = str(part.get("type") or "text") if isinstance(part, Mapping) else type(part).__name__
        if _TEXTUAL.fullmatch(kind):
            (reasoning if "think" in kind or "reason" in kind else answer).append(_text(part))
        else:
            others.append(kind)
    return "\n".join(reasoning) if reasoning else None, "".join(answer) if answer else None, others


def _text(part: Any, depth: int = 8) -> str:
    """The text in a part: a string, a list of parts, or a mapping that holds either."""
    if part is None or isinstance(part, str):
        return part or ""
    if isinstance(part, Mapping) and depth and (keys := [key for key in _TEXTS if key in part]):
        return _text(next((part[key] for key in keys if part[key]), None), depth - 1)
    if isinstance(part, list) and depth:
        return "".join(_text(item, depth - 1) for item in part)
    raise ValueError("a part whose text is not a string")


def opens_thinking(prompt: str) -> bool:
    """Whether a rendered prompt ends in an opening mark, so that the reply starts inside the thinking."""
    tail = prompt.rstrip()[-REACH:]
    return any(mark.end() == len(tail) for opens in _OPENS.values() for mark in opens.finditer(tail))


def foreign(template: str) -> str | None:
    """The mark with which a chat template opens the thinking, unless it is the usual tag."""
    marks = (mark for name, opens in _OPENS.items() if name != "harmony-bare" and (mark := opens.search(template)))
    return None if OPEN in template else next((mark[0] for mark in marks), None)


def unparsed(text: str) -> str | None:
    """The first unparsed mark of thinking in a text, or what looks like one; code and quotations do not count."""
    mark = next(_marks(text, _LOOKS_LIKE, _code(text)), None)
    return mark[0] if mark else None


class Parsed:
    """Counts marks of thinking in models' answers: a thought must not be judged as an answer."""

    def __init__(self) -> None:
        self._replies: Counter[str] = Counter()
        self.filed_again = 0  # Replies that were classed as thinking because of others of their model
        self._marked: dict[str, Counter[str]] = {}

    def add(self, trace: Trace) -> None:
        """Count a reply."""
        self._replies[trace.model] += 1
        self.filed_again += FILED_AGAIN in trace.notes
        if AS_TEXT not in trace.notes and (mark := unparsed(trace.answer or "")):
            self._marked.setdefault(trace.model, Counter())[mark] += 1

    def require(self) -> None:
        """Raises WorkError: more than `UNPARSED` of a model's replies hold such a mark; the message names it."""
        for model, marks in self._marked.items():
            share = marks.total() / self._replies[model]
            if share > (UNPARSED if marks.total() > 1 else 0.5):
                raise WorkError(
                    f"{share:.0%} of the replies of {model} hold a mark of thinking that was not read as one, such as "
                    f"{marks.most_common(1)[0][0]!r}: thoughts would be judged as answers. If the model marks its thinking "
                    f"in a known way, declare it (thinking: {' | '.join(FAMILIES)}); if these are not thoughts, thinking: none."
                )


def _plain(raw: str, outcome: Outcome) -> Split:
    """A text without thinking."""
    a, b = _core(raw, 0, len(raw))
    return Split(None, raw[a:b], outcome, None, Seams(raw[:a], "", "", "", raw[b:]))


def _inside(
    raw: str, start: int, finish: Finish, opened_by: OpenedBy, family: str, opening: tuple[str, str] = ("", OPEN)
) -> Split:
    """Split a text that is inside the thinking from `start` on. One mark closes a thinking; more mean several blocks."""
    code = _code(raw)
    marks = list(_marks(raw, _CLOSES[family], code, start))
    if not marks and finish == "stop":
        # A fence that the thinking left open may seem to hold the mark.
        marks = list(_ALONE[family].finditer(raw, start))[:1]
    runs: list[tuple[int, int]] = []  # Marks with nothing between them count as one
    for mark in marks:
        if runs and not raw[runs[-1][1] : mark.start()].strip():
            runs[-1] = (runs[-1][0], mark.end())
        else:
            runs.append(mark.span())
    shut, behind = runs[-1] if runs else (-1, -1)
    again = next(_marks(raw, _OPENS[family], code, behind), None) if runs else None
    if not runs or (again and not raw[behind : again.start()].strip()):
        a, b = _core(raw, start, len(raw))
        seams = Seams(opening[0], raw[start:a], "", "", raw[b:], opening[1])
        return Split(raw[a:b], None, "cut_in_thinking" if finish == "length" else "malformed", opened_by, seams)
    a, b = _core(raw, start, shut)
    c, d = _core(raw, behind, _end(raw, behind, family))
    seams = Seams(opening[0], raw[start:a], raw[b:shut], raw[behind:c], raw[d:], opening[1], raw[shut:behind])
    outcome: Outcome = "malformed" if len(runs) > 1 or again else "cut_in_answer" if finish == "length" else "complete"
    return Split(raw[a:b], raw[c:d], outcome, opened_by, seams)


def _core(raw: str, start: int, stop: int) -> tuple[int, int]:
    """Where `raw[start:stop]` begins and ends without surrounding white space; at its end when there is nothing else."""
    left = raw[start:stop].lstrip()
    return stop - len(left), stop - len(left) + len(left.rstrip())


def _end(raw: str, start: int, family: str) -> int:
    """Where the answer ends: before the mark that closes it, if the family has one."""
    stripped = raw.rstrip()
    mark = _ENDS[family].search(stripped, max(start, len(stripped) - 40)) if family in _ENDS else None
    return mark.start() if mark else len(raw)


def _marks(
    text: str, pattern: re.Pattern[str], code: Sequence[tuple[int, int]], start: int = 0, end: int | None = None
) -> Iterator[re.Match[str]]:
    """Marks that are neither in code nor quoted."""
    spans = iter(code)
    inside = next(spans, None)
    at, end, quick = start, len(text) if end is None else end, pattern.pattern[0] == "<"
    while at >= 0:
        # Searching for a character is twenty times as fast as searching for a pattern.
        at = text.find("<", at, end) if quick else at
        mark = (pattern.match if quick else pattern.search)(text, at, end) if at >= 0 else None
        if mark is None:
            at = at + 1 if quick and at >= 0 else -1
            continue
        at = mark.start()
        while inside and inside[1] <= at:
            inside = next(spans, None)
        quoted = text[at - 1 : at] in QUOTES and _QUOTED.search(
            text[max(0, at - 2) : at] + text[mark.end() : mark.end() + 1]
        )
        if not quoted and not (inside and inside[0] <= at):
            yield mark
        at = mark.end()


def _code(text: str) -> list[tuple[int, int]]:
    """The spans of code, in order: closed fences, and text between equal runs of backticks on one line."""
    if "`" not in text and "~~~" not in text:
        return []
    found: list[tuple[int, int]] = []
    fence: re.Match[str] | None = None
    run: re.Match[str] | None = None
    for mark in _CODE.finditer(text):
        if mark[1] is None:
            same = run and mark[3] and len(run[3]) == len(mark[3])
            if run and same:
                found.append((run.start(), mark.end()))
            run = None if same or not mark[3] else run or mark
        elif fence is None:
            fence = mark
        elif mark[1].startswith(fence[1]) and not mark[2].strip():
            # Some models write their thinking into a fence.
            found += [(fence.start(), mark.end())] if not re.fullmatch(_TAG, fence[2].strip()) else []
            fence = None
    return sorted(found)
