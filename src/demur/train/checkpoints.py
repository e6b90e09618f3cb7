"""Checkpoints that are whole or do not count.

The trainer writes its files one by one, and takes the highest number for the latest: a process killed while it saves
leaves a folder on which the next start crashes. So a marker, written last and atomically, names the files and the data
that a checkpoint belongs to; what has no marker, or that of another run, is thrown away.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from demur.records import read_jsonl
from demur.storage.artifacts import atomic_write

MARKER = "complete.json"


def seal(checkpoint: Path, *, mark: str) -> None:
    """Declare a checkpoint complete."""
    sizes = {p.relative_to(checkpoint).as_posix(): p.stat().st_size for p in checkpoint.rglob("*") if p.is_file()}
    atomic_write(checkpoint / MARKER, json.dumps({"mark": mark, "files": sizes}, sort_keys=True))


def whole(checkpoint: Path, *, mark: str) -> bool:
    """Whether a checkpoint is complete and belongs to this data and plan."""
    try:
        said = json.loads((checkpoint / MARKER).read_text())
        right = all((checkpoint / name).stat().st_size == size for name, size in said["files"].items())
        return bool(said["mark"] == mark and right)
    except (OSError, ValueError, KeyError):
        return False


def latest(folder: Path, *, mark: str, clean: bool = True) -> Path | None:
    """The newest whole checkpoint; the unusable ones are removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    good = [path for path in found if whole(path, mark=mark)]
    for path in found if clean else []:
        if path not in good:
            shutil.rmtree(path)
    return good[0] if good else None


def rewind(path: Path, step: int) -> None:
    """Keep the lines of a metrics file up to a step: later ones are written again."""
    if path.exists():
        kept = [row for row in read_jsonl(path, dict) if row["step"] <= step]
        atomic_write(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in kept))
