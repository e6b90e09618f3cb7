"""A server that does everything a server must not, each fault alone and all of them together.

Every row comes out right or as a failure with its reason, none is lost, and none is asked again but where a try failed. The
table of `docs/reliability.md` lists the faults by what they lead to.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demur.errors import WorkError
from demur.interfaces import requests_for
from demur.models import client
from demur.models.config import Remote
from demur.models.open import open_model
from demur.records import Failure, Prompt, Sampling, Trace
from demur.storage.reply_cache import ReplyCache

BOMB = gzip.compress(b" " * (70 << 20), 1)


def http(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def reply(content: Any, **changes: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content} | changes.pop("message", {})
    choice = {"index": 0, "message": message, "finish_reason": "stop"} | changes.pop("choice", {})
    usage = {"prompt_tokens": 3, "completion_tokens": 5} | changes.pop("usage", {})
    return {"model": "m", "choices": [choice], "usage": usage} | changes


def changed(**changes: Any) -> Callable[[str], bytes]:
    return lambda content: http(json.dumps(reply(content, **dict(changes))).encode())


def said(status: str, text: str = "no", **headers: str) -> Callable[[str], bytes]:
    return lambda content: http(json.dumps({"error": {"message": text}}).encode(), status, **headers)


def raw(data: bytes) -> Callable[[str], bytes]:
    return lambda content: data


def whole(content: str) -> bytes:
    return json.dumps(reply(content)).encode()


# The reply is used: what is odd about it does not matter, or is left out.
FINE: dict[str, Callable[[str], bytes]] = {
    "count 2^64-1": changed(usage={"completion_tokens": 2**64 - 1}),
    "count -1": changed(usage={"completion_tokens": -1}),
    "count NaN": lambda c: http(whole(c).replace(b'"completion_tokens": 5', b'"completion_tokens": NaN')),
    "count in words": changed(usage={"completion_tokens": "five"}),
    "count in digits": changed(usage={"completion_tokens": "5"}),
    "count as a list": changed(usage={"completion_tokens": [5]}),
    "count 1e300": changed(usage={"completion_tokens": 1e300}),
    "no usage": changed(usage={"prompt_tokens": None, "completion_tokens": None}),
    "usage as a list": lambda c: http(json.dumps(reply(c) | {"usage": [1]}).encode()),
    "logprob 710": changed(choice={"logprobs": {"content": [{"top_logprobs": [{"token": "a", "logprob": 710}]}]}}),
    "logprobs as text": changed(choice={"logprobs": "none"}),
    "model as a list": changed(model=["m"]),
    "two choices": lambda c: http(json.dumps(reply(c) | {"choices": [*reply(c)["choices"], {"index": 1}]}).encode()),
    "no index": changed(choice={"index": None}),
    "no finish reason": changed(choice={"finish_reason": None}),
    "content in parts": lambda c: http(json.dumps(reply([{"type": "text", "text": c}])).encode()),
    "unknown fields": changed(surprise={"a": [1, 2]}),
    "byte order mark": lambda c: http(b"\xef\xbb\xbf" + whole(c)),
    "packed by gzip": lambda c: http(gzip.compress(whole(c)), Content_Encoding="gzip"),
    "stop token left": lambda c: http(json.dumps(reply(c + "<|im_end|>")).encode()),
}
# Another try gets the reply.
AGAIN: dict[str, Callable[[str], bytes]] = {
    "429": said("429 Too Many Requests", Retry_After="0.01"),
    "429, date in the past": said("429 Too Many Requests", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "429, odd Retry-After": said("429 Too Many Requests", Retry_After="soon"),
    "408": said("408 Request Timeout"),
    "409": said("409 Conflict"),
    "425": said("425 Too Early"),
    "500": said("500 Internal Server Error"),
    "500, surrogate": lambda c: http(b'{"error": "\\ud800"}', "500 Internal Server Error"),
    "500, deep": lambda c: http(b"[" * 100_000, "500 Internal Server Error"),
    "500, a gzip bomb": lambda c: http(BOMB, "500 Internal Server Error", Content_Encoding="gzip"),
    "502, HTML": lambda c: http(b"<html>Bad gateway</html>", "502 Bad Gateway"),
    "503": said("503 Service Unavailable"),
    "504": said("504 Gateway Timeout"),
    "529": said("529 Overloaded"),
    "closed": raw(b""),
    "closed in the header": raw(b"HTTP/1.1 200 OK\r\nContent-"),
    "closed in the body": lambda c: http(whole(c))[:-20],
    "chunk of nonsense": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "no HTTP": raw(b"220 mail.example ESMTP\r\n"),
    "header of a megabyte": raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n"),
    "gzip, damaged": lambda c: http(gzip.compress(whole(c))[:-12], Content_Encoding="gzip"),
    "gzip, a bomb": lambda c: http(BOMB, Content_Encoding="gzip"),
    "packed unasked": lambda c: http(whole(c), Content_Encoding="br"),
    "half JSON": lambda c: http(whole(c)[:-30]),
    "HTML": raw(http(b"<html>hello</html>")),
    "nothing": raw(http(b"")),
    "a list": raw(http(b"[]")),
    "deep": raw(http(b'{"choices":' + b"[" * 100_000)),
    "bytes": raw(http(bytes(range(256)))),
    "no choices": raw(http(b'{"choices": []}')),
    "choices null": raw(http(b'{"choices": null}')),
    "choice empty": raw(http(b'{"choices": [{}]}')),
    "content a number": lambda c: http(json.dumps(reply(5)).encode()),
    "content a mapping": lambda c: http(json.dumps(reply({"text": c})).encode()),
    "part without text": lambda c: http(json.dumps(reply([{"type": "text", "text": {"a": 1}}])).encode()),
    "tool call": lambda c: http(json.dumps(reply(None, message={"tool_calls": [{"id": "x"}]})).encode()),
    "abort": changed(choice={"finish_reason": "abort"}),
    "error": changed(choice={"finish_reason": "error"}),
    "unknown reason": changed(choice={"finish_reason": "tired"}),
    "reason a list": changed(choice={"finish_reason": ["stop"]}),
}
# A row of its own kind: asking again would not help.
ROWS: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "filtered, empty": ("filtered", changed(choice={"finish_reason": "content_filter"}, message={"content": ""})),
    "filtered, in part": ("filtered", changed(choice={"finish_reason": "content_filter"})),
    "400, filtered": ("filtered", said("400 Bad Request", "content_filter: the prompt was blocked")),
    "400": ("refused_by_server", said("400 Bad Request", "unknown field")),
    "400, surrogate": ("refused_by_server", said("400 Bad Request", "\ud800")),
    "400, deep": ("refused_by_server", lambda c: http(b"[" * 100_000, "400 Bad Request")),
    "400, too long": ("too_long", said("400 Bad Request", "maximum context length is 4096")),
    "413": ("too_long", said("413 Too Large")),
}
# Nothing can come of it: the run ends with the reason.
ENDS: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "401": ("refuses us", said("401 Unauthorized", "bad key")),
    "402": ("account", said("402 Payment Required")),
    "404": ("does it serve this model", said("404 Not Found")),
    "307": ("follows no redirect", said("307 Temporary Redirect", Location="http://elsewhere/")),
    "quota": ("account", said("429 Too Many Requests", "insufficient_quota")),
    "a day's wait": ("asks to wait 86400 s", said("429 Too Many Requests", Retry_After="86400")),
    "a wait of 30 years": ("asks to wait", said("503 Service Unavailable", Retry_After="1000000000")),
    "a wait until 2100": ("asks to wait", said("429 Too Many Requests", Retry_After="Fri, 01 Jan 2100 00:00:00 GMT")),
}
Choose = Callable[[str, int], "Callable[[str], bytes] | None"]


class Chaos:
    """The server: `choose(question, try)` gives the fault that strikes, or `None`."""

    def __init__(self, choose: Choose) -> None:
        self.asked: Counter[str] = Counter()
        self._choose = choose

    async def __aenter__(self) -> Chaos:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            size = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            question = json.loads(await reader.readexactly(size))["messages"][0]["content"]
            self.asked[question] += 1
            fault = self._choose(question, self.asked[question])
            writer.write(fault(f"re {question}") if fault else http(whole(f"re {question}")))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BACKOFF", (0.001, 0.01))


def run(choose: Choose, count: int, folder: Path | None = None) -> tuple[list[Trace | Failure], Counter[str]]:
    async def main(cache: ReplyCache) -> tuple[list[Trace | Failure], Counter[str]]:
        prompts = [Prompt(text=f"question {i}", intent="benign") for i in range(count)]
        async with Chaos(choose) as server:
            config = Remote(url=(server.url,), model="m", revision="1", patience=5, timeout=5, tries=40)
            async with open_model(config, cache=cache) as model:
                found = [one async for one in model.answers(requests_for(prompts, Sampling(max_tokens=9)))]
            return sorted(found, key=lambda one: int(one.prompt.text.split()[1])), server.asked

    with ReplyCache(folder) as cache:
        return asyncio.run(asyncio.wait_for(main(cache), 60))


def once(fault: Callable[[str], bytes]) -> Choose:
    return lambda question, attempt: fault if question == "question 2" and attempt == 1 else None


def right(found: list[Trace | Failure]) -> list[bool]:
    return [isinstance(one, Trace) and one.answer == f"re {one.prompt.text}" for one in found]


@pytest.mark.parametrize("name", FINE)
def test_what_is_odd_but_whole_is_used(name: str) -> None:
    found, asked = run(once(FINE[name]), 5)
    assert all(right(found)), found
    assert set(asked.values()) == {1}


@pytest.mark.parametrize("name", AGAIN)
def test_what_failed_on_the_way_is_asked_again(name: str) -> None:
    found, asked = run(once(AGAIN[name]), 5)
    assert all(right(found)), found
    assert asked["question 2"] == 2
    assert sum(asked.values()) == 6


@pytest.mark.parametrize("name", ROWS)
def test_what_no_other_try_changes_is_a_row_of_its_kind(name: str) -> None:
    kind, fault = ROWS[name]
    found, asked = run(once(fault), 5)
    odd = found[2]
    assert isinstance(odd, Failure)
    assert (odd.kind, bool(odd.detail)) == (kind, True)
    assert sum(right(found)) == 4
    assert set(asked.values()) == {1}


@pytest.mark.parametrize("name", ENDS)
def test_what_cannot_get_better_ends_the_run_with_its_reason(name: str) -> None:
    words, fault = ENDS[name]
    with pytest.raises(WorkError, match=words):
        run(once(fault), 5)


def test_all_at_once_loses_nothing_and_asks_nothing_twice(tmp_path: Path) -> None:
    faults = [*FINE.values(), *AGAIN.values()]
    for bomb in ("gzip, a bomb", "500, a gzip bomb"):
        faults.remove(AGAIN[bomb])

    def choose(question: str, attempt: int) -> Callable[[str], bytes] | None:
        rng = random.Random(f"{question} {attempt}")
        return rng.choice(faults) if rng.random() < 0.3 else None

    found, asked = run(choose, 400, tmp_path)
    assert all(right(found)), [one for one, good in zip(found, right(found), strict=True) if not good][:3]
    assert len(found) == len(asked) == 400
    again, nothing = run(choose, 400, tmp_path)
    assert again == found
    assert not nothing, "what is in the cache is not asked again"


@pytest.mark.slow
def test_a_server_that_fails_whatever_is_asked_is_called_down_soon() -> None:
    with pytest.raises(WorkError, match="is down: HTTP 500"):
        run(lambda question, attempt: AGAIN["500"], 50)


def test_a_server_that_never_answers_is_an_error_and_no_vanished_column() -> None:
    async def main() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(30)
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        prompts = [Prompt(text=f"question {i}", intent="benign") for i in range(20)]
        async with open_model(Remote(url=(url,), model="m", timeout=0.2, tries=2)) as model:
            with pytest.raises(WorkError, match=r"is down: no reply within"):
                assert [one async for one in model.answers(requests_for(prompts, Sampling()))]
        server.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_one_request_that_always_fails_is_a_row_also_when_it_is_all_that_is_left(tmp_path: Path) -> None:
    def poison(question: str, attempt: int) -> Callable[[str], bytes] | None:
        return AGAIN["500"] if question == "question 2" else None

    async def main(cache: ReplyCache) -> list[Trace | Failure]:
        prompts = [Prompt(text=f"question {i}", intent="benign") for i in range(5)]
        async with Chaos(poison) as server:
            config = Remote(url=(server.url,), model="m", revision="1", tries=3, in_flight=1)
            async with open_model(config, cache=cache) as model:
                return [one async for one in model.answers(requests_for(prompts, Sampling(max_tokens=9)))]

    for _ in range(2):
        with ReplyCache(tmp_path) as cache:
            found = asyncio.run(asyncio.wait_for(main(cache), 30))
            assert [one.kind for one in found if isinstance(one, Failure)] == ["unavailable"]
            assert cache.forget_failures() == 1


def test_two_servers_that_call_their_model_the_same_do_not_share_replies(tmp_path: Path) -> None:
    async def main(cache: ReplyCache, revision: str) -> list[int]:
        seen = []
        prompts = [Prompt(text=f"question {i}", intent="benign") for i in range(3)]
        for _ in range(2):
            async with Chaos(lambda question, attempt: None) as server:
                config = Remote(url=(server.url,), model="default", revision=revision)
                async with open_model(config, cache=cache) as model:
                    assert len([one async for one in model.answers(requests_for(prompts, Sampling(max_tokens=9)))]) == 3
                seen.append(len(server.asked))
        return seen

    with ReplyCache(tmp_path) as cache:
        assert asyncio.run(main(cache, "")) == [3, 3]
        assert asyncio.run(main(cache, "declared to be one")) == [3, 0]


def test_a_key_that_a_server_repeats_is_struck_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "sk-s3cret-s3cret")

    def ask(fault: Callable[[str], bytes], url: str = "") -> list[Trace | Failure]:
        async def main(cache: ReplyCache) -> list[Trace | Failure]:
            async with Chaos(lambda question, attempt: fault) as server:
                monkeypatch.setenv("AN_URL", server.url.replace("//", "//user:pass-w0rd@"))
                config = Remote(url=(url or server.url,), model="m", key_env="" if url else "A_KEY", revision="1")
                async with open_model(config, cache=cache) as model:
                    prompts = [Prompt(text="question 0", intent="benign")]
                    return [one async for one in model.answers(requests_for(prompts, Sampling(max_tokens=9)))]

        with ReplyCache(tmp_path) as cache:
            return asyncio.run(main(cache))

    for url, secret in (("", "sk-s3cret-s3cret"), ("$AN_URL", "pass-w0rd")):
        with pytest.raises(WorkError, match="refuses us") as error:
            ask(said("401 Unauthorized", f"bad key {secret}"), url)
        assert secret not in str(error.value)
        (found,) = ask(changed(message={"content": f"your key is {secret}"}), url)
        assert isinstance(found, Trace)
        assert "[secret]" in found.raw
        with ReplyCache(tmp_path) as cache:
            cache.database.execute("DELETE FROM replies")
        (failed,) = ask(said("400 Bad Request", f"odd {secret}"), url)
        assert isinstance(failed, Failure)
        assert secret not in failed.detail
        with ReplyCache(tmp_path) as cache:
            cache.forget_failures()
    assert not any(b"s3cret" in path.read_bytes() or b"pass-w0rd" in path.read_bytes() for path in tmp_path.iterdir())
