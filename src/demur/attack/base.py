"""What an attack is: its settings, the models and files it needs, what it may ask, and the prompts that come out.

An attack is one class in one file. The class says everything that must be known before a run starts (`Settings`, `parts`,
`files`, `variants`, `estimate`, `requires`); an instance does the work (`attacked`, `prefill`, `turns`, `records`).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from msgspec.structs import replace
from pydantic import BaseModel

from demur.errors import UserError
from demur.interfaces import Ask, Model, Progress, Request, quiet
from demur.records import Failure, Message, Prompt, Record, Trace
from demur.settings import STRICT
from demur.untrusted import json_object


class AttackSettings(BaseModel):
    """The base of every attack's settings; used as it is by an attack that has none."""

    model_config = STRICT


class File(NamedTuple):
    """A file that an attack reads. It is an input of the run: its content is part of what was done."""

    key: str
    """The name that a study gives it by, beside the attack's settings."""
    about: str
    names: tuple[str, ...] = ()
    """Names under which it is found in the data folder."""
    default: Path | None = None
    """What is read when the study names none and the data folder holds none."""
    required: bool = True


class Setup(NamedTuple):
    """All that an attack is made from."""

    name: str
    settings: Any
    """An instance of the attack's `Settings`."""
    files: Mapping[str, Path] = {}
    """Key of a `File` -> where it is; a file that is not required may be absent."""
    target: Model | None = None
    models: Mapping[str, Model] = {}
    """Part -> model, for every name in `parts`."""
    progress: Progress = quiet


class Attack:
    """The base of all attacks. The defaults describe one that changes the text alone, once a question, and asks nobody."""

    Settings: ClassVar[type[BaseModel]] = AttackSettings
    parts: ClassVar[tuple[str, ...]] = ()
    """Models that it needs beside the target, such as `("attacker", "judge")`."""
    files: ClassVar[tuple[File, ...]] = ()
    title: ClassVar[str] = ""
    """How tables call it; the name when left empty."""
    live: ClassVar[bool] = False
    """Whether it asks the target while it searches."""
    smoke: ClassVar[Mapping[str, Any]] = {}
    """What makes it small for a smoke run: settings, and a `name` where that is another attack."""

    def __init__(self, setup: Setup) -> None:
        """Make sure that everything can be done, before anything is asked.

        Raises:
            UserError: it cannot.
        """
        self.name = setup.name
        self.setup = setup
        self.records: dict[str, Sequence[Record]] = {}
        """Records of its own that the run keeps, by file name."""
        self.failures: list[Failure] = []
        """Prompts that could not be made; they count as unscored."""

    @classmethod
    def variants(cls, setup: Setup, questions: int) -> int:
        """How many attacked prompts at most come out of so many questions."""
        return questions

    @classmethod
    def estimate(cls, setup: Setup, questions: int, tokens: int) -> list[Ask]:
        """What it asks by itself at most, for `questions` of `tokens` tokens each: one entry a part, `target` included."""
        return []

    def attacked(self, prompts: Iterable[Prompt]) -> AsyncIterator[Prompt]:
        """The attacked prompts, in any order; `derived` makes one from a question."""
        raise NotImplementedError

    def prefill(self, prompt: Prompt) -> str:
        """The start of the target's reply to an attacked prompt; empty: none."""
        return ""

    def turns(self, prompt: Prompt) -> tuple[Message, ...]:
        """The turns of the conversation before an attacked prompt; empty: it is the first."""
        return ()


async def ask(model: Model, request: Request) -> Trace | Failure:
    """One reply of a model."""
    async for reply in model.answers([request]):
        return reply
    raise AssertionError("a model left a request unanswered")


def derived(prompt: Prompt, text: str, attack: str) -> Prompt:
    """The prompt that an attack made of a question: same intent, category, cluster and gold; the question is its parent."""
    return replace(prompt, id="", text=text, attack=attack, parent=prompt.parent or prompt.id)


def filled(template: str, **values: str) -> str:
    """A template with `{name}` replaced by each value, in one pass; other braces, and those in the values, are text."""
    return re.sub(r"\{(\w+)\}", lambda slot: values.get(slot[1], slot[0]), template)


def read_texts(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """The wording of an attack from a YAML file: a text, or texts by name, under each key.

    Raises:
        UserError: no YAML, a key missing, an unknown one, or something that is no text.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from None
    keys = list(keys)
    if not isinstance(found, dict) or set(found) != set(keys):
        there = ", ".join(map(str, found)) if isinstance(found, dict) else "no mapping"
        raise UserError(f"{path}: the keys must be {', '.join(keys)}; there are: {there}.")
    for key, value in found.items():
        texts = list(value.values()) if isinstance(value, dict) else [value]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{path}: '{key}' is neither a text nor texts by name.")
    return found


def named_text(reply: str, key: str) -> str | None:
    """The text under `key` in a reply that should be a JSON object; `None` when there is none.

    Fences and words around the object are forgiven, and line breaks inside its texts; another form is not.
    """
    found = (json_object(reply, key) or {}).get(key)
    return found.strip() or None if isinstance(found, str) else None
