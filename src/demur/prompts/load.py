"""Settings to prompts: a source is read, drawn from by its seed, and put into wrappers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from demur.errors import UserError, unknown
from demur.prompts import SOURCES
from demur.prompts.formats import load_file
from demur.prompts.recover import SLOT, fill, recover
from demur.prompts.settings import PromptsSettings
from demur.records import Prompt
from demur.registry import resolve
from demur.storage import readers as tables


def load(settings: PromptsSettings, *, data_dir: Path | None = None) -> list[Prompt]:
    """The prompts that settings mean; the same settings give the same prompts in the same order.

    Args:
        settings: what is wanted.
        data_dir: where a relative path that is not found is looked for.

    Raises:
        UserError: an unknown source, a file that is not there, or fewer prompts than `n`.
    """
    prompts = _read(settings, data_dir)
    if settings.intent is not None:
        prompts = [msgspec.structs.replace(prompt, intent=settings.intent) for prompt in prompts]
    if settings.templates is not None:
        prompts = wrap(
            prompts,
            templates(located(settings.templates, data_dir), [p.text for p in prompts]),
            each=settings.per_question,
            seed=settings.seed,
        )
    if settings.n is None:
        return prompts
    if settings.n > len(prompts):
        raise UserError(f"{settings.source}: n = {settings.n}, but there are {len(prompts)} prompts. Ask for fewer.")
    drawn = random.Random(f"prompts {settings.seed}").sample(range(len(prompts)), settings.n)
    return [prompts[i] for i in sorted(drawn)]


def located(path: Path, data_dir: Path | None) -> Path:
    """The path itself, or the one of that name in the data folder."""
    if path.exists() or data_dir is None or not (data_dir / path).exists():
        return path
    return data_dir / path


def templates(path: Path, questions: Sequence[str] = ()) -> dict[str, str]:
    """Wrappers from a file, by name; those without a name are numbered.

    A file without any `{question}` is taken for prompts in which these questions were wrapped: the wrappers behind them
    are recovered, and must rebuild every prompt.

    Raises:
        UserError: a row without a place for the question, or prompts that no wrapper rebuilds.
    """
    rows = [(number, row) for number, row in tables.rows(path)]
    if questions and not any(isinstance(v, str) and SLOT.search(v) for _, row in rows for v in row.values()):
        return _recovered(path, questions)
    found: dict[str, str] = {}
    for number, row in rows:
        text = next((value for value in row.values() if isinstance(value, str) and SLOT.search(value)), None)
        if text is None:
            raise UserError(f"{path}:{number}: no {{question}} in this template; it marks where the question goes.")
        found[str(row.get("name") or len(found) + 1)] = text
    if not found:
        raise UserError(f"{path}: no templates.")
    return found


def _recovered(path: Path, questions: Sequence[str]) -> dict[str, str]:
    """The wrappers behind a file's prompts."""
    behind = recover((prompt.text for prompt in load_file(path).prompts), questions)
    if behind.unexplained or not behind.templates or "{question}" in behind.templates.values():
        raise UserError(
            f"{path}: no {{question}} in it marks where the question goes, and its prompts are not these "
            f"{len(questions):,} questions wrapped in something; give a file of templates, or the released prompts."
        )
    return behind.templates


def wrap(prompts: Sequence[Prompt], wrappers: Mapping[str, str], *, each: int, seed: int) -> list[Prompt]:
    """Each question in `each` different wrappers, drawn by the seed and the question alone."""
    if each > len(wrappers):
        raise UserError(f"per_question = {each}, but there are {len(wrappers)} templates.")
    names, made = list(wrappers), []
    for prompt in prompts:
        for i in sorted(random.Random(f"templates {seed} {prompt.id}").sample(range(len(names)), each)):
            changes = {
                "text": fill(wrappers[names[i]], prompt.text),
                "attack": f"template:{names[i]}",
                "parent": prompt.parent or prompt.id,
                "cluster": prompt.cluster,
            }
            made.append(msgspec.structs.replace(prompt, id="", **changes))
    return made


def _read(settings: PromptsSettings, data_dir: Path | None) -> list[Prompt]:
    path = located(Path(settings.source), data_dir)
    if path.exists() and settings.source not in SOURCES:
        if settings.data is not None:
            raise UserError(f"{settings.source} is a file itself; data is for a named source.")
        return load_file(path, form=settings.form, intent=settings.intent).prompts
    if settings.form is not None:
        raise UserError(f"form says how a file is read, and '{settings.source}' is no file.")
    if settings.source not in SOURCES and ":" not in settings.source:
        if "/" in settings.source or path.suffix in (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet"):
            raise UserError(f"{settings.source}: no such file{f', nor in {data_dir}' if data_dir else ''}.")
        raise unknown("source", settings.source, SOURCES, where=", and no file of that name")
    read = resolve("source", settings.source, SOURCES)
    copy = located(settings.data, data_dir) if settings.data else None
    if copy is None and settings.source in SOURCES and not settings.source.startswith("mini-"):
        raise UserError(f"source '{settings.source}' is read from a local copy: say data: FILE.")
    # A generated source makes as many as it is asked for; templates multiply them afterwards.
    found: list[Prompt] = read(copy, n=None if settings.templates else settings.n, seed=settings.seed)
    return found
