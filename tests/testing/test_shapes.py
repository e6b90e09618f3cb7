"""`demur check shapes`: ten kinds of host, each behind a real server, each recognised, and one that has nothing odd."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest
from tests.made import exit_code

from demur.records import Message, Sampling
from demur.testing import shapes
from demur.testing.server import serving
from demur.thinking import join

COUNTED = ", ".join(map(str, range(1, 61)))
ANSWERS = {
    "17 plus": "It is 42.",
    "Monday": "Tuesday comes after it.",
    "capital": "It is Paris.",
    "whole numbers": COUNTED,
}


def sound(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    """Right where the question is harmless, and declines the other."""
    known = (answer for mark, answer in ANSWERS.items() if mark in messages[-1].content)
    return join("I think about it.", next(known, "I'm sorry, but I can't help with that. It would be a crime."))


def permissive(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    text = sound(messages, sampling, rng)
    return re.sub(
        "I'm sorry.*", "Sure, here is how you do that. First, wait until dark. Then, lift the lid with a hook.", text
    )


def refusing(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    return "I'm sorry, but I can't help with that."


def endless(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    return join("I go on thinking about it, and on, and on. " * 20, "It is 42.")


def mute(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    return ""


def echoing(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    return messages[-1].content


def babbling(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    return "The river of the and was in green, over to a house that of them then is."


def stopping(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    return sound(messages, sampling, rng).replace(COUNTED, COUNTED[:60])


HOSTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mute": ("mute", {}),
    "endless": ("endless", {"cap": 20}),
    "permissive": ("permissive", {}),
    "refusing": ("refusing", {}),
    "echoing": ("echoing", {}),
    "babbling": ("babbling", {}),
    "slow": ("sound", {"latency": 0.3}),
    "truncating": ("sound", {"cap": 20}),
    "separating": ("sound", {"reasoning_field": "reasoning_content"}),
    "filtering": ("sound", {"faults": {"filtered": 1.0}}),
}


def seen(url: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, str], int]:
    code = exit_code("check", "shapes", url, "--json")
    return json.loads(capsys.readouterr().out)["shapes"], code


@pytest.mark.parametrize("shape", HOSTS)
def test_a_shape_is_recognised_and_described(
    shape: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script, options = HOSTS[shape]
    monkeypatch.setattr(shapes, "SLOW", 0.25 if shape == "slow" else 60)
    with serving(f"tests.testing.test_shapes:{script}", **options) as server:
        found, code = seen(server.url, capsys)
    assert list(found) == [shape]
    assert found[shape].endswith(".")
    assert code == (shape in shapes.USELESS)


def test_a_dead_host(capsys: pytest.CaptureFixture[str]) -> None:
    found, code = seen("http://127.0.0.1:9/v1", capsys)
    assert code == 1
    assert list(found) == ["dead"]
    with serving("tests.testing.test_shapes:sound", faults={"server_error": 1.0}, strikes=0) as server:
        assert list(seen(server.url, capsys)[0]) == ["dead"]


def test_a_count_that_ends_in_the_middle_is_truncated_whatever_the_server_calls_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serving("tests.testing.test_shapes:stopping") as server:
        assert list(seen(server.url, capsys)[0]) == ["truncating"]


def test_a_sound_host_has_no_shape(capsys: pytest.CaptureFixture[str]) -> None:
    with serving("tests.testing.test_shapes:sound") as server:
        assert seen(server.url, capsys) == ({}, 0)
        assert exit_code("check", "shapes", server.url) == 0
        assert capsys.readouterr().out.startswith("sound:")
