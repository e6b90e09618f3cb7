"""A full disk in any file, kills at named events, clocks that go back, odd places: a sentence or going on, and never another number."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.made import demur, exit_code, python

from demur.storage import records_file
from demur.storage.artifacts import locked
from demur.testing.server import serving

EVAL = ("eval", "mini_harm", "--target", "script:stand_in", "--limit", "6", "--set", "workers=1")


def evaluated(out: Path) -> int:
    return exit_code(*EVAL, "--out", str(out))


def results(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in ("results.json", "summary.md")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert evaluated(out) == 0
    return out


FILES = (
    "study.yaml", "stages.json", "traces.jsonl", "verdicts.jsonl", "manifest.json", "results.json",
    "results.csv", "summary.md", "report.html",
)  # fmt: skip


@pytest.mark.parametrize("name", [*FILES, "TMPDIR"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_no_file_can_be_full_without_a_sentence(
    name: str, code: int, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    out = tmp_path / "run"
    real = io.open

    def opened(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
        if "w" in mode and re.fullmatch(rf"\.?{re.escape(name)}(\.\d+\.tmp)?", os.path.basename(str(file))):
            if code == errno.EROFS:
                raise OSError(code, os.strerror(code), str(file))
            file = "/dev/full"
        return real(file, mode, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", opened)
        if name == "TMPDIR":
            patch.setattr(records_file, "scratch", lambda: opened("TMPDIR", "w+b"))
        assert evaluated(out) == 1
    said = capfd.readouterr().err
    assert os.strerror(code) in said
    assert "Traceback" not in said
    assert evaluated(out) == 0
    assert results(out) == results(undisturbed)


# Kills itself when an event happens for the n-th time.
CHILD = """
import os, signal, sys
from demur.cli import main
from demur.storage.reply_cache import ReplyCache

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def watch(event, args):
    name = os.path.basename(str(args[0])) if args else ""
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wa+")
    what = "write" if writes else {"os.rename": "rename", "os.mkdir": "mkdir", "sqlite3.connect": "connect"}.get(event, "")
    if what and f"{what} {name.lstrip('.').split('.tmp')[0].rstrip('0123456789').rstrip('.')}".startswith(wanted):
        die()

whole = ReplyCache._commit

def commit(self, batch):
    if wanted == "before a commit" and batch.rows:
        die()
    done = whole(self, batch)
    if wanted == "after a commit" and batch.rows:
        die()
    return done

for wanted in sys.argv[2].split(","):
    pid = os.fork()
    if pid == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        ReplyCache._commit = commit
        sys.addaudithook(watch)
        main(sys.argv[3:])
    status = os.waitpid(pid, 0)[1]
    print(wanted, os.WIFSIGNALED(status), flush=True)
"""
EVENTS = (
    "write lock", "write study.yaml", "rename study.yaml", "connect replies.sqlite", "before a commit", "after a commit",
    "write stages.json", "rename stages.json", "mkdir evaluate-", "write traces.jsonl", "write failures.jsonl",
    "write verdicts.jsonl", "write manifest.json", "rename manifest.json", "write results.json", "rename results.json",
    "write results.csv", "rename summary.md", "write report.html", "rename report.html",
)  # fmt: skip


@pytest.mark.slow
def test_killed_at_any_of_twenty_events_it_goes_on_to_the_same_results(tmp_path: Path) -> None:
    with serving("echo") as server:
        command = ["eval", "mini_harm", "--target", server.url, "--limit", "12", "--set", "workers=1"]
        command += ["--concurrency", "3", "--out"]
        done = subprocess.run(
            [python(), "-c", CHILD, "-", ",".join(EVENTS), *command, str(tmp_path / "killed")],
            capture_output=True, text=True, timeout=600, check=True,
        )  # fmt: skip
        assert done.stdout.splitlines() == [f"{event} True" for event in EVENTS], "each event came, and killed"
        assert exit_code(*command, str(tmp_path / "killed")) == 0
        asked = server.requests()
        assert asked["seen"] - asked["distinct"] <= 3 * 2, "asked again is what was in flight at a kill, and no more"
        assert exit_code(*command, str(tmp_path / "whole")) == 0
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


def test_a_clock_that_goes_back_changes_nothing(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for year in (2040, 1990):
        monkeypatch.setattr(time, "time", lambda year=year: (year - 1970) * 365.25 * 86400)
        assert evaluated(tmp_path / "run") == 0
        shutil.rmtree(tmp_path / "run" / "stages")
        assert evaluated(tmp_path / "run") == 0
        assert results(tmp_path / "run") == results(undisturbed)


@pytest.mark.parametrize("name", ["a b'c\"d é—ü", "[/x]", "[bold]x[/bold]", "=cmd|'x'!A1", "a\nb", "%s{x}$HOME"])
def test_a_place_may_have_any_name(
    name: str, undisturbed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert evaluated(tmp_path / name) == 0
    assert results(tmp_path / name) == results(undisturbed)
    said = capfd.readouterr()
    assert name.replace("\n", "") in (said.out + said.err).replace("\n", "")


def test_a_linked_or_moved_run_is_the_run(undisturbed: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(undisturbed, moved)
    (tmp_path / "link").symlink_to(moved)
    before = {path: path.stat().st_mtime_ns for path in (moved / "stages").rglob("*")}
    assert evaluated(tmp_path / "link") == 0
    assert before == {path: path.stat().st_mtime_ns for path in (moved / "stages").rglob("*")}, "nothing was done again"
    assert results(moved) == results(undisturbed)


def test_a_link_to_nowhere_is_a_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    assert evaluated(tmp_path / "nowhere") == 2
    assert "nowhere: File exists" in capfd.readouterr().err


def test_retry_leaves_a_running_run_alone(undisturbed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    stages = sorted(out.glob("stages/*"))
    with locked(out):
        assert exit_code("retry", str(out)) == 1
    assert "in use by another demur process" in capfd.readouterr().err
    assert sorted(out.glob("stages/*")) == stages


@pytest.mark.parametrize(
    ("limit", "most", "words"),
    [(resource.RLIMIT_NOFILE, 40, ""), (resource.RLIMIT_FSIZE, 20_000, "full or failing"), (resource.RLIMIT_FSIZE, 100_000, "")],
    ids=["descriptors", "small files", "files"],
)  # fmt: skip
def test_limits_of_the_system_end_in_a_sentence(limit: int, most: int, words: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demur", *EVAL, "--out", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60,
        preexec_fn=lambda: resource.setrlimit(limit, (most, most)),
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode == (1 if words else done.returncode)
    assert words in done.stderr


def test_what_a_study_runs_and_what_is_broken_is_said(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "foreign.py").write_text("raise SystemExit('ran')\n")
    study = {"name": "c", "base": "target", "arms": {"a": {}}, "bench": [{"name": "mini_harm"}]}
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(study | {"models": {"target": {"script": "foreign:script"}}}))
    assert exit_code("plan", str(path)) == 0
    assert "code that this study runs: models.target.script: foreign:script" in capfd.readouterr().out
    assert exit_code(*EVAL, "--set", "a.b=[x") == 2
    assert "the value is not readable as YAML" in capfd.readouterr().err
    broken = tmp_path / "broken"
    shutil.copytree(undisturbed, broken)
    (broken / "study.yaml").write_text("[")
    assert exit_code("report", str(broken)) == 2
    assert "not readable as YAML" in capfd.readouterr().err


@pytest.mark.slow
def test_what_a_terminal_obeys_is_not_printed(tmp_path: Path) -> None:
    said = demur(
        "eval", "mini_harm", "--target", "script:stand_in", "--set", 'name="x\x1b[31m\u202e"', "--out", str(tmp_path)
    )
    assert said.returncode == 2
    assert not {"\x1b", "\u202e"} & set(said.stderr)
