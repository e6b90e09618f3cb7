"""Starts a vLLM server for weights, waits until it is healthy, and stops it at the end.

demur starts vLLM by its command line and talks to it over HTTP. A served model's name contains the hash of its weights,
so that no client of the URL can take one checkpoint for another.
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
from demur.models.config import HttpModel, Remote, Served
from demur.storage.reply_cache import ReplyCache

LOG_LINES = 40  # Last lines of a failed server's log that an error shows
VLLM_ENV = "DEMUR_VLLM"  # Environment variable: vLLM's executable, or the virtual environment that holds it


def command_of(config: Served, folder: Path, *, name: str, host: str, port: int) -> tuple[list[str], dict[str, str]]:
    """vLLM's command line, each flag with its reason, and its environment variables. No other code knows them."""
    command = [executable(), "serve", str(folder)]
    # The name that requests must give; it contains the weights' hash.
    command += ["--served-model-name", name]
    command += ["--host", host, "--port", str(port)]
    # Without this the model's generation_config.json silently changes the sampling that requests ask for.
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
    """The path of vLLM's executable. Raises UserError: there is none; the message says how to install it."""
    configured = os.environ.get(VLLM_ENV, "")
    candidates = [configured, str(Path(configured) / "bin" / "vllm")] if configured else []
    for path in [*candidates, shutil.which("vllm") or ""]:
        if path and Path(path).is_file() and os.access(path, os.X_OK):
            return path
    raise UserError(
        "vLLM is not there. It needs an environment of its own: python -m venv ~/vllm && ~/vllm/bin/pip install vllm, "
        f"then export {VLLM_ENV}=~/vllm. Without a GPU, leave engine out: the weights then run in this process."
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
        """Wait until it is healthy. Raises WorkError: it ended, or was not healthy in time; quotes its log."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if (code := self.process.poll()) is not None:
                raise WorkError(f"the server ended with exit code {code} before it was ready.\n{self._log_end()}")
            with contextlib.suppress(OSError):  # the base of HTTPError, too
                urllib.request.urlopen(self.url.removesuffix("/v1") + "/health", timeout=5).close()
                return
            time.sleep(0.2)
        raise WorkError(f"the server was not healthy after {seconds:.0f} s.\n{self._log_end()}")

    def _log_end(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        return "\n".join([f"command: {' '.join(self._command)}", "end of its log:", *(f"  {line}" for line in lines)])

    def stop(self) -> None:
        """Terminate it, and kill it if it does not end within ten seconds."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10.0)


def end_with_parent() -> Callable[[], None]:
    """For `preexec_fn`: the child gets SIGTERM when its parent (on Linux, a thread) ends, and frees its devices."""
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(1, signal.SIGTERM)


@contextmanager
def started(config: Served, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[tuple[Running, Remote]]:
    """A started server, perhaps not yet healthy, and a client's configuration. It ends with the calling thread."""
    folder = folder_of(config)
    weights = identity_of(folder)
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", folder.resolve().name).strip("-.") or "model"
    name = f"demur/{slug}-{weights.partition(':')[2]}"
    if not port:
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="demur-serve-") as scratch:
        command, environment = command_of(config, folder, name=name, host=host, port=port)
        running = Running(command, environment, url=f"http://{host}:{port}/v1", home=Path(scratch))
        fields = config.model_dump(include=HttpModel.model_fields.keys() - {"sampling"}, exclude_unset=True)
        opens = template_opens_thinking(folder)
        remote = Remote(url=(running.url,), model=name, weights=weights, opens_thinking=opens, prefill="vllm", **fields)
        try:
            yield running, remote
        finally:
            running.stop()


@contextmanager
def served(config: Served, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[Remote]:
    """A healthy server for a model's weights while the block lasts; yields the configuration of a client.

    Raises UserError: the engine or the weights are missing. Raises WorkError: the server did not become healthy.
    """
    with started(config, host=host, port=port) as (running, remote):
        running.wait(config.start_within)
        yield remote


@asynccontextmanager
async def open_served(config: Served, *, cache: ReplyCache, label: str = "") -> AsyncIterator[Model]:
    """A client of a server that runs while the block lasts; starting it does not block the event loop."""
    with started(config, host="127.0.0.1", port=0) as (running, remote):
        await asyncio.to_thread(running.wait, config.start_within)
        async with open_remote(remote, cache=cache, label=label) as model:
            yield model
