"""Loads a benchmark's prompts from a local copy or from the hub, with the same checks for both.

A copy is refused when columns are missing, or when its number of prompts or their texts differ from the release. The
hash is over the texts, one a line, white space folded, so that a CSV file, its JSON Lines copy and the hub's table are
equal.
"""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, zip_longest
from pathlib import Path

from demur.bench import get_bench, names
from demur.bench.forms import ADDED, FORMS, Form, NoColumn, column_of, raw_rows
from demur.bench.spec import Bench
from demur.errors import UserError
from demur.records import Intent, Prompt
from demur.registry import resolve
from demur.storage import hub


def load_prompts(
    bench: Bench, *, data: Path | None = None, data_dir: Path | None = None, limit: int | None = None, seed: int = 0
) -> list[Prompt]:
    """The prompts of a benchmark, checked, in the order of the release.

    `data` is its local copy, `data_dir` a folder that holds the copy under one of `bench.files`. At most `limit`
    prompts are taken, from the categories in turn, so that each is represented. `seed` is for sets that are generated.

    Raises UserError: neither a copy nor a source on the hub, or a copy that differs from the release.
    """
    if bench.generated:
        return read_prompts(bench, None, n=limit, seed=seed)
    path = find(bench, data=data, data_dir=data_dir)
    prompts = read_prompts(bench, path, seed=seed)
    if wrong := faults(bench, prompts):
        more = f"`demur check bench {bench.name} --data {path}` shows more.{_whose(path)}"
        raise UserError(f"{path} is not {bench.name} as released: {'; '.join(wrong)}. {more}")
    return prompts if limit is None else in_turn(prompts, limit)


def find(bench: Bench, *, data: Path | None = None, data_dir: Path | None = None) -> Path:
    """A benchmark's local copy, or the hub's table, downloaded into a cache. Raises UserError: there is neither."""
    if data is not None:
        if not data.exists():
            raise UserError(f"{data}: no such file.")
        return data
    if here := local(bench, data_dir):
        return here
    where = f"in {data_dir}" if data_dir else "(no --data-dir given)"
    lacking = f"{bench.name}: no local copy: looked for {' or '.join(bench.files) or 'none'} {where}"
    if not bench.hub:
        raise UserError(f"{lacking}. Give the file with --data, or its folder with --data-dir.")
    try:
        return hub.located(None, hub=bench.hub) or hub.fetch(bench.hub)
    except UserError as error:
        raise UserError(f"{lacking}; {error} Give the file with --data, or its folder with --data-dir.") from None


def local(bench: Bench, data_dir: Path | None) -> Path | None:
    """The copy of a benchmark in a folder: the first of `bench.files` that exists there, or `None`."""
    paths = (data_dir / name for name in bench.files) if data_dir else ()
    return next((path for path in paths if path.exists()), None)


def faults(bench: Bench, prompts: Sequence[Prompt]) -> list[str]:
    """How a copy differs from the release, in words; empty when it does not."""
    wrong = []
    if bench.count is not None and len(prompts) != bench.count:
        wrong.append(f"it holds {len(prompts)} prompts, the release {bench.count}")
    if bench.sha256 and text_hash(prompts) != bench.sha256:
        wrong.append(f"its texts hash to {text_hash(prompts)[:16]}, those of the release to {bench.sha256[:16]}")
    return wrong


@functools.lru_cache(maxsize=64)
def unread_columns(name: str, path: Path | None) -> str:
    """A note on a user's file: which columns are read and which are not, and how many rows are left out.

    Empty for a release, and where everything is read.
    """
    bench = get_bench(name)
    if path is None or not path.exists() or bench.count is not None or bench.hub or not bench.columns:
        return ""
    columns, read, total = dict[str, None](), dict[str, None](), 0
    wanted = [part for names in bench.columns.values() for part in names.removeprefix("?").split("&")]
    for row in raw_rows(path):
        total += 1
        columns |= dict.fromkeys(row)
        read |= dict.fromkeys(column for part in wanted if (column := column_of(row, part)) is not None)
    unread = [column for column in columns if column not in read and column not in ADDED]
    kept = len({prompt.id for prompt in read_prompts(bench, path)})
    notes = [f"read: {', '.join(read)}; not read: {', '.join(unread)}"] if unread else []
    if total > kept:
        notes.append(f"{total - kept:,} of {total:,} rows are left out: no prompt, or a repeated one")
    return f"{name}: {'; '.join(notes)}" if notes else ""


def text_hash(prompts: Iterable[Prompt]) -> str:
    """Hexadecimal SHA-256 of the questions in order, one a line, white space folded."""
    lines = (" ".join(prompt.question.split()) + "\n" for prompt in prompts)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def in_turn(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """The first prompt of each intent and category, then the second …, `limit` in all, in their original order."""
    kinds: dict[tuple[Intent, str], list[int]] = {}
    for index, prompt in enumerate(prompts):
        kinds.setdefault((prompt.intent, prompt.category), []).append(index)
    order = (index for index in chain.from_iterable(zip_longest(*kinds.values())) if index is not None)
    chosen = sorted(index for index, _ in zip(order, range(limit), strict=False))
    return [prompts[index] for index in chosen]


def read_prompts(bench: Bench, path: Path | None, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """The prompts of a copy, or generated ones, unchecked. Raises UserError: a column is missing."""
    form: Form = resolve("form of a benchmark", bench.form, FORMS)
    try:
        return form(bench, path, n=n, seed=seed)
    except NoColumn as error:
        needs = [name.replace("|", " or ").replace("&", " and ") for name in bench.columns.values() if name[0] != "?"]
        raise UserError(f"{error} {bench.name} reads: {', '.join(needs)}.{_whose(path)}") from None


def _whose(path: Path | None) -> str:
    """A sentence on whose prompts a file holds; empty: no benchmark with a known hash."""
    for bench in map(get_bench, names()):
        with contextlib.suppress(UserError):
            form: Form = resolve("form of a benchmark", bench.form, FORMS)
            if bench.sha256 and text_hash(form(bench, path)) == bench.sha256:
                return f" The file holds the prompts of {bench.name}."
    return ""


def _source(name: str) -> Callable[..., list[Prompt]]:
    """A reader of a benchmark's prompts as a training pool: `source: advbench` in a study."""

    def read(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
        return read_prompts(get_bench(name), path)

    return read


advbench, harmbench, safebench, strongreject = map(_source, ("advbench", "harmbench", "safebench", "strongreject"))
wildjailbreak, xstest, orbench_hard = map(_source, ("wildjailbreak", "xstest", "orbench_hard"))
