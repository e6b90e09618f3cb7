"""A double of `vllm serve`: a process of its own that refuses what vLLM refuses, in vLLM's words, and speaks OpenAI's protocol.

It holds memory on the cards of a `gpu_world`, in a ledger that all processes of that world share. The standard library
alone, so that a start costs a twentieth of a second; what a model says comes from the world, which knows its part.
Every rule names where the real one was read.
"""

import argparse
import asyncio
import fcntl
import json
import math
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

GIB = 2**30
WORKSPACE = 2.0  # GiB of each card beside weights and cache: activations of a profiling run, CUDA graphs, communication
CONTEXT = 0.5  # GiB of a card that a process holds outside of what it was given
FLAGS, SWITCHES = (part.split() for part in Path(__file__).with_name("vllm_flags.txt").read_text().split("\n\n"))
"""Arguments that exist, those with a value first: docs.vllm.ai, Engine Arguments of 0.8.5 and 0.10, and the pages of `vllm serve`."""


class Shape(NamedTuple):
    """What a model's config.json says of its size."""

    parameters: float
    kv_bytes: int  # Of one token, over all layers, in 16 bits
    heads: int
    positions: int


def shape_of(folder: Path) -> Shape:
    """The size of a dense decoder, as its configuration gives it."""
    c = json.loads((folder / "config.json").read_text())
    width, layers, heads = c["hidden_size"], c["num_hidden_layers"], c["num_attention_heads"]
    kv, head = c.get("num_key_value_heads") or heads, c.get("head_dim") or width // heads
    layer = 2 * width * head * (heads + kv) + 3 * width * c["intermediate_size"]
    words = c["vocab_size"] * width * (1 if c.get("tie_word_embeddings") else 2)
    return Shape(layers * layer + words, 4 * layers * kv * head, heads, c["max_position_embeddings"])


@contextmanager
def ledger(world: Path) -> Iterator[dict[str, Any]]:
    """The cards and who holds what on them, for one process at a time. Processes that are gone hold nothing."""
    with (world / "ledger.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = world / "ledger.json"
        data: dict[str, Any] = json.loads(path.read_text())
        data["held"] = {pid: cards for pid, cards in data["held"].items() if Path(f"/proc/{pid}").exists()}
        yield data
        held = [sum(cards.get(str(n), 0.0) for cards in data["held"].values()) for n in range(len(data["cards"]))]
        data["peak"] = [max(pair) for pair in zip(data["peak"], held, strict=True)]
        path.write_text(json.dumps(data))


def note(world: Path, event: str, **fields: Any) -> None:
    """Write a line of the world's log."""
    line = json.dumps({"time": time.time(), "event": event, "pid": os.getpid(), **fields}) + "\n"
    with (world / "log.jsonl").open("a") as log:
        log.write(line)


def free(data: dict[str, Any], card: int) -> float:
    """GiB that nobody holds of a card."""
    return float(data["cards"][card] - sum(held.get(str(card), 0.0) for held in data["held"].values()))


class Engine:
    """Arguments, memory and limits of one server."""

    def __init__(self, argv: list[str], world: Path) -> None:
        parser = argparse.ArgumentParser(prog="vllm serve")
        parser.add_argument("model_tag")
        for flag in FLAGS:
            parser.add_argument(f"--{flag}")
        for flag in SWITCHES:
            parser.add_argument(f"--{flag}", action="store_true")
        told = parser.parse_args(argv)  # argparse's own: "vllm serve: error: unrecognized arguments: --x", exit code 2
        self.world, self.folder = world, Path(told.model_tag)
        self.name, self.host, self.port = told.served_model_name or told.model_tag, told.host, int(told.port or 8000)
        self.shape, self.share = shape_of(self.folder), float(told.gpu_memory_utilization or 0.9)
        self.width = int(told.tensor_parallel_size or 1)
        self.length = int(told.max_model_len or self.shape.positions)
        self.cards = self._cards()
        self.room = 0.0
        self._check()

    def _cards(self) -> list[int]:
        with ledger(self.world) as data:
            there = range(len(data["cards"]))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = list(there) if visible is None else [int(n) for n in visible.split(",") if n and int(n) in there]
        if self.width > len(seen):  # vllm/config/parallel.py
            fail(f"World size ({self.width}) is larger than the number of available GPUs ({len(seen)}) in this node.")
        return seen[: self.width]

    def _check(self) -> None:
        shape, length, folder = self.shape, self.length, self.folder
        if not folder.joinpath("config.json").is_file():
            fail(f"Invalid repository ID or local directory specified: '{folder}'.")
        if shape.heads % self.width:  # vllm/config/model.py, verify_with_parallel_config
            fail(
                f"Total number of attention heads ({shape.heads}) must be divisible by tensor parallel size ({self.width})."
            )
        if length > shape.positions:  # vllm/config/model.py; the text as in issues of 2025 and 2026
            fail(
                f"User-specified max_model_len ({length}) is greater than the derived max_model_len "
                f"(max_position_embeddings={shape.positions} or model_max_length=None in model's config.json). To allow "
                "overriding this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1."
            )

    def take(self) -> None:
        """Take its share of each card, if that is free and holds weights and one request."""
        with ledger(self.world) as data:
            for card in self.cards:
                whole = data["cards"][card]
                wanted, left = self.share * whole, free(data, card)
                if left < wanted:  # vllm/v1/worker/gpu_worker.py, init_device; issues 20305, 25837
                    fail(
                        f"Free memory on device cuda:{card} ({left:.2f}/{whole:.2f} GiB) on startup is less than desired GPU "
                        f"memory utilization ({self.share}, {wanted:.2f} GiB). Decrease GPU memory utilization or reduce GPU "
                        "memory used by other processes."
                    )
            self._fit(min(self.share * data["cards"][card] for card in self.cards))
            held = {str(card): self.share * data["cards"][card] + CONTEXT for card in self.cards}
            data["held"][str(os.getpid())] = held
        note(self.world, "start", model=self.name, cards=self.cards, share=self.share, length=self.length)

    def _fit(self, each: float) -> None:
        """What is left for keys and values must hold the longest request: vllm/v1/core/kv_cache_utils.py."""
        self.room = (each - self.shape.parameters * 2 / GIB / self.width - WORKSPACE) * self.width
        if self.room <= 0:
            fail(
                "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine."
            )
        need = self.length * self.shape.kv_bytes / GIB
        if need > self.room:
            fail(
                f"To serve at least one request with the models's max seq len ({self.length}), ({need:.2f} GiB KV cache is "
                f"needed, which is larger than the available KV cache memory ({self.room:.2f} GiB). Based on the available "
                f"memory, the estimated maximum model length is {int(self.room * GIB / self.shape.kv_bytes)}. Try increasing "
                "`gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine."
            )


def fail(said: str) -> NoReturn:
    """End as vLLM's engine does when it cannot start."""
    world = Path(os.environ["DEMUR_WORLD"])
    note(world, "refused", why=said)
    sys.stderr.write(
        f"(EngineCore_DP0 pid={os.getpid()}) ERROR [core.py] EngineCore failed to start.\nValueError: {said}\n"
    )
    sys.exit(1)


class Serving:
    """The HTTP side. Requests that the cache cannot hold wait, as in vLLM's queue."""

    def __init__(self, engine: Engine, speaker: str) -> None:
        self.engine, self._speaker = engine, speaker
        self._used = self._most = self.requests = 0
        self._left = asyncio.Condition()
        self._capacity = math.floor(engine.room * GIB / engine.shape.kv_bytes)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, one after the other."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode("latin-1").split("\r\n")
                length = next((int(x.split(":")[1]) for x in lines if x.lower().startswith("content-length")), 0)
                path = lines[0].split()[1]
                status, body = await self._answer(path, await reader.readexactly(length))
                data = json.dumps(body).encode()
                top = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
                writer.write(top.encode() + data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, data: bytes) -> tuple[int, dict[str, Any]]:
        if path == "/health":
            return 200, {}
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": self.engine.name, "object": "model"}]}
        body = json.loads(data)
        if body.get("model") != self.engine.name:  # vllm/entrypoints/openai/serving_engine.py, _check_model
            return _error(404, f"The model `{body.get('model')}` does not exist.", "NotFoundError")
        said = await asyncio.to_thread(self._said, {"path": path, "folder": str(self.engine.folder), "body": body})
        if "error" in said:
            return _error(400, said["error"], "BadRequestError")
        sent, most = said["usage"]["prompt_tokens"], body.get("max_tokens") or body.get("max_completion_tokens") or 16
        if sent + most > self.engine.length:  # serving_engine.py, _validate_input; issue 20409
            return _error(
                400,
                f"This model's maximum context length is {self.engine.length} tokens. However, you requested {sent + most} "
                f"tokens ({sent} in the messages, {most} in the completion). Please reduce the length of the messages or "
                "completion.",
                "BadRequestError",
            )
        await self._cached(sent + said["usage"]["completion_tokens"], said.pop("seconds"))
        return 200, said | {"model": self.engine.name}

    async def _cached(self, tokens: int, seconds: float) -> None:
        """Hold a request's keys and values while it is written."""
        async with self._left:
            await self._left.wait_for(lambda: self._used + tokens <= self._capacity)
            self._used, self.requests = self._used + tokens, self.requests + 1
            self._most = max(self._most, self._used)
        await asyncio.sleep(0.002 + seconds)
        async with self._left:
            self._used -= tokens
            self._left.notify_all()

    def _said(self, asked: dict[str, Any]) -> dict[str, Any]:
        wanted = urllib.request.Request(self._speaker, json.dumps(asked).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(wanted, timeout=60) as reply:
            said: dict[str, Any] = json.load(reply)
        return said

    def ended(self) -> None:
        """Give the cards back."""
        with ledger(self.engine.world) as data:
            data["held"].pop(str(os.getpid()), None)
        cache = self._most * self.engine.shape.kv_bytes / GIB
        note(self.engine.world, "end", model=self.engine.name, requests=self.requests, cache=round(cache, 3))


def _error(status: int, said: str, kind: str) -> tuple[int, dict[str, Any]]:
    return status, {"object": "error", "message": said, "type": kind, "param": None, "code": status}


async def _serve(engine: Engine, speaker: str) -> None:
    serving, stop = Serving(engine, speaker), asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    server = await asyncio.start_server(serving.connected, engine.host, engine.port, limit=2**26, backlog=1024)
    await stop.wait()
    serving.ended()
    server.close()


def main() -> None:
    """`vllm serve FOLDER …`."""
    if sys.argv[1:2] != ["serve"]:
        sys.exit("usage: vllm [-h] [-v] {chat,complete,serve,bench,collect-env,run-batch} ...")
    world = Path(os.environ["DEMUR_WORLD"])
    engine = Engine(sys.argv[2:], world)
    engine.take()
    asyncio.run(_serve(engine, os.environ["DEMUR_WORLD_SPEAKER"]))


if __name__ == "__main__":
    main()
