"""Every field of every settings class is read somewhere: a setting that nothing reads would be dropped in silence."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import demur
from demur.settings import Strict

SOURCE = Path(demur.__file__).parent
BUILT = re.compile(r"(attacker|target|judge)_(temperature|top_p|max_tokens)")
"""Fields whose names are put together where they are read (`attack/search.py`)."""


def settings_classes(kind: type[Strict] = Strict) -> Iterator[type[Strict]]:
    for own in kind.__subclasses__():
        yield own
        yield from settings_classes(own)


def read_names() -> set[str]:
    """Every attribute that is read, and every name that stands as a text or as a keyword: what is looked up by name."""
    found: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                found.add(node.value)
    return found


def unread(kinds: Iterator[type[Strict]], names: set[str]) -> list[str]:
    every = {f"{kind.__qualname__}.{name}": name for kind in kinds for name in kind.model_fields}
    return sorted(place for place, name in every.items() if name not in names and not BUILT.fullmatch(name))


def test_every_setting_is_read() -> None:
    for path in (
        path for name in ("settings", "stages/*", "models/*", "attack/*") for path in SOURCE.rglob(f"{name}.py")
    ):
        name = path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".")
        importlib.import_module(f"demur.{name}".removesuffix(".__init__"))
    ours = [kind for kind in settings_classes() if kind.__module__.startswith("demur.")]
    assert len(ours) > 30
    names = read_names()
    assert not unread(iter(ours), names)

    class Forgotten(Strict):
        nobody_reads_this: int = 0

    assert unread(iter([Forgotten]), names) == [f"{Forgotten.__qualname__}.nobody_reads_this"]
