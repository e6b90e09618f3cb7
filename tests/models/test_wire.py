"""What servers send, read or refused."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur.interfaces import Request
from demur.models import wire
from demur.records import Message, Prompt, Sampling
from demur.storage.reply_cache import Reply

ASKED = Request(
    messages=(Message(role="user", content="How are you?"),),
    sampling=Sampling(),
    prompt=Prompt(text="How are you?", intent="benign"),
)


def body(message: dict[str, Any], **choice: Any) -> bytes:
    return msgspec.json.encode({"choices": [{"message": message, "finish_reason": "stop", **choice}], "model": "m"})


def test_content_may_be_null_parts_or_a_refusal() -> None:
    assert wire.read(body({"content": None})).content is None
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, {"type": "image"}]
    assert wire.read(body({"content": parts})).content == "ab"
    refused = wire.read(body({"content": None, "refusal": "no"}))
    assert (refused.content, refused.notes) == ("no", ("the server's refusal field",))


@pytest.mark.parametrize(
    ("said", "finish"), [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter"), (None, "stop")]
)
def test_finishes(said: str | None, finish: str) -> None:
    assert wire.read(body({"content": "x"}, finish_reason=said)).finish == finish


def test_lone_surrogates_are_kept_as_marks() -> None:
    raw = b'{"choices": [{"message": {"content": "a\\ud800b"}, "finish_reason": "stop"}]}'
    assert wire.read(raw).content == "a?b"
    assert wire.read(b'{"choices": [{"message": {"content": "a\xffb"}}]}').content == "a\ufffdb"


@given(st.binary(max_size=60))
def test_whatever_comes_is_a_reply_or_unreadable(data: bytes) -> None:
    with contextlib.suppress(wire.Unreadable):
        assert isinstance(wire.read(data), Reply)


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 5}}]}']
)
def test_what_is_no_reply_says_what_came(data: bytes) -> None:
    with pytest.raises(wire.Unreadable):
        wire.read(data)


def test_echoes_with_the_thinking_inside_or_taken_out() -> None:
    inside = Reply(content="<|user|>How are you?<|assistant|><think>\nfine\n</think>\n\nWell.")
    assert wire.without_echo(inside, ASKED).content == "\nfine\n</think>\n\nWell."
    outside = Reply(content="<|user|>How are you?<|assistant|>Well.", reasoning="fine")
    assert wire.without_echo(outside, ASKED).content == "Well."
    none = Reply(content="You ask: How are you? Well.", reasoning="fine")
    assert wire.without_echo(none, ASKED) == none


@pytest.mark.parametrize("stop", ["<|im_end|>", " <|end|>", "<｜end▁of▁sentence｜>", "</s>"])
def test_a_stop_token_in_the_text_is_stripped_and_noted(stop: str) -> None:
    bare = wire.without_stop(Reply(content="Well." + stop))
    assert (bare.content, bare.notes) == ("Well.", ("a stop token was stripped",))
    cut = Reply(content="Well." + stop, finish="length")
    assert wire.without_stop(cut) == cut
    quoted = Reply(content=f"The token {stop} ends a turn.")
    assert wire.without_stop(quoted) == quoted


def test_pieces_of_a_stream() -> None:
    pieces = wire.Pieces()
    for line in (
        b": keep-alive\n",
        b'data: {"choices": [{"delta": {"reasoning_content": "th"}}], "model": "m"}\n',
        b'data: {"choices": [{"delta": {"content": "an"}}]}\n',
        b"\n",
        b'data: {"choices": [{"delta": {"content": "swer"}, "finish_reason": "length"}]}\n',
        b'data: {"choices": [], "usage": {"completion_tokens": 3}}\n',
        b"data: [DONE]\n",
    ):
        pieces.add(line)
    reply = pieces.reply()
    assert (reply.reasoning, reply.content, reply.finish, reply.tokens_out) == ("th", "answer", "length", 3)
    assert pieces.done
    with pytest.raises(wire.Unreadable):
        pieces.add(b"data: {half")


def test_errors_of_servers_are_told_apart() -> None:
    assert wire.error_text(b'{"error": {"message": "too\\nlong"}}') == "too long"
    assert wire.error_text(b'{"detail": "no"}') == "no"
    assert wire.error_text(b"<html>oh</html>") == "<html>oh</html>"
    assert wire.says_too_long("This model's maximum context length is 4096 tokens")
    assert not wire.says_too_long("unknown field")
