"""Training speed side by side: demur, TRL as it comes and at its best (grouped, padding-free, one row), the paper's settings, bare loops.

Same rows (real R1 traces through a byte-level tokenizer where ../shared/data is there, else generated ones, 200 to 2,000
tokens), same model, float32, one thread, nothing cut, same number of optimizer steps and rows a step. Each contender runs
in a fresh process, in turn, several rounds; the figure is the median of real tokens (padding not counted) per CPU second
of the training loop. The last column is the loss on the same held-out responses, so that a speed bought by
learning less shows. With --dpo preference training is compared instead: each row against the response of another, what the base makes of
them included; the last column is then the preference's own loss at the last step.

    python benchmarks/train.py [--rounds 3] [--steps 4] [--json FILE]
    python benchmarks/train.py --model runs/small/SmolLM2-135M-Instruct.Q4_1.gguf --rows 8 --micro 4

With --model the rows are trained on that model, through its own tokenizer, and demur and TRL stand beside themselves in bfloat16
arithmetic (over float32 weights). The vocabulary is what weighs: eight padded rows of it are 12 GB, so take fewer at once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "star1_first300.json"
BATCH, MICRO, LR = int(os.environ.get("BENCH_ROWS", "16")), int(os.environ.get("BENCH_MICRO", "8")), 1e-3
"""Rows of a step, and rows that TRL and the bare loop hold at once (--rows, --micro); learning rate."""
LOW, HIGH = 200, 2000


class Result(NamedTuple):
    cpu: float
    wall: float
    tokens: int
    loss: float


def examples(count: int) -> list[Any]:
    """Rows of 200 to 2,000 tokens: real traces, or texts of the same lengths."""
    from demur.records import Example, ExamplePart, Origin

    def row(question: str, thought: str, answer: str) -> Example:
        parts = (("user", question, False), ("thinking", thought, True), ("answer", answer, True))
        made = tuple(ExamplePart(role=r, text=t, train=f) for r, t, f in parts)  # type: ignore[arg-type]
        return Example(parts=made, origin=Origin(prompt=question))

    rng = random.Random(0)
    if DATA.exists():
        from demur.prompts.forms import load_file

        traces = [t for t in load_file(DATA).traces if t.thinking is not None and t.answer is not None]
        texts = [(t.prompt.text, str(t.thinking), str(t.answer)) for t in traces]
        # Byte-level rows of whole traces are longer than the range that is asked for: keep each one's first sentences.
        texts = [(q[:400], h[: rng.randint(150, 1100)], a[:400]) for q, h, a in texts]
    else:
        words = [f"w{i}" for i in range(500)]
        texts = [tuple(" ".join(rng.choices(words, k=rng.randint(10, k))) for k in (40, 300, 60)) for _ in range(count)]  # type: ignore[misc]
    return [row(*text) for text in texts][:count]


def prepared(base: Path, steps: int) -> tuple[list[Any], list[Any], list[Any]]:
    """Examples, their rows, and the held-out rows."""
    from demur.train.chat import load_tokenizer
    from demur.train.render import Renderer

    every = examples(BATCH * max(2, steps // 2) + 16)
    renderer = Renderer(load_tokenizer(base))
    rows = renderer.rows(every, max_length=HIGH).rows
    # Words are fewer than bytes: a real tokenizer's rows are shorter.
    least = LOW if len(renderer.tokenizer) < 1000 else LOW // 8
    assert all(least <= len(row.ids) <= HIGH for row in rows), sorted(len(row.ids) for row in rows)
    return every[16:], rows[16:], rows[:16]


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


def load(base: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    torch.set_num_threads(1)
    set_seed(0)
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def held_out_loss(model: Any, held: list[Any]) -> float:
    """Loss per response token on the held-out rows, measured alike for all."""
    import torch
    import torch.nn.functional as F

    nats = tokens = 0.0
    with torch.no_grad():
        for row in held:
            logits = model.eval()(input_ids=torch.tensor([row.ids])).logits[0, :-1]
            nats += F.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="sum").item()
            tokens += row.trained
    return nats / tokens


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def run_demur(base: Path, steps: int, out: Path, dtype: Literal["float32", "mixed"] = "float32") -> Result:
    from demur.records import write_jsonl
    from demur.train import trainer
    from demur.train.settings import TrainSettings

    given, _, held = prepared(base, steps)
    write_jsonl(out / "rows.jsonl", given)
    spent: list[tuple[float, float]] = []
    inner = trainer.Trainer.run
    trainer.Trainer.run = lambda self, progress: spent.append(timed(lambda: inner(self, progress)))  # type: ignore
    settings = TrainSettings(
        lr=LR,
        steps=steps,
        batch=BATCH,
        max_length=HIGH,
        schedule="constant",
        checkpoint_every=0,
        dtype=dtype,
    )
    summary = trainer.train(out / "rows.jsonl", base=base, out=out, settings=settings)
    return Result(*spent[0], summary["tokens"], held_out_loss(load(out / "model"), held))


def _trl(base: Path, steps: int, out: Path, *, every_token: bool = False, **options: Any) -> Result:
    import trl
    from datasets import Dataset

    _, rows, held = prepared(base, steps)
    data = Dataset.from_list([{"input_ids": r.ids, "labels": r.ids if every_token else r.labels} for r in rows])
    common: dict[str, Any] = {"per_device_train_batch_size": MICRO, "gradient_accumulation_steps": BATCH // MICRO}
    common |= {"output_dir": str(out), "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no"}
    common |= {"max_steps": steps, "learning_rate": LR, "lr_scheduler_type": "constant", "max_length": HIGH, "seed": 0}
    common |= {"optim": "adamw_torch_fused"}
    common |= {"disable_tqdm": True, "logging_steps": 1}
    from demur.train.chat import load_tokenizer

    model = load(base)
    trainer = trl.SFTTrainer(
        model, args=trl.SFTConfig(**(common | options)), train_dataset=data, processing_class=load_tokenizer(base)
    )
    counted: list[int] = []
    inner = trainer.training_step

    def step(net: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        mask = inputs.get("attention_mask")
        counted.append(int(mask.sum()) if mask is not None else inputs["input_ids"].numel())
        return inner(net, inputs, *args, **kwargs)

    trainer.training_step = step
    cpu, wall = timed(trainer.train)
    return Result(cpu, wall, sum(counted), held_out_loss(load_state(base, model), held))


def load_state(base: Path, trained: Any) -> Any:
    """A fresh model with the trained weights: trainers patch what they are given."""
    model = load(base)
    model.load_state_dict(trained.state_dict())
    return model


ALONE: dict[str, Any] = {"gradient_checkpointing": False, "per_device_train_batch_size": 1}
"""What suits TRL best on one thread, where memory is enough: no recomputation; one row at a time, which needs no padding."""


def trl(**options: Any) -> Callable[[Path, int, Path], Result]:
    return lambda base, steps, out: _trl(base, steps, out, **options)


def run_plain_single(base: Path, steps: int, out: Path) -> Result:
    """A bare loop, one row a micro-batch."""
    return run_plain(base, steps, out, micro=1)


def run_plain(base: Path, steps: int, out: Path, micro: int = MICRO, mixed: bool = False) -> Result:
    """A bare loop, as one would write it with care: sorted inside a step, padded where a micro-batch has several rows."""
    import torch

    from demur.train import batches

    _, rows, held = prepared(base, steps)
    model = load(base).train()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
    order = batches.order(len(rows), total=steps * BATCH, seed=0)
    tokens = 0

    def loop() -> None:
        nonlocal tokens
        for at in range(steps):
            chosen = sorted((rows[i] for i in order[at * BATCH : (at + 1) * BATCH]), key=lambda r: len(r.ids))
            total = sum(label != -100 for row in chosen for label in row.labels)
            for start in range(0, BATCH, micro):
                group = chosen[start : start + micro]
                batch = padded(group, 0)  # masked, whatever it is
                inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
                with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                    logits = model(**inputs).logits[:, :-1]
                loss = torch.nn.functional.cross_entropy(
                    logits.float().flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
                )
                (loss / total).backward()
                tokens += sum(len(row.ids) for row in group)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    cpu, wall = timed(loop)
    return Result(cpu, wall, tokens, held_out_loss(model, held))


def _pairs(base: Path, steps: int) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """Each row's response preferred to that of the row behind it: as records, and rendered."""
    from demur.records import Example, Pair
    from demur.train.chat import load_tokenizer
    from demur.train.render import Renderer

    given, _, _ = prepared(base, steps)
    others = [Example(parts=(a.parts[0], *b.parts[1:]), origin=a.origin) for a, b in itertools.pairwise(given)]
    made = [Pair(chosen=a, rejected=b) for a, b in zip(given, others, strict=False)]
    rows = Renderer(load_tokenizer(base)).rows(made, max_length=HIGH).rows
    return made, list(zip(rows[::2], rows[1::2], strict=True))


def run_demur_dpo(base: Path, steps: int, out: Path) -> Result:
    from demur.records import read_jsonl, write_jsonl
    from demur.train import trainer
    from demur.train.settings import TrainSettings

    write_jsonl(out / "rows.jsonl", _pairs(base, steps)[0])
    spent: list[tuple[float, float]] = []
    inner = trainer.Trainer.run
    trainer.Trainer.run = lambda self, progress: spent.append(timed(lambda: inner(self, progress)))  # type: ignore
    settings = TrainSettings(
        method="dpo", lr=LR, steps=steps, batch=BATCH // 2, max_length=HIGH, schedule="constant", checkpoint_every=0
    )
    summary = trainer.train(out / "rows.jsonl", base=base, out=out, settings=settings)
    return Result(*spent[0], summary["tokens"], list(read_jsonl(out / "metrics.jsonl", dict))[-1]["loss"])


def _trl_dpo(base: Path, steps: int, out: Path, micro: int, **options: Any) -> Result:
    import trl
    from datasets import Dataset

    from demur.train import batches
    from demur.train.chat import load_tokenizer

    pairs = _pairs(base, steps)[1]
    chosen = [pairs[i] for i in batches.order(len(pairs), total=steps * BATCH // 2, seed=0)]
    common: dict[str, Any] = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": BATCH // 2 // micro}
    common |= {"output_dir": str(out), "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no"}
    common |= {
        "max_steps": steps,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "max_length": None,
        "beta": 0.1,
    }
    common |= {"disable_tqdm": True, "logging_steps": 1, "train_sampling_strategy": "sequential"}
    bare = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    made = trl.DPOTrainer(
        load(base), args=trl.DPOConfig(**(common | options)), train_dataset=bare, processing_class=load_tokenizer(base)
    )
    made.train_dataset = Dataset.from_list(
        [
            {"prompt_ids": a.ids[: a.context], "chosen_ids": a.ids[a.context :], "rejected_ids": b.ids[b.context :]}
            for a, b in chosen
        ]
    )
    cpu, wall = timed(made.train)
    losses = [row["loss"] for row in made.state.log_history if "loss" in row]
    return Result(cpu, wall, sum(len(row.ids) for pair in chosen for row in pair), losses[-1])


def run_trl_dpo(base: Path, steps: int, out: Path) -> Result:
    return _trl_dpo(base, steps, out, MICRO // 2)


def run_trl_dpo_best(base: Path, steps: int, out: Path) -> Result:
    """One pair a micro-batch, activations kept."""
    return _trl_dpo(base, steps, out, 1, gradient_checkpointing=False)


PREFERENCE: dict[str, Callable[[Path, int, Path], Result]] = {
    "demur": run_demur_dpo,
    "trl_default": run_trl_dpo,
    "trl_one_pair": run_trl_dpo_best,
}
CONTENDERS: dict[str, Callable[[Path, int, Path], Result]] = {
    "demur": run_demur,
    "trl_default": trl(),
    "trl_grouped": trl(gradient_checkpointing=False, train_sampling_strategy="group_by_length"),
    "trl_padding_free": trl(gradient_checkpointing=False, padding_free=True, max_length=None),
    "trl_one_row": lambda base, steps, out: _trl(base, steps, out, **ALONE, gradient_accumulation_steps=BATCH),
    "paper_settings": lambda base, steps, out: _trl(
        base, steps, out, every_token=True, per_device_train_batch_size=2, gradient_accumulation_steps=BATCH // 2
    ),
    "plain_loop": run_plain,
    "plain_one_row": run_plain_single,
}
MIXED: dict[str, Callable[[Path, int, Path], Result]] = {
    "demur_mixed": lambda base, steps, out: run_demur(base, steps, out, "mixed"),
    "trl_one_row_bf16": lambda base, steps, out: _trl(
        base, steps, out, **ALONE, gradient_accumulation_steps=BATCH, bf16=True
    ),
    "plain_one_row_bf16": lambda base, steps, out: run_plain(base, steps, out, micro=1, mixed=True),
}
"""Beside the others on a model that is wide enough for bfloat16 arithmetic to pay."""
SETTINGS = {
    "demur": "its defaults; packed rows, as many tokens as make 128 MiB of logits",
    "trl_default": "as it comes: padded micro-batches, activations recomputed",
    "trl_grouped": "no recomputation; rows of like length together, so that padding is least",
    "trl_padding_free": "no recomputation; rows in one line (its padding_free, which wants flash attention and here builds a mask)",
    "trl_one_row": "no recomputation; one row at a time: nothing is padded. Its best on a CPU where rows are long",
    "paper_settings": "two rows at a time, loss on every token, recomputation",
    "plain_loop": "rows sorted by length inside a step, padded; transformers' own loss; fused AdamW",
    "plain_one_row": "the same one row at a time: nothing is padded",
    "demur_mixed": "what dtype: auto takes here: bfloat16 arithmetic over float32 weights",
    "trl_one_row_bf16": "bf16=True: the same arithmetic, by accelerate's autocast",
    "plain_one_row_bf16": "torch.autocast: the same arithmetic",
    "trl_one_pair": "one pair at a time, no recomputation: nothing is padded but the shorter reply",
}


UNPADDED = ("trl_one_row", "trl_padding_free", "trl_one_pair")
FIGURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "over_trl_default": ("demur", ("trl_default",)),
    "over_trl_best": ("demur", ("trl_default", "trl_grouped", *UNPADDED)),
    "over_trl_unpadded": ("demur", UNPADDED),
    "over_plain_loop": ("demur", ("plain_loop",)),
    "over_plain_one_row": ("demur", ("plain_one_row",)),
    "over_paper_settings": ("demur", ("paper_settings",)),
    "mixed_over_trl_bf16": ("demur_mixed", ("trl_one_row_bf16",)),
    "mixed_over_plain_bf16": ("demur_mixed", ("plain_one_row_bf16",)),
    "mixed_over_float32": ("demur_mixed", ("demur",)),
}
"""What is printed: whose speed, over the best of whom."""


def child(name: str, base: Path, steps: int, dpo: bool) -> None:
    """Run one contender and print its result as JSON on the last line."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as out:
        print(json.dumps((PREFERENCE if dpo else CONTENDERS | MIXED)[name](base, steps, Path(out))._asdict()))


def measure(given: argparse.Namespace) -> dict[str, list[Result]]:
    from demur.models.checkpoint import converted
    from demur.testing.base import make_base

    names = PREFERENCE if given.dpo else CONTENDERS | MIXED if given.model else CONTENDERS
    found: dict[str, list[Result]] = {name: [] for name in given.only or names}
    with tempfile.TemporaryDirectory() as folder:
        if given.model is None:
            base = make_base(Path(folder) / "base", arch="qwen3", hidden=given.hidden, layers=4)
        else:
            base = converted(given.model) if given.model.is_file() else given.model
        for _ in range(given.rounds):
            for name in found:
                command = [sys.executable, __file__, "--child", name, "--base", str(base), "--steps", str(given.steps)]
                command += ["--dpo"] * given.dpo
                sizes = {"BENCH_ROWS": str(given.rows), "BENCH_MICRO": str(given.micro)}
                done = subprocess.run(command, capture_output=True, text=True, env=os.environ | sizes, check=False)
                if done.returncode:
                    print(f"{name} failed ({done.returncode}): {done.stderr.strip()[-300:]}", file=sys.stderr)
                    continue
                found[name].append(Result(**json.loads(done.stdout.strip().splitlines()[-1])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS | MIXED | PREFERENCE))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=list(CONTENDERS | MIXED | PREFERENCE))
    parser.add_argument("--dpo", action="store_true")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--rows", type=int, default=BATCH)
    parser.add_argument("--micro", type=int, default=MICRO)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.base, given.steps, given.dpo)
        return
    found = measure(given)
    speed = {name: statistics.median(r.tokens / r.cpu for r in rs) for name, rs in found.items() if rs}
    print(f"{'contender':<18}{'tokens/CPU-s':>14}{'of demur':>10}{'tokens':>10}{'loss':>10}   settings")
    for name, rate in speed.items():
        last = found[name][-1]
        numbers = f"{rate:>14,.0f}{rate / speed['demur']:>10.2f}{last.tokens:>10,}{last.loss:>10.4f}"
        print(f"{name:<18}{numbers}   {SETTINGS[name]}")
    figures = {"tokens_per_cpu_second": speed["demur"]}
    for figure, (ours, peers) in FIGURES.items():
        if (rates := [speed[name] for name in peers if name in speed]) and ours in speed:
            figures[figure] = speed[ours] / max(rates)
    print(", ".join(f"{name} {value:,.2f}" for name, value in figures.items()))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
