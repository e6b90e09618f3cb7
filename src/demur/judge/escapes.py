"""Programs that try to escape from isolation (`escapes.toml`), and how each must end: `demur check isolation`.

They are harmless where isolation holds. Where it does not, the worst case is a full memory or a busy machine for a few
seconds.
"""

import os
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from demur.judge.isolation import Ending, Limits, Run, run_program

FILE = Path(__file__).with_name("escapes.toml")
LIMITS = Limits(seconds=1.0, memory=256 << 20, output=1 << 20, disk=8 << 20)  # So small that a check takes seconds


class Escape(msgspec.Struct, frozen=True):
    """A program and the ways in which it may end."""

    source: str
    endings: tuple[Ending, ...]
    stdin_bytes: int = 0  # Zero bytes on its standard input


class Result(NamedTuple):
    """The result of one program on this machine; `detail` is empty where isolation held."""

    name: str
    held: bool
    ending: Ending
    seconds: float
    detail: str


def load(path: Path = FILE) -> dict[str, Escape]:
    """The programs of a file, by name."""
    return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), dict[str, Escape])


def check() -> Iterator[Result]:
    """Run every program. Raises UserError or WorkError: bubblewrap is not installed, or does not work here."""
    for name, program in load().items():
        yield result_of(name, program, attempt(program))


def attempt(program: Escape) -> Run:
    """Run a program with its placeholders filled in, while a port listens on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = located(program.source, port=int(server.getsockname()[1]))
        return run_program(source, stdin=bytes(program.stdin_bytes), limits=LIMITS)


def result_of(name: str, program: Escape, run: Run) -> Result:
    """Whether isolation held."""
    if b"ESCAPED" in run.stdout:
        detail = "it got out"
    elif run.ending not in program.endings:
        detail = f"ended by {run.ending}, expected {' or '.join(program.endings)}"
    else:
        detail = ""
    return Result(name, not detail, run.ending, run.seconds, detail)


def located(source: str, *, port: int) -> str:
    """A program whose placeholders hold this machine's port, process id and folders."""
    places = {"port": port, "pid": os.getpid(), "home": os.path.expanduser("~"), "here": os.getcwd()}
    for name, value in places.items():
        source = source.replace(f"{{{name}}}", str(value))
    return source
