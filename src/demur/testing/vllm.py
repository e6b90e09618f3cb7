"""A double of `vllm serve`: a process that refuses what vLLM refuses, with vLLM's messages, and speaks OpenAI's protocol.

It holds memory on the cards of a `gpu_world`, in a ledger that all processes of that world share. It imports only the
standard library, so that it starts in a twentieth of a second; replies come from the world's own process. Each rule names
its source in vLLM.
"""

import argparse
import fcntl
import json
import os
import signal
import socketserver
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

GIB = 2**30
WORKSPACE = 2.0  # GiB on each card beside weights and cache: activations of a profiling run, CUDA graphs, communication
CONTEXT = 0.5  # GiB that a process holds on a card beyond its share
FLAGS, SWITCHES, ERRORS = Path(__file__).with_name("vllm.txt").read_text().split("\n\n")
"""Arguments with a value, arguments without (docs.vllm.ai: Engine Arguments of 0.8.5 and 0.10, `vllm serve`), and messages."""
MESSAGES = dict(line.split(": ", 1) for line in ERRORS.splitlines())
Answer = Callable[[str, Any], tuple[int, dict[str, Any]]]  # Path and body of a request -> status and body of the reply


class Shape(NamedTuple):
    """The size of a model."""

    parameters: float
    kv_bytes: int  # Keys and values of one token over all layers, in 16 bits
    heads: int
    positions: int


def shape_of(folder: Path) -> Shape:
    """The size of a dense decoder, from its config.json."""
    c = json.loads((folder / "config.json").read_text())
    width, layers, heads = c["hidden_size"], c["num_hidden_layers"], c["num_attention_heads"]
    kv, head = c.get("num_key_value_heads") or heads, c.get("head_dim") or width // heads
    layer = 2 * width * head * (heads + kv) + 3 * width * c["intermediate_size"]
    embeddings = c["vocab_size"] * width * (1 if c.get("tie_word_embeddings") else 2)
    return Shape(layers * layer + embeddings, 4 * layers * kv * head, heads, c["max_position_embeddings"])


@contextmanager
def ledger(world: Path) -> Iterator[dict[str, Any]]:
    """The cards and the memory held on them, for one process at a time. Memory of processes that have ended is free."""
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
    """Write a line to the world's log."""
    line = json.dumps({"time": time.time(), "event": event, "pid": os.getpid(), **fields}) + "\n"
    with (world / "log.jsonl").open("a") as log:
        log.write(line)


def free(data: dict[str, Any], card: int) -> float:
    """The free memory of a card, in GiB."""
    return float(data["cards"][card] - sum(held.get(str(card), 0.0) for held in data["held"].values()))


class Server(socketserver.ThreadingTCPServer):
    """An HTTP server for JSON, with a thread for each connection."""

    daemon_threads = allow_reuse_address = True
    request_queue_size = 2048

    def __init__(self, host: str, port: int, answer: Answer) -> None:
        super().__init__((host, port), _Handler)
        self.answer = answer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that disconnects early is not an error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version, wbufsize, disable_nagle_algorithm = "HTTP/1.1", -1, True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, reply = self.server.answer(self.path, json.loads(body or b"null"))
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        """Print nothing: stderr is the log that demur shows."""


class Engine:
    """Arguments, memory and limits of one server. As in vLLM, requests that do not fit into its cache wait."""

    def __init__(self, argv: list[str], world: Path, speaker: str) -> None:
        parser = argparse.ArgumentParser(prog="vllm serve")
        parser.add_argument("model_tag")
        for flag in FLAGS.split():
            parser.add_argument(f"--{flag}")
        for flag in SWITCHES.split():
            parser.add_argument(f"--{flag}", action="store_true")
        args = parser.parse_args(argv)  # argparse's own: "vllm serve: error: unrecognized arguments: --x", exit code 2
        self.world, self.folder, self._speaker = world, Path(args.model_tag), speaker
        self.name, self.host, self.port = args.served_model_name or args.model_tag, args.host, int(args.port or 8000)
        if not (self.folder / "config.json").is_file():
            fail("folder", folder=self.folder)
        self.shape, self.share = shape_of(self.folder), float(args.gpu_memory_utilization or 0.9)
        self.width = int(args.tensor_parallel_size or 1)
        self.length = int(args.max_model_len or self.shape.positions)
        self.cards = self._cards()
        self._room = 0.0  # GiB for keys and values
        self._used = self._most = self._requests = 0  # Tokens in the cache now and at most, requests
        self._changed = threading.Condition()
        heads, positions = self.shape.heads, self.shape.positions
        if heads % self.width:  # vllm/config/model.py, verify_with_parallel_config
            fail("heads", heads=heads, width=self.width)
        if self.length > positions:  # vllm/config/model.py; the text as in issues of 2025 and 2026
            fail("positions", length=self.length, positions=positions)

    def _cards(self) -> list[int]:
        with ledger(self.world) as data:
            every = range(len(data["cards"]))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        cards = list(every) if visible is None else [int(n) for n in visible.split(",") if n and int(n) in every]
        if self.width > len(cards):  # vllm/config/parallel.py
            fail("world", width=self.width, there=len(cards))
        return cards[: self.width]

    def take(self) -> None:
        """Take the share of each card, if it is free and large enough for the weights and one request."""
        with ledger(self.world) as data:
            for card in self.cards:
                whole = data["cards"][card]
                wanted, left = self.share * whole, free(data, card)
                if left < wanted:  # vllm/v1/worker/gpu_worker.py, init_device; issues 20305, 25837
                    fail("memory", card=card, left=left, whole=whole, share=self.share, wanted=wanted)
            self._fit(min(self.share * data["cards"][card] for card in self.cards))
            held = {str(card): self.share * data["cards"][card] + CONTEXT for card in self.cards}
            data["held"][str(os.getpid())] = held
        note(self.world, "start", model=self.name, cards=self.cards, share=self.share, length=self.length)

    def _fit(self, each: float) -> None:
        """Check that the memory left for keys and values holds the longest request: vllm/v1/core/kv_cache_utils.py."""
        self._room = (each - self.shape.parameters * 2 / GIB / self.width - WORKSPACE) * self.width
        if self._room <= 0:
            fail("blocks")
        need = self.length * self.shape.kv_bytes / GIB
        if need > self._room:
            most = int(self._room * GIB / self.shape.kv_bytes)
            fail("cache", length=self.length, need=need, room=self._room, most=most)

    def answer(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        """Status and body of the reply to a request."""
        if body is None:  # /health, /v1/models
            return 200, {"object": "list", "data": [{"id": self.name, "object": "model"}]}
        if body.get("model") != self.name:  # vllm/entrypoints/openai/serving_engine.py, _check_model
            return _error(404, MESSAGES["name"].format(name=body.get("model")))
        request = json.dumps({"path": path, "folder": str(self.folder), "body": body}).encode()
        with urllib.request.urlopen(urllib.request.Request(self._speaker, request), timeout=60) as response:
            reply = json.load(response)
        if "error" in reply:
            return _error(400, reply["error"])
        sent, most = reply["usage"]["prompt_tokens"], body.get("max_tokens") or body.get("max_completion_tokens") or 16
        if sent + most > self.length:  # serving_engine.py, _validate_input; issue 20409
            return _error(400, MESSAGES["context"].format(length=self.length, whole=sent + most, sent=sent, most=most))
        self._hold(sent + reply["usage"]["completion_tokens"], reply.pop("seconds"))
        return 200, reply | {"model": self.name}

    def _hold(self, tokens: int, seconds: float) -> None:
        """Hold a request's keys and values for the time that its reply takes."""
        with self._changed:
            self._changed.wait_for(lambda: (self._used + tokens) * self.shape.kv_bytes <= self._room * GIB)
            self._used, self._requests = self._used + tokens, self._requests + 1
            self._most = max(self._most, self._used)
        time.sleep(0.002 + seconds)
        with self._changed:
            self._used -= tokens
            self._changed.notify_all()

    def leave(self) -> None:
        """Release the cards."""
        with ledger(self.world) as data:
            data["held"].pop(str(os.getpid()), None)
        cache = self._most * self.shape.kv_bytes / GIB
        note(self.world, "end", model=self.name, requests=self._requests, cache=round(cache, 3))


def fail(why: str, **values: Any) -> NoReturn:
    """Exit as vLLM's engine does when it cannot start."""
    message = MESSAGES[why].format(**values)
    note(Path(os.environ["DEMUR_WORLD"]), "refused", why=message)
    sys.exit(f"(EngineCore_DP0 pid={os.getpid()}) ERROR [core.py] EngineCore failed to start.\nValueError: {message}")


def _error(status: int, message: str) -> tuple[int, dict[str, Any]]:
    kind = "NotFoundError" if status == 404 else "BadRequestError"
    return status, {"object": "error", "message": message, "type": kind, "param": None, "code": status}


def main() -> None:
    """`vllm serve FOLDER …`."""
    if sys.argv[1:2] != ["serve"]:
        sys.exit("usage: vllm [-h] [-v] {chat,complete,serve,bench,collect-env,run-batch} ...")
    engine = Engine(sys.argv[2:], Path(os.environ["DEMUR_WORLD"]), os.environ["DEMUR_WORLD_SPEAKER"])
    engine.take()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: sys.exit())
    with Server(engine.host, engine.port, engine.answer) as server:
        try:
            server.serve_forever()
        finally:
            engine.leave()


if __name__ == "__main__":
    main()
