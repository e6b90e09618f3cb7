"""What the verbs share: flags, which mean the same for every verb, and helpers for models, folders and tables."""

from __future__ import annotations

import errno
import re
import socket
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin

import typer
from rich.console import Console

from demur.errors import UserError, unknown
from demur.records import encode

if TYPE_CHECKING:
    from demur.models.config import Local
    from demur.pipeline.resolve import Resolved

console = Console(stderr=True, highlight=False, markup=False, width=None if sys.stderr.isatty() else 156)
"""For progress and logs: standard error, so that results can be piped."""

stdout = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 156)

FLAGS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("flags.toml").read_text())
"""Help texts of flags and arguments."""


def flag(name: str, text: str = "", **options: Any) -> Any:
    """A flag with its help: the entry `text` of flags.toml, by default the one of its own name."""
    return typer.Option(f"--{name}", help=FLAGS[text or name], **options)


@dataclass(frozen=True)
class Flags:
    """The shared flags. A verb lists those that it accepts; the others keep the defaults given here."""

    out: Annotated[Path | None, flag("out")] = None
    sets: Annotated[list[str] | None, flag("set", metavar="KEY.PATH=VALUE")] = None
    json: Annotated[bool, flag("json")] = False
    limit: Annotated[int | None, flag("limit", min=1)] = None
    seed: Annotated[int, flag("seed")] = 0
    quick: Annotated[bool, flag("quick")] = False
    data: Annotated[Path | None, flag("data", exists=True)] = None
    data_dir: Annotated[Path | None, flag("data-dir", exists=True, file_okay=False)] = None
    cache: Annotated[Path | None, flag("cache")] = None
    intent: Annotated[str | None, flag("intent")] = None
    detector: Annotated[str | None, flag("detector")] = None
    teacher: Annotated[str | None, flag("teacher")] = None
    attacker: Annotated[str | None, flag("attacker")] = None
    judge: Annotated[str | None, flag("judge")] = None
    model: Annotated[str | None, flag("model")] = None
    key_env: Annotated[str | None, flag("key-env")] = None
    concurrency: Annotated[int | None, flag("concurrency", min=1)] = None
    temperature: Annotated[float | None, flag("temperature", min=0)] = None
    max_tokens: Annotated[int | None, flag("max-tokens", min=1)] = None
    part: Annotated[str | None, flag("part")] = None
    samples: Annotated[int | None, flag("samples", min=1)] = None

    def given(self, *names: str) -> dict[str, Any]:
        """The values of those flags among `names` that were given, in the form that a study file has."""
        values = given({name: getattr(self, name) for name in names})
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


APPS: dict[str, typer.Typer] = {}
"""Module -> its typer application with all of its commands."""


def verb(flags: str, *, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that makes a function a command of its module.

    The command accepts the function's own parameters and the shared flags listed in `flags`, which the function gets as `Flags`.
    """
    shared = signature(Flags, eval_str=True).parameters

    def decorated(work: Callable[..., None]) -> Callable[..., None]:
        own = dict(signature(work, eval_str=True).parameters)
        del own["flags"]

        def command(**values: Any) -> None:
            work(**{key: values.pop(key) for key in own}, flags=Flags(**values))

        texts = FLAGS["verbs"].get(work.__name__, {})
        accepted = (*own.values(), *(shared[flag] for flag in flags.split()))
        parameters = [_with_help(parameter, texts).replace(kind=Parameter.KEYWORD_ONLY) for parameter in accepted]
        command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        command.__name__, command.__doc__ = work.__name__, work.__doc__
        app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        APPS.setdefault(work.__module__, app).command(name)(command)
        return work

    return decorated


def _with_help(parameter: Parameter, texts: Mapping[str, str]) -> Parameter:
    """A parameter as a flag or an argument with its help; `texts` are those particular to the verb, which take precedence."""
    if get_origin(parameter.annotation) is Annotated:
        kind, info = parameter.annotation.__origin__, copy(parameter.annotation.__metadata__[0])
        info.help = texts.get(info.default, info.help)  # for an annotated flag, typer keeps its name in `default`
        return parameter.replace(annotation=Annotated[kind, info])
    option = parameter.name.replace("_", "-")
    if f"--{option}" in texts:
        info = typer.Option(f"--{option}", help=texts[f"--{option}"])
    elif parameter.name in texts or option not in FLAGS:
        info = typer.Argument(help=texts.get(parameter.name) or FLAGS["arguments"][parameter.name])
    else:
        info = flag(option)
    return parameter.replace(annotation=Annotated[parameter.annotation, info])


def print_json(value: Any) -> None:
    """Print one JSON object on standard output."""
    sys.stdout.write(encode(value).decode() + "\n")


def apply_sets(data: dict[str, Any], sets: list[str] | None, model: Any = None) -> dict[str, Any]:
    """Apply overrides `a.b=value` to nested plain data; their keys are checked against the settings class `model`."""
    from demur.settings import Problems, override

    problems = Problems("")
    for item in sets or ():
        with problems.at():
            data = override(data, item, model)
    problems.check()
    return data


def model(text: str) -> dict[str, Any]:
    """The model that a flag names, in the form that a study file has. Raises UserError: the text names no model."""
    from demur.models.checkpoint import base_folder
    from demur.models.config import parse_model

    folder = base_folder(text)
    if folder is not None:
        return {"path": str(folder)}
    return parse_model(text).model_dump(mode="json", exclude_unset=True)


def base(text: str) -> Local:
    """The model to train: a shipped base, a folder, a GGUF file or a hub id. Raises UserError: the text names none of these."""
    from demur.models import BASES
    from demur.models.checkpoint import base_folder
    from demur.models.config import Local, is_hub_id

    folder = base_folder(text)
    if folder is None and not is_hub_id(text):
        raise UserError(f"--base {text}: no such folder, and no hub id (owner/name). Shipped: {', '.join(BASES)}.")
    return Local(path=str(folder)) if folder else Local(hub=text)


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The values that are not None."""
    return {key: value for key, value in values.items() if value is not None}


def judge_of(text: str, *, unnamed: str = "") -> tuple[str, str]:
    """Name and model in `--judge TEXT`, each "" if not given. Raises UserError: the name is unknown, or there is only a model
    (a URL, a folder, a hub id) and `unnamed` says why the name is needed."""
    from demur.judge import JUDGES, requires_model

    name, equals, model = text.partition("=")
    is_model = "/" in name or name.startswith(("script:", ".", "$")) or Path(text).is_dir()
    if name in JUDGES:
        return name, model
    if re.fullmatch(r"[\w-]+", name) and (equals or not is_model):
        raise unknown("judge", name, JUDGES)
    if is_model and unnamed:
        form = f"--judge NAME={text}, with NAME one of {', '.join(filter(requires_model, JUDGES))}"
        raise UserError(f"--judge {text}: {unnamed}; say which judge this model plays: {form}.")
    return ("", text) if is_model else (name, model)


def writable(out: Path) -> None:
    """Create a folder for results. Raises UserError: it cannot be created, or not written to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; name a folder that can be written to.") from None


def free_port(port: int, host: str = "127.0.0.1") -> None:
    """Raises UserError: a server could not listen there. Called before any work for that server is done."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"of {host} cannot be used ({error.strerror})"
        raise UserError(f"port {port} {reason}; name another with --port, or 0 for any that is free.") from None


def load_study(path: Path, flags: Flags) -> Resolved:
    """A study file with its overrides, resolved. Raises UserError: everything that is wrong with it."""
    from demur.pipeline import resolve, study

    sets = [*(flags.sets or []), *([f"data_dir={flags.data_dir}"] if flags.data_dir else [])]
    loaded = study.read(path, sets=sets, quick=flags.quick)
    if loaded.study and not loaded.study.arms and not loaded.problems.within("arms"):
        loaded.problems.add(("arms",), "this study has no arms. Write arms: {raw: {}} for the base as it is.")
    if loaded.study and loaded.study.quick and not (flags.quick or flags.sets):
        small = study.read(path, sets=sets, quick=True)
        with suppress(UserError):
            resolve.resolve(small)
        loaded.problems.join(small.problems)
    if not (resolved := resolve.resolve(loaded)).stages:
        raise UserError(f"{path}: there is nothing to do: bench is empty, and no arm is trained.")
    return resolved


def show(titles: Sequence[str], rows: Sequence[tuple[Any, ...]], name: str = "") -> None:
    """Print a table in the style of the report; a title that begins with # heads a column of numbers."""
    from demur.report.tables import Cell, table

    def cell(value: Any) -> Cell | str:
        value = "–" if value is None else f"{value:,}" if isinstance(value, int) else value
        return value if isinstance(value, Cell) else str(value)

    stdout.print(table(titles, [tuple(map(cell, row)) for row in rows], name))
