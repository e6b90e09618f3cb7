"""A GGUF file as a model: dequantised once into an ordinary folder, which answers and trains like any other."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from demur.errors import UserError
from demur.storage.artifacts import hash_file


def converted(path: Path) -> Path:
    """The folder of a GGUF file's model in float32, made once and found again by the file's hash.

    It lies under `$DEMUR_CACHE`, by default `~/.cache/demur`.

    Raises:
        UserError: no such file, or transformers cannot read it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    root = Path(os.environ.get("DEMUR_CACHE") or Path.home() / ".cache" / "demur")
    folder = root / "gguf" / hash_file(path)[:16]
    if not (folder / "config.json").is_file():
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            _convert(path, draft)
            if not folder.exists():  # Another process may have been first.
                draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _convert(path: Path, folder: Path) -> None:
    """Write weights, tokenizer and chat template.

    Raises:
        UserError: transformers cannot read the file, or the package gguf is missing.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file: dict[str, Any] = {"gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **file)
        model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **file)
    except ImportError:
        raise UserError(f"{path}: reading it needs the package gguf: pip install 'demur[train]'.") from None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no GGUF that transformers can read: {str(error).splitlines()[0]}") from None
    # What is saved is plain: the weights are no longer quantised.
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
