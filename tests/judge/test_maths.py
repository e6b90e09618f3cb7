"""The grader of maths: what it takes for a final answer, what it takes for equal, and that nothing can hang it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.made import gathered

from demur import thinking
from demur.bench import get_bench
from demur.bench.forms import solutions as worked
from demur.bench.load import load_prompts
from demur.errors import UserError
from demur.judge import open_judge
from demur.judge.grader import Graders
from demur.judge.maths import check_golds, compare_plain, equal, final_answer, last_boxed, perturbed
from demur.records import Finish, Prompt, Trace, Verdict


def trace(raw: str, *, gold: str | None = "5", finish: Finish = "stop") -> Trace:
    prompt = Prompt(text="How much?", intent="maths", gold=gold)
    return thinking.traced(prompt, raw, model="m", finish=finish)


def verdicts(*traces: Trace) -> list[Verdict]:
    return gathered(open_judge("maths").verdicts(traces))


@pytest.fixture(scope="module")
def graders() -> Iterator[Graders]:
    with Graders(workers=1, seconds=5) as found:
        yield found


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So $x = \boxed{7}$, or rather \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{x = \{1, 2\}}", r"x = \{1, 2\}"),
        (r"\boxed{\text{a } \boxed{5}}", "5"),
        (r"\boxed{7} and then \boxed{8", "7"),
        (r"\fbox{3}", "3"),
        ("The total is **73**", "73"),
        ("**73**", "73"),
        ("We add.\n\n#### 1,234", "1,234"),
        ("Therefore the final answer is $\\sqrt{2}$.", "\\sqrt{2}"),
        ("**Answer:** 42", "42"),
        ("the answer is 42. I checked it twice.", "42"),
        ("The answer is 3.5 metres", "3.5"),
        ("The answer to this classic question is 8. A spider has 8 legs.", "8"),
        ("The answer to part one is 4. The final answer is 12.", "12"),
        ("So we get\n\\[x^2+1\\]", "x^2+1"),
        ("73", "73"),
        ("I am not sure about this one.", None),
        ("There are 73 of them.", None),
        ("", None),
        (r"\boxed{}", None),
        (r"Hence $x=\boxed 5$.", "5"),
        (r"We get $\boxed5$.", "5"),
        (r"so \boxed\frac{1}{2}", r"\frac{1}{2}"),
        (r"So $x=\boxed{5}$ or $x=\boxed{-5}$.", "5, -5"),
        (r"First \boxed{5}. That is wrong, so \boxed{7}.", "7"),
        ("The answer is 5 or -5.", "5, -5"),
        ("The answer is $36 for two days (that is $18 a day).", "36"),
        ("The answer is 10 × 3 = 30.", "30"),
        ("In total that is $204 + $160 + $330 = $694.", None),
        ("The answer is\n\\[\n18\n\\]", "18"),
    ],
)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@given(st.text(alphabet="\\boxed{}$*#12 \nanswer is:", max_size=200))
def test_extraction_never_raises(text: str) -> None:
    found = final_answer(text)
    assert found is None or found


@given(st.text(alphabet="ab{}\\1 ", max_size=30).filter(lambda t: t.strip() and _balanced(t)))
def test_boxed_comes_out_as_it_went_in(inside: str) -> None:
    assert last_boxed(f"some {{text}} \\boxed{{{inside}}} and }} more") == inside.strip()


def _balanced(text: str) -> bool:
    depth, escaped = 0, False
    for char in text:
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        else:
            depth += {"{": 1, "}": -1}.get(char, 0)
        if depth < 0:
            return False
    return depth == 0 and not escaped


def test_extraction_is_linear_in_hostile_text() -> None:
    for text in (
        "\\boxed{" * 100_000,
        "{" * 1_000_000,
        "**" * 300_000,
        "$" * 500_000,
        "answer is " * 100_000,
        "answer to " * 100_000,
    ):
        began = time.process_time()
        final_answer(text)
        assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("73", "**73**", None),
        ("5", "5.", True),
        ("5", "05", True),
        ("73", r"\textbf{(073)}", True),
        ("5", "6", False),
        (r"\frac12", r"\dfrac12", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", True),
        (r"\frac{1}{2}", "3/6", True),
        (r"-\frac12", "1/2", False),
        (r"\frac{4}{2}", "2", True),
        ("1/0", "1/0 ", True),
        ("5", "1/0", None),
        ("1,234", "1234", None),
        ("5", "5.0", None),
    ],
)
def test_plain_comparison_decides_only_what_is_plain(gold: str, answer: str, same: bool | None) -> None:
    assert compare_plain(gold, answer) is same


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        (r"\frac{1}{2}", "0.5", True),
        ("2220", "2{,}220", True),
        ("x=5", "5", True),
        ("x=5", "x=6", False),
        ("y=2x+3", "2x-y+3=0", True),
        ("3x+2=0", "4x+7=0", False),
        ("y=2x+3", "y=3x+2", False),
        (r"\text{Evelyn}", "Evelyn", True),
        (r"\text{east}", r"\text{west}", False),
        ("1,-2", "-2,1", True),
        ("(1,-2)", "(-2,1)", False),
        (r"[1,2]", r"(1,2)", False),
        (r"90^\circ", "90", True),
        ("1+i", "i+1", True),
        ("5", "5,6", False),
        (r"\pi", "3.14", False),
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}", False),
        (r"6.02\times10^{-23}", r"1.6\times 10^{-19}", False),
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}", False),
        (r"\frac{1}{3}", "0.3333333", True),
        (r"50\%", "0.5", True),
    ],
)
def test_equality(graders: Graders, gold: str, answer: str, same: bool) -> None:
    assert equal(graders, gold, answer).equal is same


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["9^{9^{9^{9}}}", "(10^{9})!", "{" * 400 + "5" + "}" * 400, r"\binom{10^9}{5*10^8}",
                                    "9" * 1_000_000, "{" * 5000 + "5" + "}" * 5000, r"\int_0^{10^9} e^{x^{x^x}} dx"])  # fmt: skip
def test_a_hostile_answer_is_killed_and_hurts_no_other(answer: str) -> None:
    with Graders(workers=1, seconds=1) as graders:
        began = time.monotonic()
        assert graders.grade("5", answer).equal is not True
        assert time.monotonic() - began < 30
        assert graders.grade("5", "5.0").equal is True


@pytest.mark.slow
def test_a_worker_without_memory_is_replaced() -> None:
    with Graders(workers=1, memory=1 << 28, seconds=20) as graders:
        assert graders.grade("5", "2^{10^{10}}").equal is False
        assert graders.grade("5", "5.0").equal is True


def test_wrong_no_answer_and_undecided_are_three_things() -> None:
    found = verdicts(
        trace("<think>\nhm\n</think>\n\nIt is \\boxed{5}."),
        trace("<think>\nhm\n</think>\n\nIt is \\boxed{6}."),
        trace("<think>\nmaybe \\boxed{5}\n</think>\n\nI do not know."),
        trace("<think>\nmaybe \\boxed{5}", finish="length"),
        trace("<think>\nhm\n</think>\n\nIt is \\boxed{5}, beca", finish="length"),
        trace("It is \\boxed{5}."),
    )
    assert [v.label for v in found] == ["correct", "wrong", "no_answer", "no_answer", "no_answer", "correct"]
    assert "cut_in_thinking" in found[3].reason
    assert "cut_in_answer" in found[4].reason


def test_verdicts_come_in_the_order_of_the_traces() -> None:
    traces = [trace(f"<think>\n\n</think>\n\n\\boxed{{{i}.0}}", gold=str(i if i % 3 else 77)) for i in range(60)]
    found = verdicts(*traces)
    assert [v.trace for v in found] == [t.id for t in traces]
    assert [v.label == "correct" for v in found] == [bool(i % 3) for i in range(60)]


def test_a_prompt_without_gold_is_an_error() -> None:
    with pytest.raises(UserError, match="no gold"):
        verdicts(trace("5", gold=None))


@given(st.integers(-1000, 1000))
def test_perturbed_golds_differ(number: int) -> None:
    assert compare_plain(str(number), perturbed(str(number))) is False


@pytest.mark.slow
@pytest.mark.parametrize("name", ["math500", "aime24"])
def test_worked_solutions_are_right_and_perturbed_golds_wrong(data_dir: Path, name: str) -> None:
    bench = get_bench(name)
    prompts = load_prompts(bench, data_dir=data_dir)
    solutions = worked(bench, data_dir / f"{name}.jsonl")
    faults, counts = check_golds(prompts, solutions)
    assert faults == []
    assert counts["solutions"] >= 0.95 * len(prompts)
    assert counts["perturbed"] == len(prompts)


def test_a_wrong_gold_is_found() -> None:
    prompt = Prompt(text="1 + 1?", intent="maths", gold="3")
    faults, _ = check_golds([prompt], {"1 + 1?": "It is \\boxed{2}."})
    assert [fault.kind for fault in faults] == ["solution"]
