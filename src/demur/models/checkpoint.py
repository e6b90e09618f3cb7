"""Checkpoint folders: where a model's weights are, what its identity is, and how a GGUF file becomes a folder."""

import contextlib
import functools
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from demur.errors import UserError
from demur.models import BASES
from demur.models.config import Local, Served
from demur.records import digest
from demur.registry import resolve
from demur.storage.artifacts import cache_folder, hash_file

DECISIVE = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""Files of a checkpoint that decide its replies."""
INDIFFERENT = ("trainer_state.json", "training_args.bin", "manifest.json", "optimizer.bin", "scheduler.bin")


def identity_of(folder: Path, *, above: tuple[Path, ...] = ()) -> str:
    """A hash of a checkpoint's weights, configuration, tokenizer and template, and of an adapter's base."""
    if folder.resolve() in above:
        raise UserError(f"{folder} is an adapter whose base, named in its adapter_config.json, is itself.")
    names = {path for pattern in DECISIVE for path in folder.glob(pattern) if path.name not in INDIFFERENT}
    parts = [[path.name, hash_file(path)] for path in sorted(names)]
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = Path(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
        parts.append(["base", identity_of(base, above=(*above, folder.resolve())) if base.is_dir() else str(base)])
    return f"weights:{digest(parts)}"


# The folder of a shipped base. Cached, since its files are checked against their card.
_shipped = functools.cache(lambda name: Path(resolve("base", name, BASES)(name)))


def base_folder(base: str) -> Path | None:
    """The folder (or GGUF file) of a base, given by name or path; `None`: it is not on this machine."""
    if base in BASES:
        return _shipped(base)
    return Path(base) if Path(base).is_dir() or (base.endswith(".gguf") and Path(base).is_file()) else None


def folder_of(config: Local | Served) -> Path:
    """The folder of a model's weights. A hub id is downloaded first, without the second copy that Meta's models have.

    Raises UserError: the folder holds no checkpoint, or the hub does not give it.
    """
    if config.path and config.path.endswith(".gguf"):
        return converted(Path(config.path))
    if config.path:
        folder = Path(config.path)
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
            hint = f" Did you mean one of its folders: {', '.join(inside[:8])}?" if inside else ""
            raise UserError(f"{folder} is not a checkpoint: it has no config.json.{hint}")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(config.hub or "", revision=config.revision or None, ignore_patterns="original/*"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{config.hub} could not be downloaded from the hub ({type(error).__name__}). Is the id right, is it "
            "gated, is there a network? A local folder works without one."
        ) from error


def converted(path: Path) -> Path:
    """The folder of a GGUF file's model in float32, converted once and cached by the file's hash.

    Raises UserError: no such file, transformers cannot read it, or the package gguf is missing.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    folder = cache_folder() / "gguf" / hash_file(path)[:16]
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unseen = contextlib.redirect_stderr(io.StringIO())  # Progress bars of other libraries would run through demur's
        with unseen, tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as draft:
            result = _convert(path, Path(draft) / "model")
            if not folder.exists():  # Another process may have been first.
                result.rename(folder)
    return folder


def _convert(path: Path, folder: Path) -> Path:
    """Write weights, tokenizer and chat template of a GGUF file into a folder, which is returned."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file: dict[str, Any] = {"gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **file)
        model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **file)
    except ImportError:
        raise UserError(f"{path}: reading it needs the package gguf: pip install 'demur[gguf]'.") from None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a GGUF that transformers can read: {str(error).splitlines()[0]}") from None
    # The weights are no longer quantised, and must not be saved as if they were.
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
