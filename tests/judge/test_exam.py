"""The robustness exam, and guards against labels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tools.robustness import CHANGES, OWN, robustness

from demur.interfaces import Traces, stream
from demur.judge.calibrate import Labelled, guard
from demur.records import Label, Part, Query, Verdict


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
    assert report["agreement"].value == pytest.approx(11 / 12)
    assert report["sensitivity"].value == pytest.approx(5 / 6)
    assert report["specificity"].value == 1.0
    assert report["others"]["old"]["agreement"].value == 0.5
