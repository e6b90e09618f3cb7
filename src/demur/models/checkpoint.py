"""Checkpoint folders: where a model's lies and what makes its identity. Needs no torch."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from demur.errors import UserError
from demur.models import BASES
from demur.models.config import Local, Served
from demur.models.gguf import converted
from demur.records import digest
from demur.registry import resolve
from demur.storage.artifacts import hash_file

DECISIVE = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""Files of a checkpoint that decide what it says."""
INDIFFERENT = ("trainer_state.json", "training_args.bin", "manifest.json", "optimizer.bin", "scheduler.bin")


def identity_of(folder: Path) -> str:
    """The hash of weights, configuration, tokenizer and template of a checkpoint folder, and of the base of an adapter."""
    names = {path for pattern in DECISIVE for path in folder.glob(pattern) if path.name not in INDIFFERENT}
    parts = [[path.name, hash_file(path)] for path in sorted(names)]
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = Path(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
        parts.append(["base", identity_of(base) if base.is_dir() else str(base)])
    return f"weights:{digest(parts)}"


@functools.cache
def _shipped(name: str) -> Path:
    """A shipped base's folder; its files are checked against their card once a process."""
    folder: Path = resolve("base", name, BASES)(name)
    return folder


def base_folder(base: str) -> Path | None:
    """The folder that a base's name means; `None` when it is not on this machine."""
    if base in BASES:
        return _shipped(base)
    return Path(base) if Path(base).is_dir() or (base.endswith(".gguf") and Path(base).is_file()) else None


def folder_of(config: Local | Served) -> Path:
    """Where a model's weights lie; a hub id is downloaded first.

    Raises:
        UserError: it cannot be had.
    """
    if config.path and config.path.endswith(".gguf"):
        return converted(Path(config.path))
    if config.path:
        folder = Path(config.path)
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
            hint = f" Did you mean one of its folders: {', '.join(inside[:8])}?" if inside else ""
            raise UserError(f"{folder} is no checkpoint: it has no config.json.{hint}")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(config.hub or "", revision=config.revision or None))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{config.hub} could not be fetched from the hub ({type(error).__name__}). Is the id right, is it gated, is there "
            "a network? A local folder works without any."
        ) from error
