"""Training end to end: repeatable, resumable to the bit, stoppable, and loadable by any library."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.made import ASSETS, python
from tests.train.made import job_of, train

from demur.errors import CheckFailed, UserError, WorkError
from demur.records import Example, Record, encode, write_jsonl
from demur.storage.artifacts import hash_file
from demur.train import checkpoints
from demur.train.prepare import prepare
from demur.train.settings import LoraSettings, TrainSettings

Make = Callable[..., Example]
TINY = TrainSettings(lr=1e-3, steps=6, batch=8, checkpoint_every=2)
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from demur.train.settings import TrainSettings
from demur.train.trainer import train
out, base, data, die = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
settings = TrainSettings.model_validate_json(sys.argv[5])
def progress(done, total, remark):
    print(done, flush=True)
    if done == die:
        os.kill(os.getpid(), int(sys.argv[6]))
train(data, base=base, out=out, settings=settings, progress=progress)
"""


def metrics(out: Path, name: str = "metrics") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def weights(out: Path) -> str:
    return hash_file(out / "model" / "model.safetensors")


def run_and_kill(
    tmp_path: Path,
    base: Path,
    examples: Sequence[Record],
    *,
    at: int,
    by: signal.Signals,
    settings: TrainSettings = TINY,
) -> int:
    """Train in a process of its own that gets a signal after a step; returns its exit code."""
    data = tmp_path / "rows.jsonl"
    write_jsonl(data, examples)
    command = [python(), "-c", SCRIPT, str(tmp_path / "out"), str(base), str(data), str(at)]
    command += [settings.model_dump_json(), str(int(by))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    print(done.stderr[-2000:])
    return done.returncode


def test_it_learns_and_the_result_loads(stand_in: Path, byte_examples: list[Example], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    settings = TINY.model_copy(update={"steps": 12, "lr": 5e-3, "batch": 12})
    summary = train(byte_examples, base=stand_in, out=tmp_path, settings=settings)
    assert summary["loss_last"] < summary["loss_first"] - 0.5
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(stand_in).chat_template
    assert GenerationConfig.from_pretrained(tmp_path / "model").eos_token_id == tokenizer.eos_token_id
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], add_generation_prompt=True, return_tensors="pt"
    )
    assert model.generate(**prompt, max_new_tokens=3).shape[1] == prompt["input_ids"].shape[1] + 3
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| safety | 24 |" in card
    assert '"lr": 0.005' in card
    assert not (tmp_path / "checkpoints").exists()
    assert [row["step"] for row in metrics(tmp_path)] == list(range(1, 13))


def test_golden_losses_of_the_miniature_model(mini_base: Path, mini_examples: list[Example], tmp_path: Path) -> None:
    settings = TrainSettings(lr=1e-3, steps=10, batch=16)
    train(mini_examples, base=mini_base, out=tmp_path, settings=settings)
    golden = json.loads((ASSETS / "golden_losses.json").read_text())
    assert golden["base"] == hash_file(mini_base / "model.safetensors"), (
        "the base has changed: make the golden losses again"
    )
    assert [row["loss"] for row in metrics(tmp_path)] == pytest.approx(golden["losses"], rel=2e-3)


def test_equal_runs_are_equal_to_the_byte_and_seeds_differ(
    stand_in: Path, byte_examples: list[Example], tmp_path: Path
) -> None:
    outs = [tmp_path / name for name in "abc"]
    for out, seed in zip(outs, (0, 0, 1), strict=True):
        train(byte_examples, base=stand_in, out=out, settings=TINY.model_copy(update={"seed": seed}))
    names = sorted(p.name for p in (outs[0] / "model").iterdir())
    assert [hash_file(outs[0] / "model" / n) for n in names] == [hash_file(outs[1] / "model" / n) for n in names]
    assert (outs[0] / "metrics.jsonl").read_bytes() == (outs[1] / "metrics.jsonl").read_bytes()
    assert weights(outs[0]) != weights(outs[2])


@pytest.mark.parametrize("change", [{"micro_batch": 2}, {"packing": False}, {"micro_tokens": 300}])
def test_how_a_step_is_cut_does_not_change_it(
    change: dict[str, Any], stand_in: Path, byte_examples: list[Example], tmp_path: Path
) -> None:
    train(byte_examples, base=stand_in, out=tmp_path / "a", settings=TINY)
    train(byte_examples, base=stand_in, out=tmp_path / "b", settings=TINY.model_copy(update=change))
    a, b = ([row["loss"] for row in metrics(tmp_path / name)] for name in "ab")
    assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 4])
def test_killed_training_goes_on_to_the_same_bits(
    at: int, stand_in: Path, byte_examples: list[Example], tmp_path: Path
) -> None:
    settings = TINY.model_copy(update={"lora": None if at == 3 else LoraSettings(r=2, dropout=0.1), "device": "cpu"})
    straight = tmp_path / "straight"
    train(byte_examples, base=stand_in, out=straight, settings=settings)
    code = run_and_kill(tmp_path, stand_in, byte_examples, at=at, by=signal.SIGKILL, settings=settings)
    out = tmp_path / "out"
    assert code == -signal.SIGKILL
    assert not (out / "model").exists()
    # A checkpoint that was being written when the process was killed has no marker.
    torn = out / "checkpoints" / "checkpoint-5"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"torn")
    steps: list[int] = []
    train(byte_examples, base=stand_in, out=out, settings=settings, progress=lambda done, *_: steps.append(done))
    assert steps[0] > 2
    assert weights(out) == weights(straight)
    assert (out / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_sigterm_saves_and_exits_143(stand_in: Path, byte_examples: list[Example], tmp_path: Path) -> None:
    settings = TINY.model_copy(update={"checkpoint_every": 0})
    assert run_and_kill(tmp_path, stand_in, byte_examples, at=3, by=signal.SIGTERM, settings=settings) == 143
    (kept,) = (tmp_path / "out" / "checkpoints").iterdir()
    assert (kept / checkpoints.MARKER).is_file()
    steps: list[int] = []
    train(byte_examples, base=stand_in, out=tmp_path / "out", settings=settings, progress=lambda d, *_: steps.append(d))
    assert steps[0] == int(kept.name.rpartition("-")[2]) + 1
    train(byte_examples, base=stand_in, out=tmp_path / "straight", settings=settings)
    assert weights(tmp_path / "out") == weights(tmp_path / "straight")


@pytest.mark.slow
def test_a_checkpoint_of_other_data_is_refused_and_kept(
    stand_in: Path, byte_examples: list[Example], tmp_path: Path
) -> None:
    assert run_and_kill(tmp_path, stand_in, byte_examples, at=3, by=signal.SIGKILL) == -signal.SIGKILL
    other = TINY.model_copy(update={"lr": 2e-3})
    with pytest.raises(
        UserError, match=r"from other rows, settings, rendering or arithmetic.*Remove .*checkpoints to begin again"
    ):
        train(byte_examples, base=stand_in, out=tmp_path / "out", settings=other)
    assert (tmp_path / "out" / "checkpoints" / "checkpoint-2" / checkpoints.MARKER).is_file()


@pytest.mark.slow
def test_how_it_runs_may_change_when_it_goes_on(stand_in: Path, byte_examples: list[Example], tmp_path: Path) -> None:
    """Connection settings are in no fingerprint: a training resumes with less memory."""
    assert run_and_kill(tmp_path, stand_in, byte_examples, at=3, by=signal.SIGKILL) == -signal.SIGKILL
    steps: list[int] = []
    less = TINY.model_copy(update={"micro_tokens": 200, "checkpoint_every": 5})
    train(byte_examples, base=stand_in, out=tmp_path / "out", settings=less, progress=lambda d, *_: steps.append(d))
    assert steps == [3, 4, 5, 6]
    train(byte_examples, base=stand_in, out=tmp_path / "straight", settings=TINY)
    a, b = ([row["loss"] for row in metrics(tmp_path / name)] for name in ("out", "straight"))
    assert a == pytest.approx(b, rel=1e-4)


def test_checkpointing_changes_no_number(stand_in: Path, byte_examples: list[Example], tmp_path: Path) -> None:
    train(byte_examples, base=stand_in, out=tmp_path / "a", settings=TINY)
    train(byte_examples, base=stand_in, out=tmp_path / "b", settings=TINY.model_copy(update={"checkpointing": True}))
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_mixed_precision_keeps_float32_weights(stand_in: Path, byte_examples: list[Example], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    train(byte_examples, base=stand_in, out=tmp_path, settings=TINY.model_copy(update={"dtype": "mixed"}))
    assert {t.dtype for t in load_file(tmp_path / "model" / "model.safetensors").values()} == {torch.float32}


def test_drops_are_counted_and_listed(stand_in: Path, make: Make, byte_examples: list[Example], tmp_path: Path) -> None:
    long = make("q", "t" * 5000, "a")
    summary = train([*byte_examples, long], base=stand_in, out=tmp_path, settings=TINY)
    assert summary["dropped"] == {"too_long": 1}
    assert summary["rows"] == len(byte_examples)
    assert long.id in (tmp_path / "dropped.jsonl").read_text()
    assert "1 too_long" in (tmp_path / "model" / "README.md").read_text()


def test_rows_beyond_the_models_positions_are_dropped(
    mini_base: Path, make: Make, mini_examples: list[Example], tmp_path: Path
) -> None:
    long = make("what is a nurse?", "a nurse is a person. " * 100, "a nurse is a person.")
    job = job_of([*mini_examples, long], base=mini_base, out=tmp_path / "out", settings=TrainSettings())
    assert prepare(job).rendered.counts() == {"too_long": 1}


def test_refusals_come_before_the_first_step(stand_in: Path, byte_examples: list[Example], tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="deletes the reasoning"):
        train(byte_examples, base=stand_in, out=tmp_path, settings=TINY.model_copy(update={"template": "tokenizer"}))
    with pytest.raises(UserError, match="nothing to train on"):
        train([], base=stand_in, out=tmp_path, settings=TINY)
    lost = TINY.model_copy(update={"lora": LoraSettings(targets=("nowhere",))})
    with pytest.raises(UserError, match=r"Linear layers here: .*q_proj"):
        train(byte_examples, base=stand_in, out=tmp_path, settings=lost)
    assert not (tmp_path / "model").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_missing_device_is_an_error(stand_in: Path, byte_examples: list[Example], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no CUDA device"):
        train(byte_examples, base=stand_in, out=tmp_path, settings=TINY.model_copy(update={"device": "cuda"}))


def test_an_infinite_loss_ends_the_training(stand_in: Path, byte_examples: list[Example], tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"the loss became (nan|inf)"):
        train(byte_examples, base=stand_in, out=tmp_path, settings=TINY.model_copy(update={"lr": 1e30, "clip": 0.0}))


def test_settings_name_what_is_wrong() -> None:
    from demur.settings import validate

    assert validate(TrainSettings, {"lora": True}, where="x").lora == LoraSettings()
    assert validate(TrainSettings, {"lora": False}, where="x").lora is None
    with pytest.raises(UserError, match="unknown key 'rank' in 'lora'"):
        validate(TrainSettings, {"lora": {"rank": 4}}, where="x")
    with pytest.raises(UserError, match="Did you mean 'max_length'"):
        validate(TrainSettings, {"maxlength": 4}, where="x")


def test_results_hold_no_time_or_place(stand_in: Path, byte_examples: list[Example], tmp_path: Path) -> None:
    began = time.time()
    summary = train(byte_examples, base=stand_in, out=tmp_path, settings=TINY)
    assert time.time() > began
    for path in [tmp_path / "metrics.jsonl", *(tmp_path / "model").iterdir()]:
        assert str(tmp_path).encode() not in path.read_bytes()
    assert str(tmp_path).encode() not in encode(summary)
