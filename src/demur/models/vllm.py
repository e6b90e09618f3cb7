"""Starts vLLM for weights, waits until it is healthy, and stops it at the end.

vLLM is a process of its own, known by a command line and spoken to over HTTP. A served model's name holds the hash of its
weights, so that nobody who asks the URL can take one checkpoint for another.
"""

import asyncio
import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from demur.errors import UserError, WorkError
from demur.interfaces import Model
from demur.models.chat_format import template_opens_thinking
from demur.models.checkpoint import folder_of, identity_of
from demur.models.client import open_remote
from demur.models.config import Remote, Served
from demur.storage.reply_cache import ReplyCache

LOG_LINES = 40  # Last lines of a failed server's log that the error shows
VLLM_ENV = "DEMUR_VLLM"  # Environment variable: vLLM's executable, or the virtual environment that holds it


def plan_of(config: Served, folder: Path, *, name: str, host: str, port: int) -> tuple[list[str], dict[str, str]]:
    """vLLM's command line, each flag with its reason, and its environment. This is the only place that knows them."""
    command = [executable(), "serve", str(folder)]
    # The name that requests must give; ours holds the weights' hash.
    command += ["--served-model-name", name]
    command += ["--host", host, "--port", str(port)]
    # Without this the model's generation_config.json silently changes the sampling that we asked for.
    command += ["--generation-config", "vllm"]
    # The share of the device's memory for weights and cache: several servers can then share a device.
    command += ["--gpu-memory-utilization", str(config.memory)]
    if config.dtype != "auto":
        command += ["--dtype", config.dtype]
    if config.max_model_len:
        command += ["--max-model-len", str(config.max_model_len)]
    parallel = config.tensor_parallel or len(config.devices)
    if parallel > 1:
        command += ["--tensor-parallel-size", str(parallel)]
    # No --reasoning-parser: the thinking stays in the content, tags and all, where demur reads it; parsers of several
    # versions file a reply without a closing tag wrongly.
    environment = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60", "VLLM_NO_USAGE_STATS": "1"}
    if config.devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, config.devices))
    return command + list(config.extra_args), environment


def executable() -> str:
    """Where vLLM's executable is. Raises UserError: nowhere; with the ways to get it."""
    named = os.environ.get(VLLM_ENV, "")
    places = [named, str(Path(named) / "bin" / "vllm")] if named else []
    for place in [*places, shutil.which("vllm") or ""]:
        if place and Path(place).is_file() and os.access(place, os.X_OK):
            return place
    raise UserError(
        "vLLM is not there. It wants an environment of its own: python -m venv ~/vllm && ~/vllm/bin/pip install vllm, then "
        f"export {VLLM_ENV}=~/vllm. Without a GPU, leave engine out: the weights then run in this process."
    )


class Running:
    """A server process and its log."""

    def __init__(self, command: list[str], environment: dict[str, str], *, url: str, home: Path) -> None:
        self.url = url
        self._log = home / "server.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=os.environ | environment,
                start_new_session=True, preexec_fn=end_with_parent() if sys.platform == "linux" else None,
            )  # fmt: skip
        self._command = command

    def wait(self, seconds: float) -> None:
        """Until it answers. Raises WorkError: it has ended, or was not healthy in time; with the end of its log."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if (code := self.process.poll()) is not None:
                raise WorkError(f"the server ended with exit code {code} before it was ready.\n{self._said()}")
            with contextlib.suppress(OSError):  # which an error of HTTP is, too
                urllib.request.urlopen(self.url.removesuffix("/v1") + "/health", timeout=5).close()
                return
            time.sleep(0.2)
        raise WorkError(f"the server was not healthy after {seconds:.0f} s.\n{self._said()}")

    def _said(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        return "\n".join([f"command: {' '.join(self._command)}", "end of its log:", *(f"  {line}" for line in lines)])

    def stop(self) -> None:
        """Ask it to end, then make it."""
        for how, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            if self.process.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)


def end_with_parent() -> Callable[[], None]:
    """For a child: be told to end when the parent is killed, so that no server is left holding a device."""
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(1, signal.SIGTERM)


@contextmanager
def started(config: Served, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[tuple[Running, Remote]]:
    """A started server, perhaps not yet healthy, and how to ask it.

    It ends with the thread that started it: that is what Linux takes for its parent.
    """
    folder = folder_of(config)
    weights = identity_of(folder)
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", folder.resolve().name).strip("-.") or "model"
    name = f"demur/{slug}-{weights.partition(':')[2]}"
    if not port:
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="demur-serve-") as scratch:
        plan = plan_of(config, folder, name=name, host=host, port=port)
        running = Running(*plan, url=f"http://{host}:{port}/v1", home=Path(scratch))
        shared = {"api", "thinking", "first_tokens", "extra_body", "timeout", "least_speed", "in_flight"}
        told = config.model_dump(include={*shared, "forbidden", "thinking_budget_field"}, exclude_unset=True)
        opens = template_opens_thinking(folder)
        remote = Remote(url=(running.url,), model=name, weights=weights, opens_thinking=opens, prefill="vllm", **told)
        try:
            yield running, remote
        finally:
            running.stop()


@contextmanager
def served(config: Served, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[Remote]:
    """A server for a model's weights while the block lasts; yields the configuration that asks it.

    Raises:
        UserError: the engine or the weights are not there.
        WorkError: the server did not become healthy; with the end of its log.
    """
    with started(config, host=host, port=port) as (running, remote):
        running.wait(config.start_within)
        yield remote


@asynccontextmanager
async def open_served(config: Served, *, cache: ReplyCache, label: str = "") -> AsyncIterator[Model]:
    """As `served`, asked by a client at once; for those who have an event loop to keep turning."""
    with started(config, host="127.0.0.1", port=0) as (running, remote):
        await asyncio.to_thread(running.wait, config.start_within)
        async with open_remote(remote, cache=cache, label=label) as model:
            yield model
