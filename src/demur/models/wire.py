"""Reads the replies and errors of OpenAI-compatible servers.

A server may send anything, so every field is checked here. An unusable field makes the reply `Unreadable` if it is
needed, and is left out if it only informs (counts, log-probabilities). Reading raises no other error, in linear time.
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

SHOWN = 300  # Characters of a server's text that a message quotes
MOST = 10**12  # A larger count of tokens is not believed
_FILTERS = ("content_filter", "safety", "recitation", "blocklist", "prohibited_content", "spii", "sensitive")
FINISHES: dict[str, Finish] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence", "end"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "model_length", "max_output_tokens", "token_limit"), "length"),
    **dict.fromkeys(_FILTERS, "content_filter"),
}
"""Finish reasons of servers, in lower case. A reply with any other is incomplete."""


class Unreadable(Exception):
    """The body is not a reply; the message quotes it."""


def read(data: bytes, *, limit: int = MOST) -> Reply:
    """The reply in a server's JSON. Raises Unreadable: there is none in it.

    `limit` is the number of tokens that was asked for: without a finish reason, a reply of that length is truncated.
    """
    body = _decoded(data)
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Unreadable(f"no choices: {excerpt(data)}")
    choice = next((item for item in choices if isinstance(item, dict) and item.get("index") == 0), choices[0])
    notes = [f"{len(choices)} choices came, one was asked for"] if len(choices) > 1 else []
    message = choice.get("message")
    if not isinstance(message, dict):
        message = {"content": choice.get("text")}
        if not isinstance(choice.get("text"), str):
            raise Unreadable(f"a choice without a message: {excerpt(data)}")
    content, inline_thinking = _text_and_thinking(message.get("content"), notes)
    fields = ("\n".join(filter(None, _text_and_thinking(message.get(name), notes))) for name in thinking.FIELDS)
    reasoning = next(filter(None, fields), inline_thinking)
    usage = _mapping(body.get("usage"))
    tokens_out = _count(usage.get("completion_tokens"))
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
    name = body.get("model")
    return Reply(
        content=content, reasoning=reasoning or None, finish=finish, notes=tuple(notes),
        tokens_in=_count(usage.get("prompt_tokens")), tokens_out=tokens_out,
        tokens_thinking=_count(_mapping(usage.get("completion_tokens_details")).get("reasoning_tokens")),
        served=excerpt(name.encode(), most=100) if isinstance(name, str) and name else "",
        first_tokens=_first_tokens(choice.get("logprobs")),
    )  # fmt: skip


def _decoded(data: bytes) -> dict[str, Any]:
    """The body as a mapping; undecodable bytes become replacement characters. Raises Unreadable: it is not one."""
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


def _text_and_thinking(value: Any, notes: list[str]) -> tuple[str | None, str]:
    """Text and thinking of a content, a string or a list of typed parts. Raises Unreadable: it is neither."""
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


def _count(value: Any) -> int | None:
    """A count of tokens; `None` for anything else: negative, infinite, absurdly large."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST else None


def _finish(value: Any, tokens_out: int | None, limit: int, notes: list[str]) -> Finish:
    """Why the reply ended. Raises Unreadable: not by itself, by its budget or by a filter."""
    if value is None:
        if tokens_out is None:
            raise Unreadable("a reply without finish_reason and token count: nobody can tell whether it is whole")
        notes.append("no finish reason came")
        return "length" if tokens_out >= limit else "stop"
    finish = FINISHES.get(value.lower().replace("-", "_")) if isinstance(value, str) else None
    if finish is None:
        raise Unreadable(f"the reply ended with finish_reason {excerpt(str(value)[:80].encode('utf-8', 'replace'))}")
    return finish


def _first_tokens(logprobs: Any) -> dict[str, float]:
    """The alternatives at the first position whose likeliest token is more than white space.

    Chat lists tokens under `content`; completions have `top_logprobs`, with a mapping for each token.
    """
    content, tops = _mapping(logprobs).get("content"), _mapping(logprobs).get("top_logprobs")
    positions: list[dict[str, float]] = []
    for token in content if isinstance(content, list) else ():
        listed = _mapping(token).get("top_logprobs")
        alternatives = map(_mapping, listed if isinstance(listed, list) else ())
        positions.append(_valid((item.get("token"), item.get("logprob")) for item in alternatives))
    positions += [_valid(_mapping(top).items()) for top in (tops if isinstance(tops, list) else ())]
    return next((options for options in positions if options and max(options, key=options.__getitem__).strip()), {})


def _valid(pairs: Iterable[tuple[Any, Any]]) -> dict[str, float]:
    """The pairs that are a token and its log-probability."""
    return {
        token: min(float(value), 0.0)
        for token, value in pairs
        if isinstance(token, str) and isinstance(value, (int, float)) and -1e6 < value < 0.001
    }


def with_prefill(prefill: str, reply: Reply) -> Reply:
    """The reply with its prefill in front; it joins the thinking where the server returns that in its own field."""
    if not prefill or reply.failure is not None:
        return reply
    parts = thinking.split(prefill, finish="length")
    if reply.reasoning and parts.outcome == "cut_in_thinking":
        return msgspec.structs.replace(reply, reasoning=f"{parts.thinking}{parts.seams.end}{reply.reasoning}")
    content = reply.content or ""
    # llama.cpp's server repeats the prefill in its reply.
    return msgspec.structs.replace(reply, content=content if content.startswith(prefill) else prefill + content)


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
    """The start of a body, on one line and without control characters."""
    text = disarmed(" ".join(data[: 4 * most].decode("utf-8", "replace").split()))
    return (text[:most] + " …" if len(text) > most else text) or "(nothing)"


def error_text(data: bytes) -> str:
    """The message in the body of an error; where there is none, the body."""
    try:
        body = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return excerpt(data)
    error = body.get("error", body) if isinstance(body, dict) else body
    fields = [error.get(name) for name in ("code", "message", "detail")] if isinstance(error, dict) else [error]
    message = " ".join(field for field in fields if isinstance(field, str) and field)
    return excerpt(message.encode("utf-8", "replace") if message else data)


_TOO_LONG = ("context length", "maximum context", "context_length", "too long", "too many tokens", "max_model_len")
_FILTERED = ("content_filter", "content filter", "content_policy", "content management policy", "responsibleai")


def failure_kind(status: int, text: str) -> FailureKind:
    """The failure that an error of status 400 or more is for its request, where another try would not help."""
    lowered = text.lower()
    if any(phrase in lowered for phrase in _FILTERED):
        return "filtered"
    return "too_long" if status == 413 or any(phrase in lowered for phrase in _TOO_LONG) else "refused_by_server"
