"""The GPU benchmark runs, at least in small, where there is no GPU; its FLOPs are those of its formula."""

from __future__ import annotations

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_dry_run_of_the_gpu_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    module = loaded("train_gpu")
    found = module.run("cpu", 2, 1e12)
    assert [name for name in found if "float32 masters" in name] == ["tiny packed 256 float32 masters"]
    assert len(found) == 4
    assert all(m.tokens_per_second > 0 and m.mfu > 0 for m in found.values())
    assert set(module.figures(found)) == {"mfu_tiny", "mfu_tiny_float32_masters", "over_paper_settings_gpu"}
    assert "paper's settings" in capsys.readouterr().out


def test_float32_masters_are_measured_as_training_has_them() -> None:
    """Weights and gradients in float32, under arithmetic in bfloat16."""
    module = loaded("train_gpu")
    case = module.Case("tiny", 256, masters=True)
    model, (batch,) = module.build(case, "cpu"), module.batches(case, 1)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(**batch)["losses"]
    losses.mean().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert {tensor.dtype for tensor in (*model.parameters(), *gradients)} == {torch.float32}
    assert gradients
    assert {p.dtype for p in module.build(case._replace(masters=False), "cpu").parameters()} == {torch.bfloat16}


def test_flops_are_those_that_torch_counts() -> None:
    """Forward and backward of one packed line, against torch's own counter of matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    module = loaded("train_gpu")
    case = module.Case("tiny", 256)
    model, (batch,) = module.build(case, "cpu"), module.batches(case, 1)
    with FlopCounterMode(display=False) as counter:
        model(**batch)["losses"].mean().backward()
    # The head runs at supervised positions only, which the formula does not credit.
    skipped = 6 * 512 * 64 * (int(batch["cu_seq_lens_q"][-1]) - batch["targets"].numel())
    formula = module.flops(case, model, batch)
    edges = batch["cu_seq_lens_q"].tolist()
    attention = 6 * 2 * 64 * sum((b - a) ** 2 for a, b in pairwise(edges))
    matrices = formula - attention - skipped
    # Attention is counted in whole or not at all by torch, depending on the kernel: matrices must be there, and not much more.
    assert matrices * 0.97 < counter.get_total_flops() < (matrices + 3 * attention) * 1.03


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_packed_rows_on_the_gpu_are_those_on_the_cpu() -> None:
    from demur.train.attention import packed_attention

    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 48, 64, dtype=torch.bfloat16) for heads in (4, 2, 2))
    bounds = torch.tensor([0, 7, 30, 48], dtype=torch.int32)
    options = {"cu_seq_lens_q": bounds, "max_length_q": 23, "scaling": 0.125}
    module = torch.nn.Identity()
    here, _ = packed_attention(module, query.float(), key.float(), value.float(), None, **options)
    moved = {**options, "cu_seq_lens_q": bounds.cuda()}
    there, _ = packed_attention(module, query.cuda(), key.cuda(), value.cuda(), None, **moved)
    torch.testing.assert_close(there.cpu().float(), here, rtol=2e-2, atol=2e-2)
