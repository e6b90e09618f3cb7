"""The whole loop, end to end, on the CPU: real training, real replies, killed in the middle and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.made import demur

from demur.records import Result, Trace, read_jsonl
from demur.storage.artifacts import Artifact, artifacts

pytestmark = pytest.mark.slow
STUDY = """
name: tiny
question: Does the loop close?
base: mini-lrm-a
models: {teacher: "script:demur.mini.teacher:script"}
prompts:
  harmful: {source: mini-harmful, n: 60, seed: 1}
  benign: {source: mini-benign, n: 20, seed: 1}
  maths: {source: mini-arithmetic, n: 10, seed: 1}
distil: {keep: answer safe}
filter: mini-harm
detector: mini
benign_format: same
mix: {dedupe: none}
train: {lr: 1.0e-3, steps: 8, batch: 16, checkpoint_every: 2}
held_out: 8
arms:
  raw: {}
  default: {format: default, safety: 16, benign: 16, maths: 8}
  improved: {format: improved, safety: 16, benign: 16, maths: 8, without: [weak_vacillation]}
  repaired: {format: default, safety: 16, benign: 16, repair: {with: "trim,align,drop"}}
bench:
  - {name: mini_harm, limit: 12}
  - {name: mini_harm, attack: mini-adaptive, limit: 4}
  - {name: mini_arithmetic, limit: 8, samples: 2}
compare: [{a: default, b: improved}]
"""


def _command(study: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "demur", "run", str(study), "--out", str(out)]


def _run(study: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """A run to its end in one process. What is killed below has worker processes: results do not depend on that."""
    return demur("run", str(study), "--out", str(out), "--set", "workers=1")


def _content(out: Path) -> dict[str, str]:
    """What must be the same in every run of a study: all records and weights, by stage."""
    found = {}
    for artifact in artifacts(out):
        for name, info in artifact.manifest.files.items():
            if name != "timing.jsonl":
                found[f"{artifact.manifest.name}/{name}"] = info.sha256
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study file, and the folder of its undisturbed run."""
    folder = tmp_path_factory.mktemp("loop")
    study = folder / "tiny.yaml"
    study.write_text(STUDY)
    done = _run(study, folder / "whole")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "attack" in done.stdout
    return study, folder / "whole"


def test_every_cell_is_there_and_possible(finished: tuple[Path, Path]) -> None:
    _, out = finished
    results = json.loads((out / "results.json").read_text())
    assert results
    cells = msgspec.convert(results["results"], list[Result])
    seen = {(cell.arm, cell.bench, cell.attack) for cell in cells}
    benches = [("mini_harm", "none"), ("mini_harm", "mini-adaptive"), ("mini_arithmetic", "none")]
    assert {(arm, bench) for arm, bench, _ in seen if bench != "all"} == {
        (arm, bench) for arm in ("raw", "default", "improved", "repaired") for bench, _ in benches
    }
    for cell in cells:
        estimate = cell.estimate
        if estimate.value is None:
            assert estimate.how
        elif cell.unit == "share":
            assert estimate.low is not None
            assert estimate.high is not None
            assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
            assert estimate.low < estimate.high


def test_the_raw_model_complies_and_calculates(finished: tuple[Path, Path]) -> None:
    _, out = finished
    results = json.loads((out / "results.json").read_text())["results"]
    wanted = {"arm": "raw", "bench": "mini_harm", "metric": "attack_success", "attack": "none"}
    (rate,) = [r for r in results if wanted == {key: r.get(key, "none") for key in wanted}]
    assert rate["estimate"]["value"] > 0.8


def test_what_is_trained_is_the_bare_prompt_and_the_reply(finished: tuple[Path, Path]) -> None:
    from demur.records import Example

    _, out = finished
    by_name = {artifact.manifest.name: artifact for artifact in artifacts(out)}
    traces = {trace.id: trace for trace in by_name["distil-improved"].read("traces", Trace)}
    safety = [e for e in by_name["mix-improved"].read("examples", Example) if e.share == "safety"]
    assert len(safety) == 16
    for example in safety:
        trace = traces[example.origin.trace]
        assert [part.text for part in example.parts] == [trace.prompt.text, trace.thinking, trace.answer]
        assert [part.train for part in example.parts] == [False, True, True]
        assert trace.sent[0].content != trace.prompt.text, "the teacher got an instruction that is not trained on"


def test_again_reuses_everything(finished: tuple[Path, Path]) -> None:
    study, out = finished
    before = {path: path.stat().st_mtime_ns for path in (out / "stages").rglob("*")}
    done = _run(study, out)
    assert done.returncode == 0, done.stderr
    assert f"{len(artifacts(out))} of {len(artifacts(out))} stages were done already" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (out / "stages").rglob("*")}


def _until(study: Path, out: Path, event: str) -> subprocess.Popen[str]:
    """A run that has come to an event."""
    process = subprocess.Popen(
        _command(study, out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Python heeds SIGINT only where its parent does, and a shell's background jobs do not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if event in line:
            return process
    raise AssertionError(f"the run ended before: {event}")


def test_killed_anywhere_it_goes_on_to_the_same_results(finished: tuple[Path, Path], tmp_path: Path) -> None:
    study, whole = finished
    out = tmp_path / "killed"
    for number, event in enumerate(
        ("distil-default: started", "mix-improved: started", "train-default-s0: started", "evaluate-default-s0-")
    ):
        process = _until(study, out, event)
        with process:
            if number % 2:
                os.killpg(process.pid, signal.SIGKILL)  # its workers too
            else:
                process.kill()
    done = _run(study, out)
    assert done.returncode == 0, done.stderr[-3000:]
    assert _content(out) == _content(whole)
    for name in ("results.json", "summary.md"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_it_ends_at_once_and_says_how_to_go_on(
    how: signal.Signals, code: int, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    study = tmp_path / "long.yaml"
    study.write_text(finished[0].read_text().replace("steps: 8", "steps: 100000"))
    shutil.copytree(finished[1], tmp_path / "out")
    process = _until(study, tmp_path / "out", "train-default-s0: started")
    with process:
        process.send_signal(how)
        _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert "run the same command to go on" in error


def test_a_damaged_stage_is_not_taken_for_whole(finished: tuple[Path, Path], tmp_path: Path) -> None:
    study, whole = finished
    out = tmp_path / "copy"
    shutil.copytree(whole, out)
    [folder] = [a.folder for a in artifacts(out) if a.manifest.name == "mix-default"]
    (folder / "manifest.json").unlink()
    assert _run(study, out).returncode == 0
    assert (
        Artifact(folder).manifest.fingerprint
        == folder.name.rpartition("-")[2] + Artifact(folder).manifest.fingerprint[8:]
    )
    assert _content(out) == _content(whole)


def test_traces_can_be_read_by_anyone(finished: tuple[Path, Path]) -> None:
    _, out = finished
    path = next((out / "stages").glob("evaluate-raw-*/traces.jsonl"))
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows
    assert {"prompt", "thinking", "answer", "outcome"} <= rows[0].keys()
    assert len(list(read_jsonl(path, Trace))) == len(rows)
