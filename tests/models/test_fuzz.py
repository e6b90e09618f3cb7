"""Whatever a server answers is a reply, or is reported as unreadable: no other error, and no waiting."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demur.interfaces import Request
from demur.models import wire
from demur.models.answering import record
from demur.records import Failure, Message, Prompt, Sampling, Trace
from demur.storage.reply_cache import Reply

ASKED = Request(
    messages=(Message(role="user", content="q"),), sampling=Sampling(), prompt=Prompt(text="q", intent="benign")
)
TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["<think>", "</think>", "stop", "length", "\ud800", "\x00\x1b[31m", "<|im_end|>", "a</think>b"]),
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.sampled_from([2**63, 2**64 - 1, -1, "7"])
)
ANY = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))


def mapping(**fields: Any) -> st.SearchStrategy[Any]:
    """A mapping with some of these fields, each of which may be anything; or anything."""
    optional = {name: st.one_of(strategy, ANY) for name, strategy in fields.items()}
    return st.one_of(st.fixed_dictionaries({}, optional=optional), ANY)


PART = mapping(type=st.sampled_from(["text", "thinking", "reasoning"]), text=TEXTS, thinking=TEXTS)
CONTENT = st.one_of(TEXTS, st.lists(PART, max_size=3))
MESSAGE = mapping(content=CONTENT, reasoning=CONTENT, reasoning_content=CONTENT, refusal=TEXTS, tool_calls=ANY)
TOP = mapping(token=TEXTS, logprob=st.floats())
LOGPROBS = mapping(content=st.lists(mapping(top_logprobs=st.lists(TOP, max_size=2)), max_size=2), top_logprobs=ANY)
CHOICE = mapping(
    index=st.integers(0, 1), message=MESSAGE, text=TEXTS, logprobs=LOGPROBS, finish_reason=st.sampled_from(["stop", "length"])
)  # fmt: skip
BODY = mapping(
    choices=st.lists(CHOICE, max_size=3), usage=mapping(prompt_tokens=LEAVES, completion_tokens=LEAVES), model=TEXTS
)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(BODY)
def test_whatever_a_server_answers_is_a_reply_or_unreadable(body: Any) -> None:
    data = json.dumps(body).encode()
    with contextlib.suppress(wire.Unreadable):
        reply = wire.without_stop(wire.read(data))
        assert isinstance(record(ASKED, reply, model="m"), (Trace, Failure))
        assert msgspec.json.decode(msgspec.json.encode(reply), type=Reply) == reply
        for count in (reply.tokens_in, reply.tokens_out, reply.tokens_thinking):
            assert count is None or 0 <= count <= wire.MOST
    assert isinstance(wire.error_text(data), str)
