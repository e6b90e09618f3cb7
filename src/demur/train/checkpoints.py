"""Checkpoints that are complete or do not count.

A process killed while it saves leaves a folder of half the files. So a marker, written last and atomically, names the files
and the data that a checkpoint belongs to. All checkpoints have one form, shards of trained weights and optimizer state
(`torch.distributed.checkpoint`), so that a training may go on with another number of processes or another wrapper.
"""

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demur.errors import UserError
from demur.records import read_jsonl
from demur.storage.artifacts import atomic_write
from demur.train import distributed

MARKER = "complete.json"


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
                f"{path} was made from other rows, settings, rendering or arithmetic than this training: it cannot go on from "
                f"there. Remove {folder} to begin again."
            )
    return None


def step_of(checkpoint: Path) -> int:
    """The number of steps behind a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def _complete(checkpoint: Path) -> bool:
    """Whether the marker is there, and all files that it names."""
    try:
        sizes = json.loads((checkpoint / MARKER).read_text())["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def save(checkpoint: Path, model: Any, optimizer: Any, *, fingerprint: str) -> None:
    """Write a checkpoint; every process writes its part, the first one declares it complete and removes older ones."""
    import torch
    import torch.distributed.checkpoint as dcp

    with _alone() as alone:
        dcp.save(_state(model, optimizer), checkpoint_id=checkpoint, no_dist=alone)
    # Dropout draws from these.
    numbers = {"cpu": torch.get_rng_state()} | (
        {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    )
    torch.save(numbers, checkpoint / f"random-{distributed.rank()}.pt")
    distributed.barrier()
    if distributed.rank() == 0:
        sizes = {p.relative_to(checkpoint).as_posix(): p.stat().st_size for p in checkpoint.rglob("*") if p.is_file()}
        atomic_write(checkpoint / MARKER, json.dumps({"fingerprint": fingerprint, "files": sizes}, sort_keys=True))
        for old in checkpoint.parent.glob("checkpoint-*"):
            if step_of(old) < step_of(checkpoint):
                shutil.rmtree(old)


def load(checkpoint: Path, model: Any, optimizer: Any) -> None:
    """Read a checkpoint into a model and its optimizer; each process its part, however many wrote it."""
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import set_state_dict

    state = _state(model, optimizer)
    with _alone() as alone:
        dcp.load(state, checkpoint_id=checkpoint, no_dist=alone)
    weights, states = state["model"], state["optimizer"]
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states, options=_options())
    own = checkpoint / f"random-{distributed.rank()}.pt"
    if own.is_file():
        numbers = torch.load(own, weights_only=True)
        torch.set_rng_state(numbers["cpu"])
        if "cuda" in numbers and torch.cuda.is_available():
            torch.cuda.set_rng_state(numbers["cuda"])


@contextmanager
def _alone() -> Iterator[bool]:
    """Whether there is one process only, which torch then warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield distributed.world_size() == 1


def _options() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(ignore_frozen_params=True, strict=False)


def _state(model: Any, optimizer: Any) -> dict[str, Any]:
    """Trained weights and optimizer state by parameter name, without the names that wrappers add."""
    from torch.distributed.checkpoint.state_dict import get_state_dict

    weights, states = get_state_dict(model, optimizer, options=_options())
    return {"model": weights, "optimizer": states}


def rewind(path: Path, step: int) -> None:
    """Keep the lines of a metrics file up to a step: later ones are written again."""
    if path.exists():
        kept = [row for row in read_jsonl(path, dict) if row["step"] <= step]
        atomic_write(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in kept))
