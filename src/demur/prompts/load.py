"""Settings to prompts: a source is read, put into wrappers, and drawn from by its seed."""

import random
from pathlib import Path

import msgspec

from demur.errors import UserError, unknown
from demur.prompts import GENERATED, SOURCES, PromptsSettings
from demur.prompts.forms import load_file, require_intent
from demur.prompts.wrappers import read_templates, wrap
from demur.records import Prompt
from demur.registry import resolve
from demur.storage.readers import READERS


def load(settings: PromptsSettings) -> list[Prompt]:
    """The prompts that settings describe, in a fixed order. Raises UserError: no source, or fewer than `n` prompts."""
    prompts = _read(settings)
    if settings.intent is not None:
        prompts = [msgspec.structs.replace(prompt, intent=settings.intent) for prompt in prompts]
    if settings.templates is not None:
        templates = read_templates(settings.templates)
        prompts = wrap(prompts, templates, each=settings.per_question, seed=settings.seed)
    if settings.n is None:
        return prompts
    if settings.n > len(prompts):
        raise UserError(f"{settings.source}: n = {settings.n}, but there are {len(prompts)} prompts. Ask for fewer.")
    drawn = random.Random(f"prompts {settings.seed}").sample(range(len(prompts)), settings.n)
    return [prompts[i] for i in sorted(drawn)]


def located(path: Path, data_dir: Path | None) -> Path:
    """The path itself, or the one of that name in the data folder."""
    inside = data_dir / path if data_dir else path
    return inside if inside.exists() and not path.exists() else path


def _read(settings: PromptsSettings) -> list[Prompt]:
    path = Path(settings.source)
    if path.exists() and settings.source not in SOURCES:
        if settings.data is not None:
            raise UserError(f"{settings.source} is itself a file; data is for a named source.")
        loaded = load_file(path, form=settings.form, intent=settings.intent)
        require_intent(loaded.notes)
        return loaded.prompts
    if settings.form is not None:
        raise UserError(f"form is for files, and '{settings.source}' is not a file.")
    if settings.source not in SOURCES and ":" not in settings.source:
        if "/" in settings.source or path.suffix in READERS:
            raise UserError(f"{settings.source}: no such file.")
        raise unknown("source", settings.source, SOURCES, where=", and no file of that name")
    read = resolve("source", settings.source, SOURCES)
    if settings.source in SOURCES and (settings.data is not None) == (settings.source in GENERATED):
        problem = "is generated: leave data out" if settings.data else "is read from a local copy: give data: FILE"
        raise UserError(f"source '{settings.source}' {problem}.")
    # A generated source makes `n` prompts; with templates, each question gives several, and `n` is drawn of those.
    prompts: list[Prompt] = read(settings.data, n=None if settings.templates else settings.n, seed=settings.seed)
    return prompts
