"""Reads a file of any known form: traces, examples, preference pairs, prompts and odd rows, each in a file of its own."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from demur.errors import UserError
from demur.mix import examples_of
from demur.mix.pairs import preferred
from demur.pipeline.stage import Context, Lack, Size, Stage, file_needs, kept, tokens
from demur.prompts.forms import load_file
from demur.records import Example, Intent, Kept, Trace
from demur.settings import Strict
from demur.storage.artifacts import Artifact, artifacts, is_published


class ImportSettings(Strict):
    """How a file is read."""

    form: str | None = None  # Its form; told from its rows when left out
    intent: Intent | None = None  # What its prompts want; told from its rows when left out
    limit: int | None = None  # Only so many traces, examples and pairs
    held_out: int | None = Field(default=None, ge=0)
    """The file is to be trained on: examples, of its traces where it has none, of which the last so many are kept out."""


class Import(Stage[ImportSettings]):
    """Files: file, or the folder of a finished stage, whose filter's decision (`kept`) is taken along."""

    kind = "import"
    Settings = ImportSettings

    def run(self, context: Context) -> None:
        settings, path, draft = self.settings, self.files["file"], context.draft
        loaded = load_file(path, form=settings.form, intent=settings.intent)
        examples = loaded.examples[: settings.limit]
        if settings.held_out is not None:
            examples = (loaded.examples or _trainable(path, loaded.traces))[: settings.limit]
            at = len(examples) - settings.held_out
            draft.write("held_out", examples[at:])
            examples = examples[:at]
        pairs = preferred(loaded.pairs, share="file")[0]
        read: dict[str, Sequence[Any]] = {"examples": examples, "traces": loaded.traces, "pairs": pairs}
        rows = {name: draft.write(name, own[: settings.limit]) for name, own in read.items()}
        rows["prompts"] = draft.write("prompts", loaded.prompts)
        odd = draft.write("odd", loaded.odd)
        inside = [Artifact(path)] if is_published(path) else [one for one in artifacts(path) if one.rows("traces")]
        if len(inside) == 1 and (chosen := kept(inside[0])) is not None:
            draft.write("kept", (Kept(trace=t.id) for t in loaded.traces[: settings.limit] if t.id in chosen))
        counted = ", ".join(f"{count:,} {name}" for name, count in rows.items() if count)
        draft.line = f"{counted} read as {loaded.form}" + (f", {odd:,} odd rows kept aside" if odd else "")
        draft.line = "; ".join([draft.line, *loaded.notes])
        draft.summary["notes"] = loaded.notes

    def needs(self) -> list[Lack]:
        return super().needs() + file_needs("data", self.files["file"], self.settings.form, intent=self.settings.intent)

    def size(self) -> Size:
        return _size(self.files["file"], self.settings.form)


def _trainable(path: Path, traces: Sequence[Trace]) -> list[Example]:
    """The rows that traces make. Raises UserError: none."""
    rows, unfit = examples_of(traces, share="data", no_thinking="empty")
    if not rows:
        reasons = ", ".join(sorted({item.reason for item in unfit})) or "it holds no answers"
        raise UserError(f"{path}: no row to train on ({reasons}).")
    return rows


@functools.lru_cache(maxsize=16)
def _size(path: Path, form: str | None) -> Size:
    loaded = load_file(path, form=form)
    return Size(len(loaded.traces), max((tokens(t.prompt.text) + tokens(t.raw) for t in loaded.traces), default=0))
