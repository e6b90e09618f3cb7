"""`demur runs`: every run under a folder, with what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.made import exit_code

from demur.cli import main


def test_a_history_of_two_runs_and_a_file_of_somebody_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        words = (
            "eval",
            "mini_harm",
            "--target",
            "script:stand_in",
            "--limit",
            "3",
            "--out",
            str(tmp_path / "deep" / name),
        )
        assert exit_code(*words) == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.json").write_text("[1]")
    capfd.readouterr()
    assert exit_code("runs", str(tmp_path), "--json") == 0
    shown = capfd.readouterr()
    rows = json.loads(shown.out)["runs"]
    assert [(Path(row["run"]).name, row["arm"]) for row in rows] == [("one", "stand_in"), ("two", "stand_in")]
    assert "script:stand_in" in rows[0]["model"]
    assert list(rows[0]["numbers"]) == ["mini_harm attack_success mini"]
    assert rows[0]["date"].startswith("20")
    assert "other/results.json is not read" in shown.err
    assert exit_code("runs", str(tmp_path)) == 0
    table = capfd.readouterr().out
    assert f"under {tmp_path}" in table
    assert "0 [0–56]" in table, "however long the path, no number is broken"
    assert exit_code("runs", str(tmp_path / "other")) == 2


def test_a_run_that_measured_nothing_is_named_after_its_folder_and_says_why(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "traces.csv").write_text("prompt,completion\nHow do I boil an egg?,In water.\n")
    assert exit_code("diagnose", str(tmp_path / "traces.csv"), "--out", str(tmp_path / "looked")) == 0
    shown, told = capfd.readouterr()
    assert "what a screen does not flag is not clean" in told
    heading = next(line for line in shown.splitlines() if line.startswith("traces "))
    assert "in, %" in heading
    assert "after" not in heading, "there was no filter, so there is no column for it"
    assert exit_code("runs", str(tmp_path), "--json") == 0
    (row,) = json.loads(capfd.readouterr().out)["runs"]
    assert (row["study"], row["why"]) == ("looked", "no benchmark was run (stages: diagnose, import)")
    assert exit_code("runs", str(tmp_path)) == 0
    assert "looked  –    –      – no benchmark was run" in capfd.readouterr().out


def test_a_run_that_is_not_finished_is_listed_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("failing.py").write_text('def answer(*_):\n    raise ValueError("out of order")\n')
    words = ("eval", "mini_harm", "--limit", "3", "--target")
    with pytest.raises(ValueError, match="out of order"):
        main([*words, "script:failing:answer", "--out", "broken"])
    assert exit_code("runs", ".", "--json") == 0
    (row,) = json.loads(capfd.readouterr().out)["runs"]
    assert (row["run"], row["study"], row["model"], row["numbers"]) == ("broken", "eval", "failing:answer", {})
    assert row["why"].startswith("unfinished, 0 of 1 stages")
    assert exit_code("runs", ".") == 0
    assert "unfinished, 0 of 1 stages" in capfd.readouterr().out


def test_a_page_names_every_command_that_made_what_it_shows(tmp_path: Path) -> None:
    """An evaluation, another in its folder, and what judged them again; a study in the folder is all that is there."""
    run = tmp_path / "run"
    made = []
    for bench in ("mini_harm", "mini_benign", "mini_harm"):
        words = ["eval", bench, "--target", "script:stand_in", "--limit", "2", "--out", str(run)]
        assert exit_code(*words) == 0
        made.append(" ".join(["demur", *words]))
    assert f"made by: {made[0]}; {made[1]}<" in (run / "report.html").read_text()
    assert exit_code("judge", str(run), "--out", str(tmp_path / "again")) == 0
    assert f"made by: demur judge {run} --out {tmp_path}/again<" in (tmp_path / "again" / "report.html").read_text()
    (study := tmp_path / "s.yaml").write_text(
        "name: s\narms: {raw: {}}\nbench: [{name: mini_harm, limit: 1}]\nbase: t\nmodels: {t: script:stand_in}\n"
    )
    assert exit_code("run", str(study), "--out", str(run)) == 0
    assert f"made by: demur run {study} --out {run}<" in (run / "report.html").read_text()
    assert exit_code("run", str(study), "--set", "bench.0.limit=2", "--out", str(run)) == 0
    assert exit_code("run", str(study), "--out", str(run)) == 0
    typed = (run / "commands.txt").read_text().splitlines()
    assert typed[:2] == made[:2]
    assert typed[2:] == [f"demur run {study} --set bench.0.limit=2 --out {run}", f"demur run {study} --out {run}"]
