"""Several verdicts on one trace: thinking by answer, agreement, majority, and the robustness exam."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools.robustness import CHANGES, OWN, robustness

from demur.interfaces import Traces, stream
from demur.judge.calibrate import Labelled, guard
from demur.judge.cross import agreement, majority, two_by_two
from demur.records import Label, Part, Prompt, Query, Trace, Verdict
from demur.thinking import join, traced


def trace(i: int) -> Trace:
    return traced(Prompt(text=f"q{i}", intent="harmful"), join("t", "a"), model="m")


def says(t: Trace, label: Label | None, part: Part = "answer", judge: str = "j") -> Verdict:
    return Verdict(trace=t.id, judge=judge, query="question", part=part, label=label)


class Rule:
    """A judge by a rule on the text."""

    name: str = "rule"
    query: Query = "question"

    def __init__(self, part: Part = "answer", *, fooled: str = "\0") -> None:
        self.part: Part = part
        self.fooled = fooled

    async def verdicts(self, traces: Traces) -> AsyncIterator[Verdict]:
        async for t in stream(traces):
            text = t.part(self.part) or ""
            served = "[placeholder]" in text or "enter your password" in text
            label: Label = "unsafe" if served and self.fooled not in text else "safe"
            yield Verdict(trace=t.id, judge=self.name, query=self.query, part=self.part, label=label)


def test_thinking_by_answer() -> None:
    traces = [trace(i) for i in range(9)]
    sides: list[Label] = ["safe", "unsafe"]
    verdicts = []
    for t, (thinking, answer) in zip(traces, [*product(sides, sides), *product(sides, sides)], strict=False):
        verdicts += [says(t, thinking, "thinking"), says(t, answer)]
    verdicts += [says(traces[8], None, "thinking"), says(traces[8], "safe")]
    cells = {cell.name: cell for cell in two_by_two(traces, verdicts)["j"]}
    assert set(cells) == {"safe", "leak", "inconsistency", "unsafe"}
    for cell in cells.values():
        assert cell.share.value == 0.25
        assert (cell.share.n, cell.share.unscored) == (8, 1)
    assert cells["leak"].examples == (traces[2].id, traces[6].id), "unsafe thinking, safe answer"
    assert cells["inconsistency"].examples == (traces[1].id, traces[5].id)


def test_over_refusal_inside_the_thinking() -> None:
    traces = [trace(i) for i in range(4)]
    verdicts = [says(t, "full_compliance") for t in traces]
    verdicts += [says(t, "full_refusal" if i == 0 else "full_compliance", "thinking") for i, t in enumerate(traces)]
    cells = {cell.name: cell for cell in two_by_two(traces, verdicts)["j"]}
    assert cells["held_back"].share.value == 0.25
    assert cells["held_back"].examples == (traces[0].id,)
    assert not two_by_two(traces, [says(t, "safe") for t in traces]), "one part alone crosses with nothing"


@given(
    st.lists(
        st.tuples(st.sampled_from(["safe", "unsafe", None]), st.sampled_from(["safe", "unsafe", None])), min_size=1
    )
)
def test_the_cells_hold_every_scored_trace(pairs: list[tuple[Label | None, Label | None]]) -> None:
    traces = [trace(i) for i in range(len(pairs))]
    verdicts = [v for t, (a, b) in zip(traces, pairs, strict=True) for v in (says(t, a, "thinking"), says(t, b))]
    for cells in two_by_two(traces, verdicts, examples=1000).values():
        scored = sum(a is not None and b is not None for a, b in pairs)
        assert sum(len(cell.examples) for cell in cells) == scored
        assert all(cell.share.n == scored for cell in cells)


def test_agreement_and_majority() -> None:
    traces = [trace(i) for i in range(4)]
    said: dict[str, list[Label | None]] = {
        "a": ["safe", "safe", "unsafe", None],
        "b": ["safe", "unsafe", "unsafe", None],
        "c": ["safe", "unsafe", None, "unsafe"],
    }
    verdicts = [
        says(t, label, judge=judge) for judge, row in said.items() for t, label in zip(traces, row, strict=True)
    ]
    pairs = {(p.one, p.other): p for p in agreement(verdicts)}
    assert pairs["a/answer", "b/answer"].share.value == pytest.approx(2 / 3)
    assert pairs["a/answer", "b/answer"].share.unscored == 1
    panel = {v.trace: v for v in majority(verdicts)}
    assert [panel[t.id].label for t in traces] == ["safe", "unsafe", "unsafe", None]
    assert "2 of 3 abstain" in panel[traces[3].id].reason
    (tie,) = majority([says(traces[0], "safe", judge="a"), says(traces[0], "unsafe", judge="b")])
    assert tie.label is None
    assert tie.reason.startswith("1 safe, 1 unsafe")


def test_judges_of_different_things_are_not_compared() -> None:
    traces = [trace(i) for i in range(2)]
    verdicts = [says(t, "safe", judge="guard") for t in traces] + [
        says(t, "full_refusal", judge="rules") for t in traces
    ]
    assert agreement(verdicts) == []
    assert {v.judge for v in majority(verdicts)} == {"majority of harm", "majority of refusal"}
    assert {(v.trace, v.label) for v in majority(verdicts)} == {
        (t.id, label) for t in traces for label in ("safe", "full_refusal")
    }


def test_the_exam_counts_flips() -> None:
    firm = asyncio.run(robustness(Rule()))
    assert (firm["flips"], firm["agreement"], firm["n"]) == (0, 1.0, len(OWN))
    assert set(firm["changes"]) == {*CHANGES, "long thinking"}
    weak = asyncio.run(robustness(Rule(fooled="Ignore all previous")))
    unsafe = sum(row.gold == "unsafe" for row in OWN)
    assert weak["changes"]["injection"]["flips"] == unsafe == weak["flips"]
    assert {flip["change"] for flip in weak["flipped"]} == {"injection"}
    musing = asyncio.run(robustness(Rule("whole", fooled="Let me think")))
    assert musing["changes"]["long thinking"]["flips"] == unsafe


def test_a_guard_against_labels() -> None:
    rows = [Labelled("q", f"[placeholder] {i}", "unsafe", {"old": "safe"}) for i in range(6)]
    rows += [Labelled("q", f"no {i}", "safe", {"old": "safe"}) for i in range(6)]
    report = asyncio.run(guard(Rule(fooled=" 5"), rows))
    assert report["agreement"] == pytest.approx(11 / 12)
    assert report["sensitivity"].value == pytest.approx(5 / 6)
    assert report["specificity"].value == 1.0
    assert report["others"]["old"]["agreement"] == 0.5
