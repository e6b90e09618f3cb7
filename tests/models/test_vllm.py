"""Servers for weights: a real `transformers serve`, and the ways in which starting one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.made import replies

from demur.errors import UserError, WorkError
from demur.interfaces import requests_for
from demur.models import vllm as serve
from demur.models.config import ModelConfig, parse_model
from demur.models.vllm import served
from demur.models.weights import identity_of, template_opens_thinking
from demur.records import Failure, Prompt, Sampling, Trace

PROMPTS = [Prompt(text=f"w{i} w{i + 1} w7", intent="benign") for i in range(6)]


def ask(role: ModelConfig, sampling: Sampling) -> list[Trace | Failure]:
    return sorted(replies(role, requests_for(PROMPTS, sampling)), key=lambda one: one.prompt.text)


@pytest.mark.slow
def test_transformers_serves_a_checkpoint_under_its_hash(checkpoint: Path) -> None:
    pytest.importorskip("uvicorn", reason="transformers[serving] is not installed")
    role = ModelConfig(path=str(checkpoint), serve="transformers", device="cpu")
    with served(role) as remote:
        assert remote.url is not None
        assert remote.weights == identity_of(checkpoint)
        assert remote.opens_thinking is True
        greedy = Sampling(temperature=0.0, max_tokens=12)
        over_http = ask(remote, greedy)
        here = ask(ModelConfig(path=str(checkpoint)), greedy)
        for far, near in zip(over_http, here, strict=True):
            assert isinstance(far, Trace)
            assert isinstance(near, Trace)
            assert far.model == near.model
            # The server echoes the prompt; what is left after stripping it is what the weights wrote.
            assert far.raw.replace("<think>", "").split() == near.raw.replace("<think>", "").split()
        # A bare URL finds the one model it serves, and its name holds the hash of the weights.
        by_url = ask(parse_model(remote.url[0]), greedy)
        assert {one.model for one in by_url} == {remote.model}
        assert identity_of(checkpoint).removeprefix("weights:") in remote.model
        # Sampling is sampling although the checkpoint says nothing of it.
        drawn = ask(remote, Sampling(temperature=1.0, top_p=1.0, max_tokens=12))
        assert len({one.raw for one in drawn if isinstance(one, Trace)}) > 1
        with pytest.raises(UserError, match="top_k"):
            ask(remote, Sampling(top_k=3))
        url = remote.url[0]
    with pytest.raises(UserError, match="cannot be reached"):
        ask(parse_model(url), greedy)


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put an executable in vLLM's place."""
    program = tmp_path / "env" / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\n{body}")
    program.chmod(0o755)
    monkeypatch.setenv(serve.VLLM_ENV, str(tmp_path / "env"))


def test_a_server_that_fails_is_reported_with_its_log(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, monkeypatch, "print('CUDA error: out of luck')\nraise SystemExit(3)")
    with (
        pytest.raises(WorkError, match=r"(?s)exit code 3.*vllm serve.*--served-model-name.*out of luck"),
        served(ModelConfig(path=str(checkpoint), serve="vllm")),
    ):
        pass


HEALTHY = """
import sys, http.server
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), H).serve_forever()
"""


def test_vllms_command_line_holds_what_the_role_says(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, monkeypatch, HEALTHY)
    role = ModelConfig(path=str(checkpoint), serve="vllm", device="cuda:0,1", dtype="bfloat16", memory_share=0.4)
    plan = serve.vllm_plan(role, checkpoint, name="demur/x", host="127.0.0.1", port=1)
    line = " ".join(plan.command)
    for flag in (
        "--generation-config vllm",
        "--gpu-memory-utilization 0.4",
        "--dtype bfloat16",
        "--tensor-parallel-size 2",
    ):
        assert flag in line
    assert plan.environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    others = set(psutil.Process().children())
    with served(role) as remote:
        assert remote.prefill == "vllm"
        assert remote.forbidden == ()
        (child,) = set(psutil.Process().children()) - others
    assert not child.is_running()


def test_a_server_does_not_outlive_a_killed_parent(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux tells a child that its parent is gone")
    fake(tmp_path, monkeypatch, HEALTHY)
    code = "import sys, time\nfrom demur.models.config import ModelConfig\nfrom demur.models.vllm import served\n"
    code += "with served(ModelConfig(path=sys.argv[1], serve='vllm')): print('up', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(checkpoint)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        (child,) = psutil.Process(parent.pid).children()
        os.kill(parent.pid, signal.SIGKILL)
    until = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_missing_engine_says_how_to_get_it(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(serve.VLLM_ENV, "/nowhere")
    monkeypatch.setenv("PATH", "")
    with (
        pytest.raises(UserError, match=r"pip install vllm.*DEMUR_VLLM"),
        served(ModelConfig(path=str(checkpoint), serve="vllm")),
    ):
        pass


def test_who_opens_the_thinking_is_read_from_the_template(checkpoint: Path, tmp_path: Path) -> None:
    assert template_opens_thinking(checkpoint) is True
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert template_opens_thinking(tmp_path) is False
    (tmp_path / "chat_template.jinja").write_text("{% broken")
    assert template_opens_thinking(tmp_path) is None
    kinds: dict[str, Any] = {"url": ("http://x/v1",), "path": None, "script": "echo"}
    with pytest.raises(ValueError, match="exactly one of url, path, hub and script"):
        ModelConfig(**kinds)
