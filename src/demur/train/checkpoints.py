"""Checkpoints that are complete or do not count.

A process killed while it saves leaves a folder with half of the files. So a marker, written last and atomically, lists
the files and the fingerprint of the training. All checkpoints have one format, shards of trained weights and optimizer
state (`torch.distributed.checkpoint`), so that a training may resume with another number of processes or wrapper.
"""

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from demur.errors import UserError
from demur.records import read_jsonl
from demur.storage.artifacts import atomic_write
from demur.train import distributed

MARKER = "complete.json"
OPTIONS = StateDictOptions(ignore_frozen_params=True, strict=False)


def latest(folder: Path, *, fingerprint: str) -> Path | None:
    """The newest complete checkpoint; incomplete ones are removed.

    Raises UserError: the checkpoints belong to other rows or settings.
    """
    for path in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        if not _complete(path):
            shutil.rmtree(path)
        elif json.loads((path / MARKER).read_text())["fingerprint"] == fingerprint:
            return path
        else:
            raise UserError(
                f"{path} was made from other rows, settings, rendering or arithmetic than this training, which cannot "
                f"resume from it. Remove {folder} to begin again."
            )
    return None


def step_of(checkpoint: Path) -> int:
    """The number of steps taken before a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def _complete(checkpoint: Path) -> bool:
    """Whether the marker and all files that it lists are there."""
    try:
        sizes = json.loads((checkpoint / MARKER).read_text())["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def save(checkpoint: Path, model: Any, optimizer: Any, *, fingerprint: str) -> None:
    """Write a checkpoint; every process writes its part, the first one marks it complete and removes older ones."""
    with _alone() as alone:
        dcp.save(_state(model, optimizer), checkpoint_id=checkpoint, no_dist=alone)
    generators = {"cpu": torch.get_rng_state()}  # dropout draws from these
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state()
    torch.save(generators, checkpoint / f"random-{distributed.rank()}.pt")
    distributed.barrier()
    if distributed.rank() == 0:
        sizes = {p.relative_to(checkpoint).as_posix(): p.stat().st_size for p in checkpoint.rglob("*") if p.is_file()}
        atomic_write(checkpoint / MARKER, json.dumps({"fingerprint": fingerprint, "files": sizes}, sort_keys=True))
        for old in checkpoint.parent.glob("checkpoint-*"):
            if step_of(old) < step_of(checkpoint):
                shutil.rmtree(old)


def load(checkpoint: Path, model: Any, optimizer: Any) -> None:
    """Read a checkpoint into a model and its optimizer; each process reads its part, however many wrote them."""
    state = _state(model, optimizer)
    with _alone() as alone:
        dcp.load(state, checkpoint_id=checkpoint, no_dist=alone)
    weights, states = state["model"], state["optimizer"]
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states, options=OPTIONS)
    path = checkpoint / f"random-{distributed.rank()}.pt"
    if path.is_file():
        generators = torch.load(path, weights_only=True)
        torch.set_rng_state(generators["cpu"])
        if "cuda" in generators and torch.cuda.is_available():
            torch.cuda.set_rng_state(generators["cuda"])


@contextmanager
def _alone() -> Iterator[bool]:
    """Whether this is the only process, of which torch would warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield distributed.world_size() == 1


def _state(model: Any, optimizer: Any) -> dict[str, Any]:
    """Trained weights and optimizer state by parameter name, without the names that wrappers add."""
    weights, states = get_state_dict(model, optimizer, options=OPTIONS)
    return {"model": weights, "optimizer": states}


def rewind(path: Path, step: int) -> None:
    """Remove the lines of a metrics file beyond a step: they will be written again."""
    if path.exists():
        kept = [row for row in read_jsonl(path, dict) if row["step"] <= step]
        atomic_write(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in kept))
