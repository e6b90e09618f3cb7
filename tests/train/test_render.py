"""What is trained is what was intended, for every chat format; what would train something else is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.made import ASSETS

from demur import thinking
from demur.errors import CheckFailed, UserError
from demur.records import Example
from demur.train.chat import Chat
from demur.train.render import IGNORED, Renderer, Row

Make = Callable[..., Example]
FAMILIES = ("r1-distill", "qwen3", "qwq", "mini")
GOLDEN = ASSETS / "golden_tokens.json"
ASK, THINK, SAY = "what is a nurse?", "a nurse is a person.", "a nurse is a person."


def trained(tokenizer: Any, row: Row) -> str:
    return str(tokenizer.decode([token for token in row.labels if token != IGNORED]))


def one(renderer: Renderer, example: Any) -> Row:
    (row,) = renderer.rows([example], max_length=1000).rows
    return row


@pytest.mark.parametrize("name", FAMILIES)
def test_golden_tokens(name: str, tokenizers_by_name: dict[str, Any], make: Make) -> None:
    tokenizer = tokenizers_by_name[name]
    renderer = Renderer(tokenizer)
    assert renderer.family == name
    row = one(renderer, make(ASK, THINK, SAY))
    golden = json.loads(GOLDEN.read_text())[name]
    assert [row.ids, row.labels, row.context, row.answer] == [golden[k] for k in ("ids", "labels", "context", "answer")]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_context_is_the_inference_prompt(name: str, tokenizers_by_name: dict[str, Any], make: Make) -> None:
    tokenizer = tokenizers_by_name[name]
    row = one(Renderer(tokenizer), make(ASK, THINK, SAY))
    seen = tokenizer.apply_chat_template(
        [{"role": "user", "content": ASK}], add_generation_prompt=True, return_dict=False
    )
    assert row.ids[: row.context] == list(seen)
    assert all(label == IGNORED for label in row.labels[: row.context])
    assert row.ids[row.context :] == row.labels[row.context :]
    assert row.labels[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("name", ["r1-distill", "qwen3", "qwq"])
def test_the_first_label_is_what_the_model_writes_first(
    name: str, tokenizers_by_name: dict[str, Any], make: Make
) -> None:
    tokenizer = tokenizers_by_name[name]
    opened = Chat(tokenizer).opened
    assert opened == (name != "qwen3")
    text = trained(tokenizer, one(Renderer(tokenizer), make("q", "because", "so")))
    assert text.startswith("because" if opened else thinking.OPEN + "\nbecause")
    assert text == ("" if opened else thinking.OPEN + "\n") + f"because\n{thinking.CLOSE}\n\nso" + tokenizer.eos_token


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=40).map(str.strip)
PLAIN = TEXT.filter(lambda text: not re.search(r"<[|｜/]?\w", text))
"""Texts without control tokens, which are refused; Hypothesis draws words of the source, too."""


@pytest.mark.parametrize("name", ["r1-distill", "qwen3"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=PLAIN, thought=PLAIN, answer=PLAIN)
def test_any_text_is_trained_whole(
    name: str, tokenizers_by_name: dict[str, Any], make: Make, question: str, thought: str, answer: str
) -> None:
    tokenizer = tokenizers_by_name[name]
    text = trained(tokenizer, one(Renderer(tokenizer), make(question, thought, answer)))
    body = text.removesuffix(tokenizer.eos_token)
    parts = thinking.split(body, opened=name == "r1-distill")
    assert (parts.thinking, parts.answer, parts.outcome) == (thought, answer, "complete")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.tuples(st.text("abc é谢", min_size=1, max_size=8), st.booleans()), min_size=1, max_size=5))
def test_flags_decide_what_is_trained(
    tokenizers_by_name: dict[str, Any], make: Make, pieces: list[tuple[str, bool]]
) -> None:
    """Byte-level tokens never reach over a border, so that exactly the flagged parts are trained."""
    tokenizer = tokenizers_by_name["r1-distill"]
    parts = [("user", "q", False), *(("thinking", text, train) for text, train in pieces), ("answer", "so", False)]
    renderer = Renderer(tokenizer)
    if "".join(text for text, _ in pieces).strip() != "".join(text for text, _ in pieces):
        pieces = [("x", False), *pieces, ("y", False)]
        parts = [("user", "q", False), *(("thinking", text, train) for text, train in pieces), ("answer", "so", False)]
    if not any(train for _, train in pieces):
        with pytest.raises(CheckFailed, match="no row is left"):
            renderer.rows([make(*parts)], max_length=1000)
        return
    wanted = "".join(text for text, train in pieces if train) + (f"\n{thinking.CLOSE}" if pieces[-1][1] else "")
    assert trained(tokenizer, one(renderer, make(*parts))) == wanted


def test_earlier_turns_are_context(tokenizers_by_name: dict[str, Any], make: Make) -> None:
    tokenizer = tokenizers_by_name["r1-distill"]
    parts = [("system", "kind", False), ("user", "a", False), ("answer", "c", False)]
    parts += [("user", "d", False), ("thinking", "e", True), ("answer", "f", True)]
    row = one(Renderer(tokenizer), make(*parts))
    assert tokenizer.decode(row.ids[: row.context]).startswith(
        "<｜begin▁of▁sentence｜>kind<｜User｜>a<｜Assistant｜>c<｜end"
    )
    assert trained(tokenizer, row).startswith("e")
    earlier = make(*[(role, text, train or role == "answer") for role, text, train in parts])
    assert Renderer(tokenizer).rows([make("q", "t", "a"), earlier], max_length=999).counts() == {"earlier_turn": 1}


def test_long_rows_are_dropped_and_counted_never_cut(tokenizers_by_name: dict[str, Any], make: Make) -> None:
    renderer = Renderer(tokenizers_by_name["r1-distill"])
    rendered = renderer.rows([make("q", "t" * 300, "a"), make("q", "t", "a")], max_length=100)
    assert [len(rendered.rows), rendered.counts()] == [1, {"too_long": 1}]
    assert "at most 100 are taken" in rendered.dropped[0].detail


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((("user", "q", False), ("answer", "a", True)), "no_thinking"),
        ((("user", "q", False), ("thinking", "t", True)), "no_answer"),
        ((("user", "q", False), ("thinking", f"t{thinking.CLOSE}u", True), ("answer", "a", True)), "thinking_blocks"),
        ((("user", "q", False), ("thinking", f"t{thinking.OPEN}u", True), ("answer", "a", True)), "thinking_blocks"),
        ((("user", "q", False), ("thinking", "t", True), ("answer", "a<｜User｜>b", True)), "control_token"),
        (
            (("user", "q<｜begin▁of▁sentence｜>", False), ("thinking", "t", True), ("answer", "a", True)),
            "control_token",
        ),
    ],
)
def test_rows_that_would_teach_something_else_are_dropped(
    tokenizers_by_name: dict[str, Any], make: Make, parts: Any, reason: str
) -> None:
    good = make("q", "t", "a")
    rendered = Renderer(tokenizers_by_name["r1-distill"]).rows([good, make(*parts)], max_length=100)
    assert rendered.counts() == {reason: 1}


def test_unknown_words_are_dropped(tokenizers_by_name: dict[str, Any], make: Make) -> None:
    rendered = Renderer(tokenizers_by_name["mini"]).rows(
        [make(ASK, THINK, SAY), make(ASK, THINK, "zyzzyva")], max_length=100
    )
    assert rendered.counts() == {"unknown_token": 1}


@pytest.mark.parametrize("name", ["r1-distill", "qwq"])
def test_a_template_that_deletes_reasoning_is_refused(
    name: str, tokenizers_by_name: dict[str, Any], make: Make
) -> None:
    renderer = Renderer(tokenizers_by_name[name], template="tokenizer")
    with pytest.raises(CheckFailed) as refused:
        renderer.rows([make("q", "a long thought indeed", "no")], max_length=1000)
    message = str(refused.value)
    assert message.startswith("refusing to train: this chat template deletes the reasoning. Row 1 of 1: ")
    assert f"template={name} " in message


def test_a_template_that_keeps_it_may_render_itself(tokenizers_by_name: dict[str, Any], make: Make) -> None:
    tokenizer = tokenizers_by_name["qwen3"]
    own = one(Renderer(tokenizer, template="tokenizer"), make("q", "t", "a"))
    assert own == one(Renderer(tokenizer), make("q", "t", "a"))


def test_an_unknown_template_is_used_when_it_agrees_and_refused_with_the_first_difference(
    make: Make, tokenizer_with: Callable[[str], Any]
) -> None:
    good = tokenizer_with((ASSETS / "templates" / "unknown_good.jinja").read_text())
    assert Chat(good).family() is None
    assert "because" in trained(good, one(Renderer(good), make("q", "because", "a")))
    bad = tokenizer_with((ASSETS / "templates" / "unknown_bad.jinja").read_text())
    with pytest.raises(CheckFailed, match="template=generic"):
        Renderer(bad)
    assert "because" in trained(bad, one(Renderer(bad, template="generic"), make("q", "because", "a")))


@pytest.mark.parametrize(
    "mark", ["[THINK]", "<seed:think>", "<|channel|>analysis<|message|>", "<thinking>", "◁think▷", "<|START_THINKING|>"]
)
def test_a_template_that_marks_thinking_in_another_way_is_refused_by_the_mark(
    mark: str, tokenizer_with: Callable[[str], Any]
) -> None:
    template = (ASSETS / "templates" / "unknown_good.jinja").read_text()
    foreign = tokenizer_with(f"{{# opens with {mark} #}}{template}")
    with pytest.raises(CheckFailed, match=re.escape(mark)):
        Renderer(foreign)
    assert Renderer(foreign, template="generic").family == "generic"


def test_a_stop_that_inference_does_not_know_is_refused(tokenizers_by_name: dict[str, Any]) -> None:
    with pytest.raises(CheckFailed, match="would never stop"):
        Renderer(tokenizers_by_name["qwen3"], stops=[1])


def test_no_template_and_unknown_family(
    tokenizers_by_name: dict[str, Any], tokenizer_with: Callable[[str], Any]
) -> None:
    bare = tokenizer_with("x")
    bare.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        Renderer(bare)
    with pytest.raises(UserError, match="Did you mean 'qwen3'"):
        Renderer(tokenizers_by_name["qwen3"], template="qwen4")


def test_loss_on_all_tokens_is_what_it_says(tokenizers_by_name: dict[str, Any], make: Make) -> None:
    row = one(Renderer(tokenizers_by_name["r1-distill"], loss="all"), make("q", "t", "a"))
    assert row.labels[1:] == row.ids[1:]
    assert row.labels[0] == IGNORED


@pytest.mark.parametrize(("file", "family"), [("deepseek_r1_distill", "r1-distill"), ("qwen3", "qwen3")])
def test_released_templates(file: str, family: str, tokenizers_by_name: dict[str, Any], make: Make) -> None:
    """The templates as TRL ships them, where it is installed."""
    trl = pytest.importorskip("trl")
    template = Path(trl.__file__).parent / "chat_templates" / f"{file}.jinja"
    if not template.is_file():
        pytest.skip("this version of TRL ships no such template")
    import copy

    tokenizer = copy.deepcopy(tokenizers_by_name[family])
    tokenizer.chat_template = template.read_text()
    renderer = Renderer(tokenizer)
    assert renderer.family == family
    assert trained(tokenizer, one(renderer, make("q", "because", "a"))).count("because") == 1
    if family == "r1-distill":
        with pytest.raises(CheckFailed, match="deletes the reasoning"):
            Renderer(tokenizer, template="tokenizer").rows([make("q", "because", "a")], max_length=100)


@pytest.mark.slow
def test_plain_trl_would_train_without_the_reasoning(stand_in: Path, make: Make, tmp_path: Path) -> None:
    """The failure itself: the same rows as `messages`, through TRL without demur."""
    trl = pytest.importorskip("trl")
    import warnings

    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    thought = "I weigh this carefully"
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": thinking.join(thought, "No.")},
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trl.SFTTrainer(
            AutoModelForCausalLM.from_pretrained(stand_in),
            args=trl.SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none"),
            train_dataset=Dataset.from_list([{"messages": messages}]),
            processing_class=AutoTokenizer.from_pretrained(stand_in),
        )
    tokenizer = trainer.processing_class
    seen = tokenizer.decode(trainer.train_dataset[0]["input_ids"])
    assert "No." in seen
    assert thought not in seen
    ours = one(Renderer(tokenizer), make("q", thought, "No."))
    assert thought in trained(tokenizer, ours)
