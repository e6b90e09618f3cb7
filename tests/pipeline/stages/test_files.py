from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest
from tests.made import publish

from demur import thinking
from demur.errors import UserError
from demur.mix.settings import MixSettings, ShareSettings
from demur.pipeline.run import execute
from demur.pipeline.stages import mix
from demur.pipeline.stages.importing import Import, ImportSettings
from demur.prompts.forms import Odd
from demur.records import Example, ExamplePart, Origin, Prompt, Trace, Verdict, write_jsonl
from demur.storage.artifacts import Artifact


def imported(path: Path, out: Path, **settings: Any) -> Artifact:
    return execute([Import("import", ImportSettings(**settings), files={"file": path})], out=out)["import"]


def pool(source: Path | Artifact, *, share: str, options: ShareSettings, only: set[str] | None = None) -> mix.Pool:
    return asyncio.run(mix.pool(source, share=share, options=options, only=only))


def test_everything_a_file_held_is_kept(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "response": thinking.join("t", "x")}, {"prompt": "b"}, {"prompt": "c", "response": "y"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    stage = imported(tmp_path / "a.jsonl", tmp_path / "run", intent="benign")
    assert {prompt.intent for prompt in stage.read("prompts", Prompt)} == {"benign"}
    assert [odd.where for odd in stage.read("odd", Odd)] == [f"{tmp_path / 'a.jsonl'}:2"]
    made, left, _ = pool(stage, share="s", options=ShareSettings())
    assert (len(made), dict(left)) == (1, {"it has no thinking": 1})
    made, left, _ = pool(stage, share="s", options=ShareSettings(no_thinking="empty"))
    assert (len(made), dict(left)) == (2, {})


def test_examples_are_drawn_from_as_they_are_and_filters_choose(tmp_path: Path) -> None:
    part = ExamplePart(role="user", text="q", train=False)
    rows = [Example(parts=(part,), origin=Origin(prompt="p", trace=str(i)), cluster=str(i)) for i in range(3)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert pool(tmp_path / "a.jsonl", share="s", options=ShareSettings())[0] == rows
    assert pool(tmp_path / "a.jsonl", share="s", options=ShareSettings(), only={"1"})[0] == rows[1:2]
    stage = imported(tmp_path / "a.jsonl", tmp_path / "run", limit=2)
    assert pool(stage, share="s", options=ShareSettings())[0] == rows[:2]
    assert list(stage.read("traces", Trace)) == []


def test_odd_rows_of_a_share_are_kept_aside(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi?", "response": "<think>\nA greeting.\n</think>\n\nHello."}, {"prompt": 7, "response": None}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    found = pool(tmp_path / "a.jsonl", share="s", options=ShareSettings())
    assert len(found.examples) == 1
    assert [odd.where for odd in found.odd] == [f"{tmp_path / 'a.jsonl'}:2"]


def test_a_mix_has_the_same_bytes_in_a_worker_as_in_this_process(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"Hi {i}?", "response": thinking.join("t", "x")} for i in range(4)])
    settings = mix.MixStageSettings(mix=MixSettings(shares={"safety": ShareSettings(n=3)}))
    stage = mix.Mix("mix", settings, files={"safety": tmp_path / "a.jsonl"})
    sent = pickle.loads(pickle.dumps(stage))
    here, there = (execute([each], out=tmp_path / name)["mix"] for name, each in (("here", stage), ("there", sent)))
    assert here.path("examples").read_bytes() == there.path("examples").read_bytes() != b""


def test_wrong_maths_traces_are_left_out_by_the_grader(tmp_path: Path) -> None:
    def row(answer: str, gold: str) -> dict[str, Any]:
        reply = f"<think>\nI add.\n</think>\n\nIt is \\boxed{{{answer}}}."
        return {"problem": f"What is {gold} + 0?", "generations": [reply], "solution": "I add.", "answer": gold}

    rows = [row("4", "4"), row("5", "7"), row("\\frac{1}{2}", "0.5")]
    write_jsonl(tmp_path / "maths.jsonl", rows)
    every = pool(tmp_path / "maths.jsonl", share="maths", options=ShareSettings())
    graded = pool(tmp_path / "maths.jsonl", share="maths", options=ShareSettings(grade=True))
    assert len(every.examples) == 3
    assert len(graded.examples) == 2
    assert graded.left_out["its final answer is not the gold one"] == 1


def test_pairs_are_drawn_from_judged_samples_and_from_repairs(tmp_path: Path) -> None:
    prompt = Prompt(text="q", intent="harmful")
    good, bad = (
        thinking.traced(prompt, thinking.join("t", answer), model="m", sample=i, strategy="default")
        for i, answer in enumerate(("No.", "Sure."))
    )
    verdicts = [
        Verdict(trace=t.id, judge="j", query="question", part="whole", label=label)
        for t, label in ((good, "safe"), (bad, "unsafe"))
    ]
    after = thinking.traced(
        prompt, thinking.join("t", "Sorry."), model="m", strategy="default", notes=(f"repair: trim, from {bad.id}",)
    )
    distilled = publish(tmp_path, "distil", "distil", {"traces": [good, bad], "verdicts": verdicts})
    repaired = publish(tmp_path, "repair", "repair", {"traces": [good, after], "originals": [bad]})
    ((one,), _, _) = pool(distilled, share="s", options=ShareSettings(pairs="judged"))
    ((two,), _, _) = pool(repaired, share="s", options=ShareSettings(pairs="repaired"))
    assert [pair.chosen.parts[-1].text for pair in (one, two)] == ["No.", "Sorry."]
    assert [pair.rejected.parts[-1].text for pair in (one, two)] == ["Sure.", "Sure."]
    empty = publish(tmp_path, "empty", "repair", {"traces": [good], "originals": []})
    with pytest.raises(UserError, match=r"no preference pairs \(repaired\)"):
        pool(empty, share="s", options=ShareSettings(pairs="repaired"))
