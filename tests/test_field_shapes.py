"""Inputs in the shapes of public data sets, model families and servers, tried after the code was written: see docs/cases.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demur import thinking
from demur.errors import UserError
from demur.judge.code import extract
from demur.judge.maths import final_answer
from demur.models import wire
from demur.models.chat_format import ChatFormat
from demur.prompts.forms import load_file
from demur.records import UNSAFE, Message
from demur.thinking import split, unparsed

Q, T, A, NO = "How do I bake bread?", "They ask about bread.", "Mix flour and water.", "No."
TAGGED = f"<think>{T}</think>{A}"
USER: dict[str, Any] = {"role": "user", "content": Q}


def bot(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def chat(content: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [USER, bot(content, **fields)]}


BOTH = {"chosen": [USER, bot(A)], "rejected": [USER, bot(NO)]}
HH = f"\n\nHuman: {Q}\n\nAssistant:"
NEMOTRON = {
    "input": [USER],
    "category": "chat",
    "license": "x",
    "generator": "R1",
    "system_prompt": "detailed thinking on",
}
PKU = {"prompt": Q, "response_0": A, "response_1": NO, "is_response_0_safe": False, "is_response_1_safe": True}

TRACES: dict[str, tuple[dict[str, Any], str | None]] = {
    "Nemotron v1, on": (NEMOTRON | {"output": TAGGED, "reasoning": "on"}, T),
    "Nemotron v1, off": (NEMOTRON | {"output": A, "reasoning": "off"}, None),
    "Nemotron v2, off": (chat(A) | {"uuid": "1", "reasoning": "off", "metadata": "{}"}, None),
    "a switch": ({"prompt": Q, "response": A, "thinking": True}, None),
    "an effort": ({"prompt": Q, "response": A, "reasoning": "high"}, None),
    "AM-DeepSeek": (chat(f"<think>{T}</think><answer>{A}</answer>", info={"think_content": T, "answer_content": A}), T),
    "OpenThoughts3": ({"domain": "math", "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": TAGGED}]}, T),
    "LMSYS": ({"conversation": [USER, bot(A)], "turn": 1, "openai_moderation": [{"flagged": True}], "redacted": False}, None),
    "WildChat": ({"conversation": [USER | {"toxic": False}, bot(A)], "toxic": True, "language": "English"}, None),
    "Magpie": ({"instruction": Q, "response": A, "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]}, None),
    "BeaverTails": ({"prompt": Q, "response": A, "category": {"violence": True, "theft": False}, "is_safe": False}, None),
    "Aegis 2": ({"id": "1", "prompt": Q, "response": A, "prompt_label": "unsafe", "response_label": "unsafe"}, None),
    "ToxicChat": ({"conv_id": "1", "user_input": Q, "model_output": A, "toxicity": 0, "jailbreaking": 0}, None),
    "a Human's prompt": ({"prompt": HH, "response": A}, None),
    "Dolly": ({"instruction": Q, "context": "", "response": A, "category": "open_qa"}, None),
    "WildJailbreak": ({"vanilla": Q, "adversarial": "", "completion": A, "data_type": "vanilla_benign"}, None),
    "OpenAI's parts": (chat([{"type": "output_text", "text": A}]), None),
    "Claude's parts": (chat([{"type": "thinking", "thinking": T, "signature": "s"}, {"type": "text", "text": A}]), T),
    "OpenRouter's details": (chat(A, reasoning_details=[{"type": "reasoning.text", "text": T}]), T),
    "gpt-oss": ({"messages": [USER, bot(A, thinking=T)], "reasoning_language": "English", "developer": "x"}, T),
    "a turn's text": ({"messages": [{"role": "user", "text": Q}, {"role": "assistant", "text": A}]}, None),
    "axolotl's user": ({"messages": [USER | {"train": False}, bot(A, train=True)]}, None),
    "steps": ({"prompt": Q, "cot": [T], "response": A}, T),
    "odd names": ({" Prompt ": Q, "Model Response": A}, None),
    "odd roles": ({"messages": [{"role": "HUMAN", "content": Q}, {"role": "AI", "content": A}]}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", TRACES)
def test_a_row_is_one_question_one_thought_and_one_reply(tmp_path: Path, name: str) -> None:
    row, thought = TRACES[name]
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (trace,) = load_file(tmp_path / "a.jsonl").traces
    assert (trace.prompt.text, trace.thinking, trace.answer) == (Q, thought, A)
    assert (UNSAFE in trace.notes) == (name in ("BeaverTails", "Aegis 2"))
    harmful = {"WildChat": True, "Aegis 2": True, "ToxicChat": False, "WildJailbreak": False}
    assert (trace.prompt.intent == "harmful") == harmful.get(name, trace.prompt.intent == "harmful")


PREFERENCES: dict[str, dict[str, Any]] = {
    "Tulu": {"prompt": Q, **BOTH, "chosen_rating": 5.0, "rejected_rating": 1.0, "chosen_model": "a"},
    "UltraFeedback, binarized": {"prompt": Q, **BOTH, "messages": [USER, bot(A)], "score_chosen": 8.5, "score_rejected": 3.0},
    "Skywork": BOTH | {"source": "s"},
    "ORPO": {"prompt": [USER], "chosen": [bot(A)], "rejected": [bot(NO)]},
    "HH": {"chosen": f"{HH} {A}", "rejected": f"{HH} {NO}"},
    "with a system": {"system": "Be kind", "question": Q, "chosen": A, "rejected": NO},
    "PKU, agreed": PKU | {"is_response_0_safe": True, "better_response_id": 0, "safer_response_id": 0},
}  # fmt: skip


@pytest.mark.parametrize("name", PREFERENCES)
def test_a_row_is_one_preference(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(PREFERENCES[name]))
    (pair,) = load_file(tmp_path / "a.jsonl").pairs
    assert (pair.chosen.prompt.text, pair.chosen.answer, pair.rejected.answer) == (Q, A, NO)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Tulu, the wrong way": ({"prompt": Q, **BOTH, "chosen_rating": 1.0, "rejected_rating": 5.0}, "chosen is scored no better"),
    "PKU, better is not safer": (PKU | {"better_response_id": 0, "safer_response_id": 1}, "which of response_0, response_1 is better"),
    "HelpSteer3": ({"context": [USER], "response1": A, "response2": NO, "overall_preference": -2}, "which of response1, response2"),
    "HH, several turns": ({"chosen": f"{HH} Hi\n\nHuman: More\n\nAssistant: {A}", "rejected": f"{HH} {NO}"}, "several questions"),
    "a Human's second turn": ({"prompt": f"{HH} Hi\n\nHuman: More\n\nAssistant:", "response": A}, "several questions"),
    "UltraFeedback": ({"instruction": Q, "completions": [{"response": A}], "correct_answers": ["None"], "incorrect_answers": ["None"]}, "completions"),
    "Natural Reasoning": ({"question": Q, "responses": [{"response_model": "l", "response": A}]}, "a reply that is not text"),
    "Do-Not-Answer": ({"question": Q, "GPT4_response": A, "ChatGPT_response": A}, "chatgpt_response"),
    "MedSafetyBench": ({"harmful_medical_request": Q, "safe_response": A}, "harmful_medical_request"),
    "TruthfulQA": ({"question": Q, "best_answer": A, "incorrect_answers": ["x"]}, "incorrect_answers"),
    "a rendered chat": ({"text": f"<|im_start|>user\n{Q}<|im_end|>"}, "columns: text"),
    "OpenAssistant": ({"message_id": "1", "text": Q, "role": "prompter"}, "text"),
    "columns of lists": ({"messages": {"role": ["user"], "content": [Q]}}, "a conversation is a list of turns"),
    "a turn not to be trained": (chat(A, weight=0), "not to be trained"),
    "a turn without content": ({"messages": [USER, {"role": "assistant", "parts": [A]}]}, "without content"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image"}]}, bot(A)]}, "a part of type 'image'"),
    "hidden thoughts": (chat([{"type": "redacted_thinking", "data": "z"}, {"type": "text", "text": A}]), "redacted_thinking"),
    "a role of thoughts": ({"messages": [USER, {"role": "reasoning", "content": T}, bot(A)]}, "a turn of role 'reasoning'"),
    "channels as turns": ({"messages": [USER, bot(T, channel="analysis"), bot(A, channel="final")]}, "one of each"),
    "a flag as reply": ({"prompt": Q, "response": True}, "no text under response"),
    "TRL's undesirable": ({"prompt": Q, "completion": A, "label": False}, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_by_its_reason(tmp_path: Path, name: str) -> None:
    row, reason = REFUSED[name]
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    if reason:
        with pytest.raises(UserError, match=reason):
            load_file(tmp_path / "a.jsonl")
    else:
        found = load_file(tmp_path / "a.jsonl")
        assert (found.traces, [odd.reason for odd in found.odd]) == ([], ["its reply is marked wrong"])


@pytest.mark.parametrize(
    "raw",
    [
        f"<seed:think>{T}</seed:think>{A}",
        f"<think>\n{T}\n</think>\n<answer>\n{A}\n</answer>",  # Hunyuan, K2-Think, GLM-4.1V
        f"<think>{T}</think><response>{A}</response>",  # Granite 3.3, ERNIE
        f"<Thought>\n{T}\n</Thought>\n<Output>\n{A}\n</Output>",  # Marco-o1
        f"<thought>\n{T}\n</thought>\n\n{A}",  # EXAONE Deep
        f"[THINK]{T}[/THINK]{A}",
        f"◁think▷{T}◁/think▷{A}",
        f"<|inner_prefix|>{T}<|inner_suffix|>{A}",  # Apertus
        f"<|START_THINKING|>{T}<|END_THINKING|><|START_RESPONSE|>{A}<|END_RESPONSE|>",
        f"<|channel|>analysis<|message|>{T}<|end|><|start|>assistant<|channel|>final<|message|>{A}<|return|>",
        f"analysis{T}assistantfinal{A}",
        f"<thinking>{T}</think>{A}",
        f"<think duration='12'>{T}</think>{A}",
        f"<think\n>{T}</think\n>{A}",
        f"\ufeff<think>{T}</think>{A}",
        f"\u200b\n<s> <think>{T}</think>{A}",
        f"<|im_start|>assistant\n<think>{T}</think>{A}",
        f"{T}\n</think>\n\n{A}",
    ],
)
def test_thinking_as_families_mark_it(raw: str) -> None:
    parts = split(raw)
    assert (parts.thinking, parts.answer, parts.outcome) == (T, A, "complete")
    assert thinking.join(parts.thinking, parts.answer, opened_by=parts.opened_by, seams=parts.seams) == raw


@pytest.mark.parametrize(
    "raw",
    [
        f"&lt;think&gt;{T}&lt;/think&gt;{A}",  # escaped for a web page
        f"\\u003cthink\\u003e{T}\\u003c/think\\u003e{A}",  # escaped twice for JSON
        f"＜think＞{T}＜/think＞{A}",
        f"<思考>{T}</思考>{A}",
        f"```thinking\n{T}\n```\n{A}",
        f'<details type="reasoning"><summary>Thought for 3 s</summary>\n{T}\n</details>\n{A}',  # Open WebUI
        f"<|think|>{T}<|end|><|begin|>assistant<|content|>{A}",  # Solar Open
        f"Here is my thought process: {T}\nHere is my response: {A}",  # Granite 3.2
        f"<|channel|> analysis <|message|>{T}<|end|><|start|>assistant<|channel|> final <|message|>{A}",
        f"<|start_think|>{T}<|end_think|>{A}",
        f"<reasoning_process>{T}</reasoning_process>{A}",
        f"<scratchpad>{T}</scratchpad>{A}",
        f"[think]{T}[/think]{A}",
        f"Sure.\n<think>{T}</think>{A}",
    ],
)
def test_marks_that_are_not_parsed_are_named(raw: str) -> None:
    parts = split(raw)
    assert parts.thinking is None
    assert unparsed(parts.answer or "")


def test_what_is_no_mark_is_text() -> None:
    for raw in (f"<think />\n{A}", f"```python\n# <think>\n```\n{A}", "```output\nthinking\n```"):
        assert (split(raw).answer, unparsed(raw)) == (raw, None)


@pytest.mark.parametrize(
    "message",
    [
        {"content": A, "thinking": T},
        {"content": A, "reasoning": T, "reasoning_details": [{"type": "reasoning.text", "text": T}]},
        {"content": A, "reasoning_details": [{"type": "reasoning.text", "text": T}, {"type": "reasoning.encrypted", "data": "x"}]},
        {"content": A, "thinking_blocks": [{"type": "thinking", "thinking": T, "signature": "x"}]},
        {"content": A, "reasoning_content": [{"type": "thinking", "thinking": T}]},
        {"content": A, "reasoning_content": f"<think>\n{T}"},
        {"content": A, "reasoning_content": f"<think>\n{T}\n</think>"},
        {"content": "", "reasoning_content": f"{T}</think>{A}"},
        {"content": f"<think>{T}</think>{A}", "reasoning_content": T},
        {"content": f"<think>{T}</think>{A}", "reasoning_content": None},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": T}], "closed": True}, {"type": "text", "text": A}]},
        {"content": [{"type": "thinking", "thinking": T}, {"type": "text", "text": A}, {"type": "reference", "reference_ids": [1]}]},
    ],
)  # fmt: skip
def test_thinking_as_servers_send_it(message: dict[str, Any]) -> None:
    reply = wire.read(json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode())
    _, parts = thinking.from_fields(reply.reasoning, reply.content)
    assert (parts.thinking, parts.answer, parts.outcome) == (T, A, "complete")


@pytest.mark.parametrize(
    "message",
    [
        {"content": {"text": A}},
        {"content": A, "reasoning": {"effort": 3}},
        {"content": [{"reasoningContent": {"x": 1}}]},
    ],
)
def test_what_is_no_text_is_no_reply(message: dict[str, Any]) -> None:
    with pytest.raises(wire.Unreadable):
        wire.read(json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode())


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>42</answer>", "42"),
        ("<answer>\nThe answer is 42.\n</answer>", "42"),
        ("It is <|begin_of_box|>42<|end_of_box|>.", "42"),  # GLM
        ("答案是 42。", "42"),
        ("答案：42", "42"),
        ("**Answer:** 42", "42"),
        ("ANSWER: 42", "42"),
        (r"\fbox{42}", "42"),
        (r"\boxed{\boxed{42}}", "42"),
        (r"$$\boxed {42}$$", "42"),
        (r"$x = \boxed{3}$ or $x=\boxed{-3}$", "3, -3"),
        ("The answer is 42. Let me check: 40 + 2 = 42.", "42"),
        (r"\boxed{42", None),
        (r"\boxed{}", None),
        ("I cannot answer.", None),
    ],
)
def test_final_answers(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "```Python3\na = 1\n```", "``` python\na = 1\n```", '```python title="a.py"\na = 1\n```', "```{python}\na = 1\n```",
        "```python\r\na = 1\r\n```", "~~~python\na = 1\n~~~", "1. Code:\n\n   ```python\n   a = 1\n   ```", "````python\na = 1\n````",
        "<answer>\n```python\na = 1\n```\n</answer>", "```python\na = 1\n```\nRun:\n```bash\npython a.py\n```", "```cpp\nint a;\n```\n```py\na = 1\n```",
        "\ufeff```python\na = 1\n```", "Here:```python\na = 1\n```", "\\boxed{\n```python\na = 1\n```}", "```\npython\na = 1\n```", "a = 1",
    ],
)  # fmt: skip
def test_programs(text: str) -> None:
    assert (extract(text) or "").strip() == "a = 1"


@pytest.mark.parametrize(
    "template",
    [
        "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "2026{% for m in messages %}{% generation %}{{ m.content }}{%- endgeneration -%}{% endfor %}",  # SmolLM3
        [
            {"name": "tool_use", "template": "x"},
            {"name": "default", "template": "2026{{ messages[0].content }}"},
        ],  # Command R
    ],
)
def test_chat_templates(template: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert ChatFormat(tmp_path).render((Message(role="user", content=Q),)) == f"2026{Q}"
