"""Programs that try to get out of isolation (`escapes.toml`), and what must come of each: `demur check isolation`.

None of them can do harm where isolation holds; where it does not, the worst is a full memory or a busy machine for a few
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
LIMITS = Limits(seconds=1.0, memory=256 << 20, output=1 << 20, disk=8 << 20)  # So small that a look takes seconds


class Escape(msgspec.Struct, frozen=True):
    """A program and the ways in which it may end."""

    source: str
    endings: tuple[Ending, ...]
    stdin_bytes: int = 0  # How much zeros it is given to read


class Tried(NamedTuple):
    """One attempt on this machine."""

    name: str
    held: bool
    ending: Ending
    seconds: float
    detail: str


def load(path: Path = FILE) -> dict[str, Escape]:
    """The programs of a file by name."""
    return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), dict[str, Escape])


def check() -> Iterator[Tried]:
    """Try every program here. Raises UserError or WorkError: there is no bubblewrap, or it does not work here."""
    for name, program in load().items():
        yield judged(name, program, attempt(program))


def attempt(program: Escape) -> Run:
    """Run a program with the places of this machine filled in, beside a port that listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = located(program.source, port=int(server.getsockname()[1]))
        return run_program(source, stdin=bytes(program.stdin_bytes), limits=LIMITS)


def judged(name: str, program: Escape, run: Run) -> Tried:
    """Whether isolation held."""
    escaped = b"ESCAPED" in run.stdout
    held = not escaped and run.ending in program.endings
    detail = "it got out" if escaped else f"ended by {run.ending}, expected {' or '.join(program.endings)}"
    return Tried(name, held, run.ending, run.seconds, "" if held else detail)


def located(source: str, *, port: int) -> str:
    """A program with the places of this machine filled in."""
    places = {"port": port, "pid": os.getpid(), "home": os.path.expanduser("~"), "here": os.getcwd()}
    for name, value in places.items():
        source = source.replace(f"{{{name}}}", str(value))
    return source
