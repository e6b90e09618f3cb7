"""Rows from outside, for `demur train`: any file that holds traces or examples becomes a stage like that of a mix."""

from __future__ import annotations

import json
from pathlib import Path

from demur.errors import UserError
from demur.pipeline.run import Task
from demur.records import Example, read_jsonl
from demur.storage.artifacts import Artifact, artifacts, is_published


def examples(task: Task) -> None:
    """Read rows to train on: examples.jsonl, held_out.jsonl."""
    rows = read(task.files["examples"], limit=task.node.settings.get("limit"))
    held = task.node.settings.get("held_out", 0)
    count = task.draft.write("examples", rows[: len(rows) - held])
    task.draft.write("held_out", rows[len(rows) - held :] if held else [])
    task.draft.summary |= {"line": f"{count:,} rows, {held:,} held out", "examples": count}


def read(path: Path, *, limit: int | None = None) -> list[Example]:
    """Examples from a run, a finished stage, our own JSON Lines, or any file of traces.

    Raises:
        UserError: there are none.
    """
    from demur import mix
    from demur.prompts.formats import load_file

    if path.is_dir():
        found = [Artifact(path)] if is_published(path) else artifacts(path)
        stage = next((item for item in found if item.has("examples") and item.manifest.kind == "mix"), None)
        stage = stage or next((item for item in found if item.has("examples")), None)
        if stage is None:
            raise UserError(f"{path}: no finished stage with examples.jsonl. `demur mix` makes one.")
        rows = list(stage.read("examples", Example))
    elif _ours(path):
        rows = list(read_jsonl(path, Example))
    else:
        rows, unfit = mix.examples_of(list(load_file(path).traces), share="data", no_thinking="empty")
        if not rows:
            reasons = ", ".join(sorted({item.reason for item in unfit})) or "it holds no answers"
            raise UserError(f"{path}: no row to train on ({reasons}).")
    return rows[:limit]


def _ours(path: Path) -> bool:
    """Whether a file holds our own examples."""
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder.")
    if path.suffix != ".jsonl":
        return False
    with path.open() as file:
        try:
            first = json.loads(file.readline() or "{}")
        except ValueError:
            return False
    return isinstance(first, dict) and "parts" in first and "origin" in first
