"""Two processes train what one trains; they stop and resume together, and fail when they are not one training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.made import python
from tests.train.made import train

from demur.errors import CheckFailed, WorkError
from demur.records import Example, write_jsonl
from demur.train import distributed
from demur.train.settings import LoraSettings, TrainSettings

TWO = TrainSettings(lr=1e-3, steps=4, batch=8, micro_batch=2, checkpoint_every=0, processes=2)
SCRIPT = """
import os, signal, sys
from pathlib import Path
from demur.train.settings import TrainSettings
from demur.train.trainer import train
def progress(done, total, remark):
    if done == 2:
        os.kill(os.getpid(), signal.SIGTERM)
train(
    Path(sys.argv[3]), base=sys.argv[2], out=Path(sys.argv[1]),
    settings=TrainSettings.model_validate_json(sys.argv[4]), progress=progress,
)
"""


@pytest.fixture(autouse=True)
def started_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launchers and the processes that they launch are forked from one that has imported torch."""
    monkeypatch.setattr(sys, "executable", python())
    monkeypatch.setenv("PYTHON_EXEC", python())


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def tensors(out: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(out / "model" / "model.safetensors")
    return found


@pytest.fixture(scope="module")
def single(stand_in: Path, byte_examples: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("single")
    settings = TWO.model_copy(update={"processes": 1})
    train(byte_examples, base=stand_in, out=out, settings=settings, held_out=byte_examples[:3])
    return out


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_processes_train_what_one_trains(
    how: str, single: Path, stand_in: Path, byte_examples: list[Example], tmp_path: Path
) -> None:
    seen: list[int] = []
    settings = TWO.model_copy(update={"parallel": how})
    summary = train(
        byte_examples,
        base=stand_in,
        out=tmp_path,
        settings=settings,
        held_out=byte_examples[:3],
        progress=lambda done, *_: seen.append(done),
    )
    assert seen == [1, 2, 3, 4]
    assert summary["loss_first"] == pytest.approx(losses(single)[0], rel=1e-5)
    assert losses(tmp_path) == pytest.approx(losses(single), rel=1e-5)
    one, two = tensors(single), tensors(tmp_path)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert (tensor - two[name]).abs().max() < 1e-4, name
    a, b = ((out / "learnability.jsonl").read_text().splitlines() for out in (single, tmp_path))
    assert [json.loads(line)["loss"] for line in b] == pytest.approx([json.loads(line)["loss"] for line in a], rel=1e-4)
    assert not (tmp_path / ".job").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_processes_stop_together_and_go_on_together(
    how: str, stand_in: Path, byte_examples: list[Example], tmp_path: Path
) -> None:
    data, out, single = tmp_path / "rows.jsonl", tmp_path / "out", tmp_path / "single"
    write_jsonl(data, byte_examples)
    # Many steps, so that the request to stop arrives before the end.
    settings = TWO.model_copy(update={"parallel": how, "steps": 40})
    train(byte_examples, base=stand_in, out=single, settings=settings.model_copy(update={"processes": 1}))
    command = [python(), "-c", SCRIPT, str(out), str(stand_in), str(data), settings.model_dump_json()]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 143, done.stderr[-2000:]
    assert not (out / "model").exists()
    (kept,) = (out / "checkpoints").iterdir()
    seen: list[int] = []
    train(byte_examples, base=stand_in, out=out, settings=settings, progress=lambda done, *_: seen.append(done))
    assert seen[0] == int(kept.name.rpartition("-")[2]) + 1
    assert losses(out) == pytest.approx(losses(single), rel=1e-3)
    for name, tensor in tensors(single).items():
        assert (tensor - tensors(out)[name]).abs().max() < 1e-2, name


@pytest.mark.slow
def test_a_training_goes_on_with_other_processes(stand_in: Path, byte_examples: list[Example], tmp_path: Path) -> None:
    """Begun in two shards and finished in one process: the same losses as in one process throughout."""
    data, out = tmp_path / "rows.jsonl", tmp_path / "out"
    write_jsonl(data, byte_examples)
    settings = TWO.model_copy(update={"parallel": "fsdp2", "steps": 30})
    command = [python(), "-c", SCRIPT, str(out), str(stand_in), str(data), settings.model_dump_json()]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 143
    seen: list[int] = []
    alone = settings.model_copy(update={"processes": 1})
    train(byte_examples, base=stand_in, out=out, settings=alone, progress=lambda done, *_: seen.append(done))
    assert 2 < seen[0] < 30
    train(byte_examples, base=stand_in, out=tmp_path / "one", settings=alone)
    assert losses(out) == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


@pytest.mark.slow
def test_the_verb_under_torchrun(mini_base: Path, mini_examples: list[Example], tmp_path: Path) -> None:
    """One entry: the first process runs the verb, the second follows it; nothing is trained twice, and both end."""
    data, out = tmp_path / "rows.jsonl", tmp_path / "t"
    write_jsonl(data, mini_examples)
    torchrun = [python(), "-m", "torch.distributed.run", "--nproc-per-node=2", "--local-addr=127.0.0.1"]
    torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    verb = ["-m", "demur", "train", "--base", "mini-lrm-a", "--examples", str(data), "--out", str(out)]
    verb += ["--set", "train.steps=3", "--json"]
    for _ in range(2):  # The second time the stage is there already, and the follower is dismissed at once.
        done = subprocess.run(
            [*torchrun, *verb], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout)["steps"] == 3
    (folder,) = (out / "stages").glob("train-*")
    assert len(losses(folder)) == 3


@pytest.mark.slow
def test_adapters_are_trained_in_shards_too(stand_in: Path, byte_examples: list[Example], tmp_path: Path) -> None:
    changes = {"parallel": "fsdp2", "lora": LoraSettings(r=2), "lr": 1e-2}
    train(byte_examples, base=stand_in, out=tmp_path / "two", settings=TWO.model_copy(update=changes))
    train(
        byte_examples, base=stand_in, out=tmp_path / "one", settings=TWO.model_copy(update=changes | {"processes": 1})
    )
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert (tensor - two[name]).abs().max() < 1e-3, name


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_shards_are_read_in_parts(
    tied: bool, chatml_base: Callable[..., Path], byte_examples: list[Example], tmp_path: Path
) -> None:
    """A model that no process ever holds in whole equals the one that a single process reads, tied embeddings too."""
    base, settings = chatml_base(tied=tied), TWO.model_copy(update={"parallel": "fsdp2"})
    train(byte_examples, base=base, out=tmp_path / "two", settings=settings)
    train(byte_examples, base=base, out=tmp_path / "one", settings=settings.model_copy(update={"processes": 1}))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert one.keys() == two.keys()
    assert ("lm_head.weight" in one) != tied
    for name, tensor in one.items():
        assert (tensor - two[name]).abs().max() < 1e-4, name


@pytest.mark.slow
def test_the_error_of_a_process_is_reported(stand_in: Path, byte_examples: list[Example], tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="deletes the reasoning"):
        train(byte_examples, base=stand_in, out=tmp_path, settings=TWO.model_copy(update={"template": "tokenizer"}))


def test_processes_that_are_not_connected_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(WorkError, match="2 processes were started and 1 are connected"):
        distributed.check_group(object(), "a")


def test_processes_with_other_data_or_no_wrapper_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(WorkError, match="not replicated"):
        distributed.check_group(object(), "a")

    monkeypatch.setattr(distributed, "is_sharded", lambda _: True)
    monkeypatch.setattr(distributed, "all_gather", lambda value: [value, "other"])
    with pytest.raises(WorkError, match="different data"):
        distributed.check_group(object(), "a")


def test_alone_there_is_nothing_to_agree_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert not distributed.launched()
    assert distributed.broadcast("x") == "x"
    assert distributed.all_gather("x") == ["x"]
    assert signal.getsignal(signal.SIGTERM) is not None
