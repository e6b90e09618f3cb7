"""The command line: one module for each verb, imported only when that verb is called, so that `demur --help` stays fast."""

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
"""Group -> verb -> its line of help (`about`) and its examples."""

COMMAND: list[str] = []  # The command line as it was typed
MODULES = {"eval": "evaluate"}  # Verb -> its module in `demur.cli`, where the names differ
SLOW = ("run", "plan", "eval", "attack", "judge", "distil", "diagnose", "train")
"""Verbs with heavy imports, or with files and models to read, before their first line of output."""
ONCE = ("target", "judge", "teacher", "attacker", "attack-judge", "detector", "base", "model", "part", "attack")
"""Flags that it is an error to repeat; typer would silently use the last."""
SHOWN = threading.Event()  # Set when a verb has printed something, or has ended


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 failed, 2 wrong usage, 130 after SIGINT, 143 after SIGTERM."""
    args = sys.argv[1:] if argv is None else argv
    COMMAND[:] = ["demur", *args]
    signal.signal(signal.SIGTERM, _terminated)
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does, so that `your_module:thing` is found in the current folder
    if not args or args[0] in ("--help", "-h", "help"):
        _print_help()
        sys.exit(0)
    if args[0] == "--version":
        print(f"demur {importlib.import_module('demur').__version__}")  # noqa: T201
        sys.exit(0)
    try:
        sys.exit(_call(args[0], args[1:]))
    except (KeyboardInterrupt, _Terminated) as stop:
        code, signal_name = (143, " by SIGTERM") if isinstance(stop, _Terminated) else (130, "")
        _leave(code, f"stopped{signal_name}; run the same command to go on")
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
        # A full disk, a file in place of a folder, a port in use: the system's own message says it best.
        where = "".join(f"{place}: " for place in (error.filename, *getattr(error, "__notes__", ())) if place)
        _leave(1, f"{where}{error.strerror or error}. What was finished is kept.")


def _leave(code: int, message: str) -> NoReturn:
    print(message, file=sys.stderr)  # noqa: T201
    if code > 128 and threading.active_count() > 1:
        sys.stdout.flush()
        os._exit(code)  # without waiting for a thread that loads a model
    sys.exit(code)


def command_of(verb: str) -> Any:
    """The click command of a verb, or its group of commands, with help and examples. Raises UserError: there is no such verb."""
    known = {name: texts for group in VERBS.values() for name, texts in group.items()}
    if verb not in known:
        raise unknown("verb", verb, known)
    import typer.main

    from demur.cli.common import APPS

    texts, module = known[verb], f"demur.cli.{MODULES.get(verb, verb)}"
    importlib.import_module(module)
    command: Any = typer.main.get_command(APPS[module])
    if commands := getattr(command, "commands", None):
        command.help = f"{texts['about'].capitalize()}."
    for name, single in (commands or {"": command}).items():
        examples = texts["examples"][name] if name else texts["examples"]
        single.short_help = str(single.help).partition("\n\n")[0]  # click would cut it short in the group's list
        # "\b" keeps click from wrapping the commands, so that they can be copied.
        single.help = f"{single.help}\n\n\b\nExamples:\n{textwrap.indent(examples, '  ')}"
    return command


def _call(verb: str, args: list[str]) -> int:
    """Import the verb's module and run it with the rest of the command line; returns the exit code."""
    if 0 <= resource.getrlimit(resource.RLIMIT_AS)[0] < 512 << 20:  # with less, OpenBLAS loops for ever
        raise UserError("demur needs 512 MB of address space, and is allowed less: ulimit -v unlimited, or 524288.")
    SHOWN.clear()
    if verb in SLOW and "--help" not in args:
        threading.Thread(target=_loading, daemon=True).start()
    command = command_of(verb)
    import typer

    options = [option for one in (command, *getattr(command, "commands", {}).values()) for option in one.params]
    flags = {option.opts[0] for option in options if option.opts[0][2:] in ONCE and not option.multiple}
    if twice := [flag for flag in flags if sum(word.partition("=")[0] == flag for word in args) > 1]:
        raise UserError(f"{twice[0]} is given twice, and takes one value. Run the command once for each, same --out.")
    # Typer has its own copy of click and exports only some of its errors; this base class covers all usage errors.
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
    if code == 130:  # typer turns Ctrl-C into an ordinary return
        raise KeyboardInterrupt
    return int(code)


def _loading() -> None:
    """Print a sign of life if nothing else has been printed for a second."""
    if not SHOWN.wait(1.0):
        print("loading …", file=sys.stderr)  # noqa: T201


class _Terminated(SystemExit):
    """Raised by SIGTERM. A SystemExit, because an event loop lets only that and KeyboardInterrupt out of a callback."""


def _terminated(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated(128 + signal.SIGTERM)


def _print_help() -> None:
    """Print all verbs, by group."""
    lines = ["", " demur: reasoning models that decline what they should, and only that.", ""]
    lines += [" Usage: demur VERB [--help] …", ""]
    for group, verbs in VERBS.items():
        lines.append(f" {group}")
        lines += [f"   {name:<10} {texts['about']}" for name, texts in verbs.items()]
        lines.append("")
    lines += [" Start here:   demur run studies/mini.yaml --out runs/mini", " One verb:     demur eval --help", ""]
    print("\n".join(lines))  # noqa: T201
