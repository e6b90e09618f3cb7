"""What an outsider broke by the command line, each once more: `docs/reliability.md` lists all of it with its test."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.made import exit_code, gathered, publish

from demur.diagnose.rules import RulesDetector
from demur.records import Prompt
from demur.storage import cache_care
from demur.storage.artifacts import locked
from demur.thinking import traced

STAND_IN = ("--target", "script:stand_in", "--limit", "6", "--set", "workers=1")


@contextmanager
def answering(answer: Callable[[int], tuple[int, Any]]) -> Iterator[str]:
    """A server of which each reply, by its number, is a status and a body; gives its address."""
    seen = iter(range(10**9))

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def send(self, status: int, body: Any) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.send(200, {"data": [{"id": "m"}]})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send(*answer(next(seen)))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def said(text: str, finish: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": finish}]}


def shown(capfd: pytest.CaptureFixture[str]) -> str:
    """What the command printed, of which nothing may be a traceback."""
    both = capfd.readouterr()
    text = re.sub(r"[\s│]+", " ", both.err + both.out)
    assert "Traceback" not in text
    return text


def filtering(share: int, n: int) -> tuple[int, dict[str, Any]]:
    return 200, said("Sure.", "stop" if n % share else "content_filter")


@pytest.mark.slow
def test_a_filter_on_replies_is_neither_a_number_nor_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for share, words in ((1, "no reply is scored"), (2, "unscored 50.0 %")):
        out = tmp_path / str(share)
        with answering(partial(filtering, share)) as url:
            assert exit_code("eval", "mini_harm", "--target", url, "--limit", "10", "--out", str(out)) == 0
        assert words in shown(capfd)
        failures = next(out.glob("stages/evaluate-*/failures.jsonl")).read_text().splitlines()
        assert [json.loads(line)["kind"] for line in failures] == ["filtered"] * (10 // share)


def test_replies_that_are_cut_count_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with answering(lambda n: (200, said("<think>\nStill thinking", "length"))) as url:
        assert exit_code("eval", "mini_harm", "--target", url, "--limit", "10", "--out", str(tmp_path)) == 0
    text = shown(capfd)
    assert "all truncated" in text
    assert "10 truncated, 0 unscored of 10" in text


def test_what_a_server_says_is_not_obeyed_by_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with answering(lambda n: (400, {"error": {"message": "\x1b[31mred\x1b]0;owned\x07\u202e [/x]"}})) as url:
        code = exit_code("eval", "mini_harm", "--target", url, "--limit", "10", "--out", str(tmp_path))
    both = capfd.readouterr()
    assert code == 1
    assert not {"\x1b", "\x07", "\u202e"} & set(both.err + both.out)
    assert "red" in both.err


def test_a_key_with_a_line_break_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("A_KEY", "sk-1\nX-Other: 2")
    with answering(lambda n: (200, said("I can't help with that."))) as url:
        code = exit_code(
            "eval", "mini_harm", "--target", url, "--key-env", "A_KEY", "--limit", "3", "--out", str(tmp_path)
        )
    assert code == 2
    assert "holds a line end" in shown(capfd)


@pytest.mark.slow
def test_an_adapter_of_itself_is_a_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(folder), "peft_type": "LORA"})
    )
    assert exit_code("eval", "mini_harm", "--target", str(folder), "--limit", "3", "--out", str(tmp_path / "run")) == 2
    assert "an adapter whose base, named in its adapter_config.json, is itself" in shown(capfd)


def test_deep_json_in_a_data_file_is_a_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_text('{"prompt": ' + "[" * 100_000 + "\n")
    assert exit_code("diagnose", str(path), "--out", str(tmp_path / "run")) == 2
    assert "deep.jsonl" in shown(capfd)


def test_a_stage_without_its_traces_is_done_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert exit_code("eval", "mini_harm", *STAND_IN, "--out", str(out)) == 0
    before = (out / "results.json").read_bytes()
    next(out.glob("stages/evaluate-*/traces.jsonl")).unlink()
    assert exit_code("report", str(out)) == 1
    assert "traces.jsonl is damaged" in shown(capfd)
    assert exit_code("eval", "mini_harm", *STAND_IN, "--out", str(out)) == 0
    assert (out / "results.json").read_bytes() == before
    shown(capfd)


def test_two_runs_in_one_folder_wait_for_each_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with locked(tmp_path):
        assert exit_code("eval", "mini_harm", *STAND_IN, "--out", str(tmp_path)) == 1
    assert "in use by another demur process" in shown(capfd)


def test_a_file_that_may_not_be_written_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    sqlite3.connect(path).execute("CREATE TABLE replies(key)").connection.close()
    with pytest.raises(sqlite3.OperationalError) as error:
        sqlite3.connect(f"file:{path}?mode=ro", uri=True).execute("DELETE FROM replies")
    assert "it is not writable" in str(cache_care.explained(path, error.value))
    assert not (tmp_path / cache_care.MARK).exists()


def test_judging_a_file_shows_each_number_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"How {i}?", "response": "<think>\nNo.\n</think>\n\nI can't help with that."}) + "\n"
            for i in range(12)
        )
    )
    assert exit_code("judge", str(path), "--intent", "harmful", "--out", str(tmp_path / "run")) == 0
    table = capfd.readouterr().out
    assert table.count("[0–24]") == 2, "served and no answer"


@pytest.mark.parametrize("filling", [" ", "\n", "I could help. "])
def test_the_offline_detector_takes_linear_time(filling: str) -> None:
    """40 kB of spaces once took 6.6 s."""
    trace = traced(Prompt(text="How?", intent="harmful"), f"<think>\n{filling * 40_000}x\n</think>\n\nNo.", model="m")
    began = time.process_time()
    (found,) = gathered(RulesDetector().findings([trace]))
    assert len(found) == 5
    assert time.process_time() - began < 6


def test_files_are_on_the_disk_before_the_manifest_says_that_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync, rename = os.fsync, Path.replace

    def synced(file: int) -> None:
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{file}")))
        sync(file)

    def renamed(path: Path, to: Path) -> Path:
        events.append(f"rename {to.name}")
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    publish(tmp_path, "evaluate", "evaluate", {"traces": [], "verdicts": []})
    assert events[:2] == ["traces.jsonl", "verdicts.jsonl"]
    assert events[-1] == "rename manifest.json"


@pytest.mark.parametrize(("megabytes", "code"), [(180, 2), (700, 0)])
def test_little_memory_is_a_sentence(megabytes: int, code: int, tmp_path: Path) -> None:
    limited = (
        f"import resource as r; r.setrlimit(r.RLIMIT_AS, ({megabytes << 20},) * 2); from demur.cli import main; main()"
    )
    command = [sys.executable, "-c", limited, "eval", "mini_harm", *STAND_IN, "--out", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert ("512 MB of address space" in done.stderr) == (code == 2)


def test_every_test_that_the_table_names_is_there() -> None:
    tests = Path(__file__).parents[1]
    table = (tests.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)?test_\w+)(?:::(test_\w+))?`", table)
    assert len(named) > 60
    for file, test in named:
        assert f"def {test}(" in (tests / f"{file}.py").read_text(encoding="utf-8") or not test, (file, test)
