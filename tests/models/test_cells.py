"""Rows of a running batch: as transformers generates them, bit for bit the same in every batch, coming and going."""

from __future__ import annotations

import random
import threading
from collections import deque
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from demur.models import cells
from demur.models.cells import OneRow, cells_for
from demur.models.sampler import BatchGenerator, Generated, TokenSampler

SIZE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 16},
    "mistral": {"head_dim": 16, "sliding_window": 8},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
}
GREEDY = TokenSampler(temperature=0.0, top_p=1.0, top_k=None)


class Row(NamedTuple):
    prompt: list[int]
    seed: int
    limit: int


def model_of(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    config = AutoConfig.for_model(kind, **SIZE | KINDS[kind])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(dtype).eval()


def rows(count: int) -> list[Row]:
    rng = random.Random(5)
    made = [[rng.randrange(2, 64) for _ in range(rng.randrange(1, 30))] for _ in range(count)]
    return [Row(prompt, rng.getrandbits(62), rng.randrange(1, 24)) for prompt in sorted(made, key=len)]


def generate(
    model: Any, asked: list[Row], *, width: int, sampler: TokenSampler = GREEDY, stops: int = 1
) -> dict[int, Generated]:
    found: dict[int, Generated] = {}
    batch = BatchGenerator(model, stops=frozenset({stops}), width=width)
    batch.run(sampler, deque(asked), lambda row, generated: found.update({row.seed: generated}), threading.Event())
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_generates_what_transformers_does(kind: str) -> None:
    model, asked = model_of(kind), rows(9)
    found = generate(model, asked, width=4)
    for row in asked:
        ids = torch.tensor([row.prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=row.limit, do_sample=False)
        assert found[row.seed].tokens == out[0, len(row.prompt) :].tolist()
    assert isinstance(cells_for(model), OneRow) == (kind == "lfm2")


@pytest.mark.slow
def test_a_rows_logits_are_the_same_bits_in_every_batch() -> None:
    model = model_of("llama", torch.bfloat16)
    drawn = TokenSampler(temperature=1.0, top_p=0.95, top_k=None)
    asked = rows(24)
    alone = {row.seed: generate(model, [row], width=1, sampler=drawn)[row.seed].tokens for row in asked}
    for width in (2, 7, 24):
        assert {seed: one.tokens for seed, one in generate(model, asked, width=width, sampler=drawn).items()} == alone

    def logits(prompts: list[list[int]]) -> torch.Tensor:
        store = cells_for(model)
        with torch.inference_mode():
            for prompt in prompts:
                store.read([prompt])
            for _ in range(70):
                last = store.step([7] * len(prompts))
        return last

    neighbours = [[9] * 40, [11] * 3, [5, 6, 7], [12] * 20, [4] * 90]
    assert torch.equal(logits([[5, 6, 7]])[0], logits(neighbours)[2])


@pytest.mark.slow
def test_where_memory_is_short_fewer_rows_generate_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that grow beyond it start again, one by one, when others have ended; a single row is always generated."""
    model, asked = model_of("llama"), [row._replace(limit=60) for row in rows(8)]
    whole = generate(model, asked, width=8, stops=-1)
    widest: list[tuple[int, int]] = []
    step = cells.ManyRows.step

    def counted(self: Any, tokens: list[int]) -> torch.Tensor:
        widest.append((len(tokens), max(self._lengths) + 1))
        return step(self, tokens)

    monkeypatch.setattr(cells.ManyRows, "step", counted)
    cell = 2 * 4 * 2 * 16 * 4
    for most, together in ((200, 6), (1, 1)):
        widest.clear()
        memory = SimpleNamespace(available=most * cell / cells.SHARE + 1)
        monkeypatch.setattr("psutil.virtual_memory", lambda memory=memory: memory)
        assert generate(model, asked, width=8, stops=-1) == whole
        assert all(rows * columns <= most or rows == 1 for rows, columns in widest)
        assert max(rows for rows, _ in widest) == together


def test_a_row_that_ends_makes_room_for_one_that_waits() -> None:
    model, asked = model_of("llama"), rows(12)
    seen: list[int] = []
    step = type(cells_for(model)).step
    jobs, ended = deque(asked[:6]), list[int]()

    def counted(self: Any, tokens: list[int]) -> torch.Tensor:
        seen.append(len(tokens))
        return step(self, tokens)

    def end(row: Row, generated: Generated) -> None:
        ended.append(row.seed)
        if len(ended) == 3:  # More are asked while it writes.
            jobs.extend(asked[6:])

    batch = BatchGenerator(model, stops=frozenset(), width=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(cells_for(model)), "step", counted)
        batch.run(GREEDY, jobs, end, threading.Event())
    assert sorted(ended) == sorted(row.seed for row in asked)
    assert max(seen) == 3
    # No step without a neighbour while rows wait: the whole took about a third of the steps of one at a time.
    assert len(seen) < 0.5 * sum(row.limit for row in asked)
