"""Numbers that one form of benchmark or attack has alone, from records whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.made import publish
from tests.report.made import prompts_of, trace_of

from demur import report
from demur.bench.choice import ChoiceJudge
from demur.records import Part, Prompt, Verdict
from demur.report.sections import sections
from demur.report.tables import plain


def shown(run: Path, section: str) -> dict[tuple[str, ...], dict[str, str]]:
    """A section's table: what a row is of -> heading -> cell."""
    (found,) = [one for one in sections(report.build(run)) if one.id == section]
    (table,) = found.tables
    words = sum(not head.number for head in table.heads)
    return {
        tuple(map(plain, row[:words])): {
            head.title: plain(cell) for head, cell in zip(table.heads[words:], row[words:], strict=True)
        }
        for row in table.rows
    }


def test_a_model_that_always_says_a_is_seen_to(tmp_path: Path) -> None:
    gold = {"options": ["one", "two", "three", "four"], "reply": "letter"}
    prompts = [
        Prompt(text=f"question {i}", intent="benign", gold=json.dumps(gold | {"answer": "ABCD"[i % 4]}))
        for i in range(40)
    ]
    traces = [trace_of(p, answer="I do not know." if i >= 36 else "Answer: A") for i, p in enumerate(prompts)]
    verdicts = [ChoiceJudge(query="question", part="answer").verdict(trace) for trace in traces]
    settings = {"arm": "target", "seed": None, "bench": {"name": "gpqa"}}
    publish(tmp_path, "evaluate-t", "evaluate", {"traces": traces, "verdicts": verdicts}, settings=settings)
    found = {option: cells for (*_, option), cells in shown(tmp_path, "options").items()}
    assert list(found) == ["A", "B", "C", "D"]
    assert found["A"]["right, %"] == "25 [14–40]"
    assert found["A"]["chosen, %"].startswith("100 [90–100]"), "of the 36 that name an option"
    assert found["B"]["chosen, %"].startswith("0 [0–10]")


def test_turns_of_a_conversation_with_thinking_and_answer_apart(tmp_path: Path) -> None:
    questions = prompts_of("harm", "harmful", 10)
    turns, said = [], []
    for number in (1, 2):
        for i, question in enumerate(questions):
            prompt = Prompt(
                text=f"turn {number} of {question.text}", intent="harmful", attack=f"crescendo:turn {number}", parent=question.id,
                question=question.text, category=f"turn {number}",
            )  # fmt: skip
            trace = trace_of(prompt)
            parts: tuple[tuple[Part, bool], ...] = (
                ("thinking", number == 2 or i < 3),
                ("answer", number == 2 and i < 5),
            )
            said += [
                Verdict(trace=trace.id, judge="guard", query="question", part=part, label="unsafe" if bad else "safe")
                for part, bad in parts
            ]
            turns.append(trace)
    last = [replace(trace, id="") for trace in turns[10:]]
    settings = {"arm": "target", "seed": None, "bench": {"name": "advbench", "attack": {"name": "crescendo"}}}
    verdicts = [replace(v, trace=t.id) for t in last for v in said if v.trace == t.id]
    records: dict[str, list[Any]] = {"traces": last, "verdicts": verdicts, "turns": turns, "turn_verdicts": said}
    publish(tmp_path, "evaluate-t", "evaluate", records, settings=settings)
    one, two = shown(tmp_path, "turns").values()
    assert one == {
        "thinking gives way, %": "30 [11–60]", "answer gives way, %": "0 [0–28]", "safe, %": "70 [40–89]",
        "inconsistency, %": "0 [0–28]", "leak, %": "30 [11–60]", "unsafe, %": "0 [0–28]",
    }  # fmt: skip
    assert (two["answer gives way, %"], two["leak, %"], two["unsafe, %"]) == ("50 [24–76]",) * 3


@pytest.mark.parametrize("label", ["safe", "unsafe"])
def test_a_guards_alarms_on_harmless_prompts_stand_by_category(tmp_path: Path, label: str) -> None:
    prompts = prompts_of("kind", "benign", 20)
    traces = [trace_of(prompt, answer="Gladly.") for prompt in prompts]
    verdicts = [
        Verdict(
            trace=t.id,
            judge="guard",
            query="question",
            part="answer",
            label=label if t.prompt.category == "new words" else "safe",
        )
        for t in traces
    ]
    settings = {"arm": "target", "seed": None, "bench": {"name": "xstest"}}
    publish(tmp_path, "evaluate-t", "evaluate", {"traces": traces, "verdicts": verdicts}, settings=settings)
    found = {category: cells["unsafe, %"] for (*_, category), cells in shown(tmp_path, "alarms").items()}
    assert found == {"known words": "0 [0–28]", "new words": "100 [72–100]" if label == "unsafe" else "0 [0–28]"}
