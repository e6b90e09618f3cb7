"""Numbers that one form of benchmark or attack has alone, from records whose truth is known."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.made import publish
from tests.report.made import prompts_of, trace_of

from demur import report
from demur.bench.choice import ChoiceJudge
from demur.records import Part, Prompt, Verdict
from demur.report.data import published
from demur.report.metrics import Cell, Cells, Column
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


PAPER = Path(__file__).parents[3] / "shared" / "research" / "paper.md"


def _cells(arms: Sequence[str]) -> Cells:
    columns = [
        Column(bench, attack, metric, "j", "answer")
        for bench, attack, metric in (
            ("advbench@paper-v2", "none", "attack_success"), ("advbench@paper-v2", "pair@paper-v2", "attack_success"),
            ("xstest@paper-v2", "none", "over_refusal"), ("aime24@paper-v2", "none", "accuracy"), ("advbench", "none", "attack_success"),
        )
    ]  # fmt: skip
    return {arm: dict.fromkeys(columns, Cell()) for arm in arms}


def test_the_papers_numbers_stand_beside_every_cell_that_has_one() -> None:
    study: dict[str, Any] = {"base": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "arms": {"raw": {}}}
    study["arms"]["improved-100"] = {"format": "improved", "safety": 1000, "benign": 100}
    study["arms"]["improved-0"] = {"format": "improved", "safety": 1000, "benign": 0}
    study["arms"]["short-1e-4"] = {"format": "short", "safety": 1000, "benign": 100, "train": {"lr": 1e-4}}
    found = published(study, _cells(list(study["arms"])))
    assert found["raw|advbench@paper-v2|none|attack_success"] == 0.60
    assert found["raw|advbench@paper-v2|pair@paper-v2|attack_success"] == 0.66
    assert found["improved-100|xstest@paper-v2|none|over_refusal"] == pytest.approx(0.067)
    assert found["improved-100|aime24@paper-v2|none|accuracy"] == pytest.approx(0.517)
    assert found["improved-100|all|all|attack_success"] == pytest.approx(0.067)
    assert not [key for key in found if key.startswith(("improved-0", "short-1e-4"))], (
        "another mixture, another learning rate"
    )
    assert not [key for key in found if "|advbench|" in key], "another protocol"


def test_another_teacher_has_its_own_published_row() -> None:
    study: dict[str, Any] = {"base": "DeepSeek-R1-Distill-Qwen-7B", "models": {"teacher": {"model": "gemini-2.5-pro"}}}
    study["arms"] = {"improved": {"format": "improved", "safety": 1000, "benign": 100}}
    assert published(study, _cells(["improved"]))["improved|xstest@paper-v2|none|over_refusal"] == pytest.approx(0.133)
    study["models"]["teacher"]["model"] = "deepseek-r1"
    assert published(study, _cells(["improved"]))["improved|xstest@paper-v2|none|over_refusal"] == pytest.approx(0.067)


@pytest.mark.skipif(not PAPER.is_file(), reason="the collected numbers of the paper are not here")
def test_no_row_of_the_papers_tables_is_missing() -> None:
    rows = json.loads(files("demur.report").joinpath("published.json").read_text())["rows"]
    ours = sorted(tuple(values) for own in rows.values() for values in own.values())
    text = PAPER.read_text().replace("*", "")
    printed = re.findall(r"^\|[^|]+\|(?: [\d,]+ \|)?((?: \d+(?:\.\d)? \|){9})$", text, re.MULTILINE)
    assert len(printed) > 35
    assert {tuple(map(float, re.findall(r"[\d.]+", row))) for row in printed} <= set(ours)


def test_turns_of_a_conversation_with_thinking_and_answer_apart(tmp_path: Path) -> None:
    questions = prompts_of("harm", "harmful", 10)
    turns, turn_verdicts = [], []
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
            turn_verdicts += [
                Verdict(trace=trace.id, judge="guard", query="question", part=part, label="unsafe" if bad else "safe")
                for part, bad in parts
            ]
            turns.append(trace)
    last = [replace(trace, id="") for trace in turns[10:]]
    settings = {"arm": "target", "seed": None, "bench": {"name": "advbench", "attack": {"name": "crescendo"}}}
    verdicts = [replace(v, trace=t.id) for t in last for v in turn_verdicts if v.trace == t.id]
    records: dict[str, list[Any]] = {
        "traces": last,
        "verdicts": verdicts,
        "turns": turns,
        "turn_verdicts": turn_verdicts,
    }
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
