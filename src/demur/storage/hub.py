"""Tables from the Hugging Face hub, kept as JSON Lines beside the hub's own cache, so that a local copy is all that is read."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from demur.errors import UserError
from demur.storage.artifacts import atomic_write


def fetch(spec: str, *, revision: str = "", told: str, wait: str) -> Path:
    """The rows of `owner/name:config:split` (several with commas) as a local JSON Lines file.

    Args:
        spec: which table; config and split may be left out.
        revision: branch, tag or commit.
        told: what was looked for locally, the start of every error.
        wait: what to do instead, the end of every error.

    Raises:
        UserError: `datasets` is not installed, or the hub cannot be reached or wants a login.
    """
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "demur"
    path = cache / f"{re.sub(r'[^A-Za-z0-9.]+', '-', spec)}-{revision or 'main'}.jsonl"
    if path.exists():
        return path
    try:
        import datasets
    except ModuleNotFoundError:
        raise UserError(
            f"{told}, and the hub needs the module 'datasets': pip install 'demur[inspect]'. {wait}"
        ) from None
    rows: list[str] = []
    for entry in spec.split(","):
        name, config, split = [*entry.split(":"), "", ""][:3]
        try:
            table = datasets.load_dataset(name, config or None, split=split or "train", revision=revision or None)
        except Exception as error:  # whatever the hub's client raises: offline, gated, gone
            raise UserError(
                f"{told}, and the hub did not give {name}: {type(error).__name__}: {error}. {wait}"
            ) from None
        rows += [json.dumps(dict(row) | {"_split": split}, ensure_ascii=False, default=str) for row in table]
    cache.mkdir(parents=True, exist_ok=True)
    atomic_write(path, "\n".join(rows) + "\n")
    return path
