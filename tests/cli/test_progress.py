"""Without a terminal: starts, ends, and once a minute how far it is and how long it takes."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from demur.cli import progress
from demur.pipeline.run import Event


def test_plain_lines_say_once_a_minute_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    with progress.Display(Console(file=out, width=100), ["train-a", "eval-a"], title="study") as show:
        show(Event("train-a", "started"))
        for step in range(1, 121):
            clock[0] += 1.0
            show(Event("train-a", "progress", step, 400, "loss 0.21"))
        show(Event("train-a", "done", seconds=120.0, remark="120 steps"))
        show(Event("eval-a", "reused"))
    lines = out.getvalue().splitlines()
    assert lines[:2] == ["study", "  train-a: started"]
    (far,) = [line for line in lines if "left" in line]
    assert re.fullmatch(r"  train-a: 61/400  0:05:39 left  loss 0.21", far)
    assert "train-a: done  120.0 s  120 steps  [1/2]" in lines[3]
    assert "1 of 2 stages were there already" in lines[-1]
