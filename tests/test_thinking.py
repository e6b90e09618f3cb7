"""Every shape a reasoning model's text can have, and the law that nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur.errors import WorkError
from demur.records import Finish, Prompt, Trace
from demur.thinking import (
    CLOSE,
    FAMILIES,
    OPEN,
    QUOTES,
    Parsed,
    from_fields,
    from_parts,
    join,
    opens_thinking,
    split,
    traced,
    unparsed,
)

MATRIX: list[tuple[str, Finish, bool, tuple[str | None, str | None, str, str | None]]] = [
    ("<think>T</think>A", "stop", False, ("T", "A", "complete", "model")),
    ("T</think>A", "stop", False, ("T", "A", "complete", "prompt")),
    ("T</think>A", "stop", True, ("T", "A", "complete", "prompt")),
    ("<think>T", "length", False, ("T", None, "cut_in_thinking", "model")),
    ("T", "length", True, ("T", None, "cut_in_thinking", "prompt")),
    ("<think>T</think>A", "length", False, ("T", "A", "cut_in_answer", "model")),
    ("<think>T</think>", "length", False, ("T", "", "cut_in_answer", "model")),
    ("<think>T</think>", "stop", False, ("T", "", "complete", "model")),
    ("<think>T", "stop", False, ("T", None, "malformed", "model")),
    ("T", "stop", True, ("T", None, "malformed", "prompt")),
    ("<think>a</think>\n<think>b</think>A", "stop", False, ("a</think>\n<think>b", "A", "malformed", "model")),
    ("<think>a<think>b</think>c</think>A", "stop", False, ("a<think>b</think>c", "A", "malformed", "model")),
    ("<think>T</think>use `</think>` here", "stop", False, ("T", "use `</think>` here", "complete", "model")),
    ("<think>quote <think> here</think>A", "stop", False, ("quote <think> here", "A", "complete", "model")),
    ("<think>a</think>\n<think>b", "length", False, ("a</think>\n<think>b", None, "cut_in_thinking", "model")),
    ("<think>a</think>b</think>A", "stop", False, ("a</think>b", "A", "malformed", "model")),
    ("<think>T</think> </think>\nA", "stop", False, ("T", "A", "complete", "model")),
    ("<think>T</think>A <think>b", "stop", False, ("T", "A <think>b", "malformed", "model")),
    ("Well. <think>T", "length", False, (None, "Well. <think>T", "malformed", None)),
    ("Well. <think>T</think>A", "stop", False, (None, "Well. <think>T</think>A", "malformed", None)),
    ("A", "stop", False, (None, "A", "no_thinking", None)),
    ("A", "length", False, (None, "A", "cut_in_answer", None)),
    ("", "stop", False, (None, "", "no_thinking", None)),
    ("<think>\n\n</think>\n\nSorry.", "stop", False, ("", "Sorry.", "complete", "model")),
    ("<think>", "length", False, ("", None, "cut_in_thinking", "model")),
    ("\n\n<think>\nT\n</think>\n\nA\n", "stop", True, ("T", "A", "complete", "model")),
]


@pytest.mark.parametrize(("raw", "finish", "opened", "expected"), MATRIX)
def test_matrix(
    raw: str, finish: Finish, opened: bool, expected: tuple[str | None, str | None, str, str | None]
) -> None:
    assert split(raw, finish=finish, opened=opened)[:4] == expected


PIECES = st.lists(
    st.one_of(st.sampled_from([OPEN, CLOSE, "\n", " ", "a", "Sorry.", "<think", "\u2028"]), st.text(max_size=8)),
    max_size=12,
)
FINISHES = st.sampled_from(["stop", "length", "content_filter"])


@given(pieces=PIECES, finish=FINISHES, opened=st.booleans())
def test_split_then_join_gives_the_text_back(pieces: list[str], finish: Finish, opened: bool) -> None:
    raw = "".join(pieces)
    parts = split(raw, finish=finish, opened=opened)
    assert join(parts.thinking, parts.answer, opened_by=parts.opened_by, seams=parts.seams) == raw


MARKS = {
    "<Think>": "</THINK>",
    "<think >": "< /think >",
    '<think effort="low">': "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "<mm:think>": "</mm:think>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<|begin_of_thought|>": "<|end_of_thought|>\n\n<|begin_of_solution|>",
    "<|START_THINKING|>": "<|END_THINKING|><|START_RESPONSE|>",
    "<|channel>thought\n": "<channel|>",
    "<|channel|>analysis<|message|>": "<|end|><|start|>assistant<|channel|>final<|message|>",
    "analysis": "assistantfinal",
}
"""How families mark their thinking: what opens it, and what closes it with whatever opens the answer."""


@pytest.mark.parametrize(("opening", "closing"), MARKS.items())
def test_marks_of_other_families(opening: str, closing: str) -> None:
    thought, answer = "I cannot. Or can I?", "Push it in."
    raw = f"{opening}{thought}\n{closing}\n{answer}"
    assert split(raw)[:4] == (thought, answer, "complete", "model")
    assert split(raw[len(opening) :])[:4] == (thought, answer, "complete", "prompt")
    assert split(opening + thought, finish="length")[:4] == (thought, None, "cut_in_thinking", "model")
    assert split(opening + thought)[:3] == (thought, None, "malformed")
    assert opens_thinking(f"<|user|>Hi<|assistant|>{opening}\n") or opening == "analysis"
    assert unparsed(raw) is not None
    assert unparsed(split(raw).answer or "") is None
    note = split(raw).notes
    assert opening.strip() in note[0]
    trace = reply(raw)
    assert (trace.thinking, trace.answer, trace.notes) == (thought, answer, note)


def test_what_closes_an_answer_is_no_part_of_it() -> None:
    raw = "<|channel|>analysis<|message|>T<|end|><|start|>assistant<|channel|>final<|message|>A<|return|>\n"
    assert split(raw)[:2] == ("T", "A")
    assert split("<|channel|>final<|message|>A<|return|>")[:3] == ("", "A", "complete")
    assert split("<|begin_of_thought|>T<|end_of_thought|><|begin_of_solution|>A<|end_of_solution|>")[:2] == ("T", "A")


def test_a_declared_family_is_the_only_one_that_is_read() -> None:
    raw = "[THINK]T[/THINK]A"
    assert split(raw, family="magistral")[:3] == ("T", "A", "complete")
    assert split(raw, family="tags")[:3] == (None, raw, "no_thinking")
    assert split("<think>T</think>A", family="none")[:3] == (None, "<think>T</think>A", "no_thinking")


@pytest.mark.parametrize(
    "thought",
    [
        "It looks for `</think>` first. I can't say.",
        'It reads:\n```\nre.split(r"</think>", s)\n```\nGreedy.',
        'They ask what "</think>" does.',
        "Their tag ‘</think>’ again.",
        "Show:\n~~~\n<think>\nx\n</think>\n~~~\nso.",
        "I begin a fence:\n```py\nprint(1)",
        'He said "no"',
    ],
)
def test_marks_in_code_and_quotation_marks_are_text(thought: str) -> None:
    for answer in ("Split at the last one.", "Write:\n```py\nprint(2)\n```\nDone.", "“So be it”, he said."):
        raw = f"<think>\n{thought}\n</think>\n\n{answer}"
        assert split(raw)[:3] == (thought, answer, "complete")
    assert split(f"Use `<think>` and `</think>`, or:\n```\n{OPEN}\n{CLOSE}\n```\n").outcome == "no_thinking"


PROSE = st.text(alphabet=st.characters(exclude_characters="<>[]|◁▷`~", exclude_categories=["C"]), max_size=60)


@given(
    marks=st.sampled_from(sorted(MARKS.items())),
    thought=PROSE,
    answer=PROSE,
    finish=st.sampled_from(["stop", "length"]),
)
def test_a_thought_is_never_in_the_answer(marks: tuple[str, str], thought: str, answer: str, finish: Finish) -> None:
    if "assistantfinal" in thought + answer or marks[0] == "analysis":
        thought = f"The {thought}"
    if thought.endswith(tuple(QUOTES)):  # a mark between quotation marks is text
        thought += "."
    raw = (
        f"{marks[0]}SECRET {thought}{marks[1]}{answer}"
        if marks[0] != "analysis"
        else f"analysisThe SECRET {thought}assistantfinal{answer}"
    )
    parts = split(raw, finish=finish)
    assert "SECRET" not in (parts.answer or "")
    assert parts.answer == answer.strip()
    assert join(parts.thinking, parts.answer, opened_by=parts.opened_by, seams=parts.seams) == raw
    cut = split(raw[: raw.index("SECRET") + 7], finish=finish)
    assert cut.answer is None


ODD = st.lists(
    st.sampled_from(
        [*MARKS, *MARKS.values(), "`", "```\n", "\n```py\n", '"', "~~~", "\n", " ", "a", "<|return|>", "Sorry."]
    ),
    max_size=14,
)


@given(pieces=ODD, finish=FINISHES, opened=st.booleans(), family=st.sampled_from(["", "none", *FAMILIES]))
def test_whatever_marks_stand_there_nothing_is_lost(
    pieces: list[str], finish: Finish, opened: bool, family: str
) -> None:
    raw = "".join(pieces)
    parts = split(raw, finish=finish, opened=opened, family=family)
    assert join(parts.thinking, parts.answer, opened_by=parts.opened_by, seams=parts.seams) == raw
    assert (parts.thinking is None) == (parts.opened_by is None)


@pytest.mark.parametrize(
    "text",
    [
        "</think><think>" * 70_000,
        OPEN + "\n" * 80_000,
        " " * 1_000_000,
        "`</think>` " * 90_000,
        "```\n</think>\n" * 75_000,
    ],
)
def test_long_texts_of_marks_and_space_end(text: str) -> None:
    """Linear in a megabyte; anything worse would take minutes."""
    parts = split(text)
    assert join(parts.thinking, parts.answer, opened_by=parts.opened_by, seams=parts.seams) == text
    unparsed(text)


@given(thinking=PROSE.map(str.strip), answer=PROSE.map(str.strip))
def test_join_then_split_gives_the_parts_back(thinking: str, answer: str) -> None:
    assert split(join(thinking, answer))[:4] == (thinking, answer, "complete", "model")
    rest = join(thinking, answer, opened_by="prompt")
    assert split(rest, opened=True)[:4] == (thinking, answer, "complete", "prompt")


@given(pieces=PIECES, finish=FINISHES, opened=st.booleans())
def test_outcomes_are_consistent(pieces: list[str], finish: Finish, opened: bool) -> None:
    parts = split("".join(pieces), finish=finish, opened=opened)
    if parts.outcome == "complete":
        assert parts.thinking is not None
        assert parts.answer is not None
    if parts.outcome == "cut_in_thinking":
        assert parts.answer is None
    if parts.outcome in ("cut_in_thinking", "cut_in_answer"):
        assert finish == "length"
    assert (parts.opened_by is None) == (parts.thinking is None)


def test_fields_of_servers_that_split_themselves() -> None:
    assert from_fields("T", "A")[1][:3] == ("T", "A", "complete")
    assert from_fields("T", None, finish="length")[1][:3] == ("T", None, "cut_in_thinking")
    assert from_fields("T", "A", finish="length")[1][:3] == ("T", "A", "cut_in_answer")
    assert from_fields("A without a closing tag", None)[1].outcome == "malformed"
    assert from_fields(None, "<think>T</think>A")[1][:3] == ("T", "A", "complete")
    assert from_fields(None, None, finish="content_filter")[1][:3] == (None, "", "no_thinking")
    raw, parts = from_fields("T", "A")
    assert split(raw)[:3] == parts[:3]


@pytest.mark.parametrize(
    "content", ["</think>\n\nA", "<think>\nT\n</think>\n\nA", "<think>\n\n</think>\n\nA", "A", "[THINK]T[/THINK]A"]
)
def test_a_field_and_marks_in_the_content_are_one_thinking(content: str) -> None:
    assert from_fields("T", content)[1][:3] == ("T", "A", "complete")
    assert from_fields("T", content, finish="length")[1][:3] == ("T", "A", "cut_in_answer")


def test_a_field_and_what_does_not_fit_it() -> None:
    assert from_fields("T", "T", finish="length")[1][:3] == ("T", None, "cut_in_thinking")
    assert from_fields("T", "<think>\nT", finish="length")[1][:3] == ("T", None, "cut_in_thinking")
    assert from_fields("T", "more</think>A")[1][:3] == ("T\n\nmore", "A", "complete")
    assert from_fields("T", "<think>U</think>A")[1][:3] == ("T\n\nU", "A", "malformed")
    assert from_fields("T", "<think>U", finish="length")[1][:3] == ("T\n\nU", None, "cut_in_thinking")
    assert from_fields("T", "Use `</think>`.")[1][:3] == ("T", "Use `</think>`.", "complete")


def test_contents_of_typed_parts() -> None:
    text = {"type": "text", "text": "A"}
    for thought in (
        {"type": "thinking", "thinking": "T"},
        {"type": "thinking", "thinking": [{"type": "text", "text": "T"}]},
        {"type": "reasoning", "text": "T"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "T"}]},
    ):
        assert from_parts([thought, text]) == ("T", "A", [])
    found = from_parts([text, {"type": "text", "text": None}, "B", None, 7, {"type": "image_url"}])
    assert found == (None, "AB", ["int", "image_url"])
    assert from_parts([{"type": "text", "text": {"value": "A"}}]) == (None, "A", [])
    assert from_parts([{"type": "redacted_thinking", "data": "x"}]) == (None, None, ["redacted_thinking"])
    deep: object = "x"
    for _ in range(50):
        deep = [deep]
    for odd in (deep, 7, {"a": 1}):
        with pytest.raises(ValueError, match="not a string"):
            from_parts([{"type": "thinking", "thinking": odd}])


def reply(raw: str, *, finish: Finish = "stop", model: str = "m", number: int = 0) -> Trace:
    return traced(Prompt(text="p", intent="harmful"), raw, finish=finish, model=model, sample=number)


def require_parsed(traces: list[Trace]) -> None:
    parsed = Parsed()
    for trace in traces:
        parsed.add(trace)
    parsed.require()


def test_unknown_marks_are_named_and_stop_a_run() -> None:
    assert unparsed("<scratchpad>Hm.</scratchpad>Yes.") == "<scratchpad>"
    assert unparsed("<|inner_reasoning|>Hm.") == "<|inner_reasoning|>"
    assert unparsed("I think that <b>reason</b> [analysis] is `<think>`.") is None
    plain = [reply("Yes.", number=n) for n in range(19)]
    require_parsed([*plain, reply("<scratchpad>Hm.</scratchpad>Yes.")])
    with pytest.raises(WorkError, match=r"11% of the replies of m hold .*'<scratchpad>'"):
        require_parsed([*plain[:16], *(reply("<scratchpad>No.</scratchpad>Yes.", number=n) for n in (1, 2))])


def test_opening_by_the_prompt() -> None:
    assert opens_thinking("<|Assistant|><think>\n")
    assert not opens_thinking("<think>\n\n</think>\n\n")
