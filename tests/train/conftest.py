"""Small tokenizers, bases and examples for the tests of training, made by demur itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from tests.made import ASSETS

from demur.records import Example, ExamplePart, Origin
from tools import pretrain_mini

Role = Literal["system", "user", "thinking", "answer"]
Make = Callable[..., Example]


def example_of(*parts: tuple[Role, str, bool], share: str = "safety") -> Example:
    records = tuple(ExamplePart(role=role, text=text, train=train) for role, text, train in parts)
    return Example(parts=records, origin=Origin(prompt="p"), share=share)


@pytest.fixture(scope="session")
def make() -> Make:
    """`make(question, thinking, answer)` or `make(parts…)`."""

    def build(*given: Any, share: str = "safety") -> Example:
        if given and isinstance(given[0], tuple):
            return example_of(*given, share=share)
        question, thought, answer = given
        return example_of(("user", question, False), ("thinking", thought, True), ("answer", answer, True), share=share)

    return build


def chatml(template: str) -> Any:
    """A byte-level tokenizer in the manner of Qwen's: no beginning token, turns end with <|im_end|>."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from demur.thinking import CLOSE, OPEN

    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = tokenizers.Tokenizer(models.BPE(vocab={c: number for number, c in enumerate(characters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(
        [tokenizers.AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    )
    raw.add_tokens([tokenizers.AddedToken(tag, normalized=False, special=False) for tag in (OPEN, CLOSE)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer_with() -> Callable[[str], Any]:
    """`tokenizer_with(template)`: byte-level, in the manner of Qwen's."""
    return chatml


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def spelled(template: str, scheme: str) -> Any:
    """A tokenizer in the manner of SentencePiece: characters and bytes, words begin with a marker."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\n", "▁"]
    tokens += [chr(code) for code in range(33, 127)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    raw = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    raw.decoder = decoders.Sequence(steps)
    raw.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in ("<s>", "</s>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def sentencepiece() -> Callable[[str, str], Any]:
    """`sentencepiece(template, scheme)`: a tokenizer that puts a marker before words."""
    return spelled


@pytest.fixture(scope="session")
def chatml_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`chatml_base(tied=…, **tokenizer settings)`: a small random Qwen2 with plain ChatML."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def build(*, tied: bool = False, template: str = CHATML, **settings: str) -> Path:
        tokenizer = chatml(template)
        for name, token in settings.items():
            setattr(tokenizer, name, token)
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        marks = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        config = AutoConfig.for_model(
            "qwen2", vocab_size=len(tokenizer), num_key_value_heads=2, tie_word_embeddings=tied, **shape, **marks
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        folder = tmp_path_factory.mktemp("chatml") / "base"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="session")
def tokenizers_by_name() -> dict[str, Any]:
    """One tokenizer for each family, with a template of its documented behaviour."""
    from demur.testing.base import make_tokenizer

    return {
        "r1-distill": make_tokenizer(),
        "qwen3": chatml((ASSETS / "templates" / "qwen3.jinja").read_text()),
        "qwq": chatml((ASSETS / "templates" / "qwq.jinja").read_text()),
        "mini": pretrain_mini.tokenizer(),
    }


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Qwen2 with an R1-like template."""
    from demur.testing.base import make_base

    return make_base(tmp_path_factory.mktemp("base") / "stand-in", hidden=32)


@pytest.fixture(scope="session")
def mini_base() -> Path:
    from demur.mini import base as mini

    return mini.folder("mini-lrm-a")


@pytest.fixture(scope="session")
def mini_examples() -> list[Example]:
    """Examples of the base's own corpus: every word is in its vocabulary."""
    rng = random.Random(0)
    texts = [pretrain_mini.draw(rng) for _ in range(64)]
    return [
        example_of(("user", t.prompt, False), ("thinking", t.thinking, True), ("answer", t.answer, True)) for t in texts
    ]


@pytest.fixture(scope="session")
def byte_examples() -> list[Example]:
    """Examples of different lengths for byte-level tokenizers."""
    rng = random.Random(1)
    words = ["kettle", "harbour", "quiet", "seven", "orbit", "plain", "green", "tin"]

    def text(low: int, high: int) -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randint(low, high)))

    return [
        example_of(("user", text(2, 6), False), ("thinking", text(3, 14), True), ("answer", text(1, 6), True))
        for _ in range(24)
    ]
