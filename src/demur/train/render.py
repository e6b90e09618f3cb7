"""An example and a tokenizer to tokens and labels, with proof that what should be trained is.

Trainers that render chat templates lose reasoning: the stock R1-Distill template deletes it, others add an empty block or
a second one, and the loss still falls. So the context is the inference prompt, token for token; the response is joined
by `thinking.join` and tokenised by itself (at inference, too, the context's tokens are given); its labels follow the
flags of the example's parts; and every row is checked before the first step:

    context         the inference prompt, with one beginning-of-text token at most
    first label     the first token that the model writes, where the first piece is trained
    one block       one thinking block, counted in the tokens' text, not in the parts that were meant
    reasoning       every sign of the trained pieces lies under a supervised token
    stop            the last token ends a reply at inference, and is supervised where the answer's end is trained
    whole           nothing is cut: a longer row is dropped, counted and listed
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from demur import thinking
from demur.errors import CheckFailed, UserError
from demur.records import Example, ExamplePart, Record
from demur.train.families import Family, load_family, prompt_of, recognise

IGNORED = -100
"""The label of a token on which no loss falls."""


class Row(NamedTuple):
    """A training row; `ids` and `labels` have the same length."""

    example: str
    """Id of the example."""
    ids: list[int]
    labels: list[int]
    context: int
    """Number of tokens before the response."""
    answer: int
    """Index of the first token behind the closing tag."""
    share: str = ""

    @property
    def trained(self) -> int:
        """Number of targets: supervised tokens but for the first of the row, which nothing predicts."""
        return sum(label != IGNORED for label in self.labels[1:])


class Dropped(Record, frozen=True, kw_only=True):
    """An example that is not trained on, and why."""

    example: str
    reason: str
    detail: str = ""


class Unfit(Exception):
    """One row cannot be used."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Rendered(NamedTuple):
    """All rows of a data set, and what was left out."""

    rows: list[Row]
    dropped: list[Dropped]

    def counts(self) -> dict[str, int]:
        """Reason -> number of rows left out."""
        return dict(sorted(Counter(item.reason for item in self.dropped).items()))


class Piece(NamedTuple):
    """A stretch of the response's text: characters `start:end`, and whether loss falls on it."""

    start: int
    end: int
    train: bool


class Renderer:
    """Renders for one tokenizer and template."""

    def __init__(
        self, tokenizer: Any, *, template: str = "auto", stops: Iterable[int] = (), loss: str = "response"
    ) -> None:
        """Find the family and the token that ends a reply.

        Args:
            tokenizer: a fast tokenizer with a chat template.
            template: `auto`, a family's name, or `tokenizer` for the template's own rendering.
            stops: token ids that end a reply at inference; the tokenizer's end token when empty.
            loss: `response`, or `all` to train on the context too.

        Raises:
            UserError: no chat template, no fast tokenizer, no end token, an unknown name.
            CheckFailed: `auto` met an unknown template that does not render as it should.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise UserError("training needs a fast tokenizer (tokenizer.json): labels are placed by character offsets.")
        if tokenizer.eos_token_id is None:
            raise UserError("the base's tokenizer has no end-of-text token: the model could not learn to stop.")
        self.tokenizer = tokenizer
        self.own = template == "tokenizer"
        self.loss = loss
        found = recognise(tokenizer)
        self.family: Family = load_family("generic") if self.own else found or load_family("generic")
        if template not in ("auto", "tokenizer"):
            self.family = load_family(template)
        self.stop: int = tokenizer.eos_token_id
        self.stops = frozenset(stops) or frozenset((self.stop,))
        if self.stop not in self.stops:
            raise CheckFailed(
                f"the tokenizer ends texts with {tokenizer.eos_token!r}, and generation_config.json stops at the tokens "
                f"{sorted(self.stops)} only: the model would never stop. Add {self.stop} to eos_token_id there."
            )
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        tags = set(tokenizer.convert_tokens_to_ids([thinking.OPEN, thinking.CLOSE]))
        self._control = (special | set(tokenizer.all_special_ids)) - tags - {tokenizer.unk_token_id}
        prompt = prompt_of(tokenizer, [{"role": "user", "content": "x"}])
        self.opened = thinking.opens_thinking(prompt)
        if template == "auto" and found is None:
            self._agree()

    @classmethod
    def of(cls, base: Path | str, *, template: str = "auto", loss: str = "response") -> Renderer:
        """The renderer for a base: its tokenizer, and the tokens at which its generation settings stop."""
        return cls(load_tokenizer(base), template=template, stops=stops_of(base), loss=loss)

    def rows(self, examples: Sequence[Example], *, max_length: int) -> Rendered:
        """Render and check all examples.

        Raises:
            CheckFailed: the template deletes the reasoning, or no row is left.
        """
        rows: list[Row] = []
        dropped: list[Dropped] = []
        for number, example in enumerate(examples, 1):
            try:
                row = self.row(example)
                if len(row.ids) > max_length:
                    raise Unfit("too_long", f"{len(row.ids)} tokens; at most {max_length} are taken")
                rows.append(row)
            except Unfit as problem:
                if problem.reason == "reasoning_deleted":
                    raise CheckFailed(self._refusal(number, len(examples), problem.detail)) from None
                dropped.append(Dropped(example=example.id, reason=problem.reason, detail=problem.detail))
        if not rows:
            said = ", ".join(f"{n} {reason}" for reason, n in Rendered(rows, dropped).counts().items()) or "no examples"
            first = f" The first: {dropped[0].detail}." if dropped and dropped[0].detail else ""
            raise CheckFailed(f"refusing to train: no row is left of {len(examples)} examples ({said}).{first}")
        return Rendered(rows, dropped)

    def row(self, example: Example) -> Row:
        """The last reply of an example as tokens and labels, behind all that stood before it.

        Raises:
            Unfit: a check does not hold, with its name and what was seen.
        """
        messages, response = conversation(example)
        prompt = prompt_of(self.tokenizer, messages)
        before = self._tokens(prompt)[0]
        self._check_context(messages, before)
        text, pieces = self.text_of(response)
        if self.own:
            self._check_own(messages, prompt, text)
        ids, offsets = self._tokens(text)
        flags = _flags(offsets, pieces)
        close = text.find(thinking.CLOSE) + len(thinking.CLOSE)
        answer = next((i for i, (start, _) in enumerate(offsets) if start >= close), len(ids))
        ids, flags = [*ids, self.stop], [*flags, pieces[-1].train]
        labels = [token if flag else IGNORED for token, flag in zip(ids, flags, strict=True)]
        self._check_response(text, response, ids)
        self._check_labels(text, pieces, offsets, labels)
        if self.loss == "all":
            head = [IGNORED, *before[1:]]
        else:
            head = [IGNORED] * len(before)
        return Row(example.id, before + ids, head + labels, len(before), len(before) + answer, example.share)

    def text_of(self, response: Sequence[ExamplePart]) -> tuple[str, list[Piece]]:
        """The response's text without its stop token, and which stretches of it are trained."""
        seams = self.family.seams
        thought = [part for part in response if part.role == "thinking"]
        answer = [part for part in response if part.role == "answer"]
        if not thought:
            raise Unfit("no_thinking", "the example has no thinking part; give an empty one to train an empty block")
        if not answer:
            raise Unfit("no_answer", "the example has no answer part: the text would have no end")
        lead = "" if self.opened else thinking.OPEN + seams.after_open
        pieces: list[tuple[str, bool]] = [(lead, thought[0].train)]
        pieces += [(part.text, part.train) for part in thought]
        pieces.append((seams.before_close + thinking.CLOSE, thought[-1].train))
        pieces.append((seams.after_close, answer[0].train))
        pieces += [(part.text, part.train) for part in answer]
        spans: list[Piece] = []
        at = 0
        for text, train in pieces:
            if text:
                spans.append(Piece(at, at + len(text), train))
                at += len(text)
        return "".join(text for text, _ in pieces), spans

    def _tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and character offsets of a text, without special tokens added."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])

    def _check_context(self, messages: list[dict[str, str]], before: list[int]) -> None:
        """The context is what an inference engine would make of these messages, and begins once."""
        seen = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        if list(seen) != before:
            at = next(
                (i for i, (a, b) in enumerate(zip(seen, before, strict=False)) if a != b), min(len(seen), len(before))
            )
            raise Unfit("context_differs", f"token {at}: {seen[at : at + 1]} at inference, {before[at : at + 1]} here")
        begin = self.tokenizer.bos_token_id
        if begin is not None and begin != self.stop and before.count(begin) > 1:
            raise Unfit("two_beginnings", f"{before.count(begin)} beginning-of-text tokens in the context")

    def _check_own(self, messages: list[dict[str, str]], prompt: str, text: str) -> None:
        """With the template's own rendering: it must go on from the prompt with exactly the response."""
        lead = thinking.OPEN + self.family.seams.after_open if self.opened else ""
        turn = [*messages, {"role": "assistant", "content": lead + text}]
        whole = str(self.tokenizer.apply_chat_template(turn, tokenize=False))
        wanted = prompt + text + self.tokenizer.eos_token
        if whole.rstrip() != wanted.rstrip():
            at = _first_difference(whole, wanted)
            given, kept = len(self._tokens(text)[0]) + 1, len(self._tokens(whole[at:])[0])
            gone = text.partition(thinking.CLOSE)[0].strip()
            if gone and gone not in whole:
                raise Unfit(
                    "reasoning_deleted", f"{given:,} response tokens given, {min(given, kept):,} would be trained"
                )
            raise Unfit(
                "template_differs",
                f"the template writes {whole[at : at + 40]!r} where {wanted[at : at + 40]!r} belongs",
            )

    def _check_response(self, text: str, response: Sequence[ExamplePart], ids: list[int]) -> None:
        """One thinking block with the given thinking, no foreign control token, a stop token at the end."""
        parts = thinking.split(text, opened=self.opened)
        meant = [
            "".join(part.text for part in response if part.role == role).strip() for role in ("thinking", "answer")
        ]
        blocks = text.count(thinking.CLOSE), text.count(thinking.OPEN) + self.opened
        if blocks != (1, 1) or parts.outcome != "complete" or [parts.thinking, parts.answer] != meant:
            raise Unfit("thinking_blocks", f"{blocks[1]} opening and {blocks[0]} closing tags in one response")
        foreign = [i for i in ids[:-1] if i in self._control]
        if foreign:
            token = self.tokenizer.convert_ids_to_tokens(foreign[0])
            raise Unfit("control_token", f"the text holds {token!r}, which ends or begins turns")
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            raise Unfit("unknown_token", f"{ids.count(unknown)} words are not in the vocabulary")
        assert ids[-1] in self.stops, "the stop token was checked when the renderer was made"

    def _check_labels(self, text: str, pieces: list[Piece], offsets: list[tuple[int, int]], labels: list[int]) -> None:
        """Every visible sign of a trained piece lies under a supervised token, and none of an untrained one alone."""
        covered = bytearray(len(text))
        for (start, end), label in zip(offsets, labels, strict=False):
            if label != IGNORED:
                covered[start:end] = b"\1" * (end - start)
        for piece in pieces:
            at = covered.find(0, piece.start, piece.end) if piece.train else -1
            while at >= 0:
                # A token's last character decides its flag: one that ends in an untrained piece is not trained.
                if text[at].isprintable() and not text[at].isspace() and not _straddles(offsets, at, pieces):
                    raise Unfit("label_missing", f"{text[at : at + 30]!r} is to be trained and has no label")
                at = covered.find(0, at + 1, piece.end)
        if all(label == IGNORED for label in labels):
            raise Unfit("nothing_trained", "no part of the response is flagged for training")

    def _agree(self) -> None:
        """An unknown template is used when its own rendering of a small conversation is ours."""
        turn = (
            ExamplePart(role="thinking", text="one two", train=True),
            ExamplePart(role="answer", text="six", train=True),
        )
        messages = [{"role": "user", "content": "five"}]
        text, _ = self.text_of(turn)
        try:
            self._check_own(messages, prompt_of(self.tokenizer, messages), text)
        except Unfit as problem:
            raise CheckFailed(
                f"refusing to train: this chat template is unknown, and what it makes of a whole conversation is not its "
                f"inference prompt followed by the response: {problem.detail}. If the form that R1-like models share is "
                f"right for this model: --set train.template=generic"
            ) from None

    def _refusal(self, number: int, total: int, detail: str) -> str:
        """The refusal of a template that deletes reasoning, with the way on."""
        family = recognise(self.tokenizer)
        name = family.name if family else "generic"
        return (
            f"refusing to train: this chat template deletes the reasoning. Row {number} of {total:,}: {detail}.\n"
            f"demur's own rendering for this family: --set train.template={name} (chosen by default; you passed "
            f"train.template=tokenizer)."
        )


def conversation(example: Example) -> tuple[list[dict[str, str]], list[ExamplePart]]:
    """The messages before an example's last reply, and that reply. Consecutive pieces of one turn are one message.

    Reasoning of earlier replies is left out, as it is at inference.

    Raises:
        Unfit: loss would fall on an earlier reply: each trained reply is an example of its own.
    """
    parts = list(example.parts)
    at = len(parts)
    while at and parts[at - 1].role in ("thinking", "answer"):
        at -= 1
    messages: list[dict[str, str]] = []
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


def load_tokenizer(base: Path | str) -> Any:
    """The tokenizer of a folder or hub id.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise UserError(f"{base}: no tokenizer that transformers can load: {str(error).splitlines()[0]}") from None


def stops_of(base: Path | str) -> frozenset[int]:
    """The tokens at which a base's generation settings stop; empty where it has none."""
    from transformers import GenerationConfig

    try:
        said = GenerationConfig.from_pretrained(base).eos_token_id
    except OSError:
        return frozenset()
    return frozenset(said if isinstance(said, list) else [said] if said is not None else [])


def _flags(offsets: list[tuple[int, int]], pieces: list[Piece]) -> list[bool]:
    """Whether each token is trained: its last character decides."""
    flags = []
    at = 0
    for start, end in offsets:
        last = max(start, end - 1)
        while at < len(pieces) - 1 and last >= pieces[at].end:
            at += 1
        flags.append(pieces[at].train)
    return flags


def _straddles(offsets: list[tuple[int, int]], at: int, pieces: list[Piece]) -> bool:
    """Whether the token over a character reaches into an untrained piece."""
    for start, end in offsets:
        if start <= at < end:
            return any(not p.train and p.start < end and start < p.end for p in pieces)
    return False


def _first_difference(a: str, b: str) -> int:
    """Index of the first character in which two texts differ."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
