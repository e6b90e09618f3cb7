"""Where prompts and traces come from: sources by name, and a loader for the files that people have."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from demur.records import Intent
from demur.settings import Strict

SOURCES = {
    "mini-harmful": "demur.mini.benches:read_harmful",
    "mini-benign": "demur.mini.benches:read_benign",
    "mini-arithmetic": "demur.mini.benches:read_arithmetic",
    "advbench": "demur.bench.load:advbench",
    "harmbench": "demur.bench.load:harmbench",
    "safebench": "demur.bench.load:safebench",
    "strongreject": "demur.bench.load:strongreject",
    "wildjailbreak": "demur.bench.load:wildjailbreak",
    "xstest": "demur.bench.load:xstest",
    "xstest-train": "demur.bench.xstest:read_train",
    "orbench-hard": "demur.bench.load:orbench_hard",
}
"""Name -> `module:function`, called as `read(path, n=…, seed=…)`; the path is the local copy, or `None`."""
GENERATED = frozenset({"mini-harmful", "mini-benign", "mini-arithmetic"})  # Sources that read no file


class PromptsSettings(Strict):
    """A set of prompts: their source, how many, and in which wrappers."""

    source: str  # A file or folder, the name of a source, or `module:function`
    data: Path | None = None  # For a named source: its local copy
    n: int | None = Field(default=None, ge=1)  # How many are drawn; all when left out. Asking for too many is an error.
    seed: int = 0  # Seed of the draw and of the pairing with templates
    intent: Intent | None = None  # What all of them want; read from the rows when left out
    form: str | None = None  # The form of the file; inferred from its rows when left out
    templates: Path | None = None
    """Texts with a place for `{question}`: a file with one a line, or a table as of `tools/recover_templates.py`."""
    per_question: int = Field(default=1, ge=1)  # In how many different templates each question is put

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.per_question > 1 and self.templates is None:
            raise ValueError("per_question is the number of templates for each question; give templates too")
        return self
