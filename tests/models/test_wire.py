"""What servers send, read or refused."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur import thinking
from demur.models import wire
from demur.storage.reply_cache import Reply


def body(message: dict[str, Any], **choice: Any) -> bytes:
    return msgspec.json.encode({"choices": [{"message": message, "finish_reason": "stop", **choice}], "model": "m"})


def test_content_may_be_null_parts_or_a_refusal() -> None:
    assert wire.read(body({"content": None})).content is None
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, {"type": "image"}]
    assert wire.read(body({"content": parts})).content == "ab"
    refused = wire.read(body({"content": None, "refusal": "no"}))
    assert (refused.content, refused.notes) == ("no", ("the server's refusal field",))


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("stop", "stop"),
        ("eos_token", "stop"),
        ("length", "length"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
    ],
)
def test_finishes(reason: str, finish: str) -> None:
    assert wire.read(body({"content": "x"}, finish_reason=reason)).finish == finish


@pytest.mark.parametrize(
    "reason", ["abort", "error", "insufficient_system_resource", "tool_calls", "", 7, ["stop"], None]
)
def test_a_reply_that_did_not_end_by_itself_is_no_reply(reason: Any) -> None:
    with pytest.raises(wire.Unreadable, match="finish_reason"):
        wire.read(body({"content": "half a te"}, finish_reason=reason))


def test_without_a_reason_the_tokens_tell_whether_the_budget_ended_it() -> None:
    def ended(tokens: int) -> Reply:
        message = {"message": {"content": "x"}, "finish_reason": None}
        return wire.read(msgspec.json.encode({"choices": [message], "usage": {"completion_tokens": tokens}}), limit=9)

    assert (ended(9).finish, ended(8).finish, ended(8).notes) == ("length", "stop", ("no finish reason came",))


def test_a_providers_filter_is_an_outcome_of_its_own() -> None:
    for partial in ("", "Sure, step one"):
        reply = wire.read(body({"content": partial}, finish_reason="content_filter"))
        assert (reply.failure, reply.content) == ("filtered", None)
    assert wire.failure_kind(400, "The response was filtered: ResponsibleAIPolicyViolation") == "filtered"
    assert wire.failure_kind(400, "content_filter the prompt was blocked") == "filtered"


def test_lone_surrogates_are_kept_as_marks() -> None:
    raw = b'{"choices": [{"message": {"content": "a\\ud800b"}, "finish_reason": "stop"}]}'
    assert wire.read(raw).content == "a?b"
    raw = b'{"choices": [{"message": {"content": "a\xffb"}, "finish_reason": "stop"}]}'
    assert wire.read(raw).content == "a\ufffdb"


@given(st.binary(max_size=60))
def test_whatever_comes_is_a_reply_or_unreadable(data: bytes) -> None:
    with contextlib.suppress(wire.Unreadable):
        assert isinstance(wire.read(data), Reply)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": 5}}]}',
        b'{"choices": [{}]}',
        b"[" * 100_000,
    ],
)
def test_an_error_quotes_what_is_not_a_reply(data: bytes) -> None:
    with pytest.raises(wire.Unreadable):
        wire.read(data)


@pytest.mark.parametrize("stop", ["<|im_end|>", " <|end|>", "<｜end▁of▁sentence｜>", "</s>"])
def test_a_stop_token_in_the_text_is_stripped_and_noted(stop: str) -> None:
    bare = wire.without_stop(Reply(content="Well." + stop))
    assert (bare.content, bare.notes) == ("Well.", ("a stop token was stripped",))
    cut = Reply(content="Well." + stop, finish="length")
    assert wire.without_stop(cut) == cut
    quoted = Reply(content=f"The token {stop} ends a turn.")
    assert wire.without_stop(quoted) == quoted


def test_errors_of_servers_are_distinguished() -> None:
    assert wire.error_text(b'{"error": {"message": "too\\nlong"}}') == "too long"
    assert wire.error_text(b'{"detail": "no"}') == "no"
    assert wire.error_text(b"<html>oh</html>") == "<html>oh</html>"
    assert wire.error_text(b'{"error": "\\u001b]0;title\\u0007"}') == "\ufffd]0;title\ufffd"
    assert wire.error_text(b"[" * 100_000).startswith("[[[")
    assert wire.failure_kind(400, "This model's maximum context length is 4096 tokens") == "too_long"
    assert wire.failure_kind(400, "unknown field") == "refused_by_server"


@pytest.mark.parametrize(
    ("sent", "read"),
    [(7, 7), ("7", 7), (7.0, 7), (0, 0), (-1, None), (2**64 - 1, None), (2**63, None), (1e300, None), ("x", None),
     ([7], None), (True, None), (None, None), ({}, None)],
)  # fmt: skip
def test_counts_are_counts_or_nothing(sent: Any, read: int | None) -> None:
    usage = {"prompt_tokens": sent, "completion_tokens": sent, "completion_tokens_details": {"reasoning_tokens": sent}}
    choice = {"message": {"content": "x"}, "finish_reason": "stop"}
    reply = wire.read(json.dumps({"choices": [choice], "usage": usage}).encode())
    assert (reply.tokens_in, reply.tokens_out, reply.tokens_thinking) == (read, read, read)
    for odd in (b"NaN", b"Infinity", b"-Infinity"):
        data = json.dumps({"choices": [choice], "usage": {"completion_tokens": 5}}).encode().replace(b"5", odd)
        assert wire.read(data).tokens_out is None


def test_thinking_in_a_field_or_in_typed_parts() -> None:
    for name in ("reasoning_content", "reasoning"):
        for value in ("th", [{"type": "text", "text": "th"}]):
            assert wire.read(body({"content": "an", name: value})).reasoning == "th"
    for thought in (
        {"type": "thinking", "thinking": "th"},
        {"type": "thinking", "thinking": [{"type": "text", "text": "t"}, {"type": "text", "text": "h"}]},
        {"type": "reasoning", "text": "th"},
    ):
        reply = wire.read(body({"content": [thought, {"type": "text", "text": "an"}, None, {"type": "image_url"}]}))
        assert (reply.reasoning, reply.content) == ("th", "an")
        assert reply.notes == ("a part of type image_url was left out",)
    with pytest.raises(wire.Unreadable):
        wire.read(body({"content": [{"type": "text", "text": {"a": 1}}]}))


def test_content_that_repeats_a_truncated_thinking_is_no_answer() -> None:
    cut = wire.read(body({"content": "I think", "reasoning_content": "I think\n"}, finish_reason="length"))
    assert (cut.content, cut.reasoning) == (None, "I think\n")
    assert wire.read(body({"content": "same", "reasoning_content": "same"})).content == "same"


def test_one_choice_is_taken_and_a_tool_call_is_no_reply() -> None:
    choices = [{"index": i, "message": {"content": str(i)}, "finish_reason": "stop"} for i in (1, 0)]
    reply = wire.read(msgspec.json.encode({"choices": choices}))
    assert (reply.content, reply.notes) == ("0", ("2 choices came, one was asked for",))
    with pytest.raises(wire.Unreadable, match="tool"):
        wire.read(body({"content": None, "tool_calls": [{"id": "x"}]}))


def test_log_probabilities_are_valid_or_left_out() -> None:
    tops = [{"token": "yes", "logprob": -0.1}, {"token": "no", "logprob": 710}, {"token": 3, "logprob": -1}, "x"]
    logprobs = {"content": [{"token": "yes", "top_logprobs": tops}, 5, {"top_logprobs": 7}]}
    assert wire.read(body({"content": "x"}, logprobs=logprobs)).first_tokens == {"yes": -0.1}
    for odd in (None, 5, {"content": 5}, {"top_logprobs": [None, 5, {"a": "b"}]}):
        assert wire.read(body({"content": "x"}, logprobs=odd)).first_tokens == {}


def test_a_prefill_joins_the_thinking_where_a_server_returns_that_apart() -> None:
    prefill = thinking.join("First I ask myself", None)
    apart = wire.with_prefill(prefill, Reply(reasoning=" whether", content="No."))
    assert thinking.from_fields(apart.reasoning, apart.content)[1].thinking == "First I ask myself whether"
    inside = wire.with_prefill(prefill, Reply(content=f" whether{thinking.CLOSE}No."))
    assert thinking.split(inside.content or "").thinking == "First I ask myself whether"
    assert wire.with_prefill("Sure", Reply(content=", no.", reasoning="hm")).content == "Sure, no."
    assert wire.with_prefill("Sure", Reply(failure="timeout")).content is None


@pytest.mark.parametrize("text", ["\n" * 200_000, " " * 1_000_000, "<|" * 300_000, "a\n" * 100_000 + "</s>"])
def test_reading_takes_linear_time(text: str) -> None:
    begun = time.process_time()
    wire.without_stop(Reply(content=text))
    assert time.process_time() - begun < 0.5


def test_a_prefill_that_a_server_repeats_is_not_doubled() -> None:
    assert wire.with_prefill("Sure, the", Reply(content=" capital is Rome.")).content == "Sure, the capital is Rome."
    assert (
        wire.with_prefill("Sure, the", Reply(content="Sure, the capital is Rome.")).content
        == "Sure, the capital is Rome."
    )
