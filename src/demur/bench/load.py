"""A benchmark's prompts: the local copy by name, or the hub; whichever it is, the same checks.

A copy is refused when columns are missing, when it holds another number of prompts than the release, or when its texts
are not those of the release. The hash is over the texts, one a line, white space folded, so that a CSV file, its JSON
Lines copy and the hub's table count as the same.
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

    `data` is its local copy, `data_dir` a folder that holds it under one of `bench.files`. Of each category the first are taken in
    turn, so that a small `limit` still holds every kind. `seed` is for sets that are generated.

    Raises UserError: no copy and no hub, or a copy that is not the release.
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
    """The local copy of a benchmark, or the hub's table put into a cache.

    Raises UserError: there is neither; the message says which file is looked for and where to get it.
    """
    if data is not None:
        if not data.exists():
            raise UserError(f"{data}: no such file.")
        return data
    if here := local(bench, data_dir):
        return here
    where = f"in {data_dir}" if data_dir else "(no --data-dir given)"
    told = f"{bench.name}: no local copy: looked for {' or '.join(bench.files) or 'none'} {where}"
    if not bench.hub:
        raise UserError(f"{told}. Give the file with --data, or its folder with --data-dir.")
    try:
        return hub.located(None, hub=bench.hub) or hub.fetch(bench.hub)
    except UserError as error:
        raise UserError(f"{told}; {error} Give the file with --data, or its folder with --data-dir.") from None


def local(bench: Bench, data_dir: Path | None) -> Path | None:
    """The copy of a benchmark in a folder of local copies, by the first of its names that is there."""
    paths = (data_dir / name for name in bench.files) if data_dir else ()
    return next((path for path in paths if path.exists()), None)


def faults(bench: Bench, prompts: Sequence[Prompt]) -> list[str]:
    """What is wrong with a copy, in words; nothing when it is the release."""
    wrong = []
    if bench.count is not None and len(prompts) != bench.count:
        wrong.append(f"it holds {len(prompts)} prompts, the release {bench.count}")
    if bench.sha256 and text_hash(prompts) != bench.sha256:
        wrong.append(f"its texts hash to {text_hash(prompts)[:16]}, those of the release to {bench.sha256[:16]}")
    return wrong


@functools.lru_cache(maxsize=64)
def unread_columns(name: str, path: Path | None) -> str:
    """What of a file of one's own is read, what is not, and which rows are not asked, in one line; empty for a release, and where all is read."""
    bench = get_bench(name)
    if path is None or not path.exists() or bench.count is not None or bench.hub or not bench.columns:
        return ""
    there, read, total = dict[str, None](), dict[str, None](), 0
    wanted = [one for said in bench.columns.values() for one in said.removeprefix("?").split("&")]
    for total, row in enumerate(raw_rows(path), 1):  # noqa: B007
        there |= dict.fromkeys(row)
        read |= dict.fromkeys(column for one in wanted if (column := column_of(row, one)) is not None)
    left = [column for column in there if column not in read and column not in ADDED]
    asked = len({prompt.id for prompt in read_prompts(bench, path)})
    said = [f"read: {', '.join(read)}; not read: {', '.join(left)}"] if left else []
    if total > asked:
        said.append(f"{total - asked:,} of {total:,} rows are left out: no prompt, or one that stands there already")
    return f"{name}: {'; '.join(said)}" if said else ""


def text_hash(prompts: Iterable[Prompt]) -> str:
    """SHA-256, in hexadecimal, of the questions in order, white space folded, one a line."""
    lines = (" ".join(prompt.question.split()) + "\n" for prompt in prompts)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def in_turn(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """The first prompt of each intent and category, then the second, until there are `limit`; release order kept."""
    kinds: dict[tuple[Intent, str], list[int]] = {}
    for index, prompt in enumerate(prompts):
        kinds.setdefault((prompt.intent, prompt.category), []).append(index)
    order = (index for index in chain.from_iterable(zip_longest(*kinds.values())) if index is not None)
    chosen = sorted(index for index, _ in zip(order, range(limit), strict=False))
    return [prompts[index] for index in chosen]


def read_prompts(bench: Bench, path: Path | None, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """What a benchmark's form makes of a copy, or generates; unchecked. Raises UserError: a column is missing."""
    form: Form = resolve("form of a benchmark", bench.form, FORMS)
    try:
        return form(bench, path, n=n, seed=seed)
    except NoColumn as error:
        needs = [said.replace("|", " or ").replace("&", " and ") for said in bench.columns.values() if said[0] != "?"]
        raise UserError(f"{error} {bench.name} reads: {', '.join(needs)}.{_whose(path)}") from None


def _whose(path: Path | None) -> str:
    """Of which benchmark a file holds the prompts; empty: of none whose texts are known."""
    for bench in map(get_bench, names()):
        with contextlib.suppress(UserError):
            form: Form = resolve("form of a benchmark", bench.form, FORMS)
            if bench.sha256 and text_hash(form(bench, path)) == bench.sha256:
                return f" The file holds the prompts of {bench.name}."
    return ""


def _source(name: str) -> Callable[..., list[Prompt]]:
    """A benchmark's prompts as a pool to train on: `source: advbench` in a study."""

    def read(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
        return read_prompts(get_bench(name), path)

    return read


advbench, harmbench, safebench, strongreject = map(_source, ("advbench", "harmbench", "safebench", "strongreject"))
wildjailbreak, xstest, orbench_hard = map(_source, ("wildjailbreak", "xstest", "orbench_hard"))
