"""Memory: the sizes of models, the accelerators of this machine, and how a training is distributed over them."""

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from demur.models.config import is_hub_id
from demur.train.settings import LoraSettings, TrainSettings

TRAIN_BYTES, LORA_BYTES = 18.0, 3.0
"""Bytes per parameter: full fine-tuning in mixed precision (weights twice, gradients, two moments); adapters over 16-bit weights."""
KV_BYTES = 16e-6  # Of keys and values per token and parameter, without a config.json: 0.13 MB a token at 8 billion
REPLICATED = 0.7  # Part of a card that weights, gradients and optimizer may fill before they are sharded
SMALL = 300e6  # Parameters up to which a CPU is enough
_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s?([BM])(?![a-z])", re.IGNORECASE)


class Device(NamedTuple):
    """An accelerator of this machine."""

    name: str
    gigabytes: float
    number: int = 0


@functools.cache
def devices() -> tuple[Device, ...]:
    """The accelerators that `nvidia-smi` lists and CUDA_VISIBLE_DEVICES allows; none without that tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    output = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30).stdout
    rows = [line.rpartition(",") for line in output.splitlines() if "," in line]
    cards = [Device(name.strip(), float(memory) / 1024, number) for number, (name, _, memory) in enumerate(rows)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(card for card in cards if visible is None or str(card.number) in visible.split(","))


class Shape(NamedTuple):
    """What a model's memory depends on."""

    parameters: float
    token: float  # Bytes of keys and values of one token, over all layers
    positions: int | None = None  # Most tokens of prompt and reply together


@functools.lru_cache(maxsize=256)
def shape(model: str, revision: str = "") -> Shape | None:
    """The size of a model, from its config.json here or in the hub's cache, else from its weights or name."""
    folder = Path(model)
    path: Any = folder / "config.json" if folder.is_dir() else None
    if path is None and is_hub_id(model):
        from huggingface_hub import constants, try_to_load_from_cache

        cached = try_to_load_from_cache(model, "config.json", constants.HF_HUB_CACHE, revision or None)
        path = Path(cached) if isinstance(cached, str) else None
    if path is not None and path.is_file():
        with contextlib.suppress(KeyError, ValueError):  # an architecture with other keys
            return _dense(json.loads(path.read_text()))
    size = parameters(model)
    return Shape(size, size * KV_BYTES) if size else None


def _dense(c: Mapping[str, Any]) -> Shape:
    """The size of a Llama-like dense decoder, from its config."""
    width, layers, heads = c["hidden_size"], c["num_hidden_layers"], c["num_attention_heads"]
    kv, head = c.get("num_key_value_heads") or heads, c.get("head_dim") or width // heads
    layer = 2 * width * head * (heads + kv) + 3 * width * c["intermediate_size"]
    words = c["vocab_size"] * width * (1 if c.get("tie_word_embeddings") else 2)
    return Shape(float(layers * layer + words), 4.0 * layers * kv * head, c.get("max_position_embeddings"))


def parameters(model: str) -> float | None:
    """The number of parameters of a model, from its folder's weights or the size in its name."""
    folder = Path(model)
    if model and folder.is_dir():
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            return float(json.loads(index.read_text())["metadata"]["total_size"]) / 2
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        return weights / 2 if weights else None
    size = _SIZE.search(model.rpartition("/")[2].replace("-", " "))
    return float(size[1]) * (1e9 if size[2].upper() == "B" else 1e6) if size else None


class Training(NamedTuple):
    """How a training is distributed on this machine."""

    cards: tuple[Device, ...]
    wrapper: str  # single, ddp (each card holds a copy) or fsdp2 (they share one)
    gigabytes: float  # On each card


def processes_of(settings: TrainSettings) -> int:
    """Processes of a training: as set, else one for each accelerator."""
    cards = 1 if settings.device == "cpu" else len(devices())
    return settings.processes or max(1, min(cards, settings.batch))


def training(model: str, settings: TrainSettings, revision: str = "") -> Training | None:
    """How a training would be distributed; `None` if a CPU is enough, or the size is unknown."""
    size = shape(model, revision)
    if size is None or size.parameters <= SMALL or settings.device == "cpu":
        return None
    cards = devices()[: processes_of(settings)]
    whole = size.parameters * (LORA_BYTES if settings.lora else TRAIN_BYTES) / 1e9
    if len(cards) < 2:
        return Training(cards, "single", whole)
    fits = whole < REPLICATED * min(card.gigabytes for card in cards)
    wrapper = settings.parallel if settings.parallel != "auto" else "ddp" if fits else "fsdp2"
    return Training(cards, wrapper, whole / len(cards) if wrapper == "fsdp2" else whole)


def lacking(model: str, settings: TrainSettings, revision: str = "") -> str:
    """Why this machine cannot train a model, and the smallest change that helps; empty if it can, or the size is unknown."""
    needed = training(model, settings, revision)
    if needed is None or (needed.cards and all(card.gigabytes >= needed.gigabytes for card in needed.cards)):
        return ""
    cards, hints = devices(), []
    sharded: dict[str, Any] = {"processes": len(cards), "parallel": "fsdp2"}
    flags = f"train.processes={len(cards)} --set train.parallel=fsdp2"
    for words, change in {flags: sharded, "train.lora=true": {"lora": LoraSettings()}}.items():
        other = training(model, settings.model_copy(update=change), revision)
        if other is None or other.gigabytes >= needed.gigabytes:
            continue
        if "lora" in change or (cards and other.gigabytes <= min(card.gigabytes for card in cards)):
            hints.append(f"--set {words} needs about {other.gigabytes:.0f} GB on each of {max(1, len(other.cards))}")
    have = f"{len(needed.cards)} of {len(cards)} GPUs with {cards[0].gigabytes:.0f} GB each" if cards else "no GPU"
    kind = "LoRA" if settings.lora else "full fine-tuning"
    each = " on each" if len(needed.cards) > 1 else ""
    return "; ".join([have, f"{model} {kind} needs about {needed.gigabytes:.0f} GB{each}", *hints])
