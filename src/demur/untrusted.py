"""What a model wrote is hostile input: text that goes into another model's prompt, and JSON that comes out of a reply.

A reply can hold control tokens of any chat family (`[/INST]`, `<|eot_id|>`), the headings under which a judge's prompt puts
things ("AI assistant:"), or a verdict ready to be read ("unsafe", "Judgment: 0"). None is deleted, since it is part of
what is judged: tokens are broken by a space and such lines are marked as quoted. What text remains text.
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
    """A template with `{name}` replaced by each value, in one pass; other braces, and those in the values, are text."""
    return re.sub(r"\{(\w+)\}", lambda slot: values.get(slot[1], slot[0]), template)


def neutral(text: str, *, template: str = "") -> str:
    """The text with control tokens broken, invisible characters gone, and lines quoted that look like a prompt's own.

    A line that stands in `template`, the prompt into which the text will go, is quoted whatever it looks like.
    """
    own = {line.strip() for line in template.split("\n")} - {""}
    text = _INVISIBLE.sub("", _BREAKS.sub("\n", text))
    text = TOKENS.sub(lambda match: f"{match.group()} " if match.group() in "<[◁" else f" {match.group()}", text)
    if own:
        text = "\n".join(f"| {line}" if line.strip() in own else line for line in text.split("\n"))
    return _LINES.sub(lambda match: f"| {match.group()}", text)


def clip(text: str, tokens: int) -> str:
    """The start of a text, about so many tokens of a Llama tokenizer long.

    Four letters, a digit, a punctuation character or a line break count as a token. That is a little more than the
    tokenizer would count in English, so that the clipped text is never longer than the protocol allows by much.
    """
    for count, match in enumerate(_PIECE.finditer(text), 1):
        if count > tokens:
            return text[: match.start()].rstrip()
    return text


def unfenced(reply: str) -> str:
    """A reply without the fence around it, where one fenced block is all that it is."""
    found = _FENCE.fullmatch(reply.strip())
    return found.group(1) if found else reply.strip()


def json_object(reply: str, key: str) -> dict[str, Any] | None:
    """The first JSON object in a reply that has `key`; `None` when there is none.

    Fences and words around the object are forgiven, and line breaks inside its texts; another form is not.
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
