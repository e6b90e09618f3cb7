"""Without a terminal: starts, ends, and once a minute how far it is and how long it takes."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console
from tests.made import exit_code

from demur.cli import progress
from demur.pipeline.run import Event
from demur.storage.artifacts import locked


def test_plain_lines_report_progress_once_a_minute_even_without_news(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress, "EVERY", 0.01)
    out = io.StringIO()

    def waited(text: str) -> str:
        for _ in range(1000):
            if found := [line for line in out.getvalue().splitlines() if text in line]:
                return found[-1]
            time.sleep(0.01)
        raise AssertionError(out.getvalue())

    with progress.Display(Console(file=out, width=100), ["train-a", "eval-a"], title="study") as show:
        show(Event("train-a", "started"))
        clock[0] += 65
        assert waited("ago") == "  train-a: began 0:01:05 ago"
        show(Event("train-a", "progress", 0, None, "loading a model"))
        assert "  train-a: loading a model" in out.getvalue().splitlines()
        clock[0] += 35
        show(Event("train-a", "progress", 1, 400, "loss 0.21"))
        assert waited("1/400") == "  train-a: 1/400  loss 0.21", "one row tells nothing of how long the others take"
        clock[0] += 60
        show(Event("train-a", "progress", 61, 400, "loss 0.21"))
        assert waited("left") == "  train-a: 61/400  0:05:39 left  loss 0.21"
        show(Event("train-a", "done", seconds=120.0, remark="120 steps"))
        show(Event("eval-a", "reused"))
    lines = out.getvalue().splitlines()
    assert lines[:2] == ["study", "  train-a: started"]
    assert "  train-a: done  120.0 s  120 steps  [1/2]" in lines
    assert "1 of 2 stages were done already" in lines[-1]


def test_status_shows_how_far_a_training_is_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    graph = {name: {"folder": f"{name}-0", "kind": "train", "fingerprint": "f"} for name in ("train-a", "train-b")}
    (tmp_path / "stages.json").write_text(json.dumps(graph))
    with progress.Display(Console(file=io.StringIO()), graph, out=tmp_path) as show:
        show(Event("train-a", "started"))
        for seconds, step in ((5, 1), (60, 61)):
            clock[0] += seconds
            show(Event("train-a", "progress", step, 400, "loss 0.21"))
        with locked(tmp_path):
            assert exit_code("status", str(tmp_path)) == 0
            assert exit_code("status", str(tmp_path), "--json") == 0
        *lines, last = capfd.readouterr().out.splitlines(keepends=True)
        shown, status = "".join(lines), json.loads(last)
        assert "running: train-a: 61/400  0:05:39 left  loss 0.21  (0:00:0" in shown
        assert "waiting: train-b\n" in shown
        assert (status["running"], status["waiting"]) == ({"train-a": "61/400  0:05:39 left  loss 0.21"}, ["train-b"])
        show(Event("train-a", "done"))
    assert exit_code("status", str(tmp_path)) == 0
    assert "running:" not in capfd.readouterr().out


def test_a_stage_that_ended_since_the_last_update_is_not_shown_as_running(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A note is a few seconds old, and stays for good where a run was killed."""
    graph = {name: {"folder": f"{name}-0", "kind": "train", "fingerprint": "f"} for name in ("train-a", "train-b")}
    (tmp_path / "stages.json").write_text(json.dumps(graph))
    (tmp_path / progress.RUNNING).write_text(json.dumps(dict.fromkeys((*graph, "train-gone"), "9/10")))
    monkeypatch.setattr("demur.cli.status.is_whole", lambda folder: folder.name == "train-a-0")
    assert exit_code("status", str(tmp_path), "--json") == 0
    status = json.loads(capfd.readouterr().out)
    assert (status["running"], status["stopped"], status["waiting"]) == ({}, {"train-b": "9/10"}, [])
    monkeypatch.setattr("demur.cli.status.is_whole", lambda folder: True)
    assert exit_code("status", str(tmp_path)) == 0
    assert "everything is done" in capfd.readouterr().out
