"""Reads a file of any known form: traces, examples, preference pairs, prompts and odd rows, each into its own file."""

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

    form: str | None = None  # Its form; default: inferred from its rows
    intent: Intent | None = None  # The intent of its prompts; default: inferred from its rows
    limit: int | None = None  # Only so many traces, examples and pairs
    held_out: int | None = Field(default=None, ge=0)
    """For a file to train on: examples (made of its traces if need be) are written, and the last so many kept out."""


class Import(Stage[ImportSettings]):
    """Files: file, which may be the folder of a finished stage; then its filter's decision (`kept`) is copied too."""

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
        counts = {name: draft.write(name, rows[: settings.limit]) for name, rows in read.items()}
        counts["prompts"] = draft.write("prompts", loaded.prompts)
        odd = draft.write("odd", loaded.odd)
        stages = [Artifact(path)] if is_published(path) else [s for s in artifacts(path) if s.rows("traces")]
        if len(stages) == 1 and (chosen := kept(stages[0])) is not None:
            draft.write("kept", (Kept(trace=t.id) for t in loaded.traces[: settings.limit] if t.id in chosen))
        counted = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
        counted += f" read as {loaded.form}" + (f", {odd:,} odd rows kept aside" if odd else "")
        draft.line = "; ".join([counted, *loaded.notes])
        draft.summary["notes"] = loaded.notes

    def needs(self) -> list[Lack]:
        return super().needs() + file_needs("data", self.files["file"], self.settings.form, intent=self.settings.intent)

    def size(self) -> Size:
        return _size(self.files["file"], self.settings.form)


def _trainable(path: Path, traces: Sequence[Trace]) -> list[Example]:
    """The traces as training rows. Raises UserError: none can be trained on."""
    rows, unfit = examples_of(traces, share="data", no_thinking="empty")
    if not rows:
        reasons = ", ".join(sorted({item.reason for item in unfit})) or "it holds no answers"
        raise UserError(f"{path}: no row to train on ({reasons}).")
    return rows


@functools.lru_cache(maxsize=16)
def _size(path: Path, form: str | None) -> Size:
    loaded = load_file(path, form=form)
    return Size(len(loaded.traces), max((tokens(t.prompt.text) + tokens(t.raw) for t in loaded.traces), default=0))
