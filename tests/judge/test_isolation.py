"""Hostile programs: each ends as it should, gets at nothing, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from demur.errors import UserError
from demur.judge import isolation
from demur.judge.escapes import LIMITS, Escape, attempt, load, located, result_of
from demur.judge.isolation import Limits, Run, run_program

PROGRAMS = load() | load(Path(__file__).with_name("escapes.toml"))
needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


def left_over(token: str) -> list[int]:
    """Processes of this machine whose command line holds a token."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if token.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


@pytest.mark.slow
@needs_bubblewrap
@pytest.mark.parametrize("name", PROGRAMS)
def test_hostile(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    token = f"token-{os.getpid()}-{name.replace(' ', '-')}"
    monkeypatch.setattr(isolation, "PRELUDE", isolation.PRELUDE + f"# {token}\n")
    monkeypatch.setenv("DEMUR_TEST_SECRET", token)
    here = set(os.listdir("."))
    program = PROGRAMS[name]
    run = attempt(program)
    assert result_of(name, program, run).held, (run.ending, run.stdout[:300], run.stderr[-300:])
    assert token.encode() not in run.stdout
    deadline = time.monotonic() + 5
    while left_over(token) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left_over(token) == []
    assert set(os.listdir(".")) == here


@pytest.mark.parametrize("name", ["loopback", "reading outside", "symlinks"])
def test_the_same_programs_do_get_out_without_isolation(name: str, tmp_path: Path) -> None:
    """Otherwise their failing would prove nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = located(PROGRAMS[name].source, port=server.getsockname()[1])
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, cwd=tmp_path, check=False)
    assert b"ESCAPED" in done.stdout


def test_an_escape_or_a_wrong_ending_is_said() -> None:
    program = Escape("", ("time",))
    assert result_of("x", program, Run("time", None, 1.0, b"", b"")).held
    assert not result_of("x", program, Run("time", None, 1.0, b"ESCAPED", b"")).held
    assert not result_of("x", program, Run("ok", 0, 1.0, b"", b"")).held


@pytest.mark.slow
@needs_bubblewrap
def test_a_neighbour_is_not_disturbed() -> None:
    bomb = threading.Thread(target=run_program, args=(PROGRAMS["fork bomb"].source,), kwargs={"limits": LIMITS})
    bomb.start()
    try:
        source = "import os\npid = os.fork()\nif pid: os.waitpid(pid, 0); print(sum(range(10)))"
        runs = [run_program(source, limits=Limits(seconds=5)) for _ in range(5)]
    finally:
        bomb.join()
    assert [(run.ending, run.stdout) for run in runs] == [("ok", b"45\n")] * 5


@needs_bubblewrap
def test_an_honest_program_sees_its_input_and_nothing_else() -> None:
    source = (
        "import sys, os\nprint(input()[::-1], len(sys.stdin.read()), __name__, sys.argv, os.getcwd(), os.listdir('.'))"
    )
    run = run_program(source, stdin=b"abc\n" + b"x" * 5_000_000)
    assert run.ending == "ok"
    assert run.exit == 0
    assert run.stdout == b"cba 5000000 __main__ ['/box/main.py'] /box ['main.py']\n"


@needs_bubblewrap
@pytest.mark.parametrize(
    ("source", "ending", "code"),
    [
        ("raise SystemExit(3)", "error", 3),
        ("1/0", "error", 1),
        ("not python", "error", 1),
        ("", "ok", 0),
        ("\0", "error", 1),
    ],
)
def test_exit_codes(source: str, ending: str, code: int) -> None:
    run = run_program(source)
    assert (run.ending, run.exit) == (ending, code)


def test_without_bubblewrap_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="bubblewrap"):
        run_program("print(1)")


@pytest.mark.slow
@needs_bubblewrap
def test_descriptors_are_given_back() -> None:
    run_program("print(1)")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        run_program("print(1)")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.slow
@needs_bubblewrap
def test_a_busy_machine_changes_no_verdict() -> None:
    """A program that needs two thirds of its time passes beside eight others that take the processors."""
    source = "import time\nwhile time.process_time() < 0.6: pass\nprint('done')"
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 * (os.cpu_count() or 1))]
    try:
        run = run_program(source, limits=LIMITS)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert (run.ending, run.stdout) == ("ok", b"done\n")


@needs_bubblewrap
def test_contest_programs_find_numpy_where_it_can_be_given() -> None:
    run = run_program("import numpy as np\nprint(int(np.arange(5).sum()), np.linalg.inv(np.eye(2))[0, 0])")
    if not isolation.numpy() and run.ending == "error":
        pytest.skip("the Python under /usr is of another version and has no numpy")
    assert (run.ending, run.stdout) == ("ok", b"10 1.0\n"), run.stderr
    assert run_program("open('/packages/x', 'w')").ending == "error"
