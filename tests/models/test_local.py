"""Weights in this process: a text depends on its request alone, a resumed run generates the same, budgets take effect."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.made import python, replies
from transformers import AutoModelForCausalLM, AutoTokenizer

from demur.errors import UserError
from demur.interfaces import Request, requests_for
from demur.models import local
from demur.models.checkpoint import identity_of
from demur.models.config import Local, ModelConfig
from demur.models.local import LocalModel
from demur.models.open import open_model
from demur.records import Failure, Message, Prompt, Sampling, Trace
from demur.storage.reply_cache import ReplyCache

SAMPLING = Sampling(temperature=1.0, top_p=0.95, max_tokens=24)


def prompts(count: int, seed: int = 0) -> list[Prompt]:
    rng = random.Random(seed)
    words = [" ".join(f"w{rng.randrange(60)}" for _ in range(rng.randrange(1, 20))) for _ in range(count)]
    return [Prompt(text=f"{text} w{i % 60} w{i // 60}", intent="benign") for i, text in enumerate(words)]


def texts(
    config: ModelConfig, asked: list[Prompt], *, sampling: Sampling = SAMPLING, cache: Path | None = None
) -> dict[tuple[str, int], Trace | Failure]:
    found = replies(config, requests_for(asked, sampling), cache=cache, label="target/x")
    return {(one.prompt.id, one.sample): one for one in found}


def raw(found: dict[Any, Trace | Failure]) -> dict[Any, str]:
    return {key: one.raw for key, one in found.items() if isinstance(one, Trace)}


def test_a_text_does_not_depend_on_the_batch(checkpoint: Path) -> None:
    asked = prompts(40)
    whole = raw(texts(Local(path=str(checkpoint), batch=64), asked))
    small = raw(texts(Local(path=str(checkpoint), batch=3), asked))
    part = raw(texts(Local(path=str(checkpoint), batch=7), random.Random(1).sample(asked, 15)))
    assert len(set(whole.values())) > 30
    assert small == whole
    assert part.items() <= whole.items()


def test_seeds_and_samples_are_different_draws(checkpoint: Path) -> None:
    config = Local(path=str(checkpoint))
    found = raw(texts(config, prompts(3), sampling=Sampling(temperature=1.0, max_tokens=20, n=3)))
    other = raw(texts(config, prompts(3), sampling=Sampling(temperature=1.0, max_tokens=20, n=3, seed=1)))
    assert len({*found.values(), *other.values()}) == 18
    one = raw(texts(config, prompts(3), sampling=Sampling(temperature=1.0, max_tokens=20)))
    assert one.items() <= found.items()


def test_greedy_texts_are_those_of_transformers(checkpoint: Path) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=15)
    found = texts(Local(path=str(checkpoint)), prompts(12), sampling=sampling)
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint)
    for one in found.values():
        assert isinstance(one, Trace)
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": one.prompt.text}], add_generation_prompt=True, tokenize=False
        )
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=15, do_sample=False)[
            0, ids.shape[1] :
        ]
        assert one.raw == tokenizer.decode([token for token in out.tolist() if token != 1])


KILLED = """
import asyncio, os, sys
from pathlib import Path
from demur.storage.reply_cache import ReplyCache
from demur.models.config import Local, ModelConfig
from demur.models.open import open_model
from demur.interfaces import requests_for
sys.path.insert(0, sys.argv[3])
from tests.models.test_local import prompts, SAMPLING

async def main():
    cache = ReplyCache(Path(sys.argv[2]))
    async with open_model(Local(path=sys.argv[1], batch=8), cache=cache) as model:
        count = 0
        async for _ in model.answers(requests_for(prompts(40), SAMPLING)):
            count += 1
            if count == 17:
                os.kill(os.getpid(), 9)

asyncio.run(main())
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_text(checkpoint: Path, tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    command = [python(), "-c", KILLED, str(checkpoint), str(tmp_path / "a"), root]
    assert (
        subprocess.run(
            command, timeout=120, check=False, env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root}/src"}
        ).returncode
        == -9
    )
    with ReplyCache(tmp_path / "a") as cache:
        assert 17 <= cache.count() < 40
    config = Local(path=str(checkpoint), batch=8)
    resumed = texts(config, prompts(40), cache=tmp_path / "a")
    assert resumed == texts(config, prompts(40), cache=tmp_path / "b")


def test_stored_replies_are_not_generated_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = texts(Local(path=str(checkpoint)), prompts(5), cache=tmp_path)
    monkeypatch.setattr(LocalModel, "_generate", lambda *_: pytest.fail("asked again"))
    assert texts(Local(path=str(checkpoint)), prompts(5), cache=tmp_path) == first


def test_a_thinking_budget_ends_the_thinking_and_leaves_room_for_an_answer(checkpoint: Path) -> None:
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=30, thinking_budget=6)
    found = texts(Local(path=str(checkpoint)), prompts(30), sampling=sampling)
    forced = [one for one in found.values() if isinstance(one, Trace) and one.notes and one.outcome != "malformed"]
    assert len(forced) > 8
    for one in forced:
        assert one.notes == ("thinking ended at its budget",)
        assert one.answer is not None
        assert one.thinking is not None
        assert len(one.thinking.split()) <= 6
        assert (one.tokens_out or 0) <= 30
    with pytest.raises(UserError, match="leaves nothing"):
        texts(Local(path=str(checkpoint)), prompts(1), sampling=Sampling(max_tokens=5, thinking_budget=5))


def test_a_prefill_begins_the_reply(checkpoint: Path) -> None:
    sampling = Sampling(temperature=1.0, max_tokens=8, prefill="w1 w2 </think> w3")
    (found,) = texts(Local(path=str(checkpoint)), prompts(1), sampling=sampling).values()
    assert isinstance(found, Trace)
    assert found.raw.startswith("w1 w2 </think> w3")
    assert found.thinking == "w1 w2"
    assert found.tokens_out is not None
    assert found.tokens_out <= 8


def test_a_prompt_beyond_the_context_is_a_typed_failure(checkpoint: Path) -> None:
    long = Prompt(text="w1 " * 300, intent="benign")
    found = texts(Local(path=str(checkpoint)), [*prompts(2), long])
    assert [type(one).__name__ for one in found.values()].count("Failure") == 1
    (failure,) = [one for one in found.values() if isinstance(one, Failure)]
    assert failure.kind == "too_long"
    near = Prompt(text="w1 " * 245, intent="benign")
    (cut,) = texts(Local(path=str(checkpoint)), [near]).values()
    assert isinstance(cut, Trace)
    assert (cut.tokens_in or 0) + (cut.tokens_out or 0) <= 256


def test_plain_completions_send_the_text_as_it_is(checkpoint: Path) -> None:
    request = Request(
        messages=(Message(role="user", content="w1 w2"),),
        sampling=SAMPLING,
        prompt=Prompt(text="w1 w2", intent="benign"),
    )

    one, two = replies(Local(path=str(checkpoint), api="completions"), [request, request])
    assert one == two
    assert isinstance(one, Trace)
    assert (one.tokens_in, one.opened_by) == (2, None if "</think>" not in one.raw else "prompt")


def test_the_identity_is_that_of_what_decides_the_text(
    checkpoint: Path, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    same = make_checkpoint(tmp_path / "same")
    assert identity_of(same) == identity_of(checkpoint)
    (same / "README.md").write_text("words")
    (same / "trainer_state.json").write_text("{}")
    assert identity_of(same) == identity_of(checkpoint)
    assert identity_of(make_checkpoint(tmp_path / "other", seed=1)) != identity_of(checkpoint)
    (same / "chat_template.jinja").write_text("another")
    assert identity_of(same) != identity_of(checkpoint)


def test_a_folder_without_a_model_is_a_clear_error(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"is not a checkpoint: it has no config.json"):
        texts(Local(path=str(tmp_path)), prompts(1))
    with pytest.raises(UserError, match=rf"one of its folders: .*{checkpoint.name}"):
        texts(Local(path=str(checkpoint.parent)), prompts(1))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="not a model that transformers can load"):
        texts(Local(path=str(tmp_path)), prompts(1))
    with pytest.raises(UserError, match="is neither a folder"):
        texts(Local(path=str(tmp_path / "nowhere")), prompts(1))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="cuda is not there"):
            texts(Local(path=str(checkpoint), device="cuda"), prompts(1))


def test_the_first_tokens_chances_are_kept_where_asked_for(checkpoint: Path) -> None:
    greedy = Sampling(temperature=0.0, max_tokens=3)
    for one in texts(Local(path=str(checkpoint), first_tokens=5), prompts(4), sampling=greedy).values():
        assert isinstance(one, Trace)
        assert len(one.first_tokens) == 5
        assert max(one.first_tokens, key=lambda token: one.first_tokens[token]) == one.raw.split()[0]
        assert sum(math.exp(chance) for chance in one.first_tokens.values()) <= 1.0001


def test_a_row_is_kept_when_it_ends_and_a_stopped_batch_stops_within_seconds(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """One row of the batch ends at once, the other would write for ever; the run is stopped when the first is there."""
    slow = make_checkpoint(tmp_path / "slow", hidden=256, layers=8)
    config = Local(path=str(slow), batch=2)
    long = Sampling(temperature=1.0, max_tokens=200)

    async def first_reply(cache: ReplyCache) -> float:
        async with open_model(config, cache=cache) as model:
            replies = model.answers(requests_for(prompts(12), long))
            async with contextlib.aclosing(replies):  # type: ignore[type-var]
                async for _ in replies:
                    assert 1 <= cache.count() < 12
                    begun = time.monotonic()
                    break
            return time.monotonic() - begun

    with ReplyCache(tmp_path / "cache") as cache:
        assert asyncio.run(first_reply(cache)) < 10


def test_a_single_answer_is_generated_with_those_that_are_asked_at_the_same_time(checkpoint: Path) -> None:
    async def main() -> list[Trace | Failure]:
        async with open_model(Local(path=str(checkpoint))) as model:
            return await asyncio.gather(*(model.answer(one) for one in requests_for(prompts(10), SAMPLING)))

    found = {(one.prompt.id, one.sample): one for one in asyncio.run(main())}
    assert found == texts(Local(path=str(checkpoint)), prompts(10))


def test_a_precision_that_a_measurement_chose_is_noted(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "bfloat16_is_faster", lambda width: True)
    (plain,) = texts(Local(path=str(checkpoint)), prompts(1)).values()
    monkeypatch.setattr(local, "SMALL", 0)
    (halved,) = texts(Local(path=str(checkpoint)), prompts(1)).values()
    (declared,) = texts(Local(path=str(checkpoint), dtype="bfloat16"), prompts(1)).values()
    assert isinstance(plain, Trace)
    assert isinstance(halved, Trace)
    assert isinstance(declared, Trace)
    assert (local.HALVED in plain.notes, local.HALVED in halved.notes, local.HALVED in declared.notes) == (
        False,
        True,
        False,
    )
    assert halved.raw == declared.raw
