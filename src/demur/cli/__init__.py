"""The command line: one file for each verb, imported only when it is called, so that `demur --help` stays quick."""

import importlib
import os
import resource
import signal
import sys
import textwrap
import threading
import tomllib
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from demur.errors import DemurError, UserError, unknown
from demur.registry import missing

VERBS: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("verbs.toml").read_text())
"""Every verb with its line of help and examples, by group. The module is `demur.cli.VERB`, or `VERB_` where Python reserves the word."""

COMMAND: list[str] = []  # What was typed
MODULES = {"eval": "evaluate"}
SLOW = ("run", "plan", "eval", "attack", "judge", "distil", "diagnose", "train")
"""Verbs that import much, and read files and models, before they can show anything."""
ONE = ("target", "judge", "teacher", "attacker", "attack-judge", "detector", "base", "model", "part", "attack")
SHOWN = threading.Event()  # A verb has shown something, or has ended


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command and leave with its exit code: 0 done, 1 failed, 2 wrong usage, 130 and 143 by a signal."""
    args = sys.argv[1:] if argv is None else argv
    COMMAND[:] = ["demur", *args]
    signal.signal(signal.SIGTERM, _terminated)
    if "" not in sys.path:
        sys.path.insert(0, "")  # `your_module:thing` of the current folder, as `python -m` has it
    if not args or args[0] in ("--help", "-h", "help"):
        _print_help()
        sys.exit(0)
    if args[0] == "--version":
        print(f"demur {importlib.import_module('demur').__version__}")  # noqa: T201
        sys.exit(0)
    try:
        sys.exit(_call(args[0], args[1:]))
    except (KeyboardInterrupt, _Terminated) as stop:
        code, by = (143, " by SIGTERM") if isinstance(stop, _Terminated) else (130, "")
        _leave(code, f"stopped{by}; run the same command to go on")
    except DemurError as error:
        _leave(error.exit_code, str(error))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("demur"):
            raise
        _leave(2, str(missing(error, f"demur {args[0]}")))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        # A full disk, a folder that is a file, a port in use: the system's own words are the best ones.
        where = "".join(f"{one}: " for one in (error.filename, *getattr(error, "__notes__", ())) if one)
        _leave(1, f"{where}{error.strerror or error}. What was finished is kept.")


def _leave(code: int, why: str) -> NoReturn:
    print(why, file=sys.stderr)  # noqa: T201
    if code > 128 and threading.active_count() > 1:
        sys.stdout.flush()
        os._exit(code)  # a thread that loads a model is not waited for
    sys.exit(code)


def command_of(verb: str) -> Any:
    """The command of a verb, or the group of its commands; its module is imported. Raises UserError: there is none."""
    known = {name: words for group in VERBS.values() for name, words in group.items()}
    if verb not in known:
        raise unknown("verb", verb, known)
    import typer.main

    from demur.cli.common import APPS

    words, module = known[verb], f"demur.cli.{MODULES.get(verb, verb)}"
    importlib.import_module(module)
    command: Any = typer.main.get_command(APPS[module])
    if commands := getattr(command, "commands", None):
        command.help = f"{words['about'].capitalize()}."
    for name, one in (commands or {"": command}).items():
        examples = words["examples"][name] if name else words["examples"]
        one.short_help = str(one.help).partition("\n\n")[0]  # whole, where the group lists its commands
        # Commands to copy stay one a line.
        one.help = f"{one.help}\n\n\b\nExamples:\n{textwrap.indent(examples, '  ')}"
    return command


def _call(verb: str, args: list[str]) -> int:
    """Import the verb's module and hand it the rest of the line."""
    if 0 <= resource.getrlimit(resource.RLIMIT_AS)[0] < 512 << 20:  # with less, OpenBLAS loops for ever
        raise UserError("demur needs 512 MB of address space, and is allowed less: ulimit -v unlimited, or 524288.")
    SHOWN.clear()
    if verb in SLOW and "--help" not in args:
        threading.Thread(target=_loading, daemon=True).start()
    command = command_of(verb)
    import typer

    every = [option for one in (command, *getattr(command, "commands", {}).values()) for option in one.params]
    flags = {option.opts[0] for option in every if option.opts[0][2:] in ONE and not option.multiple}
    if twice := [flag for flag in flags if sum(word.partition("=")[0] == flag for word in args) > 1]:
        raise UserError(f"{twice[0]} is given twice, and takes one. Type the command once for each, --out the same.")
    # Typer carries its own copy of click and names only some of its errors: usage errors are the base of one it names.
    usage: type[Any] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
    try:
        code = command.main(args=args, prog_name=f"demur {verb}", standalone_mode=False) or 0
    except typer.Exit as leave:
        code = leave.exit_code
    except usage as error:
        error.show()
        return 2
    except typer.Abort:
        code = 130
    finally:
        SHOWN.set()
    if code == 130:  # typer takes Ctrl-C for an ordinary end
        raise KeyboardInterrupt
    return int(code)


def _loading() -> None:
    """Say that something happens, where nothing else has been said for a second."""
    if not SHOWN.wait(1.0):
        print("loading …", file=sys.stderr)  # noqa: T201


class _Terminated(SystemExit):
    """SIGTERM ends the program as Ctrl-C does. An event loop lets no other exceptions but these two out of a callback."""


def _terminated(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated(128 + signal.SIGTERM)


def _print_help() -> None:
    """The verbs, grouped."""
    lines = ["", " demur: reasoning models that decline what they should, and only that.", ""]
    lines += [" Usage: demur VERB [--help] …", ""]
    for group, verbs in VERBS.items():
        lines.append(f" {group}")
        lines += [f"   {name:<10} {words['about']}" for name, words in verbs.items()]
        lines.append("")
    lines += [" Start here:   demur run studies/mini.yaml --out runs/mini", " One verb:     demur eval --help", ""]
    print("\n".join(lines))  # noqa: T201
