"""Files as people have them: what each form gives, what is refused and with which words. The rows are our own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.made import publish

from demur import thinking
from demur.errors import UserError
from demur.mix import examples_of
from demur.prompts.forms import FORMS, OWN_FORMS, Loaded, load_file, require_intent
from demur.prompts.rows import ASSUMED
from demur.records import UNSAFE, Example, ExamplePart, Origin, Prompt, write_jsonl

THOUGHT = thinking.join("Let me see.", "Four.")
MARKED = (
    "<|begin_of_thought|>\n\nLet me see.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nFour.\n\n<|end_of_solution|>"
)
USER, BOT = {"role": "user", "content": "2+2"}, {"role": "assistant", "content": THOUGHT}
SAILOR = {"role": "system", "content": "Talk like a sailor."}


def write(path: Path, rows: list[Any]) -> Path:
    write_jsonl(path, rows)
    return path


def load(folder: Path, *rows: dict[str, Any], **options: Any) -> Loaded:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))  # NaN and all
    return load_file(folder / "a.jsonl", **options)


WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "STAR-1": ("pairs", {"question": "2+2", "response": THOUGHT, "category": "['A', 'B']", "score": {"a": 1}}),
    "the paper's": ("pairs", {"prompt": "2+2", "response": THOUGHT, "data_type": "safety"}),
    "Alpaca": ("pairs", {"instruction": "2+2", "input": "", "output": THOUGHT, "system": "", "history": []}),
    "Swift": ("pairs", {"query": "2+2", "response": THOUGHT}),
    "TRL": ("pairs", {"prompt": [USER], "completion": [BOT]}),
    "TRL, half": ("pairs", {"prompt": [USER], "completion": THOUGHT}),
    "chat": ("messages", {"messages": [USER, BOT]}),
    "chat as text": ("messages", {"messages": json.dumps([USER, BOT])}),
    "chat as Python": ("messages", {"messages": str([USER, BOT])}),
    "ShareGPT": ("messages", {"conversations": [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": THOUGHT}]}),
    "Gemini": ("messages", {"messages": [USER, {"role": "model", "content": THOUGHT}]}),
    "Stratos": ("messages", {"conversations": [{"from": "user", "value": "2+2"}, {"from": "assistant", "value": MARKED}]}),
    "a field": ("messages", {"messages": [USER, {"role": "assistant", "content": "Four.", "reasoning_content": "Let me see."}]}),
    "LIMA": ("messages", {"conversations": ["2+2", THOUGHT]}),
    "Dolphin-R1": ("messages", {"messages": [USER], "reasoning": "Let me see.", "answer": "Four."}),
    "thinking beside": ("messages", {"messages": [USER, {"role": "assistant", "content": "Four."}], "thinking": "Let me see."}),
    "API fields": ("reasoning", {"prompt": "2+2", "reasoning_content": "Let me see.", "content": "Four."}),
    "NuminaMath": ("messages", {"problem": "2+2", "solution": "$\\boxed{4}$", "messages": [USER, BOT]}),
    "OpenR1": ("generations", {"problem": "2+2", "answer": "4", "solution": "s", "generations": [THOUGHT], "finish_reasons": None}),
    "DeepMath": ("generations", {"question": "2+2", "final_answer": "4", "topic": "x", "r1_solution_1": THOUGHT}),
    "OpenMathReasoning": ("pairs", {"problem": "2+2", "generated_solution": THOUGHT, "expected_answer": "4"}),
    "OpenThoughts": ("reasoning", {"problem": "2+2", "deepseek_reasoning": "Let me see.", "deepseek_solution": "Four.", "ground_truth_solution": "4", "domain": "math"}),
    "s1K": ("reasoning", {"question": "2+2", "thinking_trajectories": ["Let me see."], "attempt": "Four.", "solution": "4"}),
    "s1K-1.1": ("reasoning", {"question": "2+2", "gemini_thinking_trajectory": "other", "gemini_attempt": "other", "deepseek_thinking_trajectory": "Let me see.", "deepseek_attempt": "Four.", "deepseek_grade": "Yes", "solution": "4"}),
    "HarmChain": ("reasoning", {"question": "2+2", "answer": "Four.", "cot": "Let me see.", "task_id": "s-7"}),
    "capitals": ("reasoning", {"Question": "2+2", "Complex-CoT": "Let me see.", "Response": "Four."}),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_a_public_form_gives_one_whole_trace(tmp_path: Path, name: str) -> None:
    form, row = WHOLE[name]
    loaded = load(tmp_path, row)
    (trace,) = loaded.traces
    assert (loaded.form, loaded.odd) == (form, [])
    assert (trace.thinking, trace.answer, trace.outcome) == ("Let me see.", "Four.", "complete")
    assert (trace.prompt.text, trace.model, trace.prompt) == ("2+2", "file:a.jsonl", loaded.prompts[0])
    assert [message.content for message in trace.sent] == ["2+2"]


def test_every_form_is_tried() -> None:
    tried = {form for form, _ in WHOLE.values()} | {form for form, *_ in MATHS.values()} | {"table"}
    assert set(FORMS) - set(OWN_FORMS) == tried | {"preferences", "two replies"}


MATHS: dict[str, tuple[str, dict[str, Any], str, bool]] = {
    "MATH-500": ("maths", {"problem": "p", "solution": "It is $4$.", "answer": "\\frac{4}{1}"}, "\\frac{4}{1}", True),
    "AIME": ("maths", {"ID": 1, "Problem": "p", "Solution": "It is 4.", "Answer": 4}, "4", True),
    "AIME without": ("maths", {"problem": "p", "answer": "4"}, "4", False),
    "GSM8K": ("maths", {"question": "p", "answer": "2+2=4\n#### 4"}, "4", True),
    "hendrycks MATH": ("worked maths", {"problem": "p", "level": "1", "type": "Algebra", "solution": "So $\\boxed{\\frac{1}{x^{2}}}$."}, "\\frac{1}{x^{2}}", True),
    "no braces": ("worked maths", {"problem": "p", "solution": "So $\\boxed 4$."}, "4", True),
    "OlympiadBench": ("maths", {"question": "p", "solution": ["It is 4."], "final_answer": ["4"], "is_multiple_answer": False}, "4", True),
    "a float": ("maths", {"problem": "p", "answer": 4.0}, "4", False),
    "a label that is a number": ("maths", {"problem": "p", "answer": "4", "label": 1}, "4", False),
}  # fmt: skip


@pytest.mark.parametrize("name", MATHS)
def test_maths_is_maths_and_a_worked_solution_becomes_thinking(tmp_path: Path, name: str) -> None:
    form, row, gold, worked = MATHS[name]
    loaded = load(tmp_path, row)
    assert loaded.form == form
    assert [(p.intent, p.gold) for p in loaded.prompts] == [("maths", gold)]
    assert [f"boxed{{{gold}}}" in (t.answer or "") for t in loaded.traces] == [True] * worked
    assert not loaded.notes


@pytest.mark.parametrize("gold", [float("nan"), float("inf"), None, {"a": 1}, ["4", "5"], [], "", True])
def test_only_a_single_answer_becomes_gold(tmp_path: Path, gold: Any) -> None:
    loaded = load(tmp_path, {"problem": "p", "answer": "4"}, {"problem": "q", "answer": gold})
    assert [(p.text, p.gold) for p in loaded.prompts] == [("p", "4")]
    assert len(loaded.odd) == 1


@pytest.mark.parametrize(
    ("value", "category"),
    [
        ({"violence": True, "theft": False, "fraud": True}, "violence, fraud"),
        (["a", "b"], "a, b"),
        ("['a', 'b']", "a, b"),
        ("[a", "[a"),
        (float("nan"), ""),
        ({}, ""),
        (7, "7"),
        (None, ""),
    ],
)
def test_classes_are_words(tmp_path: Path, value: Any, category: str) -> None:
    assert load(tmp_path, {"prompt": "q", "response": "a", "category": value}).prompts[0].category == category


INTENTS: list[tuple[dict[str, Any], str]] = [
    ({"prompt_harm_label": "unharmful", "subcategory": "benign"}, "benign"),
    ({"prompt_harm_label": "harmful", "adversarial": False, "subcategory": "others"}, "harmful"),
    ({"prompt_label": "safe"}, "benign"),
    ({"data_type": "adversarial_benign"}, "benign"),
    ({"data_type": "vanilla_harmful"}, "harmful"),
    ({"label": "non-toxic"}, "benign"),
    ({"label": "unsafe"}, "harmful"),
    ({"is_harmful": False}, "benign"),
    ({"harmful": "True"}, "harmful"),
    ({"toxicity": 1}, "harmful"),
    ({"toxicity": 0}, "benign"),
    ({"category": "benign"}, "benign"),
    ({"domain": "code"}, "code"),
    ({"intent": "borderline"}, "borderline"),
    ({"is_safe": True}, "benign"),
]


@pytest.mark.parametrize(("more", "intent"), INTENTS)
def test_an_intent_that_a_row_states_is_read(tmp_path: Path, more: dict[str, Any], intent: str) -> None:
    loaded = load(tmp_path, {"prompt": "q"} | more)
    assert loaded.prompts[0].intent == intent
    assert not loaded.notes
    (other,) = load(tmp_path, {"prompt": "q"} | more, intent="code").prompts
    assert other.intent == "code", "the caller takes precedence over the row"


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"label": 1},
        {"toxicity": 0.93},
        {"label": "contrast_homonyms"},
        {"type": "riddles"},
        {"domain": "biology"},
    ],
)
def test_an_intent_that_no_row_states_is_assumed_and_reported(tmp_path: Path, more: dict[str, Any]) -> None:
    loaded = load(tmp_path, {"prompt": "q"} | more)
    unclear = "" if set(more) <= {"type"} else f" ({', '.join(more)} cannot be understood)"
    wants = "benign" if "domain" in more else "harmful"
    assert loaded.notes == [f"a.jsonl: {ASSUMED} {wants}{unclear}"]
    assert loaded.prompts[0].intent == wants
    assert not load(tmp_path, {"prompt": "q"} | more, intent="benign").notes


def test_the_note_on_an_assumed_intent_claims_no_more_than_what_was_done(tmp_path: Path) -> None:
    """A column may state the intent in a way that is not read, and some rows of a file may state it where others do not."""
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "is_benign": True},
        {"prompt": "b", "intent": "harmless"},
        {"prompt": "c"},
    ]
    loaded = load(tmp_path, *rows)
    assert [prompt.intent for prompt in loaded.prompts] == ["harmful", "benign", "harmful"]
    known = "no column that demur reads states what the prompts want"
    assert loaded.notes == [f"a.jsonl: {known}; unless intent is set, they are recorded as harmful (2 of 3 rows)"]
    with pytest.raises(UserError, match=rf"a\.jsonl: {known} \(2 of 3 rows\), and that decides .* --intent harmful"):
        require_intent(loaded.notes)
    require_intent(load(tmp_path, *rows, intent="benign").notes)


@pytest.mark.parametrize(
    "more",
    [
        {"response_harm_label": "harmful"},
        {"response_label": "unsafe"},
        {"is_safe": False, "category": {"theft": True}},
        {"is_response_safe": "no"},
    ],
)
def test_a_reply_that_its_row_calls_harmful_is_not_trained_on(tmp_path: Path, more: dict[str, Any]) -> None:
    row = {"prompt": "q", "response": THOUGHT, "prompt_label": "unsafe"}
    loaded = load(tmp_path, row | more, row | {"prompt": "p", "response_label": "safe", "is_safe": True})
    assert [UNSAFE in trace.notes for trace in loaded.traces] == [True, False]
    made, left = examples_of(loaded.traces, share="s")
    assert (len(made), [one.reason for one in left]) == (1, ["its file marks the reply as harmful"])


def test_system_texts_reach_training_and_a_history_does_not_vanish(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "2+2", "output": THOUGHT, "system": SAILOR["content"]},
        {
            "system": SAILOR["content"],
            "conversations": [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": MARKED}],
        },
        {"messages": [SAILOR, USER, BOT]},
        {"messages": [SAILOR | {"role": "developer"}, USER, BOT]},
        {"prompt": [SAILOR, USER], "completion": [BOT]},
    ]
    for row in rows:
        (made,) = examples_of(load(tmp_path, row).traces, share="s")[0]
        assert [(part.role, part.train) for part in made.parts] == [
            ("system", False), ("user", False), ("thinking", True), ("answer", True)
        ]  # fmt: skip
        assert made.parts[0].text == SAILOR["content"]
    loaded = load(tmp_path, rows[0], rows[0] | {"history": [["before", "yes"]]})
    assert [odd.reason for odd in loaded.odd] == ["the form 'pairs' has no use for history (history)"]
    with pytest.raises(
        UserError, match=r"no form has a use for all of its columns: prompt \(prompt\), system \(system\)"
    ):
        load(tmp_path, {"prompt": "q", "system": "Talk like a sailor."})


PARTS: list[tuple[Any, str]] = [
    ([{"type": "thinking", "thinking": "see"}, {"type": "text", "text": "Four."}], "complete"),
    ([{"type": "thinking", "thinking": [{"type": "text", "text": "see"}]}, {"type": "text", "text": "Four."}], "complete"),
    ([{"type": "reasoning", "text": "see"}, {"type": "output_text", "text": "Four."}], "complete"),
    ([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "see"}]}, "Four."], "complete"),
    ([{"type": "thinking", "thinking": None}, {"type": "text", "text": "Four."}, {"type": "text", "text": None}, None], "no_thinking"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "outcome"), PARTS)
def test_parts_of_a_turn_are_taken_apart(tmp_path: Path, content: Any, outcome: str) -> None:
    user = {"role": "user", "content": [{"type": "text", "text": "2"}, {"type": "text", "text": "+2"}]}
    (trace,) = load(tmp_path, {"messages": [user, {"role": "assistant", "content": content}]}).traces
    assert (trace.prompt.text, trace.answer, trace.outcome) == ("2+2", "Four.", outcome)
    assert trace.thinking == ("see" if outcome == "complete" else None)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([USER, BOT, USER], "2 questions and 1 replies; one of each, in this order, can be used"),
        ([BOT, USER], "1 questions and 1 replies; one of each, in this order, can be used"),
        ([USER, {"role": "tool", "content": "7"}], "a turn of role 'tool'"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": [{}]}], "a turn of role 'assistant' with tool calls"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "a part of type 'image_url'"),
        ("Hello?", "a conversation is a list of turns, this is str"),
        ([7], "a turn is not an object"),
        ([{"role": "user", "content": ""}], "no text of a question"),
    ],
)  # fmt: skip
def test_conversations_of_another_shape_are_kept_aside(tmp_path: Path, turns: Any, reason: str) -> None:
    loaded = load(tmp_path, {"messages": [USER, BOT]}, {"messages": turns})
    assert ([odd.reason for odd in loaded.odd], len(loaded.traces)) == ([reason], 1)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"question": "q", "choices": ["40", "42"], "answer": 1}, r"choices \(choices\)"),
    ({"question": "q", "options": {"A": "40"}, "answer": "B"}, r"options \(choices\)"),
    ({"question": "q", "best_answer": "x", "incorrect_answers": ["y"]}, r"incorrect_answers \(choices\)"),
    ({"prompt": "def f():", "canonical_solution": "pass", "test": "f()"}, r"test \(tests\)"),
    ({"prompt": "q", "chosen": "a"}, r"chosen \(chosen\)"),
    ({"prompt": "q", "reasoning": "a thought without its answer"}, r"reasoning \(thinking\)"),
    ({"x": 1, "y": 2}, "columns: x, y"),
    ({"prompt": "q", "gpt4_response": "a"}, r"gpt4_response \(other reply\)"),
    ({"question": "q", "A": "40", "B": "42", "answer": "B"}, r"a \(choices\), b \(choices\)"),
    ({"text": "### Human: q ### Assistant: a"}, "columns: text"),
    ({"question": "q", "correct_answer": "x", "Incorrect Answer 1": "y"}, r"incorrect_answer_1 \(choices\)"),
]


@pytest.mark.parametrize(("row", "words"), REFUSED)
def test_columns_that_would_vanish_refuse_the_file(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(tmp_path, row)
    if {"prompt", "question"} & set(row):
        loaded = load(tmp_path, row, form="table", intent="benign")
        assert len(loaded.prompts) == 1
        assert "columns not used" in loaded.notes[0], "naming the form reports what it ignores"


def test_unknown_columns_are_reported(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"prompt": "q", "intent": "benign", "id": 1, "gpt4_notes": "text", "remarks": "x"})
    assert loaded.notes == ["a.jsonl: columns not used: gpt4_notes, remarks"]


def test_answers_are_gold_or_replies_by_their_content(tmp_path: Path) -> None:
    replies = load(tmp_path, *({"question": str(i), "answer": "Use a whetstone and some water."} for i in range(9)))
    assert (replies.form, replies.traces[0].answer) == ("pairs", "Use a whetstone and some water.")
    mixed = [{"question": str(i), "answer": "4" if i % 2 else "Use a whetstone."} for i in range(9)]
    with pytest.raises(UserError, match="Name the form"):
        load(tmp_path, *mixed)
    assert len(load(tmp_path, *mixed, form="pairs").traces) == 9


def test_wildjailbreak_keeps_the_question_behind_an_attack(tmp_path: Path) -> None:
    head = "vanilla\tadversarial\tcompletion\tdata_type"
    rows = ["a plain one\t\tNo.\tvanilla_harmful", '"two\nlines"\ta wrapped one\tNo.\tadversarial_harmful']
    (tmp_path / "train.tsv").write_text("\n".join([head, *rows]) + "\n")
    loaded = load_file(tmp_path / "train.tsv")
    plain, wrapped = loaded.prompts
    assert (plain.text, plain.attack, plain.intent) == ("a plain one", "", "harmful")
    assert (wrapped.text, wrapped.question, wrapped.attack) == ("a wrapped one", "two\nlines", "adversarial")
    assert wrapped.parent == Prompt(text="two\nlines", intent="harmful").id
    assert len(loaded.traces) == 2


def test_paps_rewrites_have_their_question_as_parent(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"query": "q", "final_query": "a rewrite", "category": "Logical Appeal"})
    assert [(p.text, p.question, p.attack) for p in loaded.prompts] == [("a rewrite", "q", "pap:logical_appeal")]


@pytest.mark.parametrize("text", ["[]", "[1, 2, 3]", "[sort] this", '[{"a": 1}]', "[" * 5000])
def test_a_prompt_that_looks_like_a_list_stays_a_text(tmp_path: Path, text: str) -> None:
    loaded = load(tmp_path, {"prompt": text, "response": text, "intent": "benign"})
    assert [(t.prompt.text, t.answer) for t in loaded.traces] == [(text, text)]


def test_notes_hold_no_control_characters(tmp_path: Path) -> None:
    (note,) = load(tmp_path, {"prompt": "q", "intent": "benign", "\x1b[31mred\u202e": "x"}).notes
    assert note == "a.jsonl: columns not used: [31mred"


def test_answers_that_are_texts_are_not_gold_and_are_reported(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"prompt": "q", "response": "a", "intent": "benign", "correct_answer": "Paris, of course"})
    assert (loaded.prompts[0].gold, loaded.notes) == (None, ["a.jsonl: columns not used: correct_answer"])


def test_inputs_and_contexts_stand_under_their_instruction(tmp_path: Path) -> None:
    for name in ("input", "context"):
        (trace,) = load(tmp_path, {"instruction": "Add.", name: "2, 2", "output": "4"}).traces
        assert trace.prompt.text == "Add.\n\n2, 2"
    assert load(tmp_path, {"input": "2+2", "output": "4"}).traces[0].prompt.text == "2+2"


PREFERENCES: dict[str, dict[str, Any]] = {
    "strings": {"prompt": "2+2", "chosen": THOUGHT, "rejected": "No."},
    "messages": {"prompt": "2+2", "chosen": [USER, BOT], "rejected": [USER, {"role": "assistant", "content": "No."}]},
    "messages, prompt apart": {"prompt": [USER], "chosen": [BOT], "rejected": [{"role": "assistant", "content": "No."}]},
    "messages, prompt as text": {"prompt": "2+2", "chosen": [BOT], "rejected": [{"role": "assistant", "content": "No."}]},
    "messages alone": {"chosen": [USER, BOT], "rejected": [USER, {"role": "assistant", "content": "No."}], "score_chosen": 8.0, "score_rejected": 3.5},
    "transcripts": {"chosen": f"\n\nHuman: 2+2\n\nAssistant: {THOUGHT}", "rejected": "\n\nHuman: 2+2\n\nAssistant: No."},
    "two": {"prompt": "2+2", "response_0": "No.", "response_1": THOUGHT, "better_response_id": 1, "safer_response_id": 1},
    "two by safety": {"prompt": "2+2", "response_0": "No.", "response_1": THOUGHT, "is_response_0_safe": False, "is_response_1_safe": True},
    "two by name": {"prompt": "2+2", "response_a": THOUGHT, "response_b": "No.", "winner": "response_a"},
}  # fmt: skip


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences_of_public_shapes(tmp_path: Path, name: str) -> None:
    loaded = load(tmp_path, PREFERENCES[name], intent="benign")
    ((chosen, rejected, reason),) = loaded.pairs
    assert (chosen.thinking, chosen.answer) == ("Let me see.", "Four.")
    assert (rejected.thinking, rejected.answer) == (None, "No.")
    assert (chosen.prompt, [p.text for p in loaded.prompts], loaded.traces) == (rejected.prompt, ["2+2"], [])
    assert reason
    assert not loaded.notes


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("strings", {"rejected": THOUGHT}, "chosen and rejected are the same"),
        ("messages alone", {"score_rejected": 8.0}, r"chosen is scored no better \(8.0\) than rejected \(8.0\)"),
        ("messages", {"rejected": [USER | {"content": "3+3"}, BOT]}, "are not two replies to one question"),
        ("messages", {"rejected": [USER]}, "no text under rejected"),
        ("transcripts", {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"}, "several questions"),
        ("two", {"safer_response_id": 0}, r"not clear which .*\(better_response_id and safer_response_id\)"),
        ("two", {"better_response_id": None, "safer_response_id": None}, r"not clear which .*\(.*better_response_id"),
        ("two", {"better_response_id": 7, "safer_response_id": 7}, "not clear which of response_0, response_1 is better"),
        ("two by safety", {"is_response_0_safe": True}, "not clear which of response_0, response_1 is better"),
        ("two by safety", {"better_response_id": 0}, "better and marked unsafe"),
    ],
)  # fmt: skip
def test_preferences_that_cannot_be_ranked_have_a_reason(
    tmp_path: Path, name: str, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=rf"no row could be read as .*a\.jsonl:1: .*{reason}"):
        load(tmp_path, PREFERENCES[name] | change)


def test_own_records_come_back_as_they_were(tmp_path: Path) -> None:
    part = ExamplePart(role="user", text="q", train=False)
    example = Example(parts=(part,), origin=Origin(prompt="p", question="q", intent="benign"))
    trace = load(tmp_path, WHOLE["STAR-1"][1]).traces[0]
    prompt = Prompt(text="q", intent="harmful", cluster="c", attack="x", parent="y")
    for name, record in (("examples", example), ("traces", trace), ("prompts", prompt)):
        loaded = load_file(write(tmp_path / "b.jsonl", [record]))
        assert loaded.form == name
        assert getattr(loaded, name) == [record]


def test_two_records_of_one_id_are_an_error_and_one_record_twice_is_one(tmp_path: Path) -> None:
    import msgspec

    traces = load(tmp_path, WHOLE["STAR-1"][1], {"question": "3+3", "response": "no"}).traces
    same = [msgspec.structs.replace(trace, id="t") for trace in traces]
    with pytest.raises(UserError, match=r"b\.jsonl:2: another trace of the id t stands in .*b\.jsonl:1"):
        load_file(write(tmp_path / "b.jsonl", same))
    loaded = load_file(write(tmp_path / "b.jsonl", [*traces, traces[0]]))
    assert (loaded.traces, len(loaded.odd)) == (traces, 1)
    assert "the same trace stands in" in loaded.odd[0].reason
    prompts = [Prompt(text=text, intent="benign", id="1") for text in ("a", "b")]
    with pytest.raises(UserError, match="another prompt of the id 1"):
        load_file(write(tmp_path / "b.jsonl", prompts))


def test_equal_replies_to_one_prompt_are_samples_and_all_count(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "response": reply} for reply in ("no", "yes", "no", "no")]
    loaded = load(tmp_path, *rows)
    assert [trace.answer for trace in loaded.traces] == ["no", "yes", "no", "no"]
    assert len({trace.id for trace in loaded.traces}) == 4


def test_odd_rows_are_kept_aside_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"prompt": "q", "response": "a"}\n{"prompt": " "}\nno json\n{"prompt": "q", "response": {"a": 7}}\n'
    )
    loaded = load_file(path)
    assert len(loaded.traces) == 1
    assert sorted(odd.where for odd in loaded.odd) == [f"{path}:{line}" for line in (2, 3, 4)]
    assert {odd.row is None for odd in loaded.odd if odd.where.endswith(":3")} == {True}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"prompt": "Messer sch\xe4rfen"}\n', r"a\.jsonl:1: not JSON: not UTF-8: the byte 0xe4"),
        ("a.csv", b'prompt,response\nq1,"he said "no" twice"\nq2,a2\n', r"a\.csv:2: not readable as CSV from here on"),
        ("a.jsonl", b"prompt: q\nresponse: a\n", r"a\.jsonl:1: not JSON.*\(2 rows could not be read\)"),
        ("a.jsonl", b'["q", 1]\n["r", 2]\n', r"a\.jsonl:1: a row is an object"),
        ("a.jsonl", b"", r"a\.jsonl: it has no rows"),
        ("a.csv", b"Prompt,prompt\nq,r\n", "two columns have one name but for capitals"),
    ],
)
def test_a_file_without_a_readable_row_is_an_error_with_the_reason(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_file(tmp_path / name)


def test_cut_and_wrong_replies_are_left_out_with_a_reason(tmp_path: Path) -> None:
    row = {
        "problem": "2+2",
        "answer": "4",
        "generations": [THOUGHT] * 4,
        "is_reasoning_complete": [True, False, True, True],
        "finish_reasons": ["stop", "stop", "length", "stop"],
        "correctness_math_verify": [True, True, True, False],
        "correctness_llama": [None, None, None, None],
    }
    loaded = load(tmp_path, row)
    assert [trace.sample for trace in loaded.traces] == [0]
    assert [odd.reason for odd in loaded.odd] == [
        "generation 1 is cut",
        "generation 2 is cut",
        "generation 3 is marked wrong",
    ]
    graded = WHOLE["s1K-1.1"][1]
    liked = {"prompt": "q", "completion": "a", "intent": "benign"}
    for good, bad in (
        (graded, {"deepseek_grade": "No"}),
        (WHOLE["OpenThoughts"][1] | {"correct": True}, {"correct": False}),
        (liked | {"label": True}, {"label": False}),
        (liked | {"finish_reason": "stop"}, {"finish_reason": "length"}),
    ):
        loaded = load(tmp_path, good, good | bad)
        assert len(loaded.traces) == 1
        assert loaded.odd[0].reason in ("its reply is marked wrong", "its reply is cut")


def test_a_form_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no row could be read as 'maths'"):
        load(tmp_path, {"prompt": "x"}, form="maths")
    with pytest.raises(UserError, match=r"Did you mean 'maths'"):
        load(tmp_path, {"prompt": "x"}, form="math")


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
        "harmbench_behaviors_text_all.csv": ("table", 400, 0),
        "lrm_safety_study_nocot.json": ("pairs", 1000, 1000),
        "math500.jsonl": ("maths", 500, 500),
        "pap_advbench50.jsonl": ("table", 50, 0),
        "safebench.csv": ("table", 500, 0),
        "star1_first300.json": ("pairs", 300, 300),
        "strongreject_dataset.csv": ("table", 313, 0),
        "xstest_prompts.csv": ("table", 450, 0),
        "xstest_annotated_gpt4.csv": ("pairs", 450, 450),
    }
    for name, counts in expected.items():
        loaded = load_file(data_dir / name)
        assert (loaded.form, len(loaded.prompts), len(loaded.traces)) == counts, name
        assert loaded.odd == []
        if name.startswith(("star1", "lrm", "math", "aime")):
            assert Counter(trace.outcome for trace in loaded.traces) == {"complete": counts[2]}
            assert all(trace.thinking is not None for trace in loaded.traces)
