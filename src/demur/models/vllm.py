"""Starts a server for weights, waits until it is healthy, and stops it at the end.

vLLM and `transformers serve` are processes of their own, known by a command line and spoken to over HTTP. A served model's
name holds the hash of its weights, so that nobody who asks the URL can take one checkpoint for another.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

from demur.errors import UserError, WorkError
from demur.models.config import ModelConfig
from demur.models.weights import folder_of, identity_of, template_opens_thinking

PATIENCE = 1800.0
"""Seconds a server may take to become healthy: large weights load slowly."""
LOG_LINES = 40
"""Last lines of a failed server's log that the error shows."""
VLLM_ENV = "DEMUR_VLLM"
"""Environment variable: vLLM's executable, or the virtual environment that holds it."""


class Plan(NamedTuple):
    """How a server is started."""

    command: list[str]
    environment: dict[str, str]
    name: str
    """The name it serves the model by."""


def vllm_plan(role: ModelConfig, folder: Path, *, name: str, host: str, port: int) -> Plan:
    """vLLM's command line, each flag with its reason. This is the only place that knows it."""
    command = [_vllm(), "serve", str(folder)]
    # The name that requests must give; ours holds the weights' hash.
    command += ["--served-model-name", name]
    command += ["--host", host, "--port", str(port)]
    # Without this the model's generation_config.json silently changes the sampling that we asked for.
    command += ["--generation-config", "vllm"]
    # The share of the device's memory for weights and cache: several servers can then share a device.
    command += ["--gpu-memory-utilization", str(role.memory_share)]
    if role.dtype != "auto":
        command += ["--dtype", role.dtype]
    devices = _devices(role.device)
    if len(devices) > 1:
        # Tensor parallel over the devices that the role names.
        command += ["--tensor-parallel-size", str(len(devices))]
    # No --reasoning-parser: the thinking stays in the content, tags and all, where demur reads it; parsers of several
    # versions file a reply without a closing tag wrongly.
    environment = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60", "VLLM_NO_USAGE_STATS": "1"}
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return Plan(command, environment, name)


def transformers_plan(role: ModelConfig, folder: Path, *, name: str, host: str, port: int, home: Path) -> Plan:
    """The command line of `transformers serve`, which is pinned to one model under a hub-like name.

    It lists models from a hub cache and takes sampling defaults from the model, so it gets a cache of its own: the
    checkpoint by links, with generation settings that change nothing (its stock default is greedy, or top-k 50).
    """
    commit = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for path in folder.iterdir():
        if path.is_file() and path.name != "generation_config.json":
            (snapshot / path.name).symlink_to(path.resolve())
    (snapshot / "generation_config.json").write_text(json.dumps(_neutral(folder)))
    program = shutil.which(
        "transformers", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    if program is None:
        raise UserError("the command `transformers` is not there: pip install 'demur[serve]'")
    command = [program, "serve", name, "--host", host, "--port", str(port), "--device", role.device]
    command += ["--dtype", role.dtype]
    environment = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(role.threads)}
    return Plan(command, environment, name)


def _neutral(folder: Path) -> dict[str, object]:
    """Generation settings that leave the sampling to the request, with the checkpoint's own stop tokens."""
    own: dict[str, object] = {}
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            said = json.loads((folder / name).read_text(encoding="utf-8"))
            keys = ("eos_token_id", "pad_token_id", "bos_token_id")
            own |= {key: said[key] for key in keys if said.get(key) is not None}
    return own | {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 4096}


def _devices(device: str) -> list[str]:
    """The numbers in `cuda:0,1`; none for auto, cpu and cuda."""
    return re.findall(r"\d+", device) if device.startswith("cuda") else []


def _vllm() -> str:
    """Where vLLM's executable is.

    Raises:
        UserError: nowhere; with the ways to get it.
    """
    named = os.environ.get(VLLM_ENV, "")
    places = [named, str(Path(named) / "bin" / "vllm")] if named else []
    for place in [*places, shutil.which("vllm") or ""]:
        if place and Path(place).is_file() and os.access(place, os.X_OK):
            return place
    raise UserError(
        "vLLM is not there. It wants an environment of its own: python -m venv ~/vllm && ~/vllm/bin/pip install vllm, then "
        f"export {VLLM_ENV}=~/vllm. Without a GPU: --with transformers."
    )


class _Running:
    """A server process and its log."""

    def __init__(self, plan: Plan, *, url: str, home: Path) -> None:
        self.url = url
        self._log = home / "server.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                plan.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | plan.environment,
                start_new_session=True,
                preexec_fn=_end_with_parent() if sys.platform == "linux" else None,
            )
        self._command = plan.command

    def healthy(self) -> bool:
        """Whether it answers.

        Raises:
            WorkError: it has ended, with the end of its log.
        """
        if self.process.poll() is not None:
            raise WorkError(
                f"the server ended with exit code {self.process.returncode} before it was ready.\n{self._said()}"
            )
        try:
            with urllib.request.urlopen(self.url.removesuffix("/v1") + "/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait(self) -> None:
        """Until it answers.

        Raises:
            WorkError: it has ended, or was not healthy in time; with the end of its log.
        """
        until = time.monotonic() + PATIENCE
        while not self.healthy():
            if time.monotonic() > until:
                raise WorkError(f"the server was not healthy after {PATIENCE:.0f} s.\n{self._said()}")
            time.sleep(0.2)

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


def _end_with_parent() -> Callable[[], None]:
    """For a child: be told to end when the parent is killed, so that no server is left holding a device."""
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(1, signal.SIGTERM)


@contextmanager
def _started(role: ModelConfig, *, host: str, port: int) -> Iterator[tuple[_Running, ModelConfig]]:
    """A started server, perhaps not yet healthy, and the role to ask it by."""
    folder = folder_of(role)
    weights = identity_of(folder)
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", folder.resolve().name).strip("-.") or "model"
    name = f"demur/{slug}-{weights.partition(':')[2]}"
    port = port or _free_port(host)
    with tempfile.TemporaryDirectory(prefix="demur-serve-") as scratch:
        home = Path(scratch)
        if role.serve == "vllm":
            plan = vllm_plan(role, folder, name=name, host=host, port=port)
        else:
            plan = transformers_plan(role, folder, name=name, host=host, port=port, home=home)
        running = _Running(plan, url=f"http://{host}:{port}/v1", home=home)
        opens = role.opens_thinking
        changes = {
            "url": (running.url,),
            "path": None,
            "hub": None,
            "serve": "",
            "model": name,
            "weights": weights,
            "opens_thinking": template_opens_thinking(folder) if opens is None else opens,
            "forbidden": tuple({*role.forbidden, *(("top_k",) if role.serve == "transformers" else ())}),
            "prefill": "vllm" if role.serve == "vllm" else role.prefill,
        }
        try:
            yield running, role.model_copy(update=changes)
        finally:
            running.stop()


@contextmanager
def served(role: ModelConfig, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[ModelConfig]:
    """A server for a role's weights (`role.serve` names the engine) while the block lasts; gives the role of its URL.

    Raises:
        UserError: the engine or the weights are not there.
        WorkError: the server did not become healthy; with the end of its log.
    """
    with _started(role, host=host, port=port) as (running, remote):
        running.wait()
        yield remote


@asynccontextmanager
async def served_role(role: ModelConfig) -> AsyncIterator[ModelConfig]:
    """As `served`, for those who have an event loop to keep turning."""
    with _started(role, host="127.0.0.1", port=0) as (running, remote):
        await asyncio.to_thread(running.wait)
        yield remote


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port
