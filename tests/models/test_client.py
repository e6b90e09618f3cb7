"""The client against a real server process that behaves badly."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.made import replies

from demur.errors import UserError, WorkError
from demur.interfaces import requests_for
from demur.models import client, limiter, transport
from demur.models.answering import ESTIMATED, record
from demur.models.config import Prices, Remote
from demur.models.open import open_model
from demur.records import Failure, Message, Prompt, Sampling, Trace
from demur.storage.reply_cache import Reply, ReplyCache
from demur.testing.server import Server, serving
from demur.thinking import join


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BACKOFF", (0.01, 0.05))


def prompts(count: int) -> list[Prompt]:
    return [Prompt(text=f"question {i}", intent="benign") for i in range(count)]


def ask(
    server: Server | str, count: int = 40, *, cache: Path | None = None, sampling: Sampling | None = None, **config: Any
) -> list[Trace | Failure]:
    """What a model at a server answers to some prompts, in their order."""
    url = server if isinstance(server, str) else server.url

    requests = requests_for(prompts(count), sampling or Sampling())
    found = replies(Remote(url=(url,), **config), requests, cache=cache)
    return sorted(found, key=lambda one: int(one.prompt.text.split()[1]))


def answers(found: list[Trace | Failure]) -> list[str | None]:
    return [one.answer if isinstance(one, Trace) else one.kind for one in found]


RIGHT = [f"question {i}" for i in range(40)]
ODD = "\u0000 \u2028 \U0001f600 é e\u0301 \ufeff \u202e."


def odd_letters(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    return ODD


def long_reply(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    return "filler-" * 2_857_143


@pytest.mark.parametrize("fault", ["rate_limited", "server_error", "dropped", "half_json"])
def test_transient_faults_are_tried_again(fault: str) -> None:
    with serving("echo", faults={fault: 0.5}) as server:
        assert answers(ask(server)) == RIGHT
        seen = server.requests()
    assert seen["distinct"] == 40
    assert 45 < seen["seen"] <= 80
    assert seen["most"] == 2


def test_every_fault_at_once_and_the_ledger_counts_the_retries(tmp_path: Path) -> None:
    faults = dict.fromkeys(("rate_limited", "server_error", "dropped", "half_json"), 0.12)
    with serving("echo", faults=faults) as server:
        assert answers(ask(server, cache=tmp_path)) == RIGHT
        assert answers(ask(server, cache=tmp_path)) == RIGHT
        seen = server.requests()
    with ReplyCache(tmp_path) as cache:
        (line,) = cache.ledger()
    assert line.requests == 40
    assert line.retries == seen["seen"] - 40 > 0


def test_retry_after_is_honoured() -> None:
    with serving("echo", faults={"rate_limited": 1.0}, retry_after=0.7) as server:
        started = time.monotonic()
        assert answers(ask(server, 3)) == RIGHT[:3]
        assert time.monotonic() - started >= 0.7


def test_a_filter_and_a_length_are_results() -> None:
    with serving("echo", faults={"filtered": 1.0}) as server:
        (found,) = ask(server, 1)
        assert isinstance(found, Failure)
        assert found.kind == "filtered"
    with serving("echo") as server:
        (cut,) = ask(server, 1, sampling=Sampling(max_tokens=3))
        assert isinstance(cut, Trace)
        assert (cut.finish, cut.outcome, cut.answer) == ("length", "cut_in_thinking", None)
        assert server.requests()["seen"] == 1


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_the_thinking_is_read_from_its_own_field(field: str) -> None:
    with serving("echo", reasoning_field=field) as server:
        (found,) = ask(server, 1)
        assert isinstance(found, Trace)
        assert (found.thinking, found.answer, found.tokens_thinking) == ("I am asked something.", "question 0", 4)
        (cut,) = ask(server, 1, sampling=Sampling(max_tokens=3))
        assert isinstance(cut, Trace)
        assert (cut.outcome, cut.answer) == ("cut_in_thinking", None)


def test_unicode_comes_through() -> None:
    with serving(f"{__name__}:odd_letters") as server:
        (found,) = ask(server, 1)
    assert isinstance(found, Trace)
    assert found.raw == ODD


@pytest.mark.slow
def test_a_very_large_reply_is_kept(tmp_path: Path) -> None:
    with serving(f"{__name__}:long_reply") as server:
        (found,) = ask(server, 1, cache=tmp_path)
        (again,) = ask(server, 1, cache=tmp_path)
    assert isinstance(found, Trace)
    assert len(found.raw) > 19_000_000
    assert found == again


def test_a_reply_that_never_ends_is_a_failure_and_the_others_are_not() -> None:
    with serving("echo", faults={"endless": 0.2}, strikes=0) as server:
        found = answers(ask(server, timeout=0.5, tries=2))
    assert 0 < found.count("timeout") < 20
    assert set(found) - {"timeout"} <= set(RIGHT)


def test_the_limit_of_a_request_follows_from_its_token_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two minutes for the queue, and the budget at the least speed that is declared; a `timeout` of one's own comes first."""
    given: list[float] = []

    async def post(*_: Any, seconds: float, **__: Any) -> Reply:
        given.append(seconds)
        raise UserError("enough")

    monkeypatch.setattr(client, "post", post)
    cases: list[tuple[dict[str, Any], int, float]] = [
        ({}, 32768, 120 + 32768 / 5),
        ({"least_speed": 20.0}, 4096, 120 + 4096 / 20),
        ({"timeout": 7.0}, 32768, 7),
    ]
    for more, tokens, seconds in cases:
        with pytest.raises(UserError, match="enough"):
            ask("http://127.0.0.1:9/v1", 1, sampling=Sampling(max_tokens=tokens), model="m", **more)
        assert given.pop() == seconds


def test_a_huge_reply_beyond_the_bound_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "LARGEST", 1 << 20)
    with serving(f"{__name__}:long_reply") as server, pytest.raises(WorkError, match="more than 1 MB"):
        ask(server, 1, tries=2)


def test_refusals_are_typed_and_asked_again_only_when_forgotten(tmp_path: Path) -> None:
    faults = {"refused": 0.2, "too_long": 0.2}
    with serving("echo", faults=faults, strikes=1) as server:
        first = answers(ask(server, cache=tmp_path))
        assert first == answers(ask(server, cache=tmp_path))
        assert {"refused_by_server", "too_long"} < set(first)
        assert server.requests()["seen"] == 40
        with ReplyCache(tmp_path) as cache:
            assert cache.forget_failures() == sum(kind in ("refused_by_server", "too_long") for kind in first)
        assert answers(ask(server, cache=tmp_path)) == RIGHT


def test_a_configuration_that_is_refused_as_such_stops_the_run() -> None:
    with serving("echo", faults={"refused": 1.0}, strikes=0) as server, pytest.raises(WorkError, match="forbidden"):
        ask(server)


def test_a_server_that_is_down_stops_the_run_and_the_run_goes_on_later(tmp_path: Path) -> None:
    with serving("echo") as server:
        port = int(server.url.split(":")[2].partition("/")[0])
        assert answers(ask(server, 10, cache=tmp_path)) == RIGHT[:10]
    with pytest.raises(WorkError, match=r"cannot be reached: .*run the same command"):
        ask(server.url, 40, cache=tmp_path, model="scripted", tries=2)
    with serving("echo", port=port) as server:
        assert answers(ask(server, 40, cache=tmp_path)) == RIGHT
        assert server.requests()["seen"] == 30


def test_a_server_that_always_fails_stops_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limiter, "REPORT", 0.0)
    with serving("echo", faults={"server_error": 1.0}, strikes=0) as server, pytest.raises(WorkError, match="HTTP 500"):
        ask(server, tries=2)
    assert "Trying again, 2 times a request and for 900 s at most" in caplog.text, "not 900 s, and over after two"


def test_a_server_that_answers_with_something_else_is_not_called_down() -> None:
    message = r"^(?!.*is down).*answers, but not as a model does: no JSON"
    with serving("echo", faults={"half_json": 1.0}, strikes=0) as server, pytest.raises(WorkError, match=message):
        ask(server, tries=2)


def test_requests_move_away_from_a_url_that_dies() -> None:
    async def main(one: Server, two: Server) -> list[Trace | Failure]:
        found = []
        async with open_model(Remote(url=(one.url, two.url), in_flight=8)) as model:
            async for result in model.answers(requests_for(prompts(200), Sampling())):
                found.append(result)
                if len(found) == 40:
                    one.process.kill()
        return found

    with serving("echo", latency=0.01) as one, serving("echo", latency=0.01) as two:
        found = asyncio.run(main(one, two))
        assert sorted(str(answer) for answer in answers(found)) == sorted(f"question {i}" for i in range(200))
        assert two.requests()["seen"] >= 140


def test_another_model_behind_the_same_name_is_noticed_in_a_run_and_across_runs(tmp_path: Path) -> None:
    with serving("echo", swap_after=20) as server:
        with pytest.raises(WorkError, match=r"another model answers.*scripted-other.*revision"):
            ask(server, cache=tmp_path, in_flight=1)
        with ReplyCache(tmp_path) as cache:
            assert cache.count() == 20
        with pytest.raises(WorkError, match="another model answers"):
            ask(server, cache=tmp_path)
        found = ask(server, cache=tmp_path, revision="the other")
        assert answers(found) == RIGHT
        assert {one.model for one in found} == {"scripted@the other"}


def tail_only(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    """The reply of a model whose template opened the thinking already."""
    return join("A thought.", f"{len(messages[-1].content)} characters were sent.", opened_by="prompt")


def test_completions_with_a_template_know_who_opened_the_thinking(tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]<think>\n")
    with serving("tests.models.test_client:tail_only") as server:
        (found,) = ask(server, 1, api="completions", template=str(template))
    assert isinstance(found, Trace)
    assert (found.opened_by, found.thinking, found.answer) == ("prompt", "A thought.", "34 characters were sent.")


def test_samples_differ_in_their_key_and_seed(tmp_path: Path) -> None:
    with serving("target") as server:
        found = ask(server, 5, sampling=Sampling(n=3), cache=tmp_path)
        assert server.requests()["distinct"] == 15
    assert sorted(one.sample for one in found) == sorted([0, 1, 2] * 5)


def test_what_a_server_cannot_honour_is_an_error_before_anything_is_asked() -> None:
    with serving("echo") as server:
        wrong: list[tuple[Sampling, dict[str, Any], str]] = [
            (Sampling(system="x"), {"forbidden": ("system",)}, "'system' is forbidden"),
            (Sampling(thinking_budget=5), {}, "thinking_budget_field"),
            (Sampling(prefill="x"), {}, "prefill=vllm"),
            (Sampling(thinking_budget=9, max_tokens=9), {"thinking_budget_field": "b"}, "leaves nothing"),
        ]
        for sampling, config, match in wrong:
            with pytest.raises(UserError, match=match):
                ask(server, 1, sampling=sampling, **config)
        assert server.requests()["seen"] == 0
        (found,) = ask(server, 1, forbidden=("temperature", "seed"))
        assert isinstance(found, Trace)
        assert found.notes[:2] == ("temperature not sent: forbidden here", "seed not sent: forbidden here")


def test_secrets_are_sent_and_reach_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving("echo") as server:
        with pytest.raises(UserError, match="A_KEY is not set"):
            ask(server, 1, key_env="A_KEY")
        monkeypatch.setenv("A_KEY", "s3cret-value")
        found = ask(server, 2, key_env="A_KEY", headers={"X-More": "$A_KEY"}, cache=tmp_path)
        assert answers(found) == RIGHT[:2]
    assert not any(b"s3cret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_money() -> None:
    with serving("echo") as server:
        (found,) = ask(server, 1, prices=Prices(input=1e6, output=2e6))
    assert isinstance(found, Trace)
    assert found.tokens_in is not None
    assert found.tokens_out is not None
    assert found.cost == found.tokens_in + 2 * found.tokens_out


def test_a_generator_is_drawn_only_as_far_as_there_is_room() -> None:
    drawn = 0

    async def main(url: str) -> None:
        nonlocal drawn

        def endless() -> Any:
            nonlocal drawn
            for request in requests_for((Prompt(text=f"q {i}", intent="benign") for i in range(10**9)), Sampling()):
                drawn += 1
                yield request

        async with open_model(Remote(url=(url,), in_flight=4)) as model:
            taken = 0
            async for _ in model.answers(endless()):
                taken += 1
                if taken == 20:
                    break

    with serving("echo") as server:
        asyncio.run(main(server.url))
    assert drawn < 40


def test_a_url_that_serves_nothing_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="cannot be reached"):
        ask("http://127.0.0.1:9/v1", 1)
    with serving("echo") as server, pytest.raises(UserError, match="does not say which model"):
        ask(server.url.removesuffix("/v1") + "/v2", 1)


@pytest.mark.parametrize("named", [{}, {"model": "m", "tries": 2}])
def test_a_host_that_does_not_resolve_is_reported_with_its_setting_and_what_to_look_at(
    named: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("MY_HOST", "http://nosuch.example/v1")
    message = r"\$MY_HOST.* cannot be reached: the host name nosuch.example does not resolve \(.*look at its spelling .*network"
    with pytest.raises((UserError, WorkError), match=message):
        ask("$MY_HOST", 1, **named)
    with pytest.raises((UserError, WorkError), match=r"http://nosuch.example/v1 cannot be reached: the host name"):
        ask("http://nosuch.example/v1", 1, **named)


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_guards_first_tokens_are_kept_where_asked_for(api: str) -> None:
    with serving("echo") as server:
        (found,) = ask(server, 1, first_tokens=5, api=api)
        (plain,) = ask(server, 1, api=api)
    assert isinstance(found, Trace)
    assert isinstance(plain, Trace)
    assert found.first_tokens == {"<think>": -0.05, "other": -3.02}
    assert plain.first_tokens == {}


def test_a_server_that_says_later_is_asked_until_patience_ends() -> None:
    with serving("echo", faults={"rate_limited": 1.0}, strikes=9, retry_after=0.02) as server:
        assert answers(ask(server, 1, tries=2)) == RIGHT[:1]
        assert server.requests()["seen"] == 10
    with (
        serving("echo", faults={"rate_limited": 1.0}, strikes=0, retry_after=0.02) as server,
        pytest.raises(WorkError, match="slow down"),
    ):
        ask(server, 1, tries=2, patience=0.5)


def test_thinking_tokens_are_estimated_where_a_server_does_not_count_them() -> None:
    request = next(iter(requests_for([Prompt(text="Hi?", intent="benign")], Sampling())))
    reply = Reply(content="<think>aaaa</think>bbbbbbbbbbbb", tokens_out=16)
    found = record(request, reply, model="m")
    assert isinstance(found, Trace)
    assert found.tokens_thinking == 4
    assert found.notes == (ESTIMATED,)
    counted = record(request, Reply(content=reply.content, tokens_out=16, tokens_thinking=7), model="m")
    assert isinstance(counted, Trace)
    assert (counted.tokens_thinking, counted.notes) == (7, ())
    plain = record(request, Reply(content="plain", tokens_out=3), model="m")
    assert isinstance(plain, Trace)
    assert (plain.tokens_thinking, plain.notes) == (None, ())
