"""What a model wrote is hostile input: text that goes into another model's prompt, and JSON that comes out of a reply.

A reply can hold control tokens of any chat family (`[/INST]`, `<|eot_id|>`), headings of a judge's prompt ("AI assistant:"),
or a ready verdict ("unsafe", "Judgment: 0"). None is deleted, since all of it is judged: a space breaks the tokens, and such
lines are marked as quoted.
"""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

_TABLE: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
TOKENS = re.compile("|".join(_TABLE["tokens"]).replace("WORDS", "|".join(_TABLE["words"])), re.IGNORECASE)
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\xad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)
_BREAKS = re.compile(r"\r\n?|[\u2028\u2029\x85]")
_LINES = re.compile(
    rf"^(?:{_TABLE['rules']}|(?:[^\w\n{{]|_)*+(?:{'|'.join(_TABLE['starts'])}))", re.IGNORECASE | re.MULTILINE
)
_PIECE = re.compile(r"[A-Za-z]{1,4}|\d|[^\sA-Za-z\d]|\n")
_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL | re.IGNORECASE)


def filled(template: str, **values: str) -> str:
    """A template with each `{name}` replaced by its value, in one pass; other braces, and those in values, are text."""
    return re.sub(r"\{(\w+)\}", lambda slot: values.get(slot[1], slot[0]), template)


def neutral(text: str, *, template: str = "") -> str:
    """A text with control tokens broken, invisible characters removed, and lines quoted that look like a prompt's own.

    A line that also stands in `template`, the prompt that will hold the text, is always quoted.
    """
    headings = {line.strip() for line in template.split("\n")} - {""}
    text = _INVISIBLE.sub("", _BREAKS.sub("\n", text))
    text = TOKENS.sub(lambda match: f"{match.group()} " if match.group() in "<[◁" else f" {match.group()}", text)
    if headings:
        text = "\n".join(f"| {line}" if line.strip() in headings else line for line in text.split("\n"))
    return _LINES.sub(lambda match: f"| {match.group()}", text)


def clip(text: str, tokens: int) -> str:
    """The start of a text, about so many tokens of a Llama tokenizer long.

    Four letters, a digit, a punctuation character or a line break count as one token. In English that is slightly more
    than the tokenizer counts, so the clipped text hardly ever exceeds what the protocol allows.
    """
    for count, match in enumerate(_PIECE.finditer(text), 1):
        if count > tokens:
            return text[: match.start()].rstrip()
    return text


def unfenced(reply: str) -> str:
    """A reply without its fence, where the whole reply is one fenced block."""
    block = _FENCE.fullmatch(reply.strip())
    return block.group(1) if block else reply.strip()


def json_object(reply: str, key: str) -> dict[str, Any] | None:
    """The first JSON object in a reply that has `key`; `None` when there is none.

    Fences and words around the object are accepted, as are line breaks inside its strings.
    """
    fenced = _FENCE.search(reply)
    text = fenced.group(1) if fenced else reply
    decoder = json.JSONDecoder(strict=False)
    for start in [match.start() for match in re.finditer(r"\{", text)][:100]:
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and key in found:
            return found
    return None
