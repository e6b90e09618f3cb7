"""Servers for weights, and the ways in which starting one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from demur.errors import UserError, WorkError
from demur.models import vllm as serve
from demur.models.chat_format import template_opens_thinking
from demur.models.config import Served
from demur.models.vllm import served


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
        served(Served(engine="vllm", path=str(checkpoint))),
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


def test_vllms_command_line_holds_what_the_configuration_says(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, monkeypatch, HEALTHY)
    config = Served(
        engine="vllm",
        path=str(checkpoint),
        devices=(0, 1),
        dtype="bfloat16",
        memory=0.4,
        extra_args=("--seed", "3"),
        max_model_len=99,
    )
    command, environment = serve.command_of(config, checkpoint, name="demur/x", host="127.0.0.1", port=1)
    line = " ".join(command)
    for flag in (
        "--generation-config vllm",
        "--gpu-memory-utilization 0.4",
        "--dtype bfloat16",
        "--tensor-parallel-size 2",
        "--max-model-len 99",
        "--seed 3",
    ):
        assert flag in line
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    others = set(psutil.Process().children())
    with served(config) as remote:
        assert remote.prefill == "vllm"
        assert remote.forbidden == ()
        (child,) = set(psutil.Process().children()) - others
    assert not child.is_running()


def test_a_server_does_not_outlive_a_killed_parent(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux signals a child when its parent is gone")
    fake(tmp_path, monkeypatch, HEALTHY)
    code = "import sys, time\nfrom demur.models.config import Served\nfrom demur.models.vllm import served\n"
    code += "with served(Served(engine='vllm', path=sys.argv[1])): print('up', flush=True); time.sleep(60)"
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
        served(Served(engine="vllm", path=str(checkpoint))),
    ):
        pass


def test_who_opens_the_thinking_is_read_from_the_template(checkpoint: Path, tmp_path: Path) -> None:
    assert template_opens_thinking(checkpoint) is True
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert template_opens_thinking(tmp_path) is False
    (tmp_path / "chat_template.jinja").write_text("{% broken")
    assert template_opens_thinking(tmp_path) is None
