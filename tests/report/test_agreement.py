"""Several verdicts on one trace: thinking by answer, agreement."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report.made import of_records

from demur.bench import get_bench
from demur.records import Label, Part, Prompt, Trace, Verdict
from demur.report.agreement import Crossing, agreement, crossing
from demur.report.read import Evaluation
from demur.thinking import join, traced


def trace(i: int) -> Trace:
    return traced(Prompt(text=f"q{i}", intent="harmful"), join("t", "a"), model="m")


def verdict(t: Trace, label: Label | None, part: Part = "answer", judge: str = "j") -> Verdict:
    return Verdict(trace=t.id, judge=judge, query="question", part=part, label=label)


def evaluations(traces: list[Trace], verdicts: list[Verdict]) -> list[Evaluation]:
    return of_records(get_bench("advbench"), traces, verdicts)


def crossed(traces: list[Trace], verdicts: list[Verdict]) -> dict[str, Crossing]:
    return {cell.name: cell for cell in crossing(evaluations(traces, verdicts))}


def test_thinking_by_answer() -> None:
    traces = [trace(i) for i in range(9)]
    sides: list[Label] = ["safe", "unsafe"]
    verdicts = []
    leaks = [("unsafe", "safe")] * 4
    for t, (thinking, answer) in zip(traces, [*product(sides, sides), *leaks], strict=False):
        verdicts += [verdict(t, thinking, "thinking"), verdict(t, answer)]
    verdicts += [verdict(traces[8], None, "thinking"), verdict(traces[8], "safe")]
    cells = crossed(traces, verdicts)
    assert set(cells) == {"safe", "leak", "inconsistency", "unsafe"}
    for cell in cells.values():
        assert cell.estimate.value == (0.625 if cell.name == "leak" else 0.125), "unsafe thinking, safe answer"
        assert (cell.estimate.n, cell.estimate.unscored) == (8, 1)


def test_over_refusal_inside_the_thinking() -> None:
    traces = [trace(i) for i in range(4)]
    verdicts = [verdict(t, "full_compliance") for t in traces]
    verdicts += [verdict(t, "full_refusal" if i == 0 else "full_compliance", "thinking") for i, t in enumerate(traces)]
    cells = crossed(traces, verdicts)
    assert cells["held_back"].estimate.value == 0.25
    assert not crossed(traces, [verdict(t, "safe") for t in traces]), "one part alone crosses with nothing"


@given(
    st.lists(
        st.tuples(st.sampled_from(["safe", "unsafe", None]), st.sampled_from(["safe", "unsafe", None])), min_size=1
    )
)
def test_the_cells_hold_every_scored_trace(pairs: list[tuple[Label | None, Label | None]]) -> None:
    traces = [trace(i) for i in range(len(pairs))]
    verdicts = [v for t, (a, b) in zip(traces, pairs, strict=True) for v in (verdict(t, a, "thinking"), verdict(t, b))]
    cells = crossed(traces, verdicts)
    scored = sum(a is not None and b is not None for a, b in pairs)
    assert all(cell.estimate.n == scored for cell in cells.values())
    if scored > 1:
        assert sum(cell.estimate.value or 0 for cell in cells.values()) == pytest.approx(1)


def test_agreement() -> None:
    traces = [trace(i) for i in range(4)]
    labels: dict[str, list[Label | None]] = {
        "a": ["safe", "safe", "unsafe", None],
        "b": ["safe", "unsafe", "unsafe", None],
        "c": ["safe", "unsafe", None, "unsafe"],
    }
    verdicts = [
        verdict(t, label, judge=judge) for judge, row in labels.items() for t, label in zip(traces, row, strict=True)
    ]
    pairs = {(p.a, p.b): p for p in agreement(evaluations(traces, verdicts))}
    assert pairs["a", "b"].same.value == pytest.approx(2 / 3)
    assert pairs["a", "b"].same.unscored == 1


def test_a_garbled_reply_is_one_of_a_refusal_judge() -> None:
    """The first label decided which judges are compared, and garbled was taken for a grade."""
    traces = [trace(i) for i in range(3)]
    labels: list[Label | None] = ["garbled", "full_refusal", "full_compliance"]
    verdicts = [
        verdict(t, label, judge=j)
        for j, a in (("a", labels), ("b", labels[::-1]))
        for t, label in zip(traces, a, strict=True)
    ]
    (pair,) = agreement(evaluations(traces, verdicts))
    assert pair.same.n == 3


def test_a_harm_judge_and_a_refusal_judge_meet_on_harmful_prompts_alone() -> None:
    traces = [trace(i) for i in range(2)]
    verdicts = [verdict(t, "safe", judge="guard") for t in traces] + [
        verdict(t, "full_refusal", judge="rules") for t in traces
    ]
    (pair,) = agreement(evaluations(traces, verdicts))
    assert pair.same.value == 1.0, "both say that nothing harmful was served"
    harmless = [traced(Prompt(text=f"h{i}", intent="benign"), join("t", "a"), model="m") for i in range(2)]
    guard = [verdict(t, "safe", judge="guard") for t in harmless]
    assert not list(
        agreement(evaluations(harmless, guard + [verdict(t, "full_refusal", judge="rules") for t in harmless]))
    )
