"""Names to things, without imports: each kind has a literal dict of name -> `module:attribute`, looked up when used.

Code outside demur is named the same way: `--judge my_package.my_judge:Judge` needs no registration.
"""

import contextlib
import importlib.util
import re
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from demur.errors import DemurError, UserError, unknown


def resolve(kind: str, name: str, table: Mapping[str, str]) -> Any:
    """The object that `name` means: an entry of `table`, or any importable `module:attribute`.

    Raises UserError: an unknown name (with the nearest), a missing module or attribute, a module outside demur that fails
    on import.
    """
    target = table.get(name, name)
    module_name, colon, attribute = target.partition(":")
    if not colon:
        raise unknown(kind, name, table)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise missing(error, f"{kind} '{name}'") from error
    except DemurError:
        raise
    except (Exception, SystemExit) as error:  # whatever a module outside demur does on import
        if name in table:
            raise
        reason = f"{type(error).__name__}: {getattr(error, 'msg', error)} ({_place(error, module_name)})"
        raise UserError(f"{kind} '{name}': module {module_name} cannot be imported: {reason}.") from error
    if not hasattr(module, attribute):
        raise UserError(f"{kind} '{name}': module {module_name} has no '{attribute}'.")
    return getattr(module, attribute)


def _place(error: BaseException, module: str) -> str:
    """Where a module failed: the line with the syntax error, else the last of its own lines that ran."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    spec, frames = importlib.util.find_spec(module), traceback.extract_tb(error.__traceback__)
    frame = ([frame for frame in frames if spec and frame.filename == spec.origin] or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}"


def code_in(data: Any, place: str = "") -> Iterator[str]:
    """Each place of plain data that names code outside demur: such code runs when the data are used."""
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from code_in(value, f"{place}.{key}".lstrip("."))
    elif isinstance(data, str) and (named := re.fullmatch(r"(?:script:)?(\w+)((?:\.\w+)*:[A-Za-z_]\w*)", data)):
        with contextlib.suppress(ValueError):  # raised for a module that runs as a program
            if named[1] != "demur" and importlib.util.find_spec(named[1]):
                yield f"{place}: {named[1]}{named[2]}"


GROUPS = {  # Optional groups of dependencies -> the modules that they install
    "train": ("torch", "transformers", "accelerate", "peft", "safetensors", "tokenizers", "psutil"),
    "gguf": ("gguf",),
    "ray": ("ray",),
    "inspect": ("inspect_ai",),
    "dev": ("datasets",),
    "curves": ("tensorboard",),
    "data": ("huggingface_hub", "pyarrow", "zstandard"),
    "bench": ("if_verifiable", "langdetect"),
}


def missing(error: ModuleNotFoundError, what: str) -> UserError:
    """The error for a module that is not installed; it names the group to install."""
    root = (error.name or "").partition(".")[0]
    group = next((name for name, modules in GROUPS.items() if root in modules), None)
    if group is None:
        return UserError(f"{what} needs the Python module '{error.name}', which is not installed.")
    return UserError(f"{what} needs the group '{group}' ({root} is not installed): pip install 'demur[{group}]'")
