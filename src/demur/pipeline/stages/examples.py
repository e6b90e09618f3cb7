"""Rows to train on from outside: any file that holds traces or examples, as examples.jsonl and held_out.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, Field

from demur.errors import UserError
from demur.mix import examples_of
from demur.pipeline.stage import Context, Stage
from demur.prompts.formats import load_file
from demur.records import Example, read_jsonl
from demur.settings import STRICT
from demur.storage.artifacts import Artifact, artifacts, is_published


class ExamplesSettings(BaseModel):
    """How many rows, and which are held out."""

    model_config = STRICT

    limit: int | None = None
    """Only the first so many."""
    held_out: int = Field(default=0, ge=0)
    """The last so many are kept to measure learnability on."""


class Examples(Stage[ExamplesSettings]):
    """Files: examples (a file, a finished stage, a run)."""

    kind = "examples"
    Settings = ExamplesSettings

    def run(self, context: Context) -> None:
        rows, held = self.rows()
        count = context.draft.write("examples", rows)
        context.draft.write("held_out", held)
        context.draft.line = f"{count:,} rows, {len(held):,} held out"

    def rows(self) -> tuple[list[Example], list[Example]]:
        """Rows to train on, and rows held out."""
        rows = read(self.files["examples"], limit=self.settings.limit)
        at = len(rows) - self.settings.held_out
        return rows[:at], rows[at:]


def read(path: Path, *, limit: int | None = None) -> list[Example]:
    """Examples from a run, a finished stage, our own JSON Lines, or any file of traces.

    Raises:
        UserError: there are none.
    """
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
        rows, unfit = examples_of(list(load_file(path).traces), share="data", no_thinking="empty")
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
