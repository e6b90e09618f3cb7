"""What an attack is: its settings, the models and files it needs, what it may ask, and the prompts that come out.

An attack is one class in one file. It is made from its settings and files alone, so that `check` and `plan` can ask it what it
needs; a run then gives it models (`connect`) and questions (`attacked`).
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

TEXTS = Path(__file__).parent / "texts"  # Where the wording of the attacks lies


class AttackSettings(Strict):
    """The base of every attack's settings; used as it is by an attack that has none."""


class File(NamedTuple):
    """A file that an attack reads. It is an input of the run: its content is part of what was done."""

    key: str  # The name that a study gives it by, beside the attack's settings
    about: str
    names: tuple[str, ...] = ()  # Names under which it is found in the data folder
    default: Path | None = None  # What is read when the study names none and the data folder holds none
    required: bool = True


class Attack:
    """The base of all attacks. The defaults describe one that changes the text alone, once a question, and asks nobody."""

    Settings: ClassVar[type[BaseModel]] = AttackSettings
    parts: ClassVar[tuple[str, ...]] = ()  # Models that it needs beside the target, such as `("attacker", "judge")`
    files: ClassVar[tuple[File, ...]] = ()
    title: ClassVar[str] = ""  # How tables call it; the name when left empty
    instead: ClassVar[str] = ""  # What to do where its file lacks questions
    smoke: ClassVar[Mapping[str, Any]] = {}  # What makes it small for a smoke run: settings, or another attack's `name`

    def __init__(self, name: str, settings: Any, files: Mapping[str, Path]) -> None:
        """Read its files. Raises UserError: something is wrong with them."""
        self.name, self.settings, self.paths = name, settings, files
        self.max_prompts = 1  # Attacked prompts that come out of a question, at most
        self.max_added_chars = 0  # By how much an attacked prompt, earlier turns included, is longer than its question
        self.max_turns = 0  # Replies of the target to a question, at most, that are kept in `conversations`
        self.begins_reply = False  # Whether it begins the target's reply
        self.sampling: dict[str, Sampling] = {}  # How it samples, by itself, the target and the models of its parts
        self.records: dict[str, Sequence[Record]] = {}  # Records of its own that the run keeps, by file name
        self.failures: list[Failure] = []  # Prompts that could not be made; they count as unscored
        self.conversations: list[Trace] = []  # The target's replies within a conversation; judges read them too

    def connect(self, target: Model, models: Mapping[str, Model], progress: Progress = quiet) -> None:
        """Take the live target and the model of each part. Raises UserError: one of them cannot sample as it must."""
        self.models: dict[str, Model] = {**models, "target": target}
        self.progress = progress
        for part, sampling in self.sampling.items():
            self.models[part].check(sampling)

    def requires(self) -> dict[str, Requires]:
        """What the target and the models of its parts must offer, by part."""
        warm = {part: sampling.temperature > 0 for part, sampling in self.sampling.items()}
        parts = {part: Requires(system=True, temperature=warm.get(part, False)) for part in self.parts}
        return {"target": Requires(prefill=self.begins_reply)} | parts

    def estimate(self, questions: int, tokens: int) -> list[Ask]:
        """What it asks by itself at most, for `questions` of `tokens` tokens each: one entry a part, `target` included."""
        return []

    def variants(self, prompt: Prompt) -> Iterable[Prompt]:
        """The attacked prompts of one question, where nobody is asked; none where the attack's file lacks the question."""
        raise NotImplementedError

    async def attacked(self, prompts: Iterable[Prompt]) -> AsyncIterator[Prompt]:
        """The attacked prompts, in any order; `derived` makes one from a question. By default what is `made` of each in turn.

        Raises UserError: nothing is made of a question, before the first is yielded; a subset would be another benchmark.
        """
        questions = list(prompts)
        if lacks := [prompt.id for prompt in questions if next(iter(self.variants(prompt)), None) is None]:
            where = (
                f"{self.paths.get('file', f'attack {self.name}')} holds nothing for {len(lacks)} of {len(questions)}"
            )
            raise UserError(f"{where} questions, such as {lacks[0]}. {self.instead}".rstrip())
        for prompt in (made for question in questions for made in self.variants(question)):
            yield prompt

    def prefill(self, prompt: Prompt) -> str:
        """The start of the target's reply to an attacked prompt; empty: none."""
        return ""

    def turns(self, prompt: Prompt) -> tuple[Message, ...]:
        """The turns of the conversation before an attacked prompt; empty: it is the first."""
        return ()


def derived(prompt: Prompt, text: str, attack: str) -> Prompt:
    """The prompt that an attack made of a question: same intent, category, cluster and gold; the question is its parent."""
    return replace(prompt, id="", text=text, attack=attack, parent=prompt.parent or prompt.id)


def texts(name: str) -> File:
    """The file with an attack's wording: demur's own, or what the study names under `texts`."""
    return File("texts", "the wording, as YAML", default=TEXTS / f"{name}.yaml")


def read_texts(path: Path, own: str) -> dict[str, Any]:
    """Wording from a YAML file with the keys, and under each a text or texts by name, of demur's own file `own`.

    Raises UserError: no YAML, a key missing, an unknown one, or something that is no text.
    """
    keys: dict[str, Any] = from_yaml((TEXTS / f"{own}.yaml").read_text("utf-8"))
    fields = [(key, dict[str, str] if isinstance(value, dict) else str) for key, value in keys.items()]
    try:
        found: dict[str, Any] = from_yaml(path.read_text("utf-8"))
        msgspec.convert(found, msgspec.defstruct("Texts", fields, forbid_unknown_fields=True))
    except (yaml.YAMLError, UnicodeDecodeError, msgspec.ValidationError) as error:
        wanted = (f"{key} ({'a text' if kind is str else 'texts by name'})" for key, kind in fields)
        raise UserError(f"{path}: {error}. The keys must be {', '.join(wanted)}.") from None
    return found


def read_text(path: Path, slots: Iterable[str]) -> str:
    """Wording from a text file. Raises UserError: a slot that is filled lacks in it."""
    found = path.read_text("utf-8").strip()
    if lacks := [f"{{{slot}}}" for slot in slots if f"{{{slot}}}" not in found]:
        raise UserError(f"{path}: the text must hold {' and '.join(lacks)}.")
    return found


def named_text(reply: str, key: str) -> str | None:
    """The text under `key` in a reply that should be a JSON object; `None` when there is none."""
    found = (json_object(reply, key) or {}).get(key)
    return found.strip() or None if isinstance(found, str) else None


QUESTION = ("prompt", "question", "goal", "query")


def by_question(path: Path, *columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The rows of a file that is keyed by the question: its `key`, then a cell of each column, which may have several names.

    Raises UserError: a row lacks the question or the first column.
    """
    for number, row in readers.rows(path):
        cells = [next((str(row[name]) for name in names if row.get(name)), "") for names in (QUESTION, *columns)]
        if not all(cells[:2]):
            needs = f"the question ({', '.join(QUESTION)}) and one of {', '.join(columns[0])}"
            raise UserError(f"{path}:{number}: a row needs {needs}.")
        yield (key(cells[0]), *cells[1:])


def key(text: str) -> str:
    """A text as questions are compared: case and white space do not count."""
    return " ".join(text.lower().split())
