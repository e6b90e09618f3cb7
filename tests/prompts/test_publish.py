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
import yaml
from tests.made import demur, publish

from demur.errors import UserError
from demur.mix.certificate import certify
from demur.prompts.card import harmful
from demur.prompts.formats import load_file
from demur.prompts.publish import export_hf, flat, plan_push
from demur.records import Example, ExamplePart, Origin, Prompt, encode

pytest.importorskip("pyarrow")


def example(i: int, *, share: str = "safety", intent: Any = "harmful", thought: str | None = "hm") -> Example:
    parts = [ExamplePart(role="user", text=f"ask | {i}", train=False)]
    if thought is not None:
        parts += [
            ExamplePart(role="thinking", text=thought, train=False),
            ExamplePart(role="thinking", text="!", train=True),
        ]
    parts.append(ExamplePart(role="answer", text="no", train=True))
    origin = Origin(prompt=f"p{i}", intent=intent, model="file:star1_first300.json", strategy="short", repairs=("cut",))
    return Example(parts=tuple(parts), origin=origin, share=share, cluster="c")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows = [example(i) for i in range(4)] + [example(9, share="maths", intent="maths")]
    shares = {"safety": {"file": "/home/me/a.jsonl", "n": 4}, "maths": {"licence": "CC0-1.0"}}
    records = {"examples": rows, "held_out": [example(7)]}
    publish(tmp_path / "m", "mix", "mix", records, settings={"mix": {"shares": shares}}, mark="0")
    certificate, _ = certify(
        rows, {"xstest": [Prompt(text="ask 3", intent="harmful"), Prompt(text="x", intent="benign")]}
    )
    (tmp_path / "m" / "contamination.json").write_bytes(encode({"certificates": {"mix": certificate}}))
    return tmp_path / "m"


def head_of(readme: str) -> dict[str, Any]:
    return dict(yaml.safe_load(readme.split("---")[1]))


def test_a_data_set_reads_back_in_demur_and_says_what_it_is(run: Path) -> None:
    folder = export_hf(run)
    assert folder == run / "export-hf"
    readme = (folder / "README.md").read_text()
    head = head_of(readme)
    assert head["extra_gated_prompt"]
    assert head["license"] == "other"
    assert [item["split"] for item in head["configs"][0]["data_files"]] == ["train", "held_out"]
    for said in (
        "UCSC-VLAA/STAR-1",
        "Apache-2.0",
        "CC0-1.0",
        "| short | 6 |",
        "| xstest | 2 | 1 | 1 |",
        "Harmful content",
    ):
        assert said in readme or said == "CC0-1.0"
    assert "/home/me" not in readme
    loaded = load_file(folder / "data" / "default" / "train.jsonl")
    assert loaded.form == "examples"
    assert len(loaded.examples) == 5
    assert export_hf(run) == folder, "again into the same place"


def test_datasets_reads_it(run: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = export_hf(run)
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in found.items()} == {"train": 5, "held_out": 1}
    assert found["train"][0] == flat(load_file(run).examples[0])


def test_a_certificate_for_other_rows_is_not_published(run: Path) -> None:
    certificate, _ = certify([example(1)], {"xstest": [Prompt(text="x", intent="benign")]})
    (run / "contamination.json").write_bytes(encode({"certificates": {"mix": certificate}}))
    folder = export_hf(run)
    assert not (folder / "contamination.json").exists()
    assert "were not compared" in (folder / "README.md").read_text()


def test_two_mixes_of_one_name_are_not_published_over_each_other(run: Path) -> None:
    other = publish(run, "mix", "mix", {"examples": [example(1)]}, mark="1")
    with pytest.raises(UserError, match=r"(?s)have one name.*mix-0.*mix-1"):
        export_hf(run)
    assert export_hf(other.folder, run / "out").is_dir()


def test_flat_rows_keep_the_difference_between_no_thinking_and_empty_thinking() -> None:
    assert flat(example(1, thought=""))["thinking"] == "!"
    assert flat(example(1, thought=None))["thinking"] is None
    assert [turn["role"] for turn in flat(example(1))["messages"]] == ["user", "assistant"]


def test_rows_that_do_not_say_what_they_are_count_as_harmful_in_a_safety_share() -> None:
    assert harmful([example(1, intent=None)])
    assert not harmful([example(1, share="maths", intent=None), example(2, intent="benign")])


def test_nothing_to_export_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no stage holds examples"):
        export_hf(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    (tmp_path / "a.jsonl").write_bytes(encode(example(1)))
    with pytest.raises(UserError, match="holds something else"):
        export_hf(tmp_path / "a.jsonl", tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").exists()


# Upload


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


def test_a_dry_run_sends_nothing(run: Path, hub: tuple[type[Hub], dict[str, str]]) -> None:
    done = pushed(export_hf(run), hub[1])
    assert done.returncode == 0, done.stderr
    assert "nothing was sent" in done.stdout
    assert "private · gated" in done.stdout
    assert hub[0].asked == []


def test_the_gate_is_closed_before_the_first_file_and_only_what_belongs_is_sent(
    run: Path, hub: tuple[type[Hub], dict[str, str]]
) -> None:
    folder = export_hf(run)
    (folder / ".secret").write_text("x")
    (folder / "journal.db").write_text("x")
    done = pushed(folder, hub[1], "--yes", "--public", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["sent"], said["gate"], said["private"]) == (True, "manual", False)
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
    assert set(hub[0].files) == names - {".secret", "journal.db"}
    assert hub[0].files["README.md"] == (folder / "README.md").read_bytes()
    assert "hf_secretsecret" not in done.stdout + done.stderr


def test_a_refusal_of_the_hub_is_told_and_nothing_becomes_public(
    run: Path, hub: tuple[type[Hub], dict[str, str]]
) -> None:
    hub[0].refuse = "/settings"
    done = pushed(export_hf(run), hub[1], "--yes", "--public")
    assert done.returncode == 1
    assert "the hub refused (403)" in done.stderr
    assert "Traceback" not in done.stderr
    assert hub[0].files == {}, "without its gate no file is sent"


def test_what_may_not_be_pushed(run: Path, tmp_path: Path) -> None:
    folder = export_hf(run)
    with pytest.raises(UserError, match="public without a gate"):
        plan_push(folder, "me/set", public=True, gate="none")
    with pytest.raises(UserError, match="write owner/name"):
        plan_push(folder, "set")
    with pytest.raises(UserError, match="neither a model"):
        plan_push(tmp_path, "me/set")
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "optimizer.pt", "trainer_state.json"):
        (model / name).write_text("{}")
    with pytest.raises(UserError, match="has no card"):
        plan_push(model, "me/model")
    (model / "README.md").write_text("# A model")
    plan = plan_push(model, "me/model", public=True)
    assert (plan.kind, plan.gate) == ("model", "none")
    assert [path.name for path in plan.files] == ["README.md", "config.json", "model.safetensors"]
