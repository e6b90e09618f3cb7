"""`demur push` against a hub of our own."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.made import demur, exit_code

pytest.importorskip("huggingface_hub")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set with a card that asks for a gate."""
    (tmp_path / "set" / "data" / "default").mkdir(parents=True)
    (tmp_path / "set" / "data" / "default" / "train.jsonl").write_text("{}\n")
    (tmp_path / "set" / "README.md").write_text("---\nextra_gated_prompt: Careful.\n---\n# A set\n")
    return tmp_path / "set"


class Hub(BaseHTTPRequestHandler):
    """A stand-in for the hub's API: what it was asked, in order, and the files it got."""

    asked: ClassVar[list[tuple[str, str, Any]]]
    files: ClassVar[dict[str, bytes]]
    refuse: ClassVar[str] = ""

    def _answer(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _handle(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        lines = [json.loads(line) for line in raw.splitlines() if line.strip()] if raw else [{}]
        type(self).asked.append((self.command, path, lines[0]))
        if self.refuse and self.refuse in path:
            self._answer({"error": "no"}, 403)
        elif path.endswith("/preupload/main"):
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in lines[0]["files"]]
            self._answer({"files": modes})
        elif path.endswith("/commit/main"):
            for line in lines:
                if line["key"] == "file":
                    type(self).files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer(
                {
                    "commitUrl": f"http://{self.headers['Host']}/datasets/me/set/commit/1",
                    "commitOid": "1",
                    "success": True,
                }
            )
        elif path == "/api/repos/create":
            self._answer({"url": f"http://{self.headers['Host']}/datasets/me/set"})
        else:
            self._answer({"errors": [], "warnings": []})

    do_GET = do_POST = do_PUT = _handle

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[type[Hub], dict[str, str]]]:
    pytest.importorskip("huggingface_hub")
    kind = type("Hub", (Hub,), {"asked": [], "files": {}, "refuse": ""})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    yield kind, os.environ | {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_secretsecret", "NO_PROXY": "*"}
    server.shutdown()
    thread.join()
    server.server_close()


def pushed(folder: Path, env: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    return demur("push", str(folder), "--to", "me/set", *more, env=env)


def test_a_dry_run_sends_nothing(folder: Path, hub: tuple[type[Hub], dict[str, str]]) -> None:
    done = pushed(folder, hub[1])
    assert done.returncode == 0, done.stderr
    assert "nothing was sent" in done.stdout
    assert "private · gate: manual" in done.stdout
    assert hub[0].asked == []


def test_the_gate_is_closed_before_the_first_file_and_only_what_belongs_is_sent(
    folder: Path, hub: tuple[type[Hub], dict[str, str]]
) -> None:
    (folder / ".secret").write_text("x")
    (folder / "replies.db").write_text("x")
    done = pushed(folder, hub[1], "--yes", "--public", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["sent"], report["gate"], report["private"]) == (True, "manual", False)
    kinds = [
        path.rsplit("/", 1)[-1] if "commit" not in path else "commit"
        for method, path, _ in hub[0].asked
        if method != "GET"
    ]
    order = [kind for kind in kinds if kind in ("create", "settings", "commit")]
    assert order == ["create", "settings", "commit", "settings"]
    bodies = [body for _, path, body in hub[0].asked if path.endswith(("/create", "/settings"))]
    assert bodies[0].get("private", bodies[0].get("visibility")) in (True, "private")
    assert bodies[1]["gated"] == "manual"
    assert bodies[2].get("private", bodies[2].get("visibility")) in (False, "public")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(hub[0].files) == names - {".secret", "replies.db"}
    assert hub[0].files["README.md"] == (folder / "README.md").read_bytes()
    assert "hf_secretsecret" not in done.stdout + done.stderr


def test_a_refusal_of_the_hub_is_reported_and_nothing_becomes_public(
    folder: Path, hub: tuple[type[Hub], dict[str, str]]
) -> None:
    hub[0].refuse = "/settings"
    done = pushed(folder, hub[1], "--yes", "--public")
    assert done.returncode == 1
    assert "the hub refused (403)" in done.stderr
    assert "Traceback" not in done.stderr
    assert hub[0].files == {}, "without its gate no file is sent"


def test_what_may_not_be_pushed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "optimizer.pt", "trainer_state.json"):
        (model / name).write_text("{}")
    for words, expected in (
        ((str(folder), "--to", "me/set", "--public", "--gate", "none"), "public without a gate"),
        ((str(folder), "--to", "set"), "write owner/name"),
        ((str(tmp_path), "--to", "me/set"), "neither a model"),
        ((str(model), "--to", "me/model"), "has no card"),
    ):
        assert exit_code("push", *words) == 2
        assert expected in " ".join(capsys.readouterr().err.split())
    (model / "README.md").write_text("# A model")
    assert exit_code("push", str(model), "--to", "me/model", "--public", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["kind"], plan["gate"], plan["sent"]) == ("model", "none", False)
    assert list(plan["files"]) == ["README.md", "config.json", "model.safetensors"]
