"""A base's chat template and tokenizer: its inference prompt, whether that opens the thinking, and what ends a reply.

Nothing is guessed from names where rendering can show it: a template's own mark may be the beginning-of-text token
(ChatML), the next role's mark may be what ends a turn (GLM), a system turn may be added, refused or left out.
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
"""Texts that must survive tokenising and decoding. Some pairings of tokenizer files and versions lose their spaces."""
PROBE = "qzxj"  # The text of a turn that is to be found in a rendered template
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
    # The prompt opens the thinking; of earlier turns only the answer stays.
    "qwq": (("<|im_start|>", thinking.OPEN), ("enable_thinking",)),
}
"""Chat formats whose models write the form of `thinking.join`, whatever their template does to it. Each is recognised
by strings that template and prompt hold, and strings that the template does not hold."""


def load_tokenizer(base: Path | str) -> Any:
    """The tokenizer of a folder or hub id. Raises UserError: transformers cannot load it."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise UserError(f"{base}: no tokenizer that transformers can load: {str(error).splitlines()[0]}") from None


def stops_of(base: Path | str) -> frozenset[int]:
    """The tokens at which a base's generation settings stop; empty if it has none."""
    from transformers import GenerationConfig

    try:
        stops = GenerationConfig.from_pretrained(base).eos_token_id
    except OSError:
        return frozenset()
    return frozenset(stops if isinstance(stops, list) else [stops] if stops is not None else [])


class Chat:
    """A tokenizer with its chat template."""

    def __init__(self, tokenizer: Any, stops: Iterable[int] = ()) -> None:
        """Find out how prompts begin and replies end; `stops` end a reply at inference (default: the end token).

        Raises:
            UserError: no chat template, no fast tokenizer, no end token.
            CheckFailed: the tokenizer loses text, or inference would not stop at the end of a turn.
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
        template = tokenizer.chat_template
        if not isinstance(template, str):  # several, by name
            template = template.get("default") or next(iter(template.values()))
        self.template, dates = _NOW.subn(lambda call: repr(DATE.strftime(call[2])), template)
        self.dated = dates > 0  # Whether the template prints the date: a fixed one, so that rows are equal each day
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        special = (special | set(tokenizer.all_special_tokens)) - {thinking.OPEN, thinking.CLOSE}
        self.special = frozenset(tokenizer.convert_tokens_to_ids(list(special)))
        self._control = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        unknown = tokenizer.unk_token_id
        # Some bases name their end or padding token as the unknown one, though they can write any text.
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
        """The prompt at inference: the rendered conversation with the generation prompt.

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

        options |= {"chat_template": self.template, "tokenize": False}
        try:
            return str(self.tokenizer.apply_chat_template(messages, **options))
        except (TemplateError, TypeError, ValueError) as error:
            raise Unfit("template_refuses", str(error).strip() or type(error).__name__) from None

    def tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and character offsets of a text, without added special tokens."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])

    def context(self, messages: Messages) -> tuple[str, list[int]]:
        """The inference prompt as text and tokens.

        Raises Unfit: the template refuses the messages, a turn holds a control token, or the text begins twice.
        """
        for message in messages:
            if mark := self.control(message["content"]):
                raise Unfit("control_token", f"the {message['role']}'s turn holds {mark!r}, which bounds turns")
        prompt = self.prompt(messages)
        ids, _ = self.tokens(prompt)
        begin = self.tokenizer.bos_token_id
        if begin is not None and ids[:2] == [begin, begin]:
            raise Unfit("two_beginnings", f"the context begins with {self.tokenizer.bos_token!r} twice")
        return prompt, ids

    def continued(self, prompt: str, before: list[int], text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and offsets of a response after its prompt, whose tokens are `before`.

        The response is not tokenised by itself: SentencePiece would put the marker of a word before its first one.
        """
        ids, offsets = self.tokens(prompt + text)
        skipped, shift = len(before), len(prompt)
        if ids[:skipped] != before:
            # A token would reach over the border, but at inference the prompt's tokens are already fixed.
            head = self.tokenizer.eos_token
            ids, offsets = self.tokens(head + text)
            skipped, shift = 1, len(head)
        return ids[skipped:], [(max(0, start - shift), max(0, end - shift)) for start, end in offsets[skipped:]]

    def control(self, text: str) -> str:
        """The first control token in a text; empty: none."""
        match = self._control.search(text)
        return match[0] if match else ""

    def _check_round_trip(self) -> None:
        for text in SAMPLES:
            back = self.tokenizer.decode(self.tokens(text)[0], clean_up_tokenization_spaces=False)
            # SentencePiece may add or remove a space in front; no response begins there.
            if unicodedata.normalize("NFKC", back).lstrip(" ") != unicodedata.normalize("NFKC", text).lstrip(" "):
                raise CheckFailed(
                    f"the tokenizer changes texts: {text!r} becomes {back!r}. Training would teach this. "
                    "Check tokenizer.json against the version of transformers."
                )

    def _stop(self) -> int:
        """The token that ends a reply: what the template writes after an assistant's turn.

        Raises CheckFailed: inference does not stop at it.
        """
        turns = [{"role": role, "content": PROBE} for role in ("user", "assistant", "user")]
        stop = int(self.tokenizer.eos_token_id)
        with suppress(Unfit):
            # The special token after an assistant's turn, which may be the next role's mark.
            parts = self.render(turns).split(PROBE)
            ids = self.tokens(parts[2].lstrip())[0] if len(parts) == 4 else []
            stop = ids[0] if ids and ids[0] in self.special else stop
        if stop not in self.stops:
            end, *stops = map(repr, self.tokenizer.convert_ids_to_tokens([stop, *sorted(self.stops)]))
            raise CheckFailed(
                f"a reply ends with {end} in this chat template, and inference stops at {', '.join(stops)} only: the "
                f"model would never stop. Add {stop} to eos_token_id in the base's generation_config.json."
            )
        return stop

    def family(self) -> str | None:
        """The family of the template in `FAMILIES`; `None`: unknown."""
        text = self.template + self.render([{"role": "user", "content": "x"}], add_generation_prompt=True)
        for name, (marks, absent) in FAMILIES.items():
            if all(mark in text for mark in marks) and not any(mark in self.template for mark in absent):
                return name
        return None

    @property
    def takes_system(self) -> bool:
        """Whether the template writes a system turn."""
        try:
            return bool(self.prompt([{"role": "system", "content": PROBE}, {"role": "user", "content": "x"}]))
        except Unfit:
            return False

    def notes(self) -> list[str]:
        """What is unusual, though no obstacle."""
        bare = self.prompt([{"role": "user", "content": PROBE}])
        tokenizer, notes = self.tokenizer, []
        lead = bare.partition(PROBE)[0]
        if len(self.tokens(lead)[0]) > 12:
            notes.append(f"the template writes a system turn of its own: {lead.strip()!r}")
        if self.dated:
            notes.append(f"the template prints the date: rows are rendered on {DATE:%d %B %Y}")
        added = tokenizer("x")["input_ids"][:1]
        if added == [tokenizer.bos_token_id] and self.tokens(bare)[0][:1] != added:
            notes.append("the template writes no beginning-of-text token; chat servers then add none")
        if tokenizer.pad_token_id == self.stop:
            notes.append("the padding token is the one that ends replies: it is trained all the same")
        if len(self.tokens(thinking.CLOSE)[0]) > 1:
            notes.append(f"{thinking.CLOSE} is plain text of {len(self.tokens(thinking.CLOSE)[0])} tokens")
        if not self.takes_system:
            notes.append("the template takes no system turn: rows with one are left out")
        return notes
