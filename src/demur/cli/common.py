"""What every verb shares: the flags, which mean the same everywhere, and how results and progress are shown."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from demur.records import encode

if TYPE_CHECKING:
    from rich.table import Table

    from demur.pipeline.resolve import Resolved
    from demur.records import Estimate

console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 140)
"""Progress and logs: standard error, so that results can be piped."""

stdout = Console(highlight=False, width=None if sys.stdout.isatty() else 140)

Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run; default: runs/VERB or runs/STUDY.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="A setting, by the same path as in a study file. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use only the first N prompts or rows.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random here.")]
Data = Annotated[Path | None, typer.Option("--data", help="Local copy of a benchmark or source.")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder with local copies of benchmarks and sources, found by name.")
]
Target = Annotated[str, typer.Option("--target", help="Model under test: URL, local folder, hub id or script:NAME.")]
Teacher = Annotated[
    str | None, typer.Option("--teacher", help="Model that writes traces: URL, folder, hub id or script:NAME.")
]
AttackName = Annotated[str, typer.Option("--attack", help="Attack, for benchmarks of harmful requests.")]
ServedName = Annotated[str | None, typer.Option("--model", help="Name that the server knows the target by.")]
KeyEnv = Annotated[str | None, typer.Option("--key-env", help="Environment variable that holds the target's key.")]
Concurrency = Annotated[
    int | None, typer.Option("--concurrency", min=1, help="Most requests to the target at the same time.")
]
Temperature = Annotated[float | None, typer.Option("--temperature", min=0, help="Instead of the protocol's.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", min=1, help="Bound on a reply, thinking included.")]
PartName = Annotated[
    str | None, typer.Option("--part", help="thinking, answer or whole; default: the protocol's or the judge's.")
]
Samples = Annotated[int | None, typer.Option("--samples", min=1, help="Replies a prompt.")]
Attacker = Annotated[
    str | None, typer.Option("--attacker", help="Model that attacks: URL, folder, hub id or script:NAME.")
]
JudgeModel = Annotated[
    str | None, typer.Option("--judge", help="Judge by name, a model, or NAME=MODEL such as llama_guard3=URL.")
]
Examples = Annotated[Path | None, typer.Option("--examples", help="Rows to train on: a file or a finished stage.")]
CacheDir = Annotated[
    Path | None, typer.Option("--cache", help="Reply cache to share between runs; default: RUN/replies.")
]


def app(help: str) -> typer.Typer:
    """A typer application as all verbs have it: examples kept as written, no completion flags, no pretty tracebacks."""
    return typer.Typer(
        help=help, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False, no_args_is_help=False
    )


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(encode(value).decode() + "\n")


def apply_sets(data: dict[str, Any], sets: list[str] | None) -> dict[str, Any]:
    """Apply `a.b=value` overrides to nested plain data (values are read as YAML) and return the new data.

    Whether the keys exist is decided by the schema that reads the result, which knows the nearest allowed name.
    """
    from demur.settings import override

    for item in sets or []:
        data = override(data, item)
    return data


def model(text: str) -> dict[str, Any]:
    """The model that a flag names, as a study file holds it; a shipped base is its folder.

    Raises:
        UserError: it is no model.
    """
    from demur.models.checkpoint import base_folder
    from demur.models.config import parse_model

    folder = base_folder(text)
    if folder is not None:
        return {"path": str(folder)}
    return parse_model(text).model_dump(mode="json", exclude_unset=True)


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The values that were given."""
    return {key: value for key, value in values.items() if value is not None}


def judge_of(text: str) -> tuple[str, str]:
    """Name and model in `--judge TEXT`: a judge alone has no model, a model alone (a URL, a folder, a hub id) no name."""
    from demur.judge import JUDGES

    name, _, model = text.partition("=")
    if name in JUDGES:
        return name, model
    alone = "/" in text or text.startswith(("script:", ".", "$")) or Path(text).is_dir()
    return ("", text) if alone else (text, "")


def load_study(path: Path, sets: list[str] | None, *, quick: bool = False, data_dir: Path | None = None) -> Resolved:
    """A study file with its overrides, everything about it looked up."""
    from demur.pipeline import study
    from demur.pipeline.resolve import resolve

    return resolve(study.read(path, sets=[*(sets or []), *([f"data_dir={data_dir}"] if data_dir else [])], quick=quick))


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]], *, left: int = 1, title: str | None = None) -> Table:
    """Rows for a terminal, markup in them without effect; what stands behind the first `left` columns is numbers."""
    from rich.markup import escape
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for place, name in enumerate(columns):
        made.add_column(name, justify="left" if place < left else "right", overflow="fold")
    for row in rows:
        made.add_row(*(f"{cell:,}" if isinstance(cell, int) else escape(str(cell)) for cell in row))
    return made


def shown(estimate: Estimate, *, scale: float = 100.0) -> str:
    """An estimate for a table cell: value and interval, or a dash."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return f"– (n={estimate.n})"
    places = 1 if scale > 1 else 2
    value, low, high = (f"{x * scale:.{places}f}" for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}–{high}]"


def percent(estimate: Estimate) -> str:
    """`96.7 [94.6–98.0] n 450`, or a dash with the reason."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return f"– ({estimate.how})"
    text = f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}–{100 * estimate.high:.1f}] n {estimate.n}"
    return f"{text}, {estimate.unscored} unscored" if estimate.unscored else text


def tell(where: Path, text: str, *, results: dict[str, Any] | None = None, plain: dict[str, Any], json: bool) -> None:
    """Write `summary.md` and `results.json`, and print the one or, for programs, what is plain."""
    import msgspec

    from demur.storage.artifacts import atomic_write

    atomic_write(where / "summary.md", text)
    if results is not None:
        atomic_write(where / "results.json", msgspec.json.format(msgspec.json.encode(results), indent=1))
    if json:
        print_json(plain)
    else:
        stdout.print(text, markup=False, soft_wrap=True)


def said(value: float | None, form: str = ".2f", *, scale: float = 1.0, none: str = "–") -> str:
    """A number, or a dash where there is none."""
    return none if value is None else format(scale * value, form)


def validated(model: type[Any], data: dict[str, Any], *, where: str = "--set") -> Any:
    """An instance of a settings model, or a `UserError` with the nearest key and the allowed ones."""
    from demur.settings import validate

    return validate(model, data, where=where)
