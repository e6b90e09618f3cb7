"""What goes over the wire, and what may come back: OpenAI-compatible bodies, written and read in one place.

A server may send anything. Every field is checked where it enters: what is needed and unusable makes the reply
`Unreadable`, what is only informative (counts, log-probabilities) is left out and noted. Reading never guesses, never
raises anything else, and takes time linear in what came.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from demur import thinking
from demur.errors import disarmed
from demur.records import FailureKind, Finish
from demur.storage.reply_cache import Reply

SHOWN = 300  # Characters of a server's own words that an error repeats
MOST = 10**12  # No count of tokens is larger
_FILTERS = ("content_filter", "safety", "recitation", "blocklist", "prohibited_content", "spii", "sensitive")
FINISHES: dict[str, Finish] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence", "end"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "model_length", "max_output_tokens", "token_limit"), "length"),
    **dict.fromkeys(_FILTERS, "content_filter"),
}
"""What servers call the end of a reply, in small letters. Any other name is the end of no whole reply."""


class Unreadable(Exception):
    """What came is no reply; the message says what came."""


def read(data: bytes, *, limit: int = MOST) -> Reply:
    """The reply in a server's JSON.

    `limit`, the tokens that were asked for, tells a reply without a finish reason from a truncated one.

    Raises Unreadable: there is none in it.
    """
    body = _decoded(data)
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Unreadable(f"no choices: {excerpt(data)}")
    choice = next((one for one in choices if isinstance(one, dict) and one.get("index") == 0), choices[0])
    notes = [f"{len(choices)} choices came, one was asked for"] if len(choices) > 1 else []
    message = choice.get("message")
    if not isinstance(message, dict):
        message = {"content": choice.get("text")}
        if not isinstance(choice.get("text"), str):
            raise Unreadable(f"a choice without a message: {excerpt(data)}")
    content, inside = _words(message.get("content"), notes)
    apart = ("\n".join(filter(None, _words(message.get(name), notes))) for name in thinking.FIELDS)
    reasoning = next(filter(None, apart), inside)
    usage = _mapping(body.get("usage"))
    tokens_out = _whole(usage.get("completion_tokens"))
    finish = _finish(choice.get("finish_reason"), tokens_out, limit, notes)
    if message.get("tool_calls") and not content:
        raise Unreadable("the model called a tool instead of answering")
    if not content and isinstance(message.get("refusal"), str) and message["refusal"]:
        content = message["refusal"]
        notes.append("the server's refusal field")
    if reasoning and finish == "length" and content and content.strip() == reasoning.strip():
        content = None
        notes.append("the server repeated the thinking as content")
    if finish == "content_filter":
        partial = f" after {len(content)} characters" if content else ""
        return Reply(failure="filtered", detail=f"the provider's filter ended a reply{partial}", tokens_out=tokens_out)
    named = body.get("model")
    return Reply(
        content=content, reasoning=reasoning or None, finish=finish, notes=tuple(notes),
        tokens_in=_whole(usage.get("prompt_tokens")), tokens_out=tokens_out,
        tokens_thinking=_whole(_mapping(usage.get("completion_tokens_details")).get("reasoning_tokens")),
        served=excerpt(named.encode(), most=100) if isinstance(named, str) and named else "",
        first_tokens=_first_tokens(choice.get("logprobs")),
    )  # fmt: skip


def _decoded(data: bytes) -> dict[str, Any]:
    """The body as a mapping, with a mark in place of bytes that are no characters."""
    try:
        body = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            loose = json.loads(data.decode("utf-8-sig", "replace"))
            body = json.loads(json.dumps(loose, ensure_ascii=False).encode("utf-8", "replace"))
        except (ValueError, RecursionError):
            raise Unreadable(f"no JSON: {excerpt(data)}") from None
    if not isinstance(body, dict):
        raise Unreadable(f"no chat reply: {excerpt(data)}")
    return body


def _words(value: Any, notes: list[str]) -> tuple[str | None, str]:
    """Text and thinking of a content: a text, or a list of typed parts. Raises Unreadable: it is neither."""
    if value is None or isinstance(value, str):
        return value, ""
    if not isinstance(value, list):
        raise Unreadable(f"content that is no text: {excerpt(str(value)[: 4 * SHOWN].encode('utf-8', 'replace'))}")
    try:
        thought, text, others = thinking.from_parts(value)
    except ValueError as error:
        raise Unreadable(f"{error}") from None
    shown = (excerpt(kind[:40].encode("utf-8", "replace")) for kind in others)
    notes += [f"a part of type {kind} was left out" for kind in shown]
    return text or "", thought or ""


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: Any) -> int | None:
    """A count, or `None` for what is none: negative, infinite, absurd."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST else None


def _finish(value: Any, tokens_out: int | None, limit: int, notes: list[str]) -> Finish:
    """Why the reply ended. Raises Unreadable: it did not end by itself, by its budget or by a filter."""
    if value is None:
        if tokens_out is None:
            raise Unreadable("a reply without finish_reason and token count: nobody can tell whether it is whole")
        notes.append("no finish reason came")
        return "length" if tokens_out >= limit else "stop"
    known = FINISHES.get(value.lower().replace("-", "_")) if isinstance(value, str) else None
    if known is None:
        raise Unreadable(f"the reply ended with finish_reason {excerpt(str(value)[:80].encode('utf-8', 'replace'))}")
    return known


def _first_tokens(said: Any) -> dict[str, float]:
    """The alternatives at the first place whose likeliest token is more than white space.

    Chat has `content`, completions have `top_logprobs`, a mapping for each token.
    """
    content, tops = _mapping(said).get("content"), _mapping(said).get("top_logprobs")
    places: list[dict[str, float]] = []
    for token in content if isinstance(content, list) else ():
        listed = _mapping(token).get("top_logprobs")
        each = map(_mapping, listed if isinstance(listed, list) else ())
        places.append(_chances((one.get("token"), one.get("logprob")) for one in each))
    places += [_chances(_mapping(place).items()) for place in (tops if isinstance(tops, list) else ())]
    return next((place for place in places if place and max(place, key=lambda token: place[token]).strip()), {})


def _chances(pairs: Iterable[tuple[Any, Any]]) -> dict[str, float]:
    """Log-probabilities that are ones."""
    return {
        token: min(float(chance), 0.0)
        for token, chance in pairs
        if isinstance(token, str) and isinstance(chance, (int, float)) and -1e6 < chance < 0.001
    }


def joined(begun: str, reply: Reply) -> Reply:
    """A begun reply with what the server wrote behind it; where it takes the thinking apart, the beginning joins that."""
    if not begun or reply.failure is not None:
        return reply
    parts = thinking.split(begun, finish="length")
    if reply.reasoning and parts.outcome == "cut_in_thinking":
        return msgspec.structs.replace(reply, reasoning=f"{parts.thinking}{parts.seams.end}{reply.reasoning}")
    content = reply.content or ""
    # llama.cpp's server sends the beginning back with what it wrote.
    return msgspec.structs.replace(reply, content=content if content.startswith(begun) else begun + content)


_STOP = re.compile(r"(?:<[|｜][^<>|｜\s]{1,40}[|｜]>|</s>|<eos>|<end_of_turn>)$")


def without_stop(reply: Reply) -> Reply:
    """The reply without the stop token that some servers leave in the text."""
    text = (reply.content or "").rstrip() if reply.finish == "stop" else ""
    stop = _STOP.search(text[-60:])
    if stop is None:
        return reply
    bare = text[: len(text) - len(stop[0])].rstrip()
    return msgspec.structs.replace(reply, content=bare, notes=(*reply.notes, "a stop token was stripped"))


def excerpt(data: bytes, *, most: int = SHOWN) -> str:
    """The start of what came, on one line and without control characters."""
    text = disarmed(" ".join(data[: 4 * most].decode("utf-8", "replace").split()))
    return (text[:most] + " …" if len(text) > most else text) or "(nothing)"


def error_text(data: bytes) -> str:
    """What a server says about its own error."""
    try:
        loose = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return excerpt(data)
    inner = loose.get("error", loose) if isinstance(loose, dict) else loose
    told = [inner.get(name) for name in ("code", "message", "detail")] if isinstance(inner, dict) else [inner]
    said = " ".join(one for one in told if isinstance(one, str) and one)
    return excerpt(said.encode("utf-8", "replace") if said else data)


_TOO_LONG = ("context length", "maximum context", "context_length", "too long", "too many tokens", "max_model_len")
_FILTERED = ("content_filter", "content filter", "content_policy", "content management policy", "responsibleai")


def refusal(status: int, said: str) -> FailureKind:
    """What a status of 400 and more means for its request, where asking again would not help."""
    lowered = said.lower()
    if any(phrase in lowered for phrase in _FILTERED):
        return "filtered"
    return "too_long" if status == 413 or any(phrase in lowered for phrase in _TOO_LONG) else "refused_by_server"
