"""How much memory models need, by rules of thumb, and how much there is: to say what fits before anything is loaded.

Bytes a parameter: 18 for full fine-tuning in mixed precision (weights twice, gradients, two moments), 3 for LoRA, 2.4 to
answer in bf16 with a cache. Real use depends on lengths and batches; these say what is out of the question.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

TRAIN_BYTES, LORA_BYTES, SERVE_BYTES = 18.0, 3.0, 2.4
SMALL = 300e6
"""Parameters up to which a CPU will do."""
_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s?([BM])(?![a-z])", re.IGNORECASE)


class Device(NamedTuple):
    """An accelerator of this machine."""

    name: str
    gigabytes: float


@functools.cache
def devices() -> tuple[Device, ...]:
    """The accelerators that `nvidia-smi` knows; none without it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    asked = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    rows = [line.rpartition(",") for line in done.stdout.splitlines() if "," in line]
    return tuple(Device(name.strip(), float(memory) / 1024) for name, _, memory in rows)


def parameters(model: str) -> float | None:
    """How many parameters a model has: from its folder's weights, or from the size in its name."""
    folder = Path(model)
    if model and folder.is_dir():
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            return float(json.loads(index.read_text())["metadata"]["total_size"]) / 2
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        return weights / 2 if weights else None
    found = _SIZE.search(model.rpartition("/")[2].replace("-", " "))
    if found is None:
        return None
    return float(found[1]) * (1e9 if found[2].upper() == "B" else 1e6)


def to_answer(model: str) -> float | None:
    """Gigabytes to run a model; `None` when its size cannot be told."""
    size = parameters(model)
    return None if size is None else size * SERVE_BYTES / 1e9


def to_train(model: str, *, lora: bool) -> float | None:
    """Gigabytes to train a model."""
    size = parameters(model)
    return None if size is None else size * (LORA_BYTES if lora else TRAIN_BYTES) / 1e9


def lacking(model: str, *, lora: bool, processes: int = 1) -> str:
    """Why a model cannot be trained on this machine, and how it could; empty when it can, or when nobody knows."""
    size, need = parameters(model), to_train(model, lora=lora)
    if size is None or need is None or size <= SMALL:
        return ""
    there = devices()
    room = sum(device.gigabytes for device in there[: max(1, processes)])
    if room >= need:
        return ""
    smaller = to_train(model, lora=True) or 0.0
    way = f"; --set train.lora=true needs about {smaller:.0f} GB" if not lora else ""
    have = f"{len(there)} GPU with {room:.0f} GB in use" if there else "no GPU"
    return f"{have}; {model} {'LoRA' if lora else 'full fine-tuning'} needs about {need:.0f} GB{way}"


def together(models: dict[str, str]) -> list[str]:
    """Which models fit at the same time on the accelerators of this machine, one line each for machine and models."""
    there = devices()
    needs = {name: need for name, model in models.items() if (need := to_answer(model)) is not None}
    lines = [f"{name}: about {need:.1f} GB to run {models[name]}" for name, need in needs.items()]
    if not needs:
        return lines
    if not there:
        return [*lines, "no GPU on this machine: give URLs, or run where there is one"]
    room = sum(device.gigabytes for device in there)
    total = sum(needs.values())
    verdict = "all at the same time" if total <= room else "not at the same time: they are asked in separate phases"
    if max(needs.values()) > room:
        verdict = "not even one by one"
    names = ", ".join(f"{device.name} {device.gigabytes:.0f} GB" for device in there)
    return [*lines, f"on {names}: {total:.1f} GB of {room:.0f} GB, {verdict}"]
