"""A study of large models on this machine: everything stood in for, every cell counted, nothing asked twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from demur.bench import get_bench, names
from demur.bench.load import faults, read_prompts
from demur.cli.runner import run_study
from demur.pipeline.resolve import Resolved, make
from demur.pipeline.study import Study
from demur.report import build
from demur.storage import readers as tables
from demur.storage.artifacts import artifacts
from demur.testing import small

STUDY = {
    "name": "large",
    "base": "nobody/Huge-70B",
    "models": {
        "teacher": {"url": "https://teacher.invalid/v1", "model": "t", "key_env": "NOT_SET"},
        "judge": {"hub": "nobody/guard", "engine": "vllm"},
        "attacker": "https://attacker.invalid/v1",
        "attack_judge": "https://attacker.invalid/v1",
    },
    "distil": {"keep": "whole safe"},
    "filter": {"kind": "llama_guard3", "model": "judge"},
    "prompts": {"harmful": {"source": "mini-harmful", "n": 5000}},
    "train": {"lr": 1e-5, "epochs": 3, "batch": 48},
    "held_out": 50,
    "arms": {
        "raw": {},
        "short": {"format": "short", "safety": 1000, "maths": {"hub": "nobody/maths:maths.jsonl", "n": 4000}},
    },
    "bench": [
        {"name": "advbench@paper-v2"},
        {"name": "advbench@paper-v2", "attack": "pair@paper-v2"},
        {"name": "livecodebench@paper-v2"},
        {"name": "math500@paper-v2"},
    ],
    "seeds": [3, 4],
}


@pytest.fixture(autouse=True)
def nowhere(cache: Path) -> None:
    """Nothing is downloaded, and nobody is asked."""


def resolved(**changes: object) -> Resolved:
    return make(STUDY | {"workers": 1} | changes, where="test")


def study(**changes: object) -> Study:
    return resolved(**changes).study


@pytest.mark.slow
def test_a_study_of_large_models_runs_whole_and_again_asks_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_study(small.standing_in(study(), out=out), out=out)
    cells = [cell for cell in build(out).results if "/" not in cell.metric and cell.bench != "all"]
    assert {(cell.arm, cell.bench, cell.attack) for cell in cells} == {
        (arm, bench, attack)
        for arm in ("raw", "short")
        for bench, attack in (
            ("advbench@paper-v2", "none"),
            ("advbench@paper-v2", "pair"),
            ("livecodebench@paper-v2", "none"),
            ("math500@paper-v2", "none"),
        )
    }, "a PAIR of another size does not go by the paper's name"
    assert all(cell.estimate.n > 0 for cell in cells)
    seeds = {stage.manifest.settings["seed"] for stage in artifacts(out) if stage.manifest.kind == "evaluate"}
    assert seeds == {None, 3}, "one seed unless more are asked for"
    for name in ("report.html", "summary.md"):
        assert "smoke run" in (out / name).read_text().lower()
    before = {path: path.stat().st_mtime_ns for path in (out / "stages").rglob("*")}
    run_study(small.standing_in(study(), out=out), out=out)
    assert before == {path: path.stat().st_mtime_ns for path in (out / "stages").rglob("*")}


@pytest.mark.parametrize("name", sorted(n for n in names() if get_bench(n).files and get_bench(n).columns))
def test_rows_in_the_form_of_a_benchmark_are_read_by_its_reader(name: str, tmp_path: Path) -> None:
    bench = get_bench(name)
    made = small._copies(study(bench=[{"name": name}]), tmp_path, 12)
    prompts = read_prompts(bench, Path(made[name]))
    assert prompts
    assert bench.count is None or faults(bench, prompts), "what stands in does not pass for the release"
    assert sum(1 for _ in tables.rows(Path(made[name]))) <= 24


def test_a_real_copy_goes_before_what_stands_in(data_dir: Path, tmp_path: Path) -> None:
    made = small._copies(study(data_dir=str(data_dir)), tmp_path, 12)
    assert set(made) == {"livecodebench@paper-v2"}
