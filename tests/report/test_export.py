"""What other tools read of a run."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from tests.made import publish
from tests.report.made import HOSTILE, evaluation, make_run, prompts_of

from demur.errors import UserError
from demur.records import Trace, Verdict
from demur.report import export


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("export") / "run", prompts=6, seeds=(0,), text="=1+1 " + HOSTILE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inspect_reads_its_logs(small: Path, tmp_path: Path) -> None:
    log = pytest.importorskip("inspect_ai.log", reason="the group 'inspect' is not installed")
    paths = export.to_inspect(small, tmp_path)
    assert len(paths) == 16
    path = next(p for p in paths if p.name == "default-s0-mini_harm-mini-seen.eval")
    read = log.read_eval_log(str(path))
    assert read.status == "success"
    assert len(read.samples) == 6
    sample = read.samples[0]
    assert sample.scores["mini/answer"].value in ("full_compliance", "full_refusal")
    assert [part.type for part in sample.messages[-1].content] == ["reasoning", "text"]
    assert sample.messages[-1].content[0].reasoning.startswith("=1+1")
    assert read.results.scores[0].scored_samples == 6


def test_an_inspect_log_keeps_the_sides_of_a_benchmark_apart(tmp_path: Path) -> None:
    """A refusal of a harmful prompt and one of a harmless prompt are not one number."""
    log = pytest.importorskip("inspect_ai.log", reason="the group 'inspect' is not installed")
    asked = [*prompts_of("bad", "harmful", 4), *prompts_of("kind", "borderline", 4)]
    evaluation(
        tmp_path, "a", 0, "xstest", "", asked,
        lambda _, p: "full_refusal" if p.intent == "harmful" else "full_compliance",
    )  # fmt: skip
    (path,) = export.to_inspect(tmp_path, tmp_path / "out")
    found = {one.name: one.metrics for one in log.read_eval_log(str(path)).results.scores}
    assert set(found) == {"mini/answer of harmful", "mini/answer of borderline"}
    assert found["mini/answer of harmful"]["full_refusal"].value == 1.0
    assert "full_refusal" not in found["mini/answer of borderline"]


def test_judging_again_makes_a_log_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai.log", reason="the group 'inspect' is not installed")
    run = make_run(tmp_path / "run", prompts=3, seeds=(0,))
    stage = export.evaluations(run)[0]
    records: dict[str, list[Any]] = {
        "traces": list(stage.read("traces", Trace)),
        "verdicts": list(stage.read("verdicts", Verdict)),
    }
    before = export.to_inspect(run, tmp_path / "a")
    publish(run, "judge-again", "judge", records, settings=stage.manifest.settings)
    paths = export.to_inspect(run, tmp_path / "b")
    assert len(set(paths)) == len(paths) == len(before) + 1
    assert all(path.exists() for path in paths)


def test_csv_holds_every_trace_and_no_formula(small: Path, tmp_path: Path) -> None:
    with export.to_csv(small, tmp_path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 96
    assert all(row["thinking"].startswith("'=1+1") for row in rows)
    assert {row["arm"] for row in rows} == {"raw", "default", "improved", "short"}
    assert all("=" in row["verdicts"] for row in rows)


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished evaluation"):
        export.evaluations(tmp_path)
