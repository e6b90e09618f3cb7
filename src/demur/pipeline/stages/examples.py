"""Rows to train on from outside: any file that holds traces or examples, as examples.jsonl and held_out.jsonl."""

from __future__ import annotations

from pydantic import Field

from demur.errors import UserError
from demur.mix import examples_of
from demur.pipeline.stage import Context, Stage
from demur.prompts.forms import load_file
from demur.records import Example
from demur.settings import Strict


class ExamplesSettings(Strict):
    """How many rows, and which are held out."""

    limit: int | None = None
    """Only the first so many."""
    held_out: int = Field(default=0, ge=0)
    """The last so many are kept to measure learnability on."""


class Examples(Stage[ExamplesSettings]):
    """Files: examples (a file, a finished stage, a run)."""

    kind = "examples"
    Settings = ExamplesSettings

    def run(self, context: Context) -> None:
        path = self.files["examples"]
        loaded = load_file(path)
        rows: list[Example] = loaded.examples
        if not rows:
            rows, unfit = examples_of(loaded.traces, share="data", no_thinking="empty")
            if not rows:
                reasons = ", ".join(sorted({item.reason for item in unfit})) or "it holds no answers"
                raise UserError(f"{path}: no row to train on ({reasons}).")
        at = len(rows[: self.settings.limit]) - self.settings.held_out
        count = context.draft.write("examples", rows[:at])
        held = context.draft.write("held_out", rows[at : self.settings.limit])
        context.draft.line = f"{count:,} rows, {held:,} held out"
