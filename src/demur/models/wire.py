"""What goes over the wire, and what may come back: OpenAI-compatible bodies, written and read in one place.

Servers differ in where they put the thinking (`reasoning_content`, `reasoning`, or tags in the content), send null where
there is no text, and sometimes send what is no reply at all. Reading never guesses: it gives a `Reply` or says what came.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from demur import thinking
from demur.interfaces import Request
from demur.records import Finish
from demur.storage.reply_cache import Reply

SHOWN = 300
"""Characters of a server's own words that an error repeats."""


class Unreadable(Exception):
    """What came is no reply; the message says what came."""


class _Loose(msgspec.Struct):
    """Unknown fields are skipped: servers add what they like."""


class _Details(_Loose):
    reasoning_tokens: int | None = None


class _Usage(_Loose):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    completion_tokens_details: _Details | None = None


class _Message(_Loose):
    content: str | list[Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class _Top(_Loose):
    token: str = ""
    logprob: float = -9999.0


class _Token(_Top):
    top_logprobs: list[_Top] = []


class _Logprobs(_Loose):
    """Chat has `content`, completions have `top_logprobs`, a mapping for each token."""

    content: list[_Token] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(_Loose):
    logprobs: _Logprobs | None = None
    message: _Message | None = None
    delta: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Body(_Loose):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    model: str | None = None
    system_fingerprint: str | None = None


_decoder = msgspec.json.Decoder(_Body)


def _decode(data: bytes) -> _Body:
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError as error:
        raise Unreadable(f"not a chat reply ({error}): {excerpt(data)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        # Lone surrogates and the like: what a stricter reader refuses is kept, with a mark where it is no character.
        loose = json.loads(data.decode("utf-8", "replace"))
        clean = json.dumps(loose, ensure_ascii=False).encode("utf-8", "replace")
        return msgspec.convert(json.loads(clean), _Body)
    except (ValueError, msgspec.ValidationError):
        raise Unreadable(f"no JSON: {excerpt(data)}") from None


def excerpt(data: bytes) -> str:
    """The start of what came, on one line."""
    text = " ".join(data[: 4 * SHOWN].decode("utf-8", "replace").split())
    return (text[:SHOWN] + " …" if len(text) > SHOWN else text) or "(nothing)"


def read(data: bytes) -> Reply:
    """The reply in a server's JSON.

    Raises:
        Unreadable: there is none in it.
    """
    body = _decode(data)
    if not body.choices:
        raise Unreadable(f"no choices: {excerpt(data)}")
    choice = body.choices[0]
    message = choice.message or _Message(content=choice.text)
    reply = _reply(body, _text(message.content), message, choice.finish_reason)
    if choice.logprobs is None:
        return reply
    return msgspec.structs.replace(reply, first_tokens=_first_tokens(choice.logprobs))


def _first_tokens(said: _Logprobs) -> dict[str, float]:
    """The alternatives at the first place whose likeliest token is more than white space."""
    places = [{top.token: top.logprob for top in token.top_logprobs} for token in said.content or []]
    places += [place for place in said.top_logprobs or [] if place]
    for place in places:
        if place and max(place, key=lambda token: place[token]).strip():
            return place
    return {}


class Pieces:
    """A streamed reply, put together piece by piece."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._finish: str | None = None
        self._body = _Body()
        self.done = False

    def add(self, line: bytes) -> None:
        """Take one line of an event stream.

        Raises:
            Unreadable: it is a data line that is no piece of a reply.
        """
        if not line.startswith(b"data:"):
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            self.done = True
            return
        body = _decode(data)
        self._body.usage = body.usage or self._body.usage
        self._body.model = body.model or self._body.model
        self._body.system_fingerprint = body.system_fingerprint or self._body.system_fingerprint
        for choice in body.choices[:1]:
            piece = choice.delta or _Message(content=choice.text)
            self._content.append(_text(piece.content) or "")
            self._reasoning.append(piece.reasoning_content or piece.reasoning or "")
            self._refusal.append(piece.refusal or "")
            self._finish = choice.finish_reason or self._finish

    @property
    def finished(self) -> bool:
        """Whether the server said why it stopped."""
        return self._finish is not None

    def reply(self) -> Reply:
        """What has come so far."""
        message = _Message(reasoning="".join(self._reasoning) or None, refusal="".join(self._refusal) or None)
        return _reply(self._body, "".join(self._content), message, self._finish)


def _text(content: str | list[Any] | None) -> str | None:
    """The text of a content, which may be a list of parts."""
    if not isinstance(content, list):
        return content
    return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))


def _reply(body: _Body, content: str | None, message: _Message, finish_reason: str | None) -> Reply:
    usage = body.usage or _Usage()
    finish: Finish = "stop"
    if finish_reason in ("length", "max_tokens"):
        finish = "length"
    elif finish_reason == "content_filter":
        finish = "content_filter"
    notes: tuple[str, ...] = ()
    if message.refusal and not content:
        content, notes = message.refusal, ("the server's refusal field",)
    return Reply(
        content=content,
        reasoning=message.reasoning_content or message.reasoning,
        finish=finish,
        tokens_in=usage.prompt_tokens,
        tokens_out=usage.completion_tokens,
        tokens_thinking=usage.completion_tokens_details.reasoning_tokens if usage.completion_tokens_details else None,
        served=" ".join(part for part in (body.model, body.system_fingerprint) if part),
        notes=notes,
    )


_TEMPLATE_TAIL = re.compile(
    r"\s*(?:(?:<[|｜][^<>]{1,40}[|｜]>|\[/INST\]|<(?:end|start)_of_turn>)\s*(?:(?:assistant|model)\b)?\s*)*",
    re.IGNORECASE,
)
"""What chat templates write between the user's text and the reply."""


def without_echo(reply: Reply, request: Request) -> Reply:
    """The reply behind a repeated prompt, where the server put one before it.

    `transformers serve` does so when the template opens the thinking: with the thinking inside the content, or, for
    models that it has a parser for, with the thinking taken out and prompt and answer left as one.
    """
    user = next((turn.content for turn in reversed(request.messages) if turn.role == "user"), "")
    if not reply.content or not user:
        return reply
    bare = thinking.strip_echo(reply.content, user) if not reply.reasoning else None
    at = reply.content.find(user)
    if reply.reasoning and 0 < at <= thinking.ECHO_REACH:
        behind = reply.content[at + len(user) :]
        tail = _TEMPLATE_TAIL.match(behind)
        # White space alone is no template: a reply may quote its question.
        bare = behind[tail.end() :] if tail and tail[0].strip() else None
    if bare is None:
        return reply
    return msgspec.structs.replace(
        reply, content=bare, opened=True, notes=(*reply.notes, "an echo of the prompt was stripped")
    )


_STOP = re.compile(r"\s*(?:<[|｜][^<>|｜\s]{1,40}[|｜]>|</s>|<eos>|<end_of_turn>)\s*$")


def without_stop(reply: Reply) -> Reply:
    """The reply without the stop token that some servers leave in the text."""
    if not reply.content or reply.finish != "stop" or not (stop := _STOP.search(reply.content)):
        return reply
    bare = reply.content[: stop.start()]
    return msgspec.structs.replace(reply, content=bare, notes=(*reply.notes, "a stop token was stripped"))


def error_text(data: bytes) -> str:
    """What a server says about its own error."""
    try:
        loose = json.loads(data)
    except ValueError:
        return excerpt(data)
    inner = loose.get("error", loose) if isinstance(loose, dict) else loose
    said = inner.get("message") or inner.get("detail") if isinstance(inner, dict) else inner
    return excerpt(str(said or data.decode("utf-8", "replace")).encode())


_TOO_LONG = (
    "context length",
    "maximum context",
    "context_length_exceeded",
    "too long",
    "too many tokens",
    "max_model_len",
)


def says_too_long(text: str) -> bool:
    """Whether an error means that prompt and reply do not fit the model's context."""
    return any(phrase in text.lower() for phrase in _TOO_LONG)
