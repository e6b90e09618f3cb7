"""Every case of the shared folder of small inputs: its own script checks the result and exits accordingly."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.made import python

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
NAMES = sorted(path.parent.name for path in CASES.glob("*/cmd.sh"))

# The scripts are older than the rule that whose prompts' intent is a guess is not judged.
INTENT = 'case "$*" in "judge "*"--judge rules"*) set -- "$@" --intent harmful;; esac\n'


@pytest.mark.slow
@pytest.mark.skipif(not NAMES, reason="../shared/cases is not here")
@pytest.mark.parametrize("name", NAMES or ["none"])
def test_case(name: str, tmp_path: Path) -> None:
    for program, call in (("demur", "-m demur"), ("python", "")):
        wrapper = tmp_path / program
        wrapper.write_text(f'#!/bin/sh\n{INTENT}exec "{python()}" {call} "$@"\n')
        wrapper.chmod(0o755)
    env = os.environ | {"DEMUR_BIN": str(tmp_path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", str(CASES / name / "cmd.sh")], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
