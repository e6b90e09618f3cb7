from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.made import publish

from demur.cli.check import contamination as check_contamination
from demur.cli.common import Flags
from demur.errors import CheckFailed, UserError
from demur.records import Example, ExamplePart, Failure, Origin, Prompt, Trace
from demur.thinking import traced

QUESTIONS = [f"Tell me all about the {thing} of the kingdom, please" for thing in ("roads", "wells", "mines", "ships")]


def reply(question: str) -> Trace:
    parent = Prompt(text=question, intent="harmful")
    prompt = Prompt(text=f"As an actor: {question}", question=question, parent=parent.id, attack="x", intent="harmful")
    return traced(prompt, "no", model="m")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    def row(text: str) -> Example:
        part = ExamplePart(role="user", text=text, train=False)
        return Example(parts=(part,), origin=Origin(prompt=text))

    publish(tmp_path, "mix-held", "mix", {"examples": [row(QUESTIONS[0]), row("Something else")]})
    publish(tmp_path, "mix-free", "mix", {"examples": [row("Something else")]})
    traces = [reply(question) for question in QUESTIONS[:3]]
    lost = Failure(prompt=reply(QUESTIONS[3]).prompt, model="m", kind="timeout", detail="")
    records: dict[str, list[Any]] = {"traces": traces, "failures": [lost]}
    for arm in ("held", "free"):
        settings = {"arm": arm, "seed": 0, "bench": {"name": "advbench"}}
        publish(tmp_path, f"evaluate-{arm}", "evaluate", records, settings=settings)
    return tmp_path


def test_each_arm_is_compared_with_what_it_was_scored_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckFailed, match="1 of 3 training rows"):
        check_contamination(run, Flags(json=True))
    report = json.loads(capsys.readouterr().out)
    held = {name: one["compared"][0]["rows"] for name, one in report["certificates"].items()}
    assert held == {"held": 1, "free": 0}
    assert report["certificates"]["held"]["compared"][0]["prompts"] == 4
    with pytest.raises(UserError, match="rows of 2 arms"):
        check_contamination(run, Flags(), remove=True)
