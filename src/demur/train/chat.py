"""What is true of a base's chat template and tokenizer: the inference prompt, who opens the thinking, what ends a reply.

Nothing is guessed from names where it can be found out by rendering: a template's own mark may be the beginning-of-text
token (ChatML), the next role's mark may be what ends a turn (GLM), a system turn may be added, refused or left out.
"""

import re
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from demur import thinking
from demur.errors import CheckFailed, UserError
from demur.models.chat_format import DATE

_NOW = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
SAMPLES = (
    "Two  spaces, a tab\tand a line:\n\n  (it's 3.5 %) — fine !",
    "  leading spaces, then code:\n\nfor i in range(3):\n\tx[i] = {'a': i ** 2}  # note\n",
    "Señor Ångström, 谢谢 🙂\n\n\n",
)
"""Texts that must come back from their tokens. They lose spaces in some pairings of tokenizer files and versions."""
Messages = list[dict[str, str]]


class Unfit(Exception):
    """One row cannot be used."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


FAMILIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "mini": (("<|begin|>", "<|user|>", "<|assistant|>"), ()),  # demur's own small models
    "r1-distill": (("<｜User｜>", "<｜Assistant｜>"), ()),  # deletes the reasoning of every assistant turn
    "qwen3": (("<|im_start|>", "enable_thinking"), ()),  # drops the reasoning of turns before the last question
    "qwq": (
        ("<|im_start|>", thinking.OPEN),
        ("enable_thinking",),
    ),  # the prompt opens the thinking; keeps the answer alone
}
"""Chat formats whose models write the form of `thinking.join`, whatever their template makes of it, by strings that template
and prompt hold, and strings that the template does not."""


def load_tokenizer(base: Path | str) -> Any:
    """The tokenizer of a folder or hub id. Raises UserError: there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise UserError(f"{base}: no tokenizer that transformers can load: {str(error).splitlines()[0]}") from None


def stops_of(base: Path | str) -> frozenset[int]:
    """The tokens at which a base's generation settings stop; empty where it has none."""
    from transformers import GenerationConfig

    try:
        stops = GenerationConfig.from_pretrained(base).eos_token_id
    except OSError:
        return frozenset()
    return frozenset(stops if isinstance(stops, list) else [stops] if stops is not None else [])


class Chat:
    """A tokenizer with its chat template."""

    def __init__(self, tokenizer: Any, stops: Iterable[int] = ()) -> None:
        """Find out how prompts begin and replies end; `stops` end a reply at inference (none: the tokenizer's end token).

        Raises:
            UserError: no chat template, no fast tokenizer, no end token.
            CheckFailed: the tokenizer loses text, or what ends a turn does not end a reply at inference.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise UserError("training needs a fast tokenizer (tokenizer.json): labels are placed by character offsets.")
        if tokenizer.eos_token_id is None:
            raise UserError("the base's tokenizer has no end-of-text token: the model could not learn to stop.")
        if not tokenizer.chat_template:
            raise UserError(
                "the base's tokenizer has no chat template: there is no inference prompt to train for. "
                "Add a chat_template.jinja to the base's folder."
            )
        self.tokenizer = tokenizer
        named = tokenizer.chat_template
        own = named if isinstance(named, str) else named.get("default") or next(iter(named.values()))
        self.template, dates = _NOW.subn(lambda found: repr(DATE.strftime(found[2])), own)
        self.dated = dates > 0  # Whether the template prints the date, which is then a fixed one: equal rows each day
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        special = (special | set(tokenizer.all_special_tokens)) - {thinking.OPEN, thinking.CLOSE}
        self.special = frozenset(tokenizer.convert_tokens_to_ids(list(special)))
        self._control = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        unknown = tokenizer.unk_token_id
        # Some bases name their end or padding token as the unknown one, though nothing is unknown to them.
        self.unknown = unknown if unknown in self.tokens("\ue000 Ω谢")[0] else None
        if self.unknown is None:
            self._check_round_trip()
        try:
            self.opened = thinking.opens_thinking(self.prompt([{"role": "user", "content": "x"}]))
        except Unfit as problem:
            raise UserError(f"the chat template does not render one user turn: {problem.detail}") from None
        self.stops = frozenset(stops) or frozenset((int(tokenizer.eos_token_id),))
        self.stop = self._stop()

    def prompt(self, messages: Messages) -> str:
        """What the model is shown at inference: the rendered conversation with the generation prompt.

        Raises Unfit: the template refuses the messages, or leaves one out.
        """
        text = self.render(messages, add_generation_prompt=True)
        for message in messages:
            if message["role"] != "assistant" and message["content"].strip() not in text:
                raise Unfit("turn_left_out", f"the template leaves out or changes the {message['role']}'s turn")
        return text

    def render(self, messages: Messages, **options: Any) -> str:
        """A conversation as text, on a fixed date. Raises Unfit: the template refuses the messages."""
        from jinja2 import TemplateError

        try:
            template = self.template
            return str(self.tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options))
        except (TemplateError, TypeError, ValueError) as error:
            raise Unfit("template_refuses", str(error).strip() or type(error).__name__) from None

    def tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and character offsets of a text, without special tokens added."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])

    def context(self, messages: Messages) -> tuple[str, list[int]]:
        """The inference prompt as text and tokens.

        Raises Unfit: the template refuses the messages, a turn holds a control token, the text begins twice.
        """
        for message in messages:
            if found := self.control(message["content"]):
                raise Unfit("control_token", f"the {message['role']}'s turn holds {found!r}, which bounds turns")
        prompt = self.prompt(messages)
        ids, _ = self.tokens(prompt)
        begin = self.tokenizer.bos_token_id
        if begin is not None and ids[:2] == [begin, begin]:
            raise Unfit("two_beginnings", f"the context begins with {self.tokenizer.bos_token!r} twice")
        return prompt, ids

    def continued(self, prompt: str, before: list[int], text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and offsets of a response behind its prompt.

        Not the tokens of the response by itself: SentencePiece would put the marker of a word before its first one.
        """
        ids, offsets = self.tokens(prompt + text)
        at, shift = len(before), len(prompt)
        if ids[:at] != before:
            # A token would reach over the border, where at inference the context's tokens stand already.
            head = self.tokenizer.eos_token
            ids, offsets = self.tokens(head + text)
            at, shift = 1, len(head)
        return ids[at:], [(max(0, start - shift), max(0, end - shift)) for start, end in offsets[at:]]

    def control(self, text: str) -> str:
        """The first control token in a text; empty: none."""
        found = self._control.search(text)
        return found[0] if found else ""

    def _check_round_trip(self) -> None:
        for text in SAMPLES:
            back = self.tokenizer.decode(self.tokens(text)[0], clean_up_tokenization_spaces=False)
            # SentencePiece may add or take a space in front; no response stands there.
            if unicodedata.normalize("NFKC", back).lstrip(" ") != unicodedata.normalize("NFKC", text).lstrip(" "):
                raise CheckFailed(
                    f"the tokenizer does not give a text back: {text!r} becomes {back!r}. Training would teach the loss. "
                    "Check tokenizer.json against the version of transformers."
                )

    def _stop(self) -> int:
        """The token that ends a reply: what the template writes behind an assistant's turn.

        Raises CheckFailed: inference does not stop at it.
        """
        turns = [{"role": role, "content": "qzxj"} for role in ("user", "assistant", "user")]
        stop = int(self.tokenizer.eos_token_id)
        with suppress(Unfit):
            # The special token behind an assistant's turn, which may be the next role's mark.
            parts = self.render(turns).split("qzxj")
            ids = self.tokens(parts[2].lstrip())[0] if len(parts) == 4 else []
            stop = ids[0] if ids and ids[0] in self.special else stop
        if stop not in self.stops:
            ends, known = self.tokenizer.convert_ids_to_tokens(stop), sorted(self.stops)
            names = ", ".join(repr(token) for token in self.tokenizer.convert_ids_to_tokens(known))
            raise CheckFailed(
                f"a reply ends with {ends!r} in this chat template, and inference stops at {names} only: the model would "
                f"never stop. Add {stop} to eos_token_id in the base's generation_config.json."
            )
        return stop

    def family(self) -> str | None:
        """The family of the template; `None` when it is none of ours."""
        text = self.template + self.render([{"role": "user", "content": "x"}], add_generation_prompt=True)
        for name, (marks, absent) in FAMILIES.items():
            if all(mark in text for mark in marks) and not any(mark in self.template for mark in absent):
                return name
        return None

    @property
    def takes_system(self) -> bool:
        """Whether the template writes a system turn."""
        try:
            return bool(self.prompt([{"role": "system", "content": "qzxj"}, {"role": "user", "content": "x"}]))
        except Unfit:
            return False

    def notes(self) -> list[str]:
        """What is unusual and no obstacle."""
        bare = self.prompt([{"role": "user", "content": "qzxj"}])
        tokenizer, found = self.tokenizer, []
        lead = bare.partition("qzxj")[0]
        if len(self.tokens(lead)[0]) > 12:
            found.append(f"the template writes a system turn of its own: {lead.strip()!r}")
        if self.dated:
            found.append(f"the template prints the date: rows are rendered on {DATE:%d %B %Y}")
        added = tokenizer("x")["input_ids"][:1]
        if added == [tokenizer.bos_token_id] and self.tokens(bare)[0][:1] != added:
            found.append("the template writes no beginning-of-text token; chat servers then add none")
        if tokenizer.pad_token_id == self.stop:
            found.append("the padding token is the one that ends replies: it is trained all the same")
        if len(self.tokens(thinking.CLOSE)[0]) > 1:
            found.append(f"{thinking.CLOSE} is plain text of {len(self.tokens(thinking.CLOSE)[0])} tokens")
        if not self.takes_system:
            found.append("the template takes no system turn: rows with one are left out")
        return found
