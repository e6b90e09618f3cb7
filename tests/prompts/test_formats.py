from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.made import publish

from demur import thinking
from demur.errors import UserError
from demur.prompts.formats import FORMS, load_file
from demur.records import Example, ExamplePart, Origin, Prompt, write_jsonl

THOUGHT = thinking.join("Let me see.", "Four.")


def write(path: Path, rows: list[Any]) -> Path:
    write_jsonl(path, rows)
    return path


ROWS: dict[str, dict[str, Any]] = {
    "pap": {"query": "q", "final_query": "a long rewrite", "category": "Logical Appeal"},
    "openr1": {"problem": "2+2", "answer": "4", "generations": [THOUGHT], "finish_reasons": None},
    "openthoughts": {"problem": "2+2", "deepseek_reasoning": "see", "deepseek_solution": "4", "domain": "math"},
    "s1k": {"question": "2+2", "thinking_trajectories": ["see"], "attempt": "4", "solution": "4"},
    "messages": {"messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": THOUGHT}]},
    "maths": {"problem": "2+2", "solution": "It is 4.", "answer": "4"},
    "star1": {"question": "q", "response": THOUGHT, "category": "['A', 'B']"},
    "paper": {"prompt": "q", "response": THOUGHT, "data_type": "safety"},
    "pairs": {"instruction": "q", "output": THOUGHT},
    "table": {"Goal": "q"},
}


@pytest.mark.parametrize("form", ROWS)
def test_a_form_is_recognised_and_gives_whole_traces(tmp_path: Path, form: str) -> None:
    loaded = load_file(write(tmp_path / "a.jsonl", [ROWS[form]]))
    assert (loaded.form, len(loaded.prompts), loaded.odd) == (form, 1, [])
    if form in ("pap", "table"):
        assert not loaded.traces
        return
    (trace,) = loaded.traces
    assert trace.outcome == "complete"
    assert trace.thinking
    assert trace.answer
    assert trace.model == "file:a.jsonl"
    assert [message.content for message in trace.sent] == [trace.prompt.text]
    assert thinking.split(trace.raw).thinking == trace.thinking


def test_every_form_has_a_row_here_or_is_our_own() -> None:
    assert set(FORMS) == set(ROWS) | {"published", "examples", "traces", "prompts"}


def test_own_records_come_back_as_they_were(tmp_path: Path) -> None:
    part = ExamplePart(role="user", text="q", train=False)
    example = Example(parts=(part,), origin=Origin(prompt="p", question="q", intent="benign"))
    trace = load_file(write(tmp_path / "a.jsonl", [ROWS["star1"]])).traces[0]
    prompt = Prompt(text="q", intent="harmful", cluster="c", attack="x", parent="y")
    for name, record in (("examples", example), ("traces", trace), ("prompts", prompt)):
        write_jsonl(tmp_path / "b.jsonl", [record])
        loaded = load_file(tmp_path / "b.jsonl")
        assert loaded.form == name
        assert getattr(loaded, name) == [record]


def test_odd_rows_are_kept_aside_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "q", "response": "a"}\n{"prompt": " "}\nno json\n{"prompt": "q", "response": 7}\n')
    loaded = load_file(path)
    assert len(loaded.traces) == 1
    assert sorted(odd.where for odd in loaded.odd) == [f"{path}:{line}" for line in (2, 3, 4)]
    assert {odd.row is None for odd in loaded.odd if odd.where.endswith(":3")} == {True}


def test_cut_and_wrong_generations_are_left_out_with_a_word(tmp_path: Path) -> None:
    row = {
        "problem": "2+2",
        "answer": "4",
        "generations": [THOUGHT] * 4,
        "is_reasoning_complete": [True, False, True, True],
        "finish_reasons": ["stop", "stop", "length", "stop"],
        "correctness_math_verify": [True, True, True, False],
        "correctness_llama": [None, None, None, None],
    }
    loaded = load_file(write(tmp_path / "a.jsonl", [row]))
    assert [trace.sample for trace in loaded.traces] == [0]
    assert [odd.reason for odd in loaded.odd] == [
        "generation 1 is cut",
        "generation 2 is cut",
        "generation 3 is marked wrong",
    ]
    graded = {"question": "q", "deepseek_thinking_trajectory": "t", "deepseek_attempt": "a", "deepseek_grade": "No"}
    loaded = load_file(write(tmp_path / "b.jsonl", [graded, {**graded, "deepseek_grade": "Yes"}]))
    assert (len(loaded.traces), [odd.reason for odd in loaded.odd]) == (1, ["graded wrong"])


def test_conversations_in_foreign_dress(tmp_path: Path) -> None:
    share = {
        "system": "Think well.",
        "conversations": [
            {"from": "user", "value": "2+2"},
            {
                "from": "gpt",
                "value": "<|begin_of_thought|>\n\nsee\n\n<|end_of_thought|>\n\n"
                "<|begin_of_solution|>\n\n4\n\n<|end_of_solution|>",
            },
        ],
    }
    served = {"messages": [{"role": "user", "content": [{"type": "text", "text": "2+2"}]}]}
    served["messages"].append({"role": "assistant", "content": "4", "reasoning_content": "see"})
    two = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
    loaded = load_file(write(tmp_path / "a.jsonl", [share, served, two]))
    assert [(t.thinking, t.answer, t.outcome) for t in loaded.traces] == [("see", "4", "complete")] * 2
    assert [message.role for message in loaded.traces[0].sent] == ["system", "user"]
    assert loaded.traces[0].sampling.system == "Think well."
    assert [odd.reason for odd in loaded.odd] == ["2 questions and 0 replies; one of each can be used"]


def test_gsm8k_answers_become_thinking_and_answer(tmp_path: Path) -> None:
    (trace,) = load_file(write(tmp_path / "a.jsonl", [{"question": "q", "answer": "2+2=4\n#### 4"}])).traces
    assert (trace.thinking, trace.prompt.gold) == ("2+2=4", "4")
    assert "boxed{4}" in (trace.answer or "")


def test_what_cannot_be_recognised_says_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="keys of its first row: a, b"):
        load_file(write(tmp_path / "a.jsonl", [{"a": 1, "b": 2}]))
    with pytest.raises(UserError, match="no row could be read as 'maths'"):
        load_file(write(tmp_path / "a.jsonl", [{"prompt": "x"}]), form="maths")
    with pytest.raises(UserError, match=r"Did you mean 'maths'"):
        load_file(tmp_path / "a.jsonl", form="math")


def test_stages_runs_and_folders_of_tables(tmp_path: Path) -> None:
    run, prompts = tmp_path / "run", [Prompt(text=str(i), intent="benign") for i in range(3)]
    for name in ("a", "b"):
        stage = publish(run, name, "prompts", {"prompts": prompts}, mark="0")
        assert load_file(stage.folder).prompts == prompts
    with pytest.raises(UserError, match="2 stages hold prompts"):
        load_file(run)
    plain = tmp_path / "set" / "data"
    plain.mkdir(parents=True)
    for i in range(2):
        write(plain / f"train-{i}.jsonl", [{"prompt": f"question {i}"}])
    assert [p.text for p in load_file(tmp_path / "set").prompts] == ["question 0", "question 1"]
    with pytest.raises(UserError, match="no stage holds traces"):
        load_file(run, form="traces")


def test_real_files_are_recognised_row_for_row(data_dir: Path) -> None:
    expected = {
        "advbench50.jsonl": ("table", 50, 0),
        "aime24.jsonl": ("maths", 30, 30),
        "harmbench200.txt": ("table", 200, 0),
        "lrm_safety_study_nocot.json": ("paper", 1000, 1000),
        "math500.jsonl": ("maths", 500, 500),
        "pap_advbench50.jsonl": ("pap", 50, 0),
        "safebench.csv": ("table", 500, 0),
        "star1_first300.json": ("star1", 300, 300),
        "xstest_prompts.csv": ("table", 450, 0),
        "xstest_annotated_gpt4.csv": ("pairs", 450, 450),
    }
    for name, said in expected.items():
        loaded = load_file(data_dir / name)
        assert (loaded.form, len(loaded.prompts), len(loaded.traces)) == said, name
        assert loaded.odd == []
        if name.startswith(("star1", "lrm", "math", "aime")):
            assert Counter(trace.outcome for trace in loaded.traces) == {"complete": said[2]}
            assert all(trace.thinking is not None for trace in loaded.traces)
