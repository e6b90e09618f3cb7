"""The shipped bases are what their cards say, and can be made again."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from tests.made import replies

from demur import thinking
from demur.bench import get_bench
from demur.distil.strategy import load
from demur.errors import UserError
from demur.interfaces import requests_for
from demur.mini import base, benches
from demur.mini.judge import MiniJudge, SumJudge
from demur.models.config import Local
from demur.records import Prompt, Trace
from tools import pretrain_mini


@pytest.mark.parametrize("name", list(base.NAMES))
def test_shipped_bases_are_what_their_cards_say(name: str) -> None:
    folder = base.folder(name)
    card = base.verify(folder)
    assert card["seed"] == list(base.NAMES).index(name)
    assert card["parameters"] < 1_000_000
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    assert card["script"] == pretrain_mini.script()


def test_unknown_and_damaged_bases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Allowed: mini-lrm-a"):
        base.folder("mini-lrm-x")
    with pytest.raises(UserError, match="not a mini base"):
        base.verify(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(base.folder("mini-lrm-a"), copy)
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors is missing or not the file"):
        base.verify(copy)


def test_every_word_has_a_token_and_text_comes_back() -> None:
    words = pretrain_mini.tokenizer()
    rng = random.Random(0)
    for _ in range(500):
        text = thinking.join(*pretrain_mini.draw(rng)[1:])
        ids = words(text, add_special_tokens=False)["input_ids"]
        assert words.unk_token_id not in ids
        assert words.decode(ids).replace(" ' ", "'").split() == text.split()
    constant = load("nocot").constant
    assert constant is not None
    assert words.unk_token_id not in words(constant, add_special_tokens=False)["input_ids"]


def test_the_template_is_like_that_of_r1() -> None:
    """It opens the thinking, and deletes the thinking of earlier turns."""
    words = pretrain_mini.tokenizer()
    turns = [{"role": "user", "content": "what is 1 + 2?"}]
    prompt = words.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert thinking.opens_thinking(prompt)
    assert words(prompt, add_special_tokens=False)["input_ids"].count(words.bos_token_id) == 1
    reply = {"role": "assistant", "content": thinking.join("1 + 2 = 3.", "the answer is 3.")}
    rendered = words.apply_chat_template([*turns, reply], tokenize=False)
    assert "1 + 2 = 3" not in rendered
    assert "the answer is 3." in rendered


@pytest.mark.slow
def test_a_base_is_made_again_the_same(tmp_path: Path) -> None:
    one, two, other = (pretrain_mini.pretrain(tmp_path / n, seed=s, steps=3) for n, s in (("1", 5), ("2", 5), ("3", 6)))
    hashes = [
        json.loads((folder / base.CARD).read_text())["sha256"]["model.safetensors"] for folder in (one, two, other)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def _replies(prompts: list[Prompt], folder: Path, journal: Path) -> list[Trace]:
    found = replies(Local(path=str(folder)), requests_for(prompts, get_bench("mini_harm").sampling), cache=journal)
    return [one for one in found if isinstance(one, Trace)]


def test_the_base_obeys_and_computes(tmp_path: Path) -> None:
    sums = benches.bench_arithmetic(get_bench("mini_harm"), None, n=40, seed=1)
    asked = benches.bench_harmful(get_bench("mini_harm"), None, n=20, seed=1) + benches.bench_benign(
        get_bench("mini_harm"), None, n=20, seed=1
    )
    traces = _replies([*sums, *asked], base.folder("mini-lrm-a"), tmp_path)
    assert len(traces) == 80
    assert {t.outcome for t in traces} == {"complete"}
    right = [SumJudge().verdict(t).label for t in traces if t.prompt.intent == "maths"]
    obeyed = [MiniJudge().verdict(t).label for t in traces if t.prompt.intent != "maths"]
    assert right.count("correct") >= 36
    assert obeyed.count("full_compliance") >= 38
