"""The forms: every release is read in the shape in which it is published, with content of our own."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.made import ASSETS

from demur.bench import get_bench, left_out, names, parse
from demur.bench.choice import ChoiceJudge, chosen_of
from demur.bench.ifeval import FollowsJudge
from demur.bench.load import read_prompts, unread_columns
from demur.errors import UserError
from demur.judge.code import CodeJudge
from demur.prompts.columns import TABLE
from demur.records import Prompt, Trace, Verdict
from demur.thinking import join, traced

TINY = ASSETS / "bench"
TALK = [{"role": "user", "content": "a first turn"}, {"role": "assistant", "content": "a reply"}]
SHAPES: dict[str, tuple[str | Path, list[dict[str, Any]], list[tuple[str, str, str]]]] = {
    "harmbench_all": (
        "csv",
        [
            {"Behavior": "do it", "FunctionalCategory": "contextual", "SemanticCategory": "illegal", "Tags": "context",
             "ContextString": "a passage", "BehaviorID": "x"},
            {"Behavior": "sing it", "FunctionalCategory": "copyright", "SemanticCategory": "copyright", "Tags": "lyrics",
             "ContextString": "", "BehaviorID": "y"},
        ],
        [("a passage\n\n---\n\ndo it", "harmful", "contextual, illegal, context"), ("sing it", "harmful", "copyright, lyrics")],
    ),
    "sorrybench": (
        "jsonl",
        [{"question_id": 1, "category": "5", "turns": ["ask"], "prompt_style": "base"},
         {"question_id": 1, "category": "5", "turns": ["4sk"], "prompt_style": "ascii"}],
        [("ask", "harmful", "5")],
    ),
    "airbench": (
        "csv",
        [{"cate-idx": "1", "l2-name": "Security", "l3-name": "Integrity", "l4-name": "x", "prompt": "ask"}],
        [("ask", "harmful", "Security, Integrity")],
    ),
    "donotanswer": (
        "csv",
        [{"id": 0, "risk_area": "Misuse", "types_of_harm": "Illegal", "specific_harms": "x", "question": "ask?"}],
        [("ask?", "harmful", "Misuse, Illegal")],
    ),
    "simplesafety": (
        "csv",
        [{"id": "a", "harm_area": "Scams", "counter": 1, "category": "Information seeking", "prompt": "ask"}],
        [("ask", "harmful", "Scams, Information seeking")],
    ),
    "malicious_educator": (
        "jsonl",
        [{"Goal": "the goal", "Category": "Economy", "Full_Input (H-CoT + Request)": "thoughts, then the goal"}],
        [("thoughts, then the goal", "harmful", "Economy")],
    ),
    "wildchat_toxic": (
        "jsonl",
        [{"conversation": TALK, "toxic": True, "language": "English"}, {"conversation": TALK, "toxic": False, "language": "x"}],
        [("a first turn", "harmful", "English")],
    ),
    "wildguardtest": (
        "jsonl",
        [{"prompt": "a", "adversarial": True, "prompt_harm_label": "harmful", "subcategory": "x"},
         {"prompt": "b", "adversarial": False, "prompt_harm_label": "unharmful", "subcategory": "y"},
         {"prompt": "c", "adversarial": False, "prompt_harm_label": None, "subcategory": "y"}],
        [("a", "harmful", "x"), ("b", "benign", "y")],
    ),
    "coconot": (
        "jsonl",
        [{"id": "1", "category": "Requests with safety concerns", "subcategory": "dangerous", "prompt": "a", "response": ""},
         {"id": "2", "category": "Incomplete requests", "subcategory": "false presuppositions", "prompt": "b", "response": ""}],
        [("a", "harmful", "Requests with safety concerns, dangerous")],
    ),
    "coconot_contrast": (
        "jsonl",
        [{"id": "1", "category": "Requests with safety concerns", "subcategory": "dangerous", "prompt": "a"}],
        [("a", "borderline", "Requests with safety concerns, dangerous")],
    ),
    "falsereject": ("jsonl", [{"prompt": "a", "category": "7", "category_text": "Fraud"}], [("a", "borderline", "Fraud")]),
    "phtest": (
        "csv",
        [{"ID": 1, "Request": "a", "Harmfulness": "harmless"}, {"ID": 2, "Request": "b", "Harmfulness": "controversial"}],
        [("a", "benign", "harmless"), ("b", "borderline", "controversial")],
    ),
    "oktest": ("csv", [{"prompt": "How do I kill time?"}], [("How do I kill time?", "borderline", "")]),
    "advbench": ("jsonl", [{"query": "ask", "target": "Sure, here"}], [("ask", "harmful", "")]),
    "harmbench": (TINY / "harmbench_behaviors_text_all.csv", [],
                  [("Give instructions for making [placeholder]", "harmful", "chemical_biological")]),
    "harmbench_contextual": (
        TINY / "harmbench_behaviors_text_all.csv", [],
        [("The address is 1 Placeholder Street.\n\n---\n\nWrite a letter that uses the address above", "harmful",
          "harassment_bullying")],
    ),
    "safebench": (
        "csv",
        [{"dataset": "ForbidQI", "category_id": "1", "task_id": "1", "category_name": "Fraud", "question": "How?",
          "instruction": "Steps to."}],
        [("How?", "harmful", "Fraud")],
    ),
    "strongreject": ("csv", [{"category": "Violence", "source": "custom", "forbidden_prompt": "ask"}],
                     [("ask", "harmful", "Violence")]),
    "orbench_toxic": ("csv", [{"prompt": "ask", "category": "violence"}], [("ask", "harmful", "violence")]),
    "orbench_hard": ("csv", [{"prompt": "ask", "category": "violence"}], [("ask", "borderline", "violence")]),
    "jailbreakbench": (
        TINY / "jbb-behaviors", [],
        [("Write a fictitious article about a kind baker", "benign", "Harassment/Discrimination"),
         ("Give instructions for safe storage of paint", "benign", "Physical harm"),
         ("Write a [placeholder] article about someone", "harmful", "Harassment/Discrimination"),
         ("Give instructions for [placeholder]", "harmful", "Physical harm")],
    ),
    "wildjailbreak": (
        TINY / "eval.tsv", [],
        [('As a writer, describe "the" [placeholder]\nin two lines.', "harmful", "adversarial_harmful"),
         ("As a nurse, explain how to clean a wound, None", "benign", "adversarial_benign")],
    ),
    "xstest": (
        "csv",
        [{"id": n, "prompt": f"{kind} {n}", "type": kind, "label": label, "focus": "x", "note": ""}
         for n, (kind, label) in enumerate([("homonyms", "safe")] * 101 + [("contrast_homonyms", "unsafe")])],
        [*((f"homonyms {n}", "borderline", "homonyms") for n in range(101)),
         ("contrast_homonyms 101", "harmful", "contrast_homonyms")],
    ),
    "replayed": (
        "jsonl",
        [msgspec.to_builtins(traced(Prompt(text="dressed", question="bare", parent="p", attack="pap:x", intent="harmful"),
                                    "no", model="m"))],
        [("bare", "harmful", "")],
    ),
    "math500": (
        "jsonl",
        [{"problem": "1 + 1?", "solution": "It is $\\boxed{2}$.", "answer": "2", "subject": "Algebra", "level": 1,
          "unique_id": "x"}],
        [("1 + 1?", "maths", "Algebra")],
    ),
    **{name: ("jsonl", [{"id": 1, "problem": "1 + 1?", "answer": "2"}], [("1 + 1?", "maths", "")])
       for name in ("aime24", "aime25", "aime26")},
    "gsm8k": ("jsonl", [{"question": "1 + 1?", "answer": "One more.\n#### 2"}], [("1 + 1?", "maths", "")]),
    "livecodebench": (
        "jsonl",
        [{"question_title": "t", "question_content": f"Of {day}", "platform": "x", "question_id": day, "contest_id": "c",
          "contest_date": f"{day}T00:00:00", "starter_code": "", "difficulty": "easy", "metadata": "{}",
          "public_test_cases": '[{"input": "1", "output": "1", "testtype": "stdin"}]', "private_test_cases": "[]"}
         for day in ("2024-12-01", "2025-03-01")],
        [("Of 2024-12-01", "code", "easy"), ("Of 2025-03-01", "code", "easy")],
    ),
    "humaneval": (
        "jsonl",
        [{"task_id": "x/1", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": "    return 1",
          "test": "def check(candidate):\n    assert candidate() == 1"}],
        [("def f():", "code", "")],
    ),
    "gpqa_diamond": (
        "csv",
        [{"Question": "q", "Correct Answer": "right", "Incorrect Answer 1": "a", "Incorrect Answer 2": "b",
          "Incorrect Answer 3": "c", "High-level domain": "Physics"}],
        [("q", "benign", "Physics")],
    ),
    "mmlu_pro": (
        "jsonl",
        [{"question_id": 70, "question": "q", "options": ["a", "b"], "answer": "B", "answer_index": 1, "category": "law"}],
        [("q", "benign", "law")],
    ),
    "choice": ("csv", [{"question": "q", "A": "a", "B": "b", "answer": "B"}], [("q", "benign", "")]),
    "ifeval": (
        "jsonl",
        [{"key": 1, "prompt": "ask", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}],
        [("ask", "benign", "punctuation")],
    ),
    "harmful": ("csv", [{"Goal": "a", "Category": "x"}, {"Goal": "a", "Category": "x"}], [("a", "harmful", "x")]),
    "benign": ("jsonl", [{"instruction": "a"}], [("a", "benign", "")]),
    "pairs": (
        "csv",
        [{"prompt": "a", "label": "unsafe", "pair": "1"}, {"prompt": "b", "label": "safe", "pair": "1"}],
        [("a", "harmful", ""), ("b", "benign", "")],
    ),
}  # fmt: skip


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def copy(name: str, folder: Path) -> Path:
    """A file, or the asset, in the shape in which a benchmark is published."""
    ending, rows, _ = SHAPES[name]
    return ending if isinstance(ending, Path) else written(folder / f"mine.{ending}", rows)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", [name for name in names() if not get_bench(name).generated])
def test_a_release_is_read_in_its_own_shape(name: str, tmp_path: Path) -> None:
    """Every benchmark of the registry, under each of its protocols; one without a shape here fails."""
    bench, (family, _, protocol) = get_bench(name), name.partition("@")
    prompts, wanted = read_prompts(bench, copy(family, tmp_path)), SHAPES[family][2]
    found = [(one.text if any(one.text == text for text, *_ in wanted) else one.question.strip(), one.intent, one.category)
             for one in prompts]  # fmt: skip
    assert found == wanted if not protocol else found and set(found) <= set(wanted)
    assert bench.licence or not bench.hub


def test_a_file_of_ones_own_says_what_is_not_read(tmp_path: Path) -> None:
    rows = [{"Goal": "a", "Category": "x", "source": "s"}, {"Goal": "b", "Category": "y", "source": "t"}]
    mine = written(tmp_path / "mine.csv", rows)
    assert unread_columns("harmful=mine", mine) == "harmful=mine: read: Goal, Category; not read: source"
    assert unread_columns("advbench", mine) == "", "a release is what it is"
    later = written(tmp_path / "mine.jsonl", [{"prompt": "a"}, {"prompt": "b", "tags": ["x"]}])
    assert unread_columns("benign", later) == "benign: read: prompt; not read: tags"
    assert unread_columns("choice", copy("choice", tmp_path)) == ""
    assert unread_columns("harmful", tmp_path / "none.csv") == ""
    gaps = written(tmp_path / "gaps.jsonl", [{"prompt": "a"}, {"prompt": "a"}, {"prompt": ""}, {"prompt": None}])
    assert unread_columns("harmful=gaps", gaps).endswith("3 of 4 rows are left out: no prompt, or a repeated one")
    assert [prompt.text for prompt in read_prompts(get_bench("harmful=gaps"), gaps)] == ["a"], "nothing empty is asked"


@pytest.mark.parametrize("side", ["harmful", "benign"])
def test_a_category_is_found_under_the_names_that_files_to_train_on_have(side: str, tmp_path: Path) -> None:
    for name in ("category_name", "SemanticCategory", "harm_category"):
        mine = written(tmp_path / f"{name}.csv", [{"prompt": "a", name: "x"}, {"prompt": "b", name: "y"}])
        assert [p.category for p in read_prompts(get_bench(side), mine)] == ["x", "y"]
        assert unread_columns(side, mine) == ""
    names = get_bench(side).columns["category"].removeprefix("?").split("|")
    assert [name.lower() for name in names] == TABLE["classes"]


def test_what_a_form_keeps(tmp_path: Path) -> None:
    (educator,) = read_prompts(get_bench("malicious_educator"), copy("malicious_educator", tmp_path))
    assert educator.question == "the goal", "the judge is shown what was wanted"
    context, _ = read_prompts(get_bench("harmbench_all"), copy("harmbench_all", tmp_path))
    assert (context.question, context.gold) == ("do it", "a passage")
    one, two = read_prompts(get_bench("pairs"), copy("pairs", tmp_path))
    assert one.pair == two.pair == "1"
    assert one.cluster == two.cluster


def test_a_file_of_ones_own_is_a_benchmark_by_its_name() -> None:
    assert parse("xstest") == {"name": "xstest"}
    assert parse("harmful=data/mine.csv") == {"name": "harmful=mine", "data": "data/mine.csv"}
    assert get_bench("harmful=mine").name == "harmful=mine"
    with pytest.raises(UserError, match="prohibits adversarial"):
        get_bench("fortress")
    assert left_out()


def test_a_row_that_does_not_say_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not say whether it is harmful: 'maybe'"):
        read_prompts(get_bench("pairs"), written(tmp_path / "p.csv", [{"prompt": "a", "label": "maybe", "pair": "1"}]))


# -- multiple choice --------------------------------------------------------------------------------------------------


def chosen(answer: str, prompt: Prompt) -> Verdict:
    return ChoiceJudge().verdict(traced(prompt, join("It might be B. The answer is D.", answer), model="m"))


def options(prompt: Prompt) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(prompt.gold or "")
    return found


def test_mmlu_pro_keeps_its_order(tmp_path: Path) -> None:
    row = {"question_id": 70, "question": "Which is red?", "options": ["sky", "blood", "grass"], "answer": "B", "answer_index": 1,
           "cot_content": "", "category": "biology", "src": "ori"}  # fmt: skip
    (prompt,) = read_prompts(get_bench("mmlu_pro"), written(tmp_path / "mmlu_pro.jsonl", [row]))
    assert (options(prompt)["answer"], options(prompt)["options"]) == ("B", ["sky", "blood", "grass"])
    assert prompt.category == "biology"
    assert chosen("Answer: B", prompt).label == "correct"
    assert chosen("Answer: C", prompt).score == pytest.approx(-0.5)


def test_gpqa_is_shuffled_by_the_seed(tmp_path: Path) -> None:
    rows = [
        {"Question": f"q{i}", "Correct Answer": "right", "Incorrect Answer 1": "w1", "Incorrect Answer 2": "w2",
         "Incorrect Answer 3": "w3", "High-level domain": "Physics"}
        for i in range(40)
    ]  # fmt: skip
    file = written(tmp_path / "gpqa_diamond.csv", rows)
    first, again, other = (read_prompts(get_bench("gpqa_diamond"), file, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    letters = [options(p)["answer"] for p in first]
    assert set(letters) == set("ABCD")
    assert all(options(p)["options"]["ABCD".index(letter)] == "right" for p, letter in zip(first, letters, strict=True))
    assert first[0].category == "Physics"
    assert "\nA. " in first[0].text
    assert first[0].question == "q0"


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ({"question": "q", "options": ["w", "x", "y"], "answer": "C"}, "y"),
        ({"question": "q", "choices": ["w", "x", "y"], "answer": 1}, "x"),
        ({"question": "q", "choices": ["3", "4", "1"], "answer": "1"}, "1"),
        ({"question": "q", "options": '["w", "x"]', "answer": "w"}, "w"),
        ({"question": "q", "A": "w", "B": "x", "C": "", "answer": "B"}, "x"),
        ({"question": "q", "choices": {"text": ["w", "x"], "label": ["A", "B"]}, "answer": "B"}, "x"),
    ],
)
def test_options_of_ones_own_need_no_code(row: dict[str, Any], right: str, tmp_path: Path) -> None:
    (prompt,) = read_prompts(get_bench("choice"), written(tmp_path / "choice.jsonl", [row]))
    gold = options(prompt)
    assert gold["options"]["ABC".index(gold["answer"])] == right


@pytest.mark.parametrize(
    ("bench", "row", "message"),
    [
        (
            "choice",
            {"question": "q", "options": "['w', 'x']", "answer": "A"},
            "column options|choices: a list is wanted, such as",
        ),
        (
            "choice",
            {"question": "q", "options": 5, "answer": "A"},
            'a list is wanted, such as ["a", "b"]; this is \'5\'',
        ),
        ("choice", {"question": "q", "options": [str(n) for n in range(30)], "answer": "3"}, "30 options, and '3'"),
        ("choice", {"question": "q", "options": ["w", "x"], "answer": "²"}, "2 options, and '²' names none"),
        (
            "ifeval",
            {"prompt": "p", "instruction_id_list": "['a']", "kwargs": "[{}]"},
            "column instruction_id_list: a list",
        ),
        (
            "ifeval",
            {"prompt": "p", "instruction_id_list": ["a"], "kwargs": "{'n': 1}"},
            "column kwargs: a list is wanted",
        ),
        (
            "ifeval",
            {"prompt": "p", "instruction_id_list": ["a"], "kwargs": [{}, {}]},
            "column kwargs: an object for each instruction is wanted",
        ),
        (
            "ifeval",
            {"prompt": "p", "instruction_id_list": [], "kwargs": []},
            "column kwargs: an object for each instruction is wanted",
        ),
        (
            "ifeval",
            {"prompt": "p", "instruction_id_list": ["a"], "kwargs": ["b"]},
            "column kwargs: an object for each instruction is wanted",
        ),
    ],
)
def test_an_odd_cell_is_named_by_file_line_and_column(
    bench: str, row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    sound = {"question": "q", "options": '["w", "x"]', "answer": "w"} | {
        "prompt": "p",
        "instruction_id_list": ["a"],
        "kwargs": "[{}]",
    }
    path = written(tmp_path / "odd.jsonl", [{key: sound[key] for key in row}, row])
    with pytest.raises(UserError, match=f"{re.escape(f'{path}:2: ')}.*{re.escape(message)}"):
        read_prompts(get_bench(bench), path)


def test_an_answer_that_is_no_option(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"choice.jsonl:1: 2 options, and 'z' names none"):
        read_prompts(
            get_bench("choice"),
            written(tmp_path / "choice.jsonl", [{"question": "q", "A": "w", "B": "x", "answer": "z"}]),
        )


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("Answer: C", "C"),
        ("**Answer:** (B)", "B"),
        ("Answer: $\\boxed{A}$", "A"),
        ("The answer is D.", "D"),
        ("I first thought Answer: A. No.\n\nAnswer: B", "B"),
        ("Because of this,\n\n\\boxed{C}", "C"),
        ("C", "C"),
        ("(D)", "D"),
        ("Answer: E", None),
        ("A tall tree is not an answer", None),
        ("The answer: it's A-flat? I cannot tell.", None),
        ("the right option is B", "B"),
        ("Answer: I don't know", None),
        ("", None),
    ],
)
def test_the_letter_that_counts(answer: str, letter: str | None) -> None:
    assert chosen_of(answer, 4) == letter


@given(st.text(max_size=200))
def test_reading_a_choice_never_raises(answer: str) -> None:
    assert chosen_of(answer, 2) in ("A", "B", None)


def test_scores_are_beyond_chance() -> None:
    prompt = Prompt(text="q", intent="benign", gold=json.dumps({"answer": "A", "options": list("wxyz")}))
    right, wrong, none = chosen("Answer: A", prompt), chosen("Answer: B", prompt), chosen("Who knows?", prompt)
    assert (right.label, wrong.label, none.label) == ("correct", "wrong", "no_answer")
    assert (right.raw, wrong.raw, none.raw) == ("A", "B", None)
    assert right.score == 1.0
    assert 0.25 * right.score + 0.75 * (wrong.score or 0) == pytest.approx(0), "guessing earns nothing"
    lost = ChoiceJudge().verdict(traced(prompt, join("Answer: A", None), model="m", finish="length"))
    assert lost.label == "no_answer", "what only the thinking says is no answer"


# -- code and instructions --------------------------------------------------------------------------------------------

FUNCTION = {
    "task_id": "HumanEval/900",
    "prompt": 'def helper(x):\n    return x + 1\n\ndef twice(x: int) -> int:\n    """Twice the next number."""\n',
    "entry_point": "twice",
    "test": "def check(candidate):\n    assert candidate(1) == 4\n    assert candidate(2) == 6\n",
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_humaneval_runs_the_releases_own_assertions(tmp_path: Path) -> None:
    (prompt,) = read_prompts(get_bench("humaneval"), written(tmp_path / "HumanEval.jsonl", [FUNCTION]))
    judge = CodeJudge()

    def label(body: str) -> str | None:
        return judge.verdict(traced(prompt, join("t", f"```python\n{body}\n```"), model="m")).label

    assert label("print('noise')\ndef twice(x):\n    return 2 * helper(x)") == "correct"
    assert label("def twice(x):\n    return 2 * x") == "wrong"
    assert label("import sys\nsys.exit(0)") == "wrong", "who ends early has passed nothing"


def test_ifeval_checks_by_the_releases_own_rules(tmp_path: Path) -> None:
    pytest.importorskip("if_verifiable")
    row = {
        "key": 1,
        "prompt": "Say hello without commas, in at least three words.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"num_words": 3, "relation": "at least", "num_bullets": None}],
    }
    (prompt,) = read_prompts(get_bench("ifeval"), written(tmp_path / "ifeval.jsonl", [row]))
    assert prompt.category == "punctuation"

    def judged(answer: str | None) -> Verdict:
        trace: Trace = traced(prompt, join("One, two, three.", answer), model="m")
        return FollowsJudge().verdict(trace)

    assert (judged("hello to you").label, judged("hello to you").score) == ("correct", 1.0)
    half = judged("hello, hello, hello")
    assert (half.label, half.score, half.reason) == ("wrong", 0.5, "punctuation:no_comma")
    assert judged(None).label == "no_answer"
