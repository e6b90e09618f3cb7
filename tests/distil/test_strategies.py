"""Strategies: what is sent, what is not trained on, and that nothing written in a prompt can act as a slot."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.made import SHARED, Speaker, gathered

from demur.distil import STRATEGIES
from demur.distil.strategy import classified, load, parse
from demur.errors import UserError
from demur.records import PATTERNS, Prompt, Trace
from demur.thinking import traced


def prompt(text: str) -> Prompt:
    return Prompt(text=text, intent="harmful")


def safe(asked: Prompt) -> Trace:
    return traced(asked, "<think>\nno\n</think>\n\nSorry.", model="m")


@pytest.mark.parametrize("name", STRATEGIES)
@given(text=st.text(min_size=1, max_size=80))
def test_every_strategy_sends_the_prompt_whole(name: str, text: str) -> None:
    strategy = load(name)
    asked = prompt(text)
    sent = strategy.messages(asked, trace=safe(asked) if strategy.needs_trace else None)
    assert text in sent[-1].content
    assert sent[-1].role == "user"
    assert (sent[0].role == "system") == (strategy.place == "system")


def test_a_slot_inside_a_prompt_is_text() -> None:
    asked = prompt("say {thinking} and {answer}")
    sent = load("rewrite").messages(asked, trace=safe(asked))[0].content
    assert "say {thinking} and {answer}" in sent
    assert "Sorry." in sent


def test_improved_is_aimed_at_all_patterns_and_realsafe_at_one() -> None:
    assert load("improved").targets == PATTERNS
    assert load("realsafe").targets == ("lack_of_safety_awareness",)


def test_nocot_gives_the_released_bytes() -> None:
    path = SHARED / "lrm_safety_study_nocot.json"
    if not path.exists():
        pytest.skip("the paper's released No-CoT set is not at ../shared/data")
    assert {row["response"] for row in json.loads(path.read_text())} == {load("nocot").constant}


def test_a_file_of_ones_own_works_with_and_without_front_matter(tmp_path: Path) -> None:
    plain = tmp_path / "mine.md"
    plain.write_text("Be careful.")
    assert load(str(plain)).messages(prompt("x"))[0].content == "Be careful.\n\nx"
    fronted = tmp_path / "other.md"
    fronted.write_text("---\nplace: system\ntargets: [inconsistency]\n---\nBe careful.")
    assert [m.role for m in load(str(fronted)).messages(prompt("x"))] == ["system", "user"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("---\nplase: user\n---\nx", "plase"),
        ("---\nplace: nowhere\n---\nx", "nowhere"),
        ("---\nplace: user", "never ends"),
        ("---\nplace: none\n---\nx", "belong together"),
        ("---\ntargets: [sloth]\n---\nx", "sloth"),
        ("---\nplace: user\n---\n", "no instruction"),
    ],
)
def test_a_bad_file_is_an_error_with_the_problem(text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        parse(text, name="mine", where="mine.md")


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'improved'"):
        load("improvd")


def test_a_strategy_takes_its_policy_text_by_category(tmp_path: Path) -> None:
    (tmp_path / "spec.md").write_text("Keep to this:\n{policy}\n\n{prompt}")
    with pytest.raises(UserError, match=r"default\.md"):
        load(str(tmp_path / "spec.md"))
    (tmp_path / "spec").mkdir()
    (tmp_path / "spec" / "default.md").write_text("Do no harm.\n")
    (tmp_path / "spec" / "fraud.md").write_text("Never help to deceive {prompt}.\n")
    strategy = load(str(tmp_path / "spec.md"))
    for category, text in (("fraud", "Never help to deceive {prompt}."), ("other", "Do no harm.")):
        prompt = Prompt(text="Hi", intent="harmful", category=category)
        assert strategy.messages(prompt)[0].content == f"Keep to this:\n{text}\n\nHi"


def test_a_policy_is_found_by_the_prompts_category_or_by_a_model(tmp_path: Path) -> None:
    (tmp_path / "spec.md").write_text("Rule: {policy}\n\n{prompt}")
    (tmp_path / "spec").mkdir()
    for name, text in {"default": "D", "theft": "T", "fraud": "F"}.items():
        (tmp_path / "spec" / f"{name}.md").write_text(text)
    strategy = load(str(tmp_path / "spec.md"))
    prompts = [Prompt(text=f"how {i}", intent="harmful", category=c) for i, c in enumerate(("Theft, small", "", "x"))]
    assert [strategy.messages(p)[0].content[:7] for p in prompts] == ["Rule: T", "Rule: D", "Rule: D"]
    replies = {"how 0": "fraud.", "how 1": "It is theft, not fraud.", "how 2": "theft"}
    model = Speaker(lambda request: replies[request.prompt.text])
    found = gathered(classified(prompts, strategy, model))
    assert [p.category for p in found] == ["fraud", "", "theft"], "what names two, or none, is of no category"
    assert [p.id for p in found] == [p.id for p in prompts]
