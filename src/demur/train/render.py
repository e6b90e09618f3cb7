"""Examples to tokens and labels, with proof that exactly what should be trained is.

Trainers that render chat templates lose reasoning: the stock R1-Distill template deletes it, others add an empty block
or a second one, and the loss still falls. So the context is the inference prompt, token for token; the response is
joined in the form of `thinking.join` and tokenised after it; its labels follow the flags of the example's parts; and
every row is checked before the first step:

    context         the inference prompt, all turns in it, no control token inside a turn, one beginning
    first label     the first token that the model writes, where the first piece is trained
    one block       one thinking block, counted in the text of the tokens, not in the intended parts
    reasoning       every character of a trained part is covered by a supervised token
    stop            the last token ends a reply at inference, and is supervised where the answer's end is trained
    whole           nothing is truncated: a longer row is dropped, counted and listed
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, Self

from demur import thinking
from demur.errors import CheckFailed, unknown
from demur.records import Example, ExamplePart, Pair, Record
from demur.thinking import CANONICAL
from demur.train.chat import FAMILIES, Chat, Messages, Unfit, load_tokenizer, stops_of

NAMES = ("auto", "tokenizer", "generic")
IGNORED = -100  # The label of a token without loss


class Row(NamedTuple):
    """A training row; `ids` and `labels` have the same length."""

    example: str  # Id of the example
    ids: list[int]
    labels: list[int]
    context: int  # Number of tokens before the response
    answer: int  # Index of the first token after the closing tag
    share: str = ""  # The mixture component of the example

    @property
    def trained(self) -> int:
        """Number of targets: the supervised tokens, without the first of the row, which nothing predicts."""
        return sum(label != IGNORED for label in self.labels[1:])


class Dropped(Record, frozen=True, kw_only=True):
    """An example that is not trained on, and why."""

    example: str
    reason: str
    detail: str = ""


class Rendered(NamedTuple):
    """All rows of a data set, and what was left out."""

    rows: list[Row]
    dropped: list[Dropped]

    def counts(self) -> dict[str, int]:
        """Reason -> number of rows left out."""
        return dict(sorted(Counter(item.reason for item in self.dropped).items()))


class Renderer:
    """Renders examples for one tokenizer and template."""

    def __init__(
        self, tokenizer: Any, *, template: str = "auto", stops: Iterable[int] = (), loss: str = "response"
    ) -> None:
        """Find the template's family and the token that ends a reply.

        `template` is `auto`, a family's name, `generic`, or `tokenizer` for the template's own rendering; `stops` are
        those of `Chat`; `loss` is `response`, or `all` to train on the context too.

        Raises:
            UserError: no chat template, no fast tokenizer, no end token, an unknown name.
            CheckFailed: the tokenizer loses text, the model would not stop, or the template is unknown and wrong.
        """
        if template not in (*NAMES, *FAMILIES):
            raise unknown("template", template, (*NAMES, *FAMILIES))
        self.tokenizer = tokenizer
        self.by_template, self.loss = template == "tokenizer", loss
        self.mask: Sequence[str] = ()  # Parts that are not trained, whatever their flags
        self.primer: Mapping[str, int] = {}  # Component -> number of tokens of its thinking that alone are trained
        self.chat = Chat(tokenizer, stops)
        self.opened, self.stop = self.chat.opened, self.chat.stop
        known = self.chat.family()
        self.family = template if template not in ("auto", "tokenizer") else known or "generic"
        if template != "auto" or known:
            return
        override = "--set train.template=generic"
        if mark := thinking.foreign(self.chat.template):
            raise CheckFailed(
                f"refusing to train: this chat template marks thinking by {mark!r}, and rows would be written with "
                f"{thinking.OPEN}. If that is intended: {override}"
            )
        if fault := self.template_fault():
            raise CheckFailed(
                "refusing to train: this chat template is unknown, and its rendering of a whole conversation is not "
                f"its inference prompt followed by the response: {fault}. If the form that R1-like models share is "
                f"right for this model: {override}"
            )

    @classmethod
    def of(cls, base: Path | str, *, template: str = "auto", loss: str = "response") -> Self:
        """The renderer for a base, with the tokens at which its generation settings stop."""
        return cls(load_tokenizer(base), template=template, stops=stops_of(base), loss=loss)

    def rows(self, examples: Sequence[Example | Pair], *, max_length: int) -> Rendered:
        """Render and check all examples; of a pair both replies or none, one after the other.

        Raises CheckFailed: the template deletes the reasoning, or no row is left.
        """
        rendered = Rendered([], [])
        for number, example in enumerate(examples, 1):
            sides = (example,) if isinstance(example, Example) else (example.chosen, example.rejected)
            try:
                rows = [self.row(side) for side in sides]
                longest = max(len(row.ids) for row in rows)
                if longest > max_length:
                    raise Unfit("too_long", f"{longest} tokens; at most {max_length} are taken")
                rendered.rows.extend(rows)
            except Unfit as problem:
                if problem.reason == "reasoning_deleted":
                    raise CheckFailed(
                        "refusing to train: this chat template deletes the reasoning. "
                        f"Row {number} of {len(examples):,}: {problem.detail}.\n"
                        f"demur's own rendering for this family: --set train.template={self.family} "
                        "(chosen by default; you passed train.template=tokenizer)."
                    ) from None
                dropped = Dropped(example=example.id, reason=problem.reason, detail=problem.detail)
                rendered.dropped.append(dropped)
        if not rendered.rows:
            why = ", ".join(f"{count} {reason}" for reason, count in rendered.counts().items()) or "no examples"
            detail = rendered.dropped[0].detail if rendered.dropped else ""
            first = f" The first: {detail}." if detail else ""
            raise CheckFailed(f"refusing to train: no row is left of {len(examples)} examples ({why}).{first}")
        return rendered

    def row(self, example: Example) -> Row:
        """The tokens and labels of an example's last reply, after all that precedes it. Raises Unfit: a check fails."""
        messages, response = conversation(example)
        prompt, context = self.chat.context(messages)
        text, flags = self._text(response)
        if self.by_template:
            self._check_template(messages, prompt, text)
        ids, offsets = self.chat.continued(prompt, context, text)
        ids, offsets = [*ids, self.stop], [*offsets, (len(text), len(text) + 1)]
        # A token's last character decides whether it is trained.
        trained = [bool(flags[max(start, end - 1)]) for start, end in offsets]
        self._check_response(text, response, ids)
        _check_trained(text, flags, offsets, trained)
        first = _token_at(offsets, 0 if self.opened else len(thinking.OPEN + CANONICAL.after_open))
        answer = _token_at(offsets, text.find(thinking.CLOSE) + len(thinking.CLOSE))
        end = first + self.primer[example.share] if example.share in self.primer else len(ids)
        labels = [token if flag else IGNORED for token, flag in zip(ids, trained, strict=True)]
        for at in range(len(ids)):
            if at >= end or ("thinking" if at < answer else "answer") in self.mask:
                labels[at] = IGNORED
        if all(label == IGNORED for label in labels):
            raise Unfit("nothing_trained", "no part of the response is flagged for training")
        head = [IGNORED, *context[1:]] if self.loss == "all" else [IGNORED] * len(context)
        return Row(example.id, context + ids, head + labels, len(context), len(context) + answer, example.share)

    def template_fault(self) -> str:
        """What is wrong with the template's own rendering of a small conversation; empty: nothing."""
        thought = ExamplePart(role="thinking", text="one two", train=True)
        answer = ExamplePart(role="answer", text="six", train=True)
        messages = [{"role": "user", "content": "five"}]
        try:
            self._check_template(messages, self.chat.prompt(messages), self._text((thought, answer))[0])
        except Unfit as problem:
            return f"{problem.reason} ({problem.detail})"
        return ""

    def _text(self, response: Sequence[ExamplePart]) -> tuple[str, bytes]:
        """The response's text without its stop token; and for each character and for that token, 1 if it is trained."""
        thought = [part for part in response if part.role == "thinking"]
        answer = [part for part in response if part.role == "answer"]
        if not thought:
            raise Unfit("no_thinking", "the example has no thinking part; give an empty one to train an empty block")
        if not answer:
            raise Unfit("no_answer", "the example has no answer part: the text would have no end")
        lead = "" if self.opened else thinking.OPEN + CANONICAL.after_open
        close = CANONICAL.before_close + thinking.CLOSE
        texts = [(lead, thought[0].train), *((part.text, part.train) for part in thought), (close, thought[-1].train)]
        texts += [(CANONICAL.after_close, answer[0].train), *((part.text, part.train) for part in answer)]
        flags = b"".join(bytes([train]) * len(text) for text, train in texts)
        return "".join(text for text, _ in texts), flags + flags[-1:]

    def _check_template(self, messages: Messages, prompt: str, text: str) -> None:
        """The template's own rendering of the conversation must be the prompt followed by exactly the response."""
        lead = thinking.OPEN + CANONICAL.after_open if self.opened else ""
        rendered = self.chat.render([*messages, {"role": "assistant", "content": lead + text}]).rstrip()
        expected = prompt + text + self.tokenizer.convert_ids_to_tokens(self.stop)
        # Where the next role's mark ends a reply, nothing ends the last one.
        if rendered in (expected.rstrip(), (prompt + text).rstrip()):
            return
        at = next((i for i, (a, b) in enumerate(zip_longest(rendered, expected)) if a != b), 0)
        thought = text.partition(thinking.CLOSE)[0].removeprefix(thinking.OPEN).strip()
        if thought and thought not in rendered:
            given = len(self.chat.tokens(text)[0]) + 1
            kept = min(given, len(self.chat.tokens(rendered[at:])[0]))
            raise Unfit("reasoning_deleted", f"{given:,} response tokens given, {kept:,} would be trained")
        reason = "opened_twice" if rendered.count(thinking.OPEN) > expected.count(thinking.OPEN) else "template_differs"
        raise Unfit(reason, f"the template writes {rendered[at : at + 40]!r} where {expected[at : at + 40]!r} belongs")

    def _check_response(self, text: str, response: Sequence[ExamplePart], ids: list[int]) -> None:
        """The response must have one thinking block, that of its parts, no control token and no unknown one."""
        split = thinking.split(text, opened=self.opened)
        given = [
            "".join(part.text for part in response if part.role == role).strip() for role in ("thinking", "answer")
        ]
        opening, closing = text.count(thinking.OPEN) + self.opened, text.count(thinking.CLOSE)
        if (opening, closing, split.outcome) != (1, 1, "complete") or [split.thinking, split.answer] != given:
            raise Unfit("thinking_blocks", f"{opening} opening and {closing} closing tags in one response")
        if mark := self.chat.control(text):
            raise Unfit("control_token", f"the response holds {mark!r}, which begins or ends turns")
        if self.chat.unknown is not None and self.chat.unknown in ids[:-1]:
            raise Unfit("unknown_token", f"{ids[:-1].count(self.chat.unknown)} words are not in the vocabulary")


def conversation(example: Example) -> tuple[Messages, list[ExamplePart]]:
    """The messages before an example's last reply, and the parts of that reply.

    Consecutive parts of one turn become one message. Reasoning of earlier replies is left out, as it is at inference.

    Raises Unfit: an earlier reply is flagged for training; each trained reply must be an example of its own.
    """
    parts = list(example.parts)
    at = len(parts)
    while at and parts[at - 1].role in ("thinking", "answer"):
        at -= 1
    messages: Messages = []
    for part in parts[:at]:
        if part.train:
            raise Unfit("earlier_turn", "a turn before the last reply is flagged for training")
        role = "assistant" if part.role == "answer" else part.role
        if role == "thinking":
            continue
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += part.text
        else:
            messages.append({"role": role, "content": part.text})
    return messages, parts[at:]


def _token_at(offsets: list[tuple[int, int]], place: int) -> int:
    """Index of the first token that begins at a character or after it."""
    return next(i for i, (start, _) in enumerate(offsets) if start >= place)


def _check_trained(text: str, flags: bytes, offsets: list[tuple[int, int]], trained: list[bool]) -> None:
    """Every visible character that is flagged must be covered by a trained token."""
    covered = bytearray(flags.translate(bytes.maketrans(b"\0\1", b"\1\0")))  # what is not flagged counts as covered
    for (start, end), flag in zip(offsets, trained, strict=True):
        if flag:
            covered[start:end] = b"\1" * (end - start)
    at = covered.find(0)
    while at >= 0:
        if text[at].isprintable() and not text[at].isspace():
            # A token that ends in untrained text is not trained, and may begin in trained text.
            start, end = next(((start, end) for start, end in offsets if start <= at < end), (0, 0))
            if all(flags[start:end]):
                raise Unfit("label_missing", f"{text[at : at + 30]!r} is to be trained and has no label")
        at = covered.find(0, at + 1)
