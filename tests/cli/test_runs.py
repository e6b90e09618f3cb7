"""`demur runs`: every run under a folder, with what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.made import demur, exit_code

from demur.testing.server import serving


def _shown(run: Path) -> set[tuple[str, str]]:
    return {(row["arm"], row["bench"]) for row in json.loads((run / "results.json").read_text())["results"]}


def _evaluated(run: Path, *targets: str, limit: int = 3) -> None:
    for target in targets:
        words = ("eval", "mini_harm", "--target", target, "--limit", str(limit), "--out", str(run))
        assert exit_code(*words) == 0


@pytest.fixture
def failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in the current folder whose model fails as long as the file `down` exists."""
    monkeypatch.chdir(tmp_path)
    Path("moody.py").write_text(
        'from pathlib import Path\n\n\ndef answer(*_):\n    if Path("down").exists():\n'
        '        raise ValueError("out of order")\n    return "No."\n'
    )
    Path("down").touch()
    with pytest.raises(ValueError, match="out of order"):
        _evaluated(Path("r"), "script:moody:answer")
    return Path("r")


def test_a_history_of_two_runs_and_a_file_of_somebody_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        _evaluated(tmp_path / "deep" / name, "script:stand_in")
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
    assert "other/results.json cannot be read" in shown.err
    assert exit_code("runs", str(tmp_path)) == 0
    table = capfd.readouterr().out
    assert f"under {tmp_path}" in table
    assert "0 [0–56]" in table, "however long the path, no number is broken"
    assert exit_code("runs", str(tmp_path / "other")) == 2


def test_a_run_that_measured_nothing_is_listed_by_its_folder_with_the_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "traces.csv").write_text("prompt,completion\nHow do I boil an egg?,In water.\n")
    assert exit_code("diagnose", str(tmp_path / "traces.csv"), "--out", str(tmp_path / "looked")) == 0
    shown, err = capfd.readouterr()
    assert "what a screen does not flag is not clean" in err
    heading = next(line for line in shown.splitlines() if line.startswith("traces "))
    assert "in, %" in heading
    assert "after" not in heading, "there was no filter, so there is no column for it"
    assert exit_code("runs", str(tmp_path), "--json") == 0
    (row,) = json.loads(capfd.readouterr().out)["runs"]
    assert (row["study"], row["why"]) == ("looked", "no benchmark was run (stages: diagnose, import)")
    assert exit_code("runs", str(tmp_path)) == 0
    assert "looked  –    –      – no benchmark was run" in capfd.readouterr().out


def test_a_run_that_is_not_finished_is_listed_as_that(failed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert exit_code("runs", ".", "--json") == 0
    (row,) = json.loads(capfd.readouterr().out)["runs"]
    assert (row["run"], row["study"], row["model"], row["numbers"]) == (str(failed), "eval", "moody:answer", {})
    assert row["why"].startswith("unfinished, 0 of 1 stages")
    assert exit_code("runs", ".") == 0
    assert "unfinished, 0 of 1 stages" in capfd.readouterr().out


def test_a_page_names_every_command_that_made_what_it_shows(tmp_path: Path) -> None:
    """An evaluation, another in its folder, and what judged them again; a study alone with its folder replaces itself."""
    run = tmp_path / "run"
    made = []
    for bench in ("mini_harm", "mini_benign", "mini_harm"):
        words = ["eval", bench, "--target", "script:stand_in", "--limit", "2", "--out", str(run)]
        assert exit_code(*words) == 0
        made.append(" ".join(["demur", *words]))
    assert f"made by: {made[0]}; {made[1]}<" in (run / "report.html").read_text()
    assert exit_code("judge", str(run), "--out", str(tmp_path / "again")) == 0
    assert f"made by: demur judge {run} --out {tmp_path}/again<" in (tmp_path / "again" / "report.html").read_text()
    run = tmp_path / "alone"
    (study := tmp_path / "s.yaml").write_text(
        "name: s\narms: {raw: {}}\nbench: [{name: mini_harm, limit: 1}]\nbase: t\nmodels: {t: script:stand_in}\n"
    )
    assert exit_code("run", str(study), "--out", str(run)) == 0
    assert f"made by: demur run {study} --out {run}<" in (run / "report.html").read_text()
    assert exit_code("run", str(study), "--set", "bench.0.limit=2", "--out", str(run)) == 0
    assert exit_code("run", str(study), "--out", str(run)) == 0
    typed = (run / "commands.txt").read_text().splitlines()
    assert typed == [f"demur run {study} --set bench.0.limit=2 --out {run}", f"demur run {study} --out {run}"]


def test_going_on_and_retry_keep_what_other_commands_made(tmp_path: Path) -> None:
    run = tmp_path / "r"
    _evaluated(run, "script:echo", "script:stand_in")
    two = _shown(run)
    assert {arm for arm, _ in two} == {"echo", "stand_in"}
    for words in (["retry", str(run)], ["run", f"{run}/study.yaml", "--out", str(run)], ["report", str(run)]):
        assert exit_code(*words) == 0
        assert _shown(run) == two, words
    assert exit_code("run", f"{run}/study.yaml", "--set", "bench.0.limit=2", "--out", str(run)) == 0
    assert {arm for arm, _ in _shown(run)} == {"echo", "stand_in"}


def test_a_study_in_the_folder_of_another_command_reports_that_both_are_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "r"
    _evaluated(run, "script:echo")
    (study := tmp_path / "s.yaml").write_text(
        "name: s\narms: {raw: {}}\nbench: [{name: mini_harm, limit: 1}]\nbase: t\nmodels: {t: script:stand_in}\n"
    )
    capfd.readouterr()
    assert exit_code("run", str(study), "--out", str(run)) == 0
    assert "1 other evaluation stays in the table" in capfd.readouterr().err
    assert {arm for arm, _ in _shown(run)} == {"echo", "raw"}
    for limit in (2, 1):
        assert exit_code("run", str(study), "--set", f"bench.0.limit={limit}", "--out", str(run)) == 0
        assert {arm for arm, _ in _shown(run)} == {"echo", "raw"}, "its other settings take the place of its own alone"


def test_retry_makes_again_what_an_earlier_command_made_by_the_study_of_that_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "r"
    monkeypatch.setenv("KEY_OF_IT", "a-secret-of-tests")
    with serving("stand_in", faults={"too_long": 0.5}) as server:
        words = ("eval", "mini_harm", "--target", server.url, "--model", "m", "--key-env", "KEY_OF_IT", "--limit", "8")
        assert exit_code(*words, "--out", str(run)) == 0
        _evaluated(run, "script:echo")
        two, (study,) = _shown(run), run.glob("studies/*.yaml")
        before = {path: path.read_bytes() for path in [study, run / "study.yaml"]}
        lost = sum(len(path.read_bytes().splitlines()) for path in run.glob("stages/*/failures.jsonl"))
        assert 0 < lost < 8
        monkeypatch.delenv("KEY_OF_IT")
        capfd.readouterr()
        assert exit_code("retry", str(run)) == 2, "what makes it again cannot be done here: nothing is removed"
        assert "KEY_OF_IT is not set" in capfd.readouterr().err
        assert exit_code("status", str(run)) == 0
        assert "everything is done" in capfd.readouterr().out
        monkeypatch.setenv("KEY_OF_IT", "a-secret-of-tests")
        assert exit_code("retry", str(run)) == 0
        assert f"{lost} failed requests will be asked again; 1 stage will be made again" in capfd.readouterr().err
    assert _shown(run) == two
    assert not any(path.read_bytes() for path in run.glob("stages/*/failures.jsonl"))
    assert {path: path.read_bytes() for path in before} == before
    assert exit_code("status", str(run)) == 0
    assert "everything is done\n" in capfd.readouterr().out


def test_retry_removes_nothing_while_the_server_is_down(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The server has answered some requests, so that a run would go on without it, but its failed ones are to be sent again."""
    run = tmp_path / "r"
    with serving("stand_in", faults={"too_long": 0.5}) as server:
        _evaluated(run, server.url, limit=8)
    files = {path: path.stat().st_mtime_ns for path in run.glob("stages/*/*")}
    failures = sum(len(path.read_bytes().splitlines()) for path in run.glob("stages/*/failures.jsonl"))
    assert 0 < failures < 8
    capfd.readouterr()
    assert exit_code("retry", str(run)) == 2
    assert f"target: {server.url} cannot be reached" in " ".join(capfd.readouterr().err.split())
    assert {path: path.stat().st_mtime_ns for path in run.glob("stages/*/*")} == files
    with serving("stand_in", port=int(server.url.rpartition(":")[2].partition("/")[0])):
        assert exit_code("retry", str(run)) == 0
    assert f"{failures} failed request" in capfd.readouterr().err
    assert not any(path.read_bytes() for path in run.glob("stages/*/failures.jsonl"))


def test_retry_goes_on_with_what_an_earlier_command_left_undone(
    failed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    assert exit_code("status", str(failed)) == 0
    shown = capfd.readouterr().out
    assert "failed: evaluate-moody-answer-s0-mini_harm-none: out of order\n" in shown
    assert "waiting" not in shown
    assert "to go on: demur run r/study.yaml --out r\n" in shown
    _evaluated(failed, "script:stand_in")
    Path("down").unlink()
    capfd.readouterr()
    assert exit_code("status", "r") == 0
    assert "to go on: demur retry r\n" in capfd.readouterr().out
    assert exit_code("runs", ".", "--json") == 0
    assert "unfinished, 1 of 2 stages" in capfd.readouterr().out
    assert exit_code("retry", "r") == 0
    assert {arm for arm, _ in _shown(Path("r"))} == {"moody-answer", "stand_in"}


@pytest.mark.slow
def test_the_stage_of_a_stopped_process_is_not_shown_as_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stopping.py").write_text(
        "import os\nimport signal\n\n\ndef answer(*_):\n    os.kill(os.getpid(), signal.SIGTERM)\n    return 'No.'\n"
    )
    done = demur("eval", "mini_harm", "--target", "script:stopping:answer", "--limit", "8", "--out", "r")
    assert done.returncode == 143, done.stderr
    assert exit_code("status", "r") == 0
    shown = capfd.readouterr().out
    assert "stopped: evaluate-" in shown
    assert "running:" not in shown


def test_status_and_runs_agree_about_a_judged_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _evaluated(tmp_path / "r", "script:stand_in")
    again = tmp_path / "again"
    capfd.readouterr()
    assert exit_code("judge", str(tmp_path / "r"), "--out", str(again), "--json") == 0
    result = json.loads(capfd.readouterr().out)
    assert (result["n"], "crossed" in result, "results" in result["report"]) == (3, True, True)
    assert exit_code("runs", str(again), "--json") == 0
    assert "unfinished" not in capfd.readouterr().out
    assert exit_code("status", str(again)) == 0
    assert "everything is done\n" in capfd.readouterr().out
    (again / "results.json").unlink()
    assert exit_code("status", str(again)) == 0
    assert f"everything is done but the report: demur report {again}\n" in capfd.readouterr().out
    assert exit_code("runs", str(again), "--json") == 0
    assert "everything is done but the report" in capfd.readouterr().out
