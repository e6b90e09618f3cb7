"""The verbs that report, as a user calls them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from tests.made import demur
from tests.report.made import make_run, prompts_of, trace_of

from demur.diagnose import exam
from demur.judge import calibrate
from demur.records import RefusalLabel, Verdict, encode
from demur.report import build
from demur.report.labels import Labels
from demur.report.viewer import Viewer


@pytest.mark.slow
def test_report_prints_the_table_and_writes_the_files(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", prompts=12, seeds=(0,))
    done = demur("report", str(run))
    assert done.returncode == 0, done.stderr
    assert "attack success, %" in done.stdout
    assert "report.html" in done.stderr
    assert {path.name for path in run.iterdir()} >= {"results.json", "results.csv", "summary.md", "report.html"}
    done = demur("report", str(run), "--json")
    assert json.loads(done.stdout)["name"] == "fixture"


def test_compare_says_it_in_words(run: Path) -> None:
    done = demur("compare", f"{run}:default", f"{run}:improved")
    assert done.returncode == 0, done.stderr
    assert "improved is better" in re.sub(r"\s+", " ", done.stdout)
    assert "mini_benign: over-refusal, n=" in re.sub(r"\s+", " ", done.stdout), "of what it is, by name"
    found = json.loads(demur("compare", f"{run}:default", f"{run}:improved", "--json").stdout)
    assert [row["words"] for row in found["comparisons"] if row["winner"] == "improved"]
    wrong = demur("compare", f"{run}:defualt", f"{run}:improved")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Did you mean 'default'" in wrong.stderr


def test_export_names_what_it_wrote(run: Path, tmp_path: Path) -> None:
    done = demur("export", str(run), "--to", "csv", "--out", str(tmp_path / "csv"), "--json")
    assert done.returncode == 0, done.stderr
    assert all(Path(path).is_file() for path in json.loads(done.stdout)["paths"])
    assert demur("export", str(run), "--to", "xml").returncode == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_view_prints_its_address_and_ends_by_a_signal(tmp_path: Path, number: signal.Signals, code: int) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored here, as in background jobs, and so by every child")
    run = make_run(tmp_path / "run", prompts=6, seeds=(0,))
    command = [sys.executable, "-m", "demur", "view", str(run), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        with urlopen(url) as answer:
            assert b"viewer.js" in answer.read()
            assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
        server.send_signal(number)
        try:
            assert server.wait(20) == code
        finally:
            server.kill()


def test_labels_calibrate_judges_and_detectors(tmp_path: Path) -> None:
    labels = Labels(tmp_path)
    for number, prompt in enumerate(prompts_of("harm", "harmful", 6)):
        trace = trace_of(prompt, answer="Sorry, I cannot help with that." if number < 4 else "Sure! Step 1: begin.")
        verdict = Verdict(trace=trace.id, judge="mini", query="question", part="answer", label="full_refusal")
        value = "full_refusal" if number < 4 else "full_compliance"
        labels.put(trace, kind="refusal", value=value, by="ann", verdicts=[verdict])
        labels.put(trace, kind="harm", value="safe" if number < 4 else "unsafe", by="ann")
        labels.put(trace, kind="patterns", value=["weak_vacillation"], by="ann")
    make_run(tmp_path, prompts=2, seeds=(0,))
    for kind, command in Viewer(tmp_path).about()["calibrate"].items():
        done = demur(*command.replace("NAME=MODEL", "rules").split()[1:])
        assert done.returncode == 0, (kind, done.stderr)
    found = calibrate.refusal(tmp_path / "labels" / "refusal.jsonl")
    assert found["n"] == 6
    assert found["others"]["mini"]["agreement"].value == pytest.approx(4 / 6)
    assert [row.gold for row in calibrate.read(tmp_path / "labels" / "harm.jsonl")] == ["safe"] * 4 + ["unsafe"] * 2
    questions = exam.load(tmp_path / "labels" / "patterns.jsonl")
    assert all(question.labels["weak_vacillation"] for question in questions)


def test_a_certificate_stands_on_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", prompts=6, seeds=(0,))
    compared = {"bench": "advbench", "prompts": 50, "rows": 3}
    certificate = {"rows": 900, "compared": [compared], "removed": 0}
    (run / "contamination.json").write_bytes(encode({"certificates": {"default": certificate}}))
    assert demur("report", str(run)).returncode == 0
    assert "3 of 900" in (run / "report.html").read_text()


def test_labels_take_the_judges_errors_out(tmp_path: Path) -> None:
    """A judge that calls a third of the served requests refused: labels show it, and the corrected rate rises."""
    run = make_run(tmp_path / "run", prompts=40, seeds=(0,))
    labels = Labels(run)
    for number, prompt in enumerate(prompts_of("labelled", "harmful", 90)):
        trace = trace_of(prompt)
        gold = "full_compliance" if number < 60 else "full_refusal"
        label: RefusalLabel = "full_compliance" if number < 40 else "full_refusal"
        verdict = Verdict(trace=trace.id, judge="mini", query="question", part="answer", label=label)
        labels.put(trace, kind="refusal", value=gold, by="ann", verdicts=[verdict])
    built = build(run)
    found = [c for c in built.corrected if (c.metric, c.attack) == ("attack_success", "mini-seen")]
    note = "attack success: sensitivity 67 [54–77] %, specificity 100 [89–100] % by 90 labels of this run's replies"
    assert built.judges == {"mini": note}
    assert {c.arm for c in found} == {"raw", "default", "improved", "short"}
    default = next(c for c in found if c.arm == "default")
    assert default.sensitivity.value == pytest.approx(2 / 3)
    assert default.specificity.value == 1
    assert default.corrected.value == pytest.approx((default.observed.value or 0) * 1.5)
    assert (default.corrected.high or 0) > (default.observed.high or 0)
    assert demur("report", str(run)).returncode == 0
    assert "Rates without the judge" in (run / "report.html").read_text()
