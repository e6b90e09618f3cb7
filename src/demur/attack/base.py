"""The base of attacks: settings, needed models and files, an upper bound on requests, and the attacked prompts.

An attack is one class. It is made from its settings and files alone, so that `check` and `plan` can ask for its needs;
a run then gives it models (`connect`) and questions (`attacked`).
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import msgspec
import yaml
from msgspec.structs import replace
from pydantic import BaseModel

from demur.errors import UserError
from demur.interfaces import Ask, Model, Progress, quiet
from demur.models.requires import Requires
from demur.records import Failure, Message, Prompt, Record, Sampling, Trace
from demur.settings import Strict, from_yaml
from demur.storage import readers
from demur.untrusted import json_object

TEXTS = Path(__file__).parent / "texts"  # The wording of the attacks


class AttackSettings(Strict):
    """The base of every attack's settings, and the settings of an attack that has none."""


class File(NamedTuple):
    """A file that an attack reads. It is an input of the stage, so its content is part of the fingerprint."""

    key: str  # Its key in a study, beside the attack's settings
    about: str
    names: tuple[str, ...] = ()  # Names under which it is found in the data folder
    default: Path | None = None  # The file that is read when the study names none and the data folder has none
    required: bool = True


class Attack:
    """The base of all attacks. By default an attack changes only the text, once a question, and asks no model."""

    Settings: ClassVar[type[BaseModel]] = AttackSettings
    parts: ClassVar[tuple[str, ...]] = ()  # Models that it needs beside the target, such as `("attacker", "judge")`
    files: ClassVar[tuple[File, ...]] = ()
    title: ClassVar[str] = ""  # Its name in tables; `name` when left empty
    hint: ClassVar[str] = ""  # What to do where its file lacks questions
    smoke: ClassVar[Mapping[str, Any]] = {}  # Changes for a smoke run: small settings, or another attack's `name`

    def __init__(self, name: str, settings: Any, files: Mapping[str, Path]) -> None:
        """Read its files. Raises UserError: one of them is unusable."""
        self.name, self.settings, self.paths = name, settings, files
        self.max_prompts = 1  # Attacked prompts of one question, at most
        self.max_added_chars = 0  # By how much an attacked prompt, earlier turns included, is longer than its question
        self.max_turns = 0  # Replies of the target to a question, at most, that are kept in `conversations`
        self.begins_reply = False  # Whether it begins the target's reply
        self.sampling: dict[str, Sampling] = {}  # By part, `target` included: the sampling of the attack's own requests
        self.records: dict[str, Sequence[Record]] = {}  # Further records to store, by file name
        self.failures: list[Failure] = []  # Prompts that could not be made; they count as unscored
        self.conversations: list[Trace] = []  # The target's replies within a conversation, for the judges

    def connect(self, target: Model, models: Mapping[str, Model], progress: Progress = quiet) -> None:
        """Set the live target and the model of each part. Raises UserError: one does not support the sampling."""
        self.models: dict[str, Model] = {**models, "target": target}
        self.progress = progress
        for part, sampling in self.sampling.items():
            self.models[part].check(sampling)

    def requires(self) -> dict[str, Requires]:
        """What the target and the other models must offer, by part."""
        warm = {part: sampling.temperature > 0 for part, sampling in self.sampling.items()}
        parts = {part: Requires(system=True, temperature=warm.get(part, False)) for part in self.parts}
        return {"target": Requires(prefill=self.begins_reply)} | parts

    def estimate(self, questions: int, tokens: int) -> list[Ask]:
        """Upper bounds on its own requests for questions of so many tokens: one entry a part, `target` included."""
        return []

    def variants(self, prompt: Prompt) -> Iterable[Prompt]:
        """The attacked prompts of a question, for an attack without a model; none where its file lacks the question."""
        raise NotImplementedError

    async def attacked(self, prompts: Iterable[Prompt]) -> AsyncIterator[Prompt]:
        """The attacked prompts, in any order; `derived` makes one from a question. By default the `variants` of each.

        Raises UserError, before the first is yielded: a question has no variants. A subset would be another benchmark.
        """
        questions = list(prompts)
        if lacking := [prompt.id for prompt in questions if next(iter(self.variants(prompt)), None) is None]:
            where = self.paths.get("file", f"attack {self.name}")
            count = f"{len(lacking)} of {len(questions)} questions"
            raise UserError(f"{where} holds nothing for {count}, such as {lacking[0]}. {self.hint}".rstrip())
        for question in questions:
            for prompt in self.variants(question):
                yield prompt

    def prefill(self, prompt: Prompt) -> str:
        """The beginning of the target's reply to an attacked prompt; empty: none."""
        return ""

    def turns(self, prompt: Prompt) -> tuple[Message, ...]:
        """The turns of the conversation before an attacked prompt; empty: it is the first."""
        return ()


def derived(prompt: Prompt, text: str, attack: str) -> Prompt:
    """The attacked prompt of a question: same intent, category, cluster and gold; the question is its parent."""
    return replace(prompt, id="", text=text, attack=attack, parent=prompt.parent or prompt.id)


def texts(name: str) -> File:
    """The file with an attack's wording: demur's own, or the one that the study names under `texts`."""
    return File("texts", "the wording, as YAML", default=TEXTS / f"{name}.yaml")


def read_texts(path: Path, name: str) -> dict[str, Any]:
    """The wording in a YAML file, by key a text or texts by name; its keys must be those of demur's own `name`.

    Raises UserError: not YAML, a missing or unknown key, or a value that is not a text.
    """
    keys: dict[str, Any] = from_yaml((TEXTS / f"{name}.yaml").read_text("utf-8"))
    fields = [(key, dict[str, str] if isinstance(value, dict) else str) for key, value in keys.items()]
    try:
        wording: dict[str, Any] = from_yaml(path.read_text("utf-8"))
        msgspec.convert(wording, msgspec.defstruct("Texts", fields, forbid_unknown_fields=True))
    except (yaml.YAMLError, UnicodeDecodeError, msgspec.ValidationError) as error:
        wanted = (f"{key} ({'a text' if kind is str else 'texts by name'})" for key, kind in fields)
        raise UserError(f"{path}: {error}. The keys must be {', '.join(wanted)}.") from None
    return wording


def read_text(path: Path, slots: Iterable[str]) -> str:
    """The wording in a text file. Raises UserError: it lacks one of the slots."""
    text = path.read_text("utf-8").strip()
    if lacking := [f"{{{slot}}}" for slot in slots if f"{{{slot}}}" not in text]:
        raise UserError(f"{path}: the text must hold {' and '.join(lacking)}.")
    return text


def named_text(reply: str, key: str) -> str | None:
    """The text under `key` of the JSON object in a reply; `None` when there is none, or it is empty."""
    value = (json_object(reply, key) or {}).get(key)
    return value.strip() or None if isinstance(value, str) else None


QUESTION = ("prompt", "question", "goal", "query")


def by_question(path: Path, *columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The rows of a file: the question's `key`, then a cell of each column, which may have several names.

    Raises UserError: a row lacks the question or the first column.
    """
    for number, row in readers.rows(path):
        cells = [next((str(row[name]) for name in names if row.get(name)), "") for names in (QUESTION, *columns)]
        if not all(cells[:2]):
            needs = f"the question ({', '.join(QUESTION)}) and one of {', '.join(columns[0])}"
            raise UserError(f"{path}:{number}: a row needs {needs}.")
        yield (key(cells[0]), *cells[1:])


def key(text: str) -> str:
    """A text in the form in which questions are compared: without differences in case and white space."""
    return " ".join(text.lower().split())
