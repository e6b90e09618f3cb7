"""A plan is made once, loses no row, and depends on nothing but rows, seed, memory and processes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from demur.records import Example
from demur.train import attention, batches, loss
from demur.train.chat import load_tokenizer
from demur.train.render import IGNORED, Renderer, Row

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=40)
CUTS = {"world": st.integers(1, 4), "batch": st.integers(1, 16)}


@settings(max_examples=80, deadline=None)
@given(count=st.integers(1, 50), epochs=st.integers(1, 3), seed=st.integers(0, 99))
def test_every_epoch_reads_every_row_once(count: int, epochs: int, seed: int) -> None:
    rows = batches.order(count, total=count * epochs, seed=seed)
    for epoch in range(epochs):
        assert sorted(rows[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert rows == batches.order(count, total=count * epochs + 5, seed=seed)[: count * epochs]


@settings(max_examples=120, deadline=None)
@given(
    lengths=LENGTHS, tokens=st.integers(50, 2000), rows=st.none() | st.integers(1, 8), seed=st.integers(0, 9), **CUTS
)
def test_plans_lose_nothing_and_keep_processes_in_step(
    lengths: list[int], tokens: int, rows: int | None, seed: int, world: int, batch: int
) -> None:
    order = batches.order(len(lengths), total=len(lengths) * 2, seed=seed)
    plan = batches.plan(lengths, rows=order, batch=batch, limits=batches.Limits(tokens, rows), world=world)
    for at, step in enumerate(plan.steps):
        assert len(step) % world == 0
        # The rows of an update are those of the seed, whatever the devices and the memory.
        assert sorted(i for group in step for i in group) == sorted(order[at * batch : (at + 1) * batch])
        per_rank = [plan.of_rank(at, rank) for rank in range(world)]
        assert len({len(groups) for groups in per_rank}) == 1
        assert sorted(i for groups in per_rank for group in groups for i in group) == sorted(
            order[at * batch : (at + 1) * batch]
        )
    assert sorted(plan.rows()) == sorted(order)


@settings(max_examples=80, deadline=None)
@given(lengths=LENGTHS, tokens=st.integers(50, 2000), rows=st.none() | st.integers(1, 8))
def test_micro_batches_keep_within_memory(lengths: list[int], tokens: int, rows: int | None) -> None:
    order = list(range(len(lengths)))
    plan = batches.plan(lengths, rows=order, batch=len(order), limits=batches.Limits(tokens, rows), world=1)
    for group in plan.steps[0]:
        assert len(group) == 1 or sum(lengths[i] for i in group) <= tokens
        assert rows is None or len(group) <= rows


def rows_of(base: Path, examples: list[Example]) -> list[Row]:
    return Renderer(load_tokenizer(base)).rows(examples, max_length=2000).rows


def loaded(base: Path, how: str, dtype: torch.dtype = torch.float64) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation=how)
    loss.fuse(model)
    return model.train()


def test_packed_rows_do_not_see_each_other(stand_in: Path, byte_examples: list[Example]) -> None:
    """Logits, losses and gradients of packed rows are those of single rows; in float64, to twelve digits."""
    rows = rows_of(stand_in, byte_examples[:6])
    packed, single = loaded(stand_in, attention.register()), loaded(stand_in, "sdpa")
    total = sum(label != IGNORED for row in rows for label in row.labels)
    line = packed(**batches.collate(rows, packed=True))
    (line["losses"].sum() / total).backward()
    separate = [single(**batches.collate([row], packed=False)) for row in rows]
    (sum(out["losses"].sum() for out in separate) / total).backward()
    torch.testing.assert_close(line["losses"], torch.cat([out["losses"] for out in separate]), rtol=1e-12, atol=1e-12)
    for (name, a), (_, b) in zip(packed.named_parameters(), single.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    bare = copy.deepcopy(packed.base_model).eval()
    batch = batches.collate(rows, packed=True)
    inputs = {key: value for key, value in batch.items() if key not in ("supervised", "targets")}
    hidden = bare(**inputs, use_cache=False).last_hidden_state[0]
    at = 0
    for row in rows:
        alone = single.base_model(input_ids=torch.tensor([row.ids]), use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(hidden[at : at + len(row.ids)], alone, rtol=1e-10, atol=1e-10)
        at += len(row.ids)


def test_without_bounds_rows_would_see_each_other(stand_in: Path, byte_examples: list[Example]) -> None:
    """The test above can fail: one bound for the whole line gives other losses."""
    rows = rows_of(stand_in, byte_examples[:3])
    model = loaded(stand_in, attention.register())
    batch = batches.collate(rows, packed=True)
    right = model(**batch)["losses"]
    whole = torch.tensor([0, batch["input_ids"].shape[1]], dtype=torch.int32)
    wrong = model(**(batch | {"cu_seq_lens_q": whole, "cu_seq_lens_k": whole}))["losses"]
    assert (right - wrong).abs().max() > 1e-4


def test_an_idle_micro_batch_has_no_loss_and_a_gradient(stand_in: Path, byte_examples: list[Example]) -> None:
    model = loaded(stand_in, "sdpa")
    losses = model(**batches.collate(batches.idle(rows_of(stand_in, byte_examples)), packed=False))["losses"]
    assert losses.numel() == 0
    losses.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_in_chunks_is_the_loss(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(50, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(300, 16, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, 300, (50,))
    whole = loss.token_losses(hidden, weight, targets)
    expected = torch.autograd.grad(whole.sum(), (hidden, weight))
    monkeypatch.setitem(loss.MAX_LOGITS, "cpu", 300 * 7)
    chunked = loss.token_losses(hidden, weight, targets)
    gradients = torch.autograd.grad(chunked.sum(), (hidden, weight))
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(chunked, whole, rtol=tolerance, atol=tolerance)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_the_fused_loss_is_the_models_own(stand_in: Path, byte_examples: list[Example]) -> None:
    from transformers import AutoModelForCausalLM

    (row,) = rows_of(stand_in, byte_examples[:1])
    own = AutoModelForCausalLM.from_pretrained(stand_in, dtype=torch.float64)
    theirs = own(input_ids=torch.tensor([row.ids]), labels=torch.tensor([row.labels])).loss
    ours = loaded(stand_in, "sdpa")(**batches.collate([row], packed=False))["losses"].mean()
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=1e-6, atol=1e-6)


def test_models_whose_rows_cannot_be_packed() -> None:
    from transformers import Qwen2Config

    assert attention.obstacle(Qwen2Config()) is None
    config = Qwen2Config(num_hidden_layers=2)
    config.layer_types = ["linear_attention", "full_attention"]
    assert "linear_attention" in str(attention.obstacle(config))


def test_attention_is_in_the_type_of_the_arithmetic() -> None:
    """Over float32 weights norms return float32 queries and keys: the kernel must get the type of autocast."""
    bounds = torch.tensor([0, 3, 8], dtype=torch.int32)
    query, key = (torch.randn(1, 2, 8, 16) for _ in range(2))
    value = torch.randn(1, 2, 8, 16, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = attention.packed_attention(torch.nn.Identity(), query, key, value, None, cu_seq_lens_q=bounds)
    assert mixed.dtype == torch.bfloat16
    plain, _ = attention.packed_attention(torch.nn.Identity(), query, key, value.float(), None, cu_seq_lens_q=bounds)
    torch.testing.assert_close(mixed.float(), plain, rtol=5e-2, atol=5e-2)


def test_float32_masters_take_the_variable_length_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments that a GPU's kernel would get, with float32 queries and keys as norms return them."""
    from torch.nn.attention import varlen

    calls: list[tuple[Any, ...]] = []

    def kernel(*given: Any, **options: Any) -> torch.Tensor:
        calls.append((*given, options))
        return torch.empty_like(given[0])

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "_has_kernel", lambda device: True)
    query, key = (torch.randn(1, heads, 8, 16) for heads in (4, 2))
    value = torch.randn(1, 2, 8, 16, dtype=torch.bfloat16)
    bounds = torch.tensor([0, 3, 8], dtype=torch.int32)
    options = {"cu_seq_lens_q": bounds, "max_length_q": 5, "scaling": 0.25}
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = attention.packed_attention(torch.nn.Identity(), query, key, value, None, **options)
    ((*tensors, first, second, longest, _, how),) = calls
    assert [(t.dtype, tuple(t.shape)) for t in tensors] == [(torch.bfloat16, (8, n, 16)) for n in (4, 2, 2)]
    assert (first is bounds, second is bounds, longest, how["scale"]) == (True, True, 5, 0.25)
    assert (how["window_size"], how["enable_gqa"]) == ((-1, 0), True), "causal, and the key heads are shared"
    assert (out.dtype, tuple(out.shape)) == (torch.bfloat16, (1, 8, 4, 16))
    attention.packed_attention(torch.nn.Identity(), query, key, value.float(), None, **options)
    assert len(calls) == 1, "without arithmetic of 16 bits the rows go one after the other"
