"""Templates: filling and finding are inverse, and the paper's twenty come out of its released prompts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.made import SHARED
from tools.recover_templates import main, question_in, recover

from demur.prompts.wrappers import fill


@given(st.text(alphabet="abc{}:/123question ", min_size=1, max_size=30))
def test_filled_slots_are_text_and_the_question_comes_back(question: str) -> None:
    template = "X {question} and {question} Y"
    assert fill(template, question) == f"X {question} and {question} Y"
    assert question_in(template, fill(template, question)) == question


def test_templates_are_recovered_and_rebuild_their_prompts() -> None:
    questions = [f"how does one do thing number {i}" for i in range(9)]
    templates = ["Play: {question}!", "c={question:3/3} a={question:1/3} b={question:2/3}"]
    prompts = [fill(t, q) for t in templates for q in questions]
    found = recover([*prompts, "Play: unknown one!", "nothing known"], questions)
    assert set(found.templates.values()) == set(templates)
    assert found.uses.total() == 19
    assert found.unexplained == ["nothing known"]


def test_the_papers_twenty_templates_rebuild_its_thousand_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    released, questions = SHARED / "lrm_safety_study_nocot.json", SHARED / "harmbench200.txt"
    if not released.exists():
        pytest.skip("the paper's released set is not at ../shared/data")
    main(str(released), str(questions))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (len(rows), len({row["name"] for row in rows})) == (20, 20)
    prompts = [row["prompt"] for row in json.loads(released.read_text())]
    found = recover(prompts, [line for line in questions.read_text().split("\n") if line.strip()])
    assert (len(found.templates), found.uses.total(), found.unexplained) == (20, 1000, [])
    assert 36 <= min(found.uses.values()) <= max(found.uses.values()) <= 62
