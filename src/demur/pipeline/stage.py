"""A stage is one thing: what it is set to, what it reads, needs and may ask, what it does and which records it leaves.

A stage is an object; its inputs are other stages. A verb builds the last one and has it executed:

    prompts = Prompts("prompts", PromptsSettings(source="asked.jsonl"), files={"source": Path("asked.jsonl")})
    distil = Distil("distil", Distil.Settings(filter="rules"), inputs={"prompts": prompts}, models={"teacher": model})
    done = execute([distil], out=Path("runs/distil"))  # pipeline.run: what is there already is reused
    done["distil"].read("traces", Trace)

`needs` (pipeline.resolve) says what is wrong or missing before anything starts. A new kind of stage is a
subclass in a file of its own: `kind`, `Settings`, `run`, and where they differ from the defaults here `needs`,
`estimate`, `size` and `identity`. Records on disk are all that stages know of each other.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, model_validator

from demur import diagnose as detectors
from demur import judge as judges
from demur.errors import UserError
from demur.interfaces import Ask, Detector, Judge, Model, Progress
from demur.judge.model import Case, Format
from demur.models.config import ModelConfig, Scripted, Served, as_model
from demur.models.open import open_model
from demur.models.requires import Requires
from demur.prompts.forms import OWN_FORMS, load_file
from demur.records import Intent, Kept, Part, Prompt, Query
from demur.registry import missing, resolve
from demur.settings import Location, Strict, connection, identity_of
from demur.storage import hub
from demur.storage.artifacts import Artifact, Draft
from demur.storage.reply_cache import ReplyCache

S = TypeVar("S", bound=BaseModel)
CHARACTERS, OVERHEAD = 3, 64  # Characters of a token, and tokens of a request's template: estimates are bounds
UNKNOWN_PROMPT = 400  # Bound on the tokens of a prompt that no local copy tells
JUDGE_PROMPT, JUDGE_REPLY, DETECTOR_PROMPT, DETECTOR_REPLY, DETECTOR_TRIES = 1500, 1024, 1500, 4096, 3
"""Bounds on the tokens of instructions and replies of judges and detectors, and on how often a detector is asked."""


class Use(Strict):
    """A judge or detector as a study names it: a word, or a kind with the model that plays it (several: a panel)."""

    kind: str
    model: str | tuple[str, ...] | None = connection(None, names="model")
    text: str | None = connection(None)  # A file in the place of its own rubric or instruction. Its content counts

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @property
    def models(self) -> tuple[str, ...]:
        """The models that it names."""
        return (self.model,) if isinstance(self.model, str) else self.model or ()

    def files(self, part: str) -> dict[str, Path]:
        """Its text among a stage's files, as that of a part."""
        return {f"{part}_text": Path(self.text)} if self.text else {}


class Tampered(Strict):
    """Fine-tuning of a finished arm on rows that are no safety data, to see how much undoes it."""

    rows: str
    steps: int


class Lack(NamedTuple):
    """Something that a stage needs and does not have."""

    what: str  # The part, file or program that it is about
    message: str  # What lacks, and how to give it
    wrong: bool = False  # The study is wrong wherever it runs; else something is missing on this machine


class Size(NamedTuple):
    """How much a stage hands on at most."""

    rows: int
    tokens: int = UNKNOWN_PROMPT  # Of one row, its reply included


@dataclass(frozen=True)
class Stage(Generic[S]):
    """A stage to be done. Frozen: two equal stages give the same records."""

    name: str  # Unique in its graph, such as `train-improved-s0`; the folder is NAME-HASH
    settings: S
    inputs: Mapping[str, Stage[Any]] = field(default_factory=dict)  # Part -> the stage whose records are read as it
    files: Mapping[str, Path] = field(default_factory=dict)
    """Part -> a file or folder from outside. Its content counts, not its place; a setting of the same name is that place."""
    models: Mapping[str, ModelConfig] = field(default_factory=dict)  # Part -> the model that plays it
    place: Location = field(default=(), compare=False)  # Where a study file says it

    kind: ClassVar[str]
    version: ClassVar[int] = 1  # Raised when the same settings give other results than before
    resumable: ClassVar[bool] = False  # Whether what an interrupted attempt left in the folder is of use to the next
    reads: ClassVar[tuple[str, ...]] = ("mix",)
    """Of a stage that trains an arm: which of mix, traces (the teacher's, with verdicts and kept) and findings it gets."""
    trains: ClassVar[bool] = False  # Whether it trains on accelerators, which it then has for itself
    extra: ClassVar[str] = ""  # A Python module that the work needs, such as torch
    Settings: ClassVar[type[BaseModel]]

    def run(self, context: Context) -> Awaitable[None] | None:
        """Do the work and write its records into `context.draft`."""
        raise NotImplementedError

    def needs(self) -> list[Lack]:
        """What it needs and does not have; nothing is asked."""
        lacks = [Lack(part, line) for part, model in self.models.items() for line in model.missing()]
        for part in self.models.keys() - {"judge", "filter", "target", "base"}:
            lacks += self._unmet(part, Requires(), f"the part '{part}'")
        lacks += [Lack(w, f"{path}: no such file or folder.") for w, path in self.files.items() if not path.exists()]
        if self.extra and importlib.util.find_spec(self.extra) is None:
            error = ModuleNotFoundError(name=self.extra)
            lacks.append(Lack(self.kind, str(missing(error, f"a stage of the kind '{self.kind}'"))))
        return lacks

    def estimate(self) -> Sequence[Ask]:
        """What it asks of whom at most."""
        return ()

    def size(self) -> Size:
        """How much it hands on at most."""
        return next((stage.size() for stage in self.inputs.values()), Size(0, 0))

    def played(self, folders: Mapping[str, Path]) -> Mapping[str, ModelConfig]:
        """The models of its parts; `folders` are those of its inputs.

        What an input of the part's own name has trained plays that part, a target as the setting `serve` says; its base is among
        the models, to know it by.
        """
        serve = {"target": getattr(self.settings, "serve", {})}
        trained = {part: {"path": str(folders[part] / "model")} for part in self.models if part in folders}
        return {**self.models, **{part: as_model(path | serve.get(part, {})) for part, path in trained.items()}}

    def readers(self) -> tuple[str, ...]:
        """Parts whose models only read what the others have answered: they may be up when those are gone."""
        return ()

    def gpus(self) -> int:
        """Accelerators that it takes on a cluster: one for each model that is served for it, unless that says more."""
        return sum(max(1, m.tensor_parallel, len(m.devices)) for m in self.models.values() if isinstance(m, Served))

    def identity(self) -> dict[str, Any]:
        """What of the settings decides results, as plain data: no connection settings, no places of files."""
        data = {key: value for key, value in identity_of(self.settings).items() if key not in self.files}
        if serve := data.get("serve"):  # in the words of a served model, of which some only say how it is reached
            data["serve"] = identity_of(as_model({"path": "the trained model"} | serve))
        return data

    def judge_needs(self, kind: str, part: str = "judge") -> list[Lack]:
        """What a judge of a kind lacks that the model of a part is to play, or why that model cannot."""
        asked, text = judges.requires(kind), self.files.get(f"{part}_text")
        try:
            if text and text.is_file():
                judges.own_text(kind, text)
        except UserError as error:
            return [Lack(part, str(error), True)]
        if asked is None:
            return [Lack(part, line) for line in judges.missing(kind)]
        if part not in self.models:
            told = f"judge '{kind}' is a model: say which plays it, as {{kind: {kind}, model: NAME}}."
            return [Lack(part, told, True)]
        return self._unmet(part, asked._replace(family=kind), f"judge '{kind}'")

    def _unmet(self, part: str, requires: Requires, who: str) -> list[Lack]:
        """What a part requires and the model that plays it cannot do. A script plays whatever it was written for."""
        model = self.models[part]
        lines = [] if isinstance(model, Scripted) else requires.unmet(model)
        return [Lack(part, f"{who} cannot be played by {model.where}: it {line}.", True) for line in lines]


class Context(AsyncExitStack):
    """What a running stage gets. What it opens is closed with it."""

    def __init__(
        self, stage: Stage[Any], *, inputs: Mapping[str, Artifact], draft: Draft, cache: Path, progress: Progress
    ) -> None:
        super().__init__()
        self.inputs, self.draft, self.progress = inputs, draft, progress
        self.files, self.stage, self._cache_folder = stage.files, stage, cache
        self.since = float("inf")  # When the run began: what the cache had before is counted as found
        self.generating = False  # Ask only: the readers are not up yet. Run again then, the stage has all in its cache
        self.reach: Callable[[ModelConfig], ModelConfig] = lambda model: model
        """A model as it is asked now, such as by the URL of a server that is up."""
        self._played = stage.played({part: artifact.folder for part, artifact in inputs.items()})
        self.cache: ReplyCache | None = None
        self._models: dict[str, Model] = {}

    async def model(self, part: str) -> Model | None:
        """The model that plays a part, opened once and closed with the stage; `None`: no model plays it.

        Its requests are counted under PART/STAGE.
        """
        config = self._played.get(part)
        if part not in self._models and config is not None:
            if self.cache is None:
                self.cache = self.enter_context(ReplyCache(self._cache_folder, since=self.since))
            if config.weights_at:
                self.progress(0, None, f"loading {config.where}")
            opened = open_model(self.reach(config), cache=self.cache, label=f"{part}/{self.stage.name}")
            self._models[part] = await self.enter_async_context(opened)
        return self._models.get(part)

    async def judge(
        self, kind: str, *, player: str = "judge", part: Part | None = None, query: Query | None = None
    ) -> Judge:
        """A judge of a kind, played by the model of the part `player` where it is a model."""
        model = await self.model(player) if judges.requires_model(kind) else None
        config, text = self.stage.models.get(player), self.files.get(f"{player}_text")
        declared = config.model_dump(exclude_defaults=True) if config else {}
        return judges.open_judge(kind, model=model, query=query, part=part, text=text, declared=declared)


def kept(artifact: Artifact) -> set[str] | None:
    """Ids of the traces that a stage's filter let through; `None` where nothing was filtered."""
    return {row.trace for row in artifact.read("kept", Kept)} if artifact.has("kept") else None


@functools.lru_cache(maxsize=256)
def sized(load: Callable[..., Sequence[Prompt]], *args: Any) -> tuple[Size, str]:
    """How many prompts are loaded and the tokens of the longest, its template included; or why none are."""
    try:
        prompts = load(*args)
    except UserError as error:
        return Size(0, UNKNOWN_PROMPT), str(error)
    return Size(len(prompts), max((tokens(prompt.text) for prompt in prompts), default=0)), ""


def tokens(text: str) -> int:
    """The tokens of a request with this text, at most."""
    return len(text) // CHARACTERS + OVERHEAD


def judging(stage: Stage[Any], kind: str, judged: Size, part: str = "judge", *, readers: int = 1) -> list[Ask]:
    """What a judge of a kind asks about so many texts, read by so many judges of this kind."""
    if not judges.requires_model(kind):
        return []
    form = resolve("judge", kind, judges.JUDGES)
    instruction, reply, rows = JUDGE_PROMPT, JUDGE_REPLY, judged.rows
    if isinstance(form, Format):
        own = stage.files.get(f"{part}_text")
        text = own.read_text(encoding="utf-8") if own and own.is_file() else form.text
        instruction = tokens("".join(turn.content for turn in form.render(Case("", "", rubric=text))))
        reply, rows = form.max_tokens, rows + readers * len(form.controls)
    return [Ask(part, rows, rows * (judged.tokens + instruction), rows * reply)]


class DetectorSettings(Strict):
    """Who looks, and at how much."""

    detector: str = "rules"  # Kind of detector
    limit: int | None = None  # Only the first so many traces


D = TypeVar("D", bound=DetectorSettings)


class Detecting(Stage[D]):
    """A stage in which a detector of the kind `settings.detector` reads traces. Models: detector, detector_2 … (a panel that votes)."""

    @property
    def panel(self) -> list[str]:
        """The parts of the models that detect."""
        return [part for part in self.models if part == "detector" or part.startswith("detector_")]

    async def detector(self, context: Context) -> Detector:
        """The detector, with the models that play it."""
        models = [await context.model(part) for part in self.panel]
        kind, instruction = self.settings.detector, self.files.get("detector_text")
        return detectors.open_detector(kind, models=[m for m in models if m is not None], instruction=instruction)

    def needs(self) -> list[Lack]:
        """What a detector of this kind lacks, besides."""
        kind, told = self.settings.detector, ""
        asks = detectors.requires_model(kind)
        if asks and not self.panel:
            told = f"detector '{kind}' is a model: say which plays it, as {{kind: {kind}, model: NAME}}."
        elif "detector_text" in self.files and not asks:
            told = f"detector '{kind}' has no text that a file could replace."
        return super().needs() + ([Lack("detector", told, True)] if told else [])

    def size(self) -> Size:
        """The traces that are looked at."""
        given, limit = super().size(), self.settings.limit
        return given if limit is None else given._replace(rows=min(given.rows, limit))

    def detecting(self, read: Size) -> list[Ask]:
        """What the models that detect are asked about so many traces."""
        tries = read.rows * DETECTOR_TRIES
        size = (tries, tries * (read.tokens + DETECTOR_PROMPT), tries * DETECTOR_REPLY)
        return [Ask(part, *size) for part in self.panel]


def file_needs(what: str, path: Path, form: str | None, *, intent: Intent | None = None) -> list[Lack]:
    """What is wrong with a file of rows, as far as its first ones tell; that there is none is said elsewhere."""
    try:
        if path.exists() and load_file(path, form=form, glance=True).form in OWN_FORMS and intent:
            return [Lack(what, f"{path} says of each prompt what it wants: leave the intent ({intent}) out.", True)]
    except UserError as error:
        return [Lack(what, str(error))]
    return []


@functools.lru_cache(maxsize=256)
def hub_needs(what: str, file: Path | None, spec: str) -> tuple[Lack, ...]:
    """What is wrong with a file of the hub, as it is written or as the hub has it."""
    try:
        hub.parse(spec)
    except UserError as error:
        return (Lack(what, str(error), True),)
    try:
        hub.located(file, hub=spec)
    except UserError as error:
        return (Lack(what, str(error)),)
    return ()
