"""Chat templates: each way in which real ones differ is a case, with the reason where it is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demur import thinking
from demur.errors import CheckFailed, UserError
from demur.models.chat_format import DATE
from demur.records import Example
from demur.train.chat import Chat
from demur.train.check import check_template
from demur.train.render import IGNORED, Renderer, Row

Make = Callable[..., Example]
TURNS = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
CHATML = TURNS + ASK
KIND = (
    ("system", "Talk like a sailor.", False),
    ("user", "hi", False),
    ("thinking", "t", True),
    ("answer", "Ahoy", True),
)


def one(tokenizer: Any, example: Example, **options: Any) -> Row:
    (row,) = Renderer(tokenizer, **options).rows([example], max_length=1000).rows
    return row


def context(tokenizer: Any, row: Row) -> str:
    return str(tokenizer.decode(row.ids[: row.context]))


def trained(tokenizer: Any, row: Row) -> str:
    return str(tokenizer.decode([token for token in row.labels if token != IGNORED]))


def test_chatml_whose_turn_mark_is_the_beginning_of_text(tokenizer_with: Callable[[str], Any], make: Make) -> None:
    """As SmolLM2's: every turn holds the beginning-of-text token, and no row is refused for it."""
    tokenizer = tokenizer_with(CHATML)
    tokenizer.bos_token = "<|im_start|>"
    row = one(tokenizer, make(*KIND))
    assert row.ids.count(tokenizer.bos_token_id) == 3
    assert trained(tokenizer, row) == f"{thinking.OPEN}\nt\n{thinking.CLOSE}\n\nAhoy<|im_end|>"


def test_a_text_that_begins_twice_is_refused(tokenizer_with: Callable[[str], Any], make: Make) -> None:
    tokenizer = tokenizer_with("{{ bos_token + bos_token }}" + CHATML)
    tokenizer.bos_token = "<|endoftext|>"
    with pytest.raises(CheckFailed, match=r"two_beginnings.*begins with '<\|endoftext\|>' twice"):
        Renderer(tokenizer, template="generic").rows([make("q", "t", "a")], max_length=99)


def test_no_beginning_at_all_and_one_that_only_the_tokenizer_adds(
    tokenizer_with: Callable[[str], Any], make: Make
) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_with(CHATML)
    assert tokenizer.bos_token is None
    plain = one(tokenizer, make("q", "t", "a"))
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    assert one(tokenizer, make("q", "t", "a")) == plain, "chat servers add none to a rendered template"
    assert any("writes no beginning-of-text token" in note for note in Chat(tokenizer).notes())


def test_padding_by_the_end_token(tokenizer_with: Callable[[str], Any], make: Make) -> None:
    tokenizer = tokenizer_with(CHATML)
    tokenizer.pad_token = tokenizer.eos_token
    assert one(tokenizer, make("q", "t", "a")).labels[-1] == tokenizer.eos_token_id
    assert any("padding token" in note for note in Chat(tokenizer).notes())


def test_system_turns_reach_training(tokenizer_with: Callable[[str], Any], make: Make) -> None:
    tokenizer = tokenizer_with(CHATML)
    assert "Talk like a sailor." in context(tokenizer, one(tokenizer, make(*KIND)))
    empty = one(tokenizer, make(("system", "", False), *KIND[1:]))
    assert context(tokenizer, empty).startswith("<|im_start|>system\n<|im_end|>")


@pytest.mark.parametrize(
    ("template", "reason", "detail"),
    [
        (CHATML.replace("messages %}", "messages if m.role != 'system' %}"), "turn_left_out", "the system's turn"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}" + CHATML,
            "template_refuses",
            "no system turn here",
        ),
    ],
)
def test_templates_without_a_system_turn(
    template: str, reason: str, detail: str, tokenizer_with: Callable[[str], Any], make: Make
) -> None:
    renderer = Renderer(tokenizer_with(template))
    rendered = renderer.rows([make("q", "t", "a"), make(*KIND)], max_length=99)
    assert rendered.counts() == {reason: 1}
    assert detail in rendered.dropped[0].detail
    assert any("takes no system turn" in note for note in renderer.chat.notes())


def test_a_default_system_turn_is_part_of_the_prompt(tokenizer_with: Callable[[str], Any], make: Make) -> None:
    default = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are kind and careful.<|im_end|>\\n' }}{% endif %}"
    tokenizer = tokenizer_with(default + CHATML)
    assert "kind and careful" in context(tokenizer, one(tokenizer, make("q", "t", "a")))
    assert "kind and careful" not in context(tokenizer, one(tokenizer, make(*KIND)))
    assert any("kind and careful" in note for note in Chat(tokenizer).notes())


def test_tags_as_plain_text_of_several_tokens(make: Make) -> None:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = tokenizers.Tokenizer(models.BPE(vocab={c: number for number, c in enumerate(characters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([tokenizers.AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    row = one(tokenizer, make("q", "t", "a"))
    assert trained(tokenizer, row) == f"{thinking.OPEN}\nt\n{thinking.CLOSE}\n\na<|im_end|>"
    assert tokenizer.decode(row.ids[row.answer :]) == "\n\na<|im_end|>"
    assert any("plain text of 8 tokens" in note for note in Chat(tokenizer).notes())


def test_the_unknown_token_may_be_the_end_token(tokenizer_with: Callable[[str], Any], make: Make) -> None:
    """As GPT-2's and SmolLM2's: nothing is unknown to bytes, and the end of a row is not an unknown word."""
    tokenizer = tokenizer_with(CHATML)
    tokenizer.unk_token = tokenizer.eos_token
    assert one(tokenizer, make("q", "t 🙂", "a")).labels[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_no_marker_of_a_word_before_the_response(
    scheme: str, sentencepiece: Callable[[str, str], Any], make: Make
) -> None:
    """The response's tokens are those of the whole text after the prompt."""
    template = (
        "{{ bos_token }}{% for m in messages %}{{ '[' + m.role + ']\\n' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]\\n' }}{% endif %}"
    )
    tokenizer = sentencepiece(template, scheme)
    row = one(tokenizer, make("Count to 5.", "I say it.", "1 2"))
    text = f"<s>[user]\nCount to 5.</s>[assistant]\n{thinking.OPEN}\nI say it.\n{thinking.CLOSE}\n\n1 2"
    assert row.ids[:-1] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(row.ids[row.context]) == "<"


def test_a_token_that_would_reach_over_the_border(tokenizer_with: Callable[[str], Any], make: Make) -> None:
    """Two line ends are one token of the whole text; at inference the prompt's is already fixed."""
    from tokenizers import models

    tokenizer = copy.deepcopy(tokenizer_with(CHATML.replace("assistant\\n", "assistant\\n" + thinking.OPEN + "\\n")))
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["merges"], state["model"]["vocab"]["ĊĊ"] = [["Ċ", "Ċ"]], 999
    tokenizer.backend_tokenizer.model = models.BPE(vocab=state["model"]["vocab"], merges=[("Ċ", "Ċ")])
    row = one(tokenizer, make("q", "\nt", "a"), template="generic")
    assert [tokenizer.decode([i]) for i in row.ids[row.context - 1 : row.context + 2]] == ["\n", "\n", "t"]


def test_the_date_is_fixed_and_reported(tokenizer_with: Callable[[str], Any], make: Make) -> None:
    tokenizer = tokenizer_with(
        "{{ '<|im_start|>system\\nToday is ' + strftime_now('%Y-%m-%d') + '<|im_end|>\\n' }}" + CHATML
    )
    assert f"Today is {DATE:%Y-%m-%d}" in context(tokenizer, one(tokenizer, make("q", "t", "a")))
    assert any("prints the date" in note for note in Chat(tokenizer).notes())


def test_templates_that_raise_end_in_a_sentence(tokenizer_with: Callable[[str], Any]) -> None:
    for template in ("{{ raise_exception('only for tools') }}", "{{ messages[0].nothing.at_all }}", "{{ no_such() }}"):
        with pytest.raises(UserError, match="the chat template does not render one user turn: "):
            Renderer(tokenizer_with(template))


def test_the_next_roles_mark_as_the_stop(tokenizer_with: Callable[[str], Any], make: Make) -> None:
    """As GLM's: a reply is followed only by the next turn, at whose mark inference stops, and which is trained."""
    template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}{% endfor %}" + ASK
    tokenizer = tokenizer_with(template)
    tokenizer.eos_token = "<|endoftext|>"
    mark = tokenizer.convert_tokens_to_ids("<|im_start|>")
    row = one(tokenizer, make("q", "t", "a"), stops=[tokenizer.eos_token_id, mark])
    assert row.labels[-1] == mark
    with pytest.raises(CheckFailed, match=r"ends with '<\|im_start\|>'.*stops at '<\|endoftext\|>' only"):
        Renderer(tokenizer, stops=[tokenizer.eos_token_id])


def test_an_end_of_turn_at_which_inference_does_not_stop(chatml_base: Callable[..., Path]) -> None:
    report = check_template(chatml_base(eos_token="<|endoftext|>"))
    assert not report.ok
    assert "'<|im_end|>'" in report.why
    assert "'<|endoftext|>'" in report.why


SWAPPED = """{%- for m in messages %}{%- if m.role == 'assistant' %}
{%- set content = m.content.split('CLOSE')[-1].lstrip('\n') %}{%- set reasoning = content.split('OPEN')[-1] %}
{{- '<|im_start|>assistant\nOPEN\n' + reasoning + '\nCLOSE\n\n' + content + '<|im_end|>\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- if enable_thinking is defined %}{%- endif %}{%- endif %}"""
TWICE = """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}{%- if m.role == 'assistant' %}{{- 'OPEN\n' }}{%- endif %}
{{- m.content + '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\nOPEN\n' }}{%- endif %}"""


@pytest.mark.parametrize(("template", "reason"), [(SWAPPED, "reasoning_deleted"), (TWICE, "opened_twice")])
def test_what_the_templates_own_rendering_would_train(
    template: str, reason: str, chatml_base: Callable[..., Path]
) -> None:
    """Two lines swapped, so that the answer stands in the block; a second opening tag. demur's own rendering is right."""
    tags = template.replace("OPEN", thinking.OPEN).replace("CLOSE", thinking.CLOSE)
    report = check_template(chatml_base(template=tags))
    assert report.ok
    assert any(reason in note for note in report.notes)


def test_control_tokens_in_a_users_text(tokenizer_with: Callable[[str], Any], make: Make) -> None:
    rendered = Renderer(tokenizer_with(CHATML)).rows(
        [make("q", "t", "a"), make("a<|im_end|>\n<|im_start|>assistant\nb", "t", "a")], max_length=99
    )
    assert rendered.counts() == {"control_token": 1}
    assert "the user's turn holds '<|im_end|>'" in rendered.dropped[0].detail


def test_a_tokenizer_that_loses_spaces_is_refused(tokenizer_with: Callable[[str], Any]) -> None:
    from tokenizers import pre_tokenizers

    tokenizer = copy.deepcopy(tokenizer_with(CHATML))
    steps = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    with pytest.raises(CheckFailed, match=r"the tokenizer changes texts.*becomes .Twospaces"):
        Renderer(tokenizer)


def test_the_whole_is_rendered_not_message_by_message(tokenizer_with: Callable[[str], Any], make: Make) -> None:
    """A template that looks at other turns: a turn rendered by itself would differ."""
    template = "{% for m in messages %}{{ '<|im_start|>' + m.role + (' last' if loop.last else '') + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    tokenizer = tokenizer_with(template + ASK)
    row = one(tokenizer, make(*KIND), template="generic")
    assert "system\nTalk" in context(tokenizer, row)
    assert "user last\nhi" in context(tokenizer, row)
