"""Training on one GPU: tokens per second, model and hardware FLOPs utilisation, peak memory, at 1.5B and 7B shapes.

Random weights of Qwen2.5's shapes, rows packed to 4k and 16k tokens a line by variable-length attention, in bfloat16 and with
float32 masters under bfloat16 arithmetic (what `dtype: auto` is on a GPU), against the paper's settings (bfloat16, rows padded,
two a micro-batch, checkpointing, loss on all tokens, logits in whole). What is timed is forward, backward and optimizer step
through demur's own attention, loss and collation; the first two steps do not count.

Formulas (as in PaLM, Chowdhery et al. 2022, appendix B). With N parameters without the input embedding, L layers, H heads of
width D and n tokens in a row, a token costs

    model FLOPs    = 6 N + 6 L H D n      (attention halved, since it is causal)
    hardware FLOPs = model FLOPs x 4/3 where activations are recomputed, else the same
    MFU = model FLOPs per second / peak,  HFU = hardware FLOPs per second / peak

Peak: 989.4e12 dense bfloat16 FLOP/s for H100 SXM and H200; other devices by --peak.

    python benchmarks/train_gpu.py [--json FILE]          the real thing; needs a CUDA device
    python benchmarks/train_gpu.py --device cpu           a tiny dry run of the same code; its figures mean nothing
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PEAKS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}
SHAPES: dict[str, dict[str, int]] = {
    "1_5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
             "num_key_value_heads": 2, "vocab_size": 151936},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "vocab_size": 152064},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512},
}  # fmt: skip


class Case(NamedTuple):
    shape: str
    line: int
    """Tokens of a micro-batch, about."""
    packed: bool = True
    recompute: bool = False
    masters: bool = False
    """Whether weights, gradients and optimizer are float32, and the arithmetic bfloat16."""

    @property
    def name(self) -> str:
        how = f"packed {self.line}" if self.packed else "paper's settings"
        how += " float32 masters" if self.masters else ""
        return f"{self.shape} {how}{' recomputed' if self.recompute else ''}"


class Measured(NamedTuple):
    tokens_per_second: float
    mfu: float
    hfu: float
    peak_gib: float


def build(case: Case, device: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    from demur.train import attention, loss
    from demur.train import model as models

    config = Qwen2Config(**SHAPES[case.shape], max_position_embeddings=32768, tie_word_embeddings=case.shape == "1_5b")
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=torch.float32 if case.masters else torch.bfloat16,
            attn_implementation=attention.register() if case.packed else "sdpa",
        )
    model.config.use_cache = False
    if case.packed:
        loss.fuse(model)
    if case.recompute:
        models.recompute_activations(model, adapters=False)
    return model.train()


def rows(case: Case) -> Iterator[Any]:
    """Rows like a safety set's, without end: 0.2 to 2 k tokens, a third of them prompt."""
    from demur.train.render import IGNORED, Row

    rng = random.Random(0)
    size = SHAPES[case.shape]["vocab_size"]
    scale = 1 if case.shape != "tiny" else 16
    for number in itertools.count():
        length = rng.randint(200, 2000) // scale
        ids = [rng.randrange(size) for _ in range(length)]
        yield Row(str(number), ids, [IGNORED] * (length // 3) + ids[length // 3 :], length // 3, length // 2)


def batches(case: Case, steps: int) -> list[dict[str, Any]]:
    """One micro-batch a step: lines filled to the size, or two padded rows with loss on all tokens."""
    from demur.train import batches as batching

    given = rows(case)
    made = []
    for _ in range(steps):
        if case.packed:
            group = [next(given)]
            while sum(len(row.ids) for row in group) < case.line:
                group.append(next(given))
            room = case.line - sum(len(row.ids) for row in group[:-1])
            last = group[-1]
            group[-1] = last._replace(ids=last.ids[: max(2, room)], labels=last.labels[: max(2, room)])
        else:
            group = [row._replace(labels=row.ids) for row in (next(given), next(given))]
        made.append(batching.collate(group, packed=True) if case.packed else padded(group, 0))
    return made


def padded(rows: list[Any], pad: int) -> dict[str, Any]:
    """Rows padded to the longest, as common trainers make a micro-batch: ids, labels and mask, each [rows, longest]."""
    import torch

    longest = max(len(row.ids) for row in rows)
    room = [longest - len(row.ids) for row in rows]
    return {
        "input_ids": torch.tensor([row.ids + [pad] * more for row, more in zip(rows, room, strict=True)]),
        "labels": torch.tensor([row.labels + [-100] * more for row, more in zip(rows, room, strict=True)]),
        "attention_mask": torch.tensor([[1] * len(row.ids) + [0] * more for row, more in zip(rows, room, strict=True)]),
    }


def flops(case: Case, model: Any, batch: dict[str, Any]) -> float:
    """Model FLOPs of one micro-batch, over real tokens."""
    shape = SHAPES[case.shape]
    inside = sum(p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name)
    if model.config.tie_word_embeddings:
        inside += shape["vocab_size"] * shape["hidden_size"]
    if case.packed:
        edges = batch["cu_seq_lens_q"].tolist()
        lengths = [b - a for a, b in itertools.pairwise(edges)]
    else:
        lengths = batch["attention_mask"].sum(1).tolist()
    attention = 6 * shape["num_hidden_layers"] * shape["hidden_size"] * sum(n * n for n in lengths)
    return float(6 * inside * sum(lengths) + attention)


def measure(case: Case, *, device: str, steps: int, peak: float) -> Measured:
    import torch

    cuda = device == "cuda"
    torch.manual_seed(0)
    model = build(case, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    tokens, work, began = 0, 0.0, 0.0
    for number, batch in enumerate(batches(case, steps + 2)):
        if number == 2:
            _wait(cuda)
            tokens, work, began = 0, 0.0, time.perf_counter()
        count = batch["cu_seq_lens_q"][-1] if case.packed else batch["attention_mask"].sum()
        tokens, work = tokens + int(count), work + flops(case, model, batch)
        moved = {key: value.to(device) if hasattr(value, "to") else value for key, value in batch.items()}
        with torch.autocast(device, torch.bfloat16, enabled=case.masters):
            out = model(**moved)
        (out["losses"].mean() if case.packed else out["loss"]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _wait(cuda)
    seconds = time.perf_counter() - began
    mfu = work / seconds / peak
    gib = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    return Measured(tokens / seconds, mfu, mfu * (4 / 3 if case.recompute else 1), gib)


def _wait(cuda: bool) -> None:
    import torch

    if cuda:
        torch.cuda.synchronize()


def cases(device: str) -> list[Case]:
    if device == "cpu":
        masters = Case("tiny", 256, masters=True)
        return [Case("tiny", 256), Case("tiny", 256, recompute=True), masters, Case("tiny", 256, False, True)]
    made = []
    for shape in ("1_5b", "7b"):
        made += [Case(shape, 4096), Case(shape, 16384), Case(shape, 16384, recompute=True)]
        made += [Case(shape, 4096, recompute=True, masters=True), Case(shape, 16384, recompute=True, masters=True)]
        made.append(Case(shape, 4096, packed=False, recompute=True))
    return made


def run(device: str, steps: int, peak: float) -> dict[str, Measured]:
    import gc

    import torch

    found: dict[str, Measured] = {}
    print(f"{'case':<28}{'tokens/s':>12}{'MFU %':>8}{'HFU %':>8}{'GiB':>8}")
    for case in cases(device):
        try:
            result = measure(case, device=device, steps=steps, peak=peak)
        except torch.OutOfMemoryError:
            print(f"{case.name:<28}  out of memory")
        else:
            found[case.name] = result
            rate, mfu, hfu, gib = result
            print(f"{case.name:<28}{rate:>12,.0f}{100 * mfu:>8.1f}{100 * hfu:>8.1f}{gib:>8.1f}", flush=True)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    return found


def figures(found: dict[str, Measured]) -> dict[str, float]:
    """The best of each shape, and how much that is over the paper's settings."""
    said: dict[str, float] = {}
    for shape in ("1_5b", "7b", "tiny"):
        ours = [m for name, m in found.items() if name.startswith(f"{shape} packed")]
        paper = [m for name, m in found.items() if name.startswith(f"{shape} paper")]
        masters = [m for name, m in found.items() if name.startswith(f"{shape} packed") and "masters" in name]
        if ours:
            said[f"mfu_{shape}"] = max(m.mfu for m in ours)
        if masters:
            said[f"mfu_{shape}_float32_masters"] = max(m.mfu for m in masters)
        if ours and paper:
            said["over_paper_settings_gpu"] = max(m.tokens_per_second for m in ours) / paper[0].tokens_per_second
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--peak", type=float, help="Peak dense bfloat16 FLOP/s of the device.")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device is here; --device cpu makes a dry run whose figures mean nothing")
    name = torch.cuda.get_device_name() if given.device == "cuda" else "CPU, dry run: these figures mean nothing"
    peak = given.peak or next((value for key, value in PEAKS.items() if key in name), PEAKS["H100"])
    print(f"{name}; torch {torch.__version__}; peak {peak / 1e12:.0f} TFLOP/s")
    said = figures(run(given.device, given.steps, peak))
    print(", ".join(f"{key} {value:.3f}" for key, value in said.items()))
    if given.json:
        given.json.write_text(json.dumps(said | {"device": name}, indent=1) + "\n")


if __name__ == "__main__":
    main()
