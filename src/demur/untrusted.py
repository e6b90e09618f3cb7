"""What a model wrote is hostile input: text that goes into another model's prompt, and JSON that comes out of a reply.

A reply can hold control tokens of any chat family (`[/INST]`, `<|eot_id|>`), the headings under which a judge's prompt puts
things ("AI assistant:"), or a verdict ready to be read ("unsafe", "Judgment: 0"). None is deleted, since it is part of
what is judged: tokens are broken by a space and such lines are marked as quoted. What text remains text.
"""

import json
import re
from typing import Any

_WORDS = (  # Control tokens that are a word between angle brackets
    r"s|bos|eos|pad|unk|mask|sep|cls|sop|eop|im_start|im_end|start_of_turn|end_of_turn|start_of_image|end_of_image|"
    r"extra_id_\d+|unused_?\d+|reserved_?\d+|special_?\d+|seed:\w+|0x[0-9a-f]{2}|tool_(?:call|response|result)s?|function_calls?|"
    r"(?:\w{1,12}[:_])?(?:think|thinking|thought|reasoning)(?: [^<>\n]{0,40})?"
)
TOKENS = re.compile(  # Where a control token of some chat family begins or ends
    r"<(?=[|｜▁])|(?<=[|｜▁])>"  # Llama 3 and 4, ChatML, harmony, DeepSeek, Phi, Granite, Command, Kimi, Gemma 4, OpenThoughts
    rf"|<(?=/?(?:{_WORDS})\s*/?>)"  # Llama 2, Gemma, T5, GLM, Nemotron, Seed, Qwen, byte tokens, thinking of any spelling
    r"|<(?=<?/?SYS>)|<(?=/?(?:BEGIN|END)\b)"  # Llama 2's system turn, Llama Guard's sections
    r"|\[(?=/?[A-Z][A-Z0-9_]{2,}\])|\[(?=[gs]MASK\])|\[(?=\|)|(?<=\|)\]"  # Mistral, GLM, InternLM, BERT; EXAONE
    r"|\[(?=\[\s*(?:\d+|yes|no)\s*\])"  # a rating, or whether it is on topic
    r"|(?<=\])~(?=!?[a-z][\[\]])|\[(?=[a-z]~\[)"  # MiniMax
    r"|◁(?=/?\w)|(?<=\w)▷",  # Kimi-VL
    re.IGNORECASE,
)
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\xad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)
_BREAKS = re.compile(r"\r\n?|[\u2028\u2029\x85]")
_LINES = re.compile(  # How lines begin that would be read as a prompt's own or as a verdict
    r"^(?:[ \t>|*]*+(?:[-=]{3,}[ \t]*$|[<>]{2,})|(?:[^\w\n{]|_)*+(?:"  # rules of a prompt; behind whatever is no word:
    r"\{\s*\"|"  # a JSON object
    r"(?:(?:un)?safe|s\d{1,2}(?:\s*,\s*s\d{1,2})*|yes|no|[01]|scores|behavior|generation|context)(?:[^\w\n]|_)*$|"
    r"(?:human user|ai assistant|user|assistant|agent|system|answers?|behavior|generation|context|rules|query|thought|response|"
    r"harmful request|response refusal|harmful response|safety|categories|refusal|analysis|judge?ment|rating|verdict|label|grade|"
    r"violation)(?:[^\w\n:：]|_)*[:：]|"
    r"[1-3]\.[ab]\b|[1-3]_(?:full|partial)_|overall_reasoning\b|"
    r"(?:(?<=#)|(?<=# ))(?:scores|answer|verdict|rules|instructions?|task)\b|"
    r"(?:ignore|disregard|forget)\b.{0,40}\b(?:instruction|rule|prompt|above|previous)))",
    re.IGNORECASE | re.MULTILINE,
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
