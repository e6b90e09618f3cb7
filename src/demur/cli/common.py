"""What every verb shares: the flags, which mean the same everywhere, and how results and progress are shown."""

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
"""Progress and logs: standard error, so that results can be piped."""

stdout = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 156)

FLAGS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("flags.toml").read_text())


def flag(name: str, words: str = "", **how: Any) -> Any:
    """A flag with its help, that of `words` where several flags have one name."""
    return typer.Option(f"--{name}", help=FLAGS[words or name], **how)


@dataclass(frozen=True)
class Flags:
    """The flags, which mean the same everywhere. A verb names those that it takes; the others are as they are here."""

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
        """Those of some flags that were given, by name, as a study file says them."""
        values = given({name: getattr(self, name) for name in names})
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


APPS: dict[str, typer.Typer] = {}
"""The commands of each module, examples kept as written, without completion flags and pretty tracebacks."""


def verb(flags: str, *, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command of its module: it takes its own parameters and these of the shared flags, which come as `Flags`."""
    shared = signature(Flags, eval_str=True).parameters

    def made(work: Callable[..., None]) -> Callable[..., None]:
        own = [one for one in signature(work, eval_str=True).parameters.values() if one.name != "flags"]

        def command(**values: Any) -> None:
            work(**{one.name: values.pop(one.name) for one in own}, flags=Flags(**values))

        words = FLAGS["verbs"].get(work.__name__, {})
        taken = [_worded(one, words) for one in (*own, *(shared[one] for one in flags.split()))]
        command.__signature__ = Signature([one.replace(kind=one.KEYWORD_ONLY) for one in taken])  # type: ignore[attr-defined]
        command.__name__, command.__doc__ = work.__name__, work.__doc__
        app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        APPS.setdefault(work.__module__, app).command(name)(command)
        return work

    return made


def _worded(one: Parameter, words: Mapping[str, str]) -> Parameter:
    """A parameter with its help: a flag or an argument, as flags.toml has it, which has the verb's own words before all others."""
    if get_origin(one.annotation) is Annotated:
        kind, info = one.annotation.__origin__, copy(one.annotation.__metadata__[0])
        info.help = words.get(info.default, info.help)  # typer keeps the name of an annotated one there
        return one.replace(annotation=Annotated[kind, info])
    option = one.name.replace("_", "-")
    if f"--{option}" in words:
        how = typer.Option(f"--{option}", help=words[f"--{option}"])
    elif one.name in words or option not in FLAGS:
        how = typer.Argument(help=words.get(one.name) or FLAGS["arguments"][one.name])
    else:
        how = flag(option)
    return one.replace(annotation=Annotated[one.annotation, how])


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(encode(value).decode() + "\n")


def apply_sets(data: dict[str, Any], sets: list[str] | None, model: Any = None) -> dict[str, Any]:
    """Apply `a.b=value` overrides to nested plain data of the settings `model`, which has the last word on their keys."""
    from demur.settings import Problems, override

    problems = Problems("")
    for item in sets or ():
        with problems.at():
            data = override(data, item, model)
    problems.check()
    return data


def model(text: str) -> dict[str, Any]:
    """The model that a flag names, as a study file holds it; a shipped base is its folder. Raises UserError: it is none."""
    from demur.models.checkpoint import base_folder
    from demur.models.config import parse_model

    folder = base_folder(text)
    if folder is not None:
        return {"path": str(folder)}
    return parse_model(text).model_dump(mode="json", exclude_unset=True)


def base(text: str) -> Local:
    """The model to train that a flag names: a shipped base, a folder, a GGUF file, a hub id. Raises UserError: it is none."""
    from demur.models import BASES
    from demur.models.checkpoint import base_folder
    from demur.models.config import Local, is_hub_id

    folder = base_folder(text)
    if folder is None and not is_hub_id(text):
        raise UserError(f"--base {text}: no such folder, and no hub id (owner/name). Shipped: {', '.join(BASES)}.")
    return Local(path=str(folder)) if folder else Local(hub=text)


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The values that were given."""
    return {key: value for key, value in values.items() if value is not None}


def judge_of(text: str, *, unnamed: str = "") -> tuple[str, str]:
    """Name and model in `--judge TEXT`: a judge alone has no model, a model alone (a URL, a folder, a hub id) no name.
    Raises UserError: an unknown name, or a model alone where `unnamed` says why a name is wanted."""
    from demur.judge import JUDGES, requires_model

    name, equals, model = text.partition("=")
    alone = "/" in name or name.startswith(("script:", ".", "$")) or Path(text).is_dir()
    if name in JUDGES:
        return name, model
    if re.fullmatch(r"[\w-]+", name) and (equals or not alone):
        raise unknown("judge", name, JUDGES)
    if alone and unnamed:
        how = f"--judge NAME={text}, with NAME one of {', '.join(filter(requires_model, JUDGES))}"
        raise UserError(f"--judge {text}: {unnamed}, so say as what this model judges: {how}.")
    return ("", text) if alone else (name, model)


def writable(out: Path) -> None:
    """Make the run's folder. Raises UserError: it cannot be made, or nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; name a folder that can be written to.") from None


def free_port(port: int, host: str = "127.0.0.1") -> None:
    """Make sure that a server can listen there, before any work for it is done. Raises UserError: it cannot."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        why = "is taken" if error.errno == errno.EADDRINUSE else f"of {host} cannot be used ({error.strerror})"
        raise UserError(f"port {port} {why}; name another by --port, or 0 for any that is free.") from None


def load_study(path: Path, flags: Flags) -> Resolved:
    """A study file with its overrides, everything about it looked up."""
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
    """A table on standard output, as a report has it: a title that begins with # is of numbers."""
    from demur.report.tables import Cell, table

    def cell(one: Any) -> Cell | str:
        one = "–" if one is None else f"{one:,}" if isinstance(one, int) else one
        return one if isinstance(one, Cell) else str(one)

    stdout.print(table(titles, [tuple(map(cell, row)) for row in rows], name))
