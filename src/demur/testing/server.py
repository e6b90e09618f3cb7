"""A small OpenAI-compatible server: a script answers over HTTP, with the latencies and faults that one asks for.

Tests, smoke runs and benchmarks use it: chat and completions, logprobs, `/v1/models`, heavy-tailed latencies and every
fault that a client must survive. The hash of a request decides its latency and its fault, so that each run meets the
same ones. `GET /requests` returns counts of the requests.

    with serving("stand_in", latency=0.05) as server:
        ... server.url ...
"""

import asyncio
import contextlib
import functools
import hashlib
import json
import os
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from demur import thinking
from demur.errors import UserError, WorkError
from demur.interfaces import Request
from demur.models.scripted import load_script, run_script
from demur.models.vllm import end_with_parent
from demur.records import Finish, Message, Prompt, Record, Sampling

_REFUSALS = {
    "rate_limited": (429, "slow down"),
    "server_error": (500, "something broke"),
    "refused": (400, "this request is not accepted"),
    "too_long": (400, "This model's maximum context length is 4096 tokens. Please reduce the length of the messages."),
}
FAULTS = {*_REFUSALS, "dropped", "half_json", "endless", "filtered"}
TAIL_SHAPE = 2.5  # Shape of the Pareto distribution of heavy-tailed latencies


class Behaviour(Record, frozen=True, kw_only=True):
    """How the server behaves."""

    script: str = "stand_in"
    model: str = "scripted"
    port: int = 0
    host: str = "127.0.0.1"
    latency: float = 0.0  # Seconds before each reply; with `tail`, the shortest latency
    tail: bool = False  # Heavy-tailed latencies: Pareto, at most 40 times the shortest
    faults: dict[str, float] = {}  # One of `FAULTS` -> the share of requests that it strikes
    strikes: int = 1  # How many tries of the same request a fault strikes; 0: all
    retry_after: float = 0.05  # Seconds in the Retry-After header of `rate_limited`
    cap: int = 0  # Most tokens in a reply, whatever the request allows; 0: no such limit
    swap_after: int = 0  # After so many replies, another model answers under the same name; 0: never
    reasoning_field: str = ""  # For the thinking: `reasoning_content`, `reasoning`; empty: it is in the content


class _Server:
    """Request handlers and counts."""

    def __init__(self, behaviour: Behaviour) -> None:
        if unknown := set(behaviour.faults) - set(FAULTS):
            raise UserError(f"unknown faults: {', '.join(sorted(unknown))}. Allowed: {', '.join(sorted(FAULTS))}.")
        self._behaviour = behaviour
        self._script, _ = load_script(behaviour.script)
        self._seen: Counter[bytes] = Counter()
        self._replies = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._post)
        app.router.add_post("/v1/completions", self._post)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/requests", self._requests)
        app.router.add_get("/health", self._models)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self._behaviour.model, "object": "model"}]})

    async def _requests(self, _: web.Request) -> web.Response:
        seen = sum(self._seen.values())
        counts = {"seen": seen, "distinct": len(self._seen), "most": max(self._seen.values(), default=0)}
        return web.json_response(counts | {"replies": self._replies})

    async def _post(self, http: web.Request) -> web.StreamResponse:
        data = await http.read()
        key = hashlib.blake2b(data, digest_size=8).digest()
        self._seen[key] += 1
        try:
            body = msgspec.json.decode(data)
            await asyncio.sleep(self._latency(key))
            return await self._answer(http, body, self._fault(key))
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            return _error(400, f"not a request: {error}")

    def _latency(self, key: bytes) -> float:
        if not self._behaviour.tail:
            return self._behaviour.latency
        share = (int.from_bytes(key[:4]) + 0.5) / 2**32
        return float(self._behaviour.latency * min(share ** (-1 / TAIL_SHAPE), 40.0))

    def _fault(self, key: bytes) -> str:
        """The fault that strikes this try of a request, if any."""
        if self._behaviour.strikes and self._seen[key] > self._behaviour.strikes:
            return ""
        share = int.from_bytes(key[4:8]) / 2**32
        for name, part in self._behaviour.faults.items():
            if share < part:
                return name
            share -= part
        return ""

    async def _answer(self, http: web.Request, body: dict[str, Any], fault: str) -> web.StreamResponse:
        if fault in _REFUSALS:
            status, message = _REFUSALS[fault]
            return _error(status, message, {"Retry-After": str(self._behaviour.retry_after)} if status == 429 else {})
        if fault == "dropped":
            assert http.transport is not None
            http.transport.abort()
            return web.Response()
        # A last assistant turn is a begun reply unless the request is greedy: then it is a conversation for a guard.
        continued = body.get("continue_final_message") or body.get("temperature", 1.0) > 0
        request, begun = request_of(body, begun=bool(continued), cap=self._behaviour.cap)
        text, finish, count = run_script(self._script, request)
        if thinking.CLOSE in begun:
            text = thinking.split(text, finish=finish).answer or text
            count = len(text.split())
        text, finish = ("", "content_filter") if fault == "filtered" else (text, finish)
        self._replies += 1
        reply = reply_of(request, text, finish, count, body=body, reasoning_field=self._behaviour.reasoning_field)
        reply["model"] = self._behaviour.model + ("-other" if 0 < self._behaviour.swap_after < self._replies else "")
        if body.get("logprobs"):
            reply["choices"][0]["logprobs"] = _logprobs(text, chat="messages" in body)
        return await _sent(http, msgspec.json.encode(reply), fault)


def request_of(body: dict[str, Any], *, begun: bool, cap: int = 0) -> tuple[Request, str]:
    """The request in a JSON body, and the reply's given beginning: the last assistant turn if `begun`, else empty."""
    turns = body["messages"] if "messages" in body else [{"role": "user", "content": body["prompt"]}]
    messages = tuple(Message(role=turn["role"], content=turn["content"]) for turn in turns)
    start = messages[-1].content if begun and messages[-1].role == "assistant" else ""
    most = body.get("max_tokens") or body.get("max_completion_tokens") or 4096
    drawn = {name: body.get(name, usual) for name, usual in (("temperature", 1.0), ("top_p", 1.0), ("seed", 0))}
    sampling = Sampling(**drawn, max_tokens=min(cap or most, most))
    messages = messages[:-1] if start else messages
    prompt = Prompt(text=messages[-1].content, intent="benign")
    return Request(messages=messages, sampling=sampling, prompt=prompt), start


def reply_of(
    request: Request, text: str, finish: Finish, count: int, *, body: dict[str, Any], reasoning_field: str = ""
) -> dict[str, Any]:
    """A reply of `count` tokens in OpenAI's format, with the thinking in `reasoning_field` if that is named."""
    sent = sum(len(turn.content.split()) for turn in request.messages)
    usage: dict[str, Any] = {"prompt_tokens": sent, "completion_tokens": count, "total_tokens": sent + count}
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "text": text}
    if "messages" in body:
        choice["message"] = {"role": "assistant", "content": choice.pop("text")}
        thought, closed, rest = text.removeprefix(thinking.OPEN).partition(thinking.CLOSE)
        if reasoning_field and (closed or thought != text):
            choice["message"] |= {reasoning_field: thought.strip(), "content": rest.strip() or None}
            usage["completion_tokens_details"] = {"reasoning_tokens": len(thought.split())}
    return {"id": "reply", "created": 0, "model": body.get("model"), "usage": usage, "choices": [choice]}


async def _sent(http: web.Request, data: bytes, fault: str) -> web.StreamResponse:
    """Send a reply, whole or as a fault mangles it."""
    if fault == "half_json":
        return web.Response(body=data[: len(data) // 2], content_type="application/json")
    if fault == "endless":
        response = web.StreamResponse()
        await response.prepare(http)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" " * 1024)
                await asyncio.sleep(0.01)
        return response
    return web.Response(body=data, content_type="application/json")


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status, headers=headers)


def _logprobs(text: str, *, chat: bool) -> dict[str, Any]:
    """Log-probabilities with one token per word: 0.95 for the word itself, the rest for a guard's opposite word or any other."""
    others = {"safe": "unsafe", "unsafe": "safe", "yes": "no", "no": "yes"}
    places = [{word: -0.05, others.get(word, "other"): -3.02} for word in text.split()[:64]]
    if not chat:
        return {"tokens": text.split()[:64], "top_logprobs": places}
    tops = [[{"token": token, "logprob": logprob} for token, logprob in place.items()] for place in places]
    return {"content": [{**likeliest[0], "top_logprobs": likeliest} for likeliest in tops]}


class Server(NamedTuple):
    """A running server."""

    url: str  # Up to `/v1`
    process: subprocess.Popen[str]

    def requests(self) -> dict[str, int]:
        """Counts: `seen` and `distinct` requests, `most` for the tries of one request, and `replies`."""
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/requests", timeout=30) as answer:
            counts: dict[str, int] = json.load(answer)
        return counts


@contextlib.contextmanager
def serving(script: str = "stand_in", **options: Any) -> Iterator[Server]:
    """A server in its own process for the duration of a block; `options` are fields of `Behaviour`."""
    behaviour = msgspec.convert({"script": script, **options}, Behaviour)
    command = [sys.executable, "-m", "demur.testing.server", msgspec.json.encode(behaviour).decode()]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe, ends = subprocess.PIPE, end_with_parent()
    process = subprocess.Popen(command, stdout=pipe, text=True, env=env, preexec_fn=ends)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise WorkError(f"the server for '{script}' did not start (exit code {process.wait()})")
        yield Server(url, process)
    finally:
        process.kill()
        process.communicate()


async def run(behaviour: Behaviour, *, announce: Any = None) -> None:
    """Serve until cancelled; calls `announce(url)` when the server is ready."""
    runner = web.AppRunner(_Server(behaviour).app(), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, behaviour.host, behaviour.port, backlog=4096)
        await site.start()
        host, port = runner.addresses[0][:2]
        if announce is not None:
            announce(f"http://{host}:{port}/v1")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    announce = functools.partial(print, flush=True)
    asyncio.run(run(msgspec.json.decode(sys.argv[1], type=Behaviour), announce=announce))
