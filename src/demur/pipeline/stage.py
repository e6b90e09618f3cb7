"""A stage is one class: its settings, what it reads, needs and asks at most, what it does, and the records it writes.

Its inputs are other stages. A verb builds the last stage and executes it:

    prompts = Prompts("prompts", PromptsSettings(source="asked.jsonl"), files={"source": Path("asked.jsonl")})
    distil = Distil("distil", Distil.Settings(filter="rules"), inputs={"prompts": prompts}, models={"teacher": model})
    done = execute([distil], out=Path("runs/distil"))  # pipeline.run: finished stages are reused
    done["distil"].read("traces", Trace)

`needs` (pipeline.resolve) reports what is wrong or missing before anything starts. A new kind of stage is a subclass in a
file of its own: `kind`, `Settings`, `run`, and where they differ from the defaults `needs`, `estimate`, `size` and
`identity`. Stages exchange nothing but records on disk.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
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
from demur.records import Intent, Kept, Part, Prompt, Query, Trace
from demur.registry import missing, resolve
from demur.settings import Location, Strict, connection, identity_of
from demur.storage import hub
from demur.storage.artifacts import Artifact, Draft
from demur.storage.reply_cache import ReplyCache

S = TypeVar("S", bound=BaseModel)
CHARACTERS, OVERHEAD = 3, 64  # Characters of a token, and tokens of a request's template: both for upper bounds
UNKNOWN_PROMPT = 400  # Bound on the tokens of a prompt without a local copy
JUDGE_PROMPT, JUDGE_REPLY, DETECTOR_PROMPT, DETECTOR_REPLY, DETECTOR_TRIES = 1500, 1024, 1500, 4096, 3
"""Bounds on the tokens of judges' and detectors' instructions and replies, and on how often a detector is asked."""


class Use(Strict):
    """A judge or detector in a study: its kind alone, or with the model that plays it (several models: a panel)."""

    kind: str
    model: str | tuple[str, ...] | None = connection(None, names="model")
    text: str | None = connection(None)  # A file that replaces its rubric or instruction; fingerprinted by content

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @property
    def models(self) -> tuple[str, ...]:
        """The names of its models."""
        return (self.model,) if isinstance(self.model, str) else self.model or ()

    def files(self, part: str) -> dict[str, Path]:
        """Its text as one of a stage's files."""
        return {f"{part}_text": Path(self.text)} if self.text else {}


class Tampered(Strict):
    """Fine-tuning of a finished arm on rows without safety data, to see how much of it that undoes."""

    rows: str
    steps: int


class Lack(NamedTuple):
    """Something that a stage needs and does not have."""

    what: str  # A part, file or program
    message: str  # What is missing, and how to provide it
    wrong: bool = False  # The study is wrong on every machine; else something is missing on this one


class Size(NamedTuple):
    """Upper bound on what a stage hands on."""

    rows: int
    tokens: int = UNKNOWN_PROMPT  # Of one row, its reply included


@dataclass(frozen=True)
class Stage(Generic[S]):
    """A stage to run. Frozen: two equal stages give the same records."""

    name: str  # Unique in its graph, such as `train-improved-s0`; the folder is NAME-HASH
    settings: S
    inputs: Mapping[str, Stage[Any]] = field(default_factory=dict)  # Part -> the stage that writes its records
    files: Mapping[str, Path] = field(default_factory=dict)
    """Part -> an outside file or folder, fingerprinted by content; a setting of the same name is its path, which is not."""
    models: Mapping[str, ModelConfig] = field(default_factory=dict)  # Part -> the model that plays it
    place: Location = field(default=(), compare=False)  # Where a study file defines it

    kind: ClassVar[str]
    version: ClassVar[int] = 1  # Raised when the same settings give other results than before
    resumable: ClassVar[bool] = False  # Whether the next attempt uses what an interrupted one left in the folder
    reads: ClassVar[tuple[str, ...]] = ("mix",)
    """Inputs of a stage that trains an arm: some of mix, traces (the teacher's, with verdicts and kept) and findings."""
    trains: ClassVar[bool] = False  # Whether it trains on accelerators, and so has them for itself
    extra: ClassVar[str] = ""  # A Python module that it needs, such as torch
    Settings: ClassVar[type[BaseModel]]

    def run(self, context: Context) -> Awaitable[None] | None:
        """Do the work and write the records into `context.draft`."""
        raise NotImplementedError

    def needs(self) -> list[Lack]:
        """What it needs and does not have. Asks no model."""
        lacks = [Lack(part, line) for part, model in self.models.items() for line in model.missing()]
        for part in self.models.keys() - {"judge", "filter", "target", "base"}:
            lacks += self._unmet(part, Requires(), f"the part '{part}'")
        absent = ((part, path) for part, path in self.files.items() if not path.exists())
        lacks += [Lack(part, f"{path}: no such file or folder.") for part, path in absent]
        if self.extra and importlib.util.find_spec(self.extra) is None:
            error = ModuleNotFoundError(name=self.extra)
            lacks.append(Lack(self.kind, str(missing(error, f"a stage of the kind '{self.kind}'"))))
        return lacks

    def estimate(self) -> Sequence[Ask]:
        """Upper bounds on what it asks, for each part."""
        return ()

    def size(self) -> Size:
        """Upper bound on what it hands on."""
        return next((stage.size() for stage in self.inputs.values()), Size(0, 0))

    def players(self, folders: Mapping[str, Path]) -> Mapping[str, ModelConfig]:
        """The models that play its parts; `folders` are those of its inputs. An input named like a part trains the model
        that plays the part, and `models` has its base. A trained target is served as the setting `serve` asks."""
        serve = {"target": getattr(self.settings, "serve", {})}
        trained = {part: {"path": str(folders[part] / "model")} for part in self.models if part in folders}
        return {**self.models, **{part: as_model(path | serve.get(part, {})) for part, path in trained.items()}}

    def readers(self) -> tuple[str, ...]:
        """Parts whose models only read the replies of the others, so that they may be loaded after those are gone."""
        return ()

    def gpus(self) -> int:
        """Accelerators that it takes on a cluster: for each model that is served for it one, or as many as its settings ask."""
        return sum(max(1, m.tensor_parallel, len(m.devices)) for m in self.models.values() if isinstance(m, Served))

    def identity(self) -> dict[str, Any]:
        """The settings that decide results, as plain data: no connection settings, no paths of files."""
        data = {key: value for key, value in identity_of(self.settings).items() if key not in self.files}
        if serve := data.get("serve"):  # settings of a served model, some of which are connection settings
            data["serve"] = identity_of(as_model({"path": "the trained model"} | serve))
        return data

    def judge_needs(self, kind: str, part: str = "judge") -> list[Lack]:
        """What a judge played by the model of a part lacks, or why that model cannot play it."""
        requires, text = judges.requires(kind), self.files.get(f"{part}_text")
        try:
            if text and text.is_file():
                judges.replacement_text(kind, text)
        except UserError as error:
            return [Lack(part, str(error), True)]
        if requires is None:
            return [Lack(part, line) for line in judges.missing(kind)]
        if part not in self.models:
            how = f"say which plays it, as {{kind: {kind}, model: NAME}}."
            return [Lack(part, f"judge '{kind}' is a model: {how}", True)]
        return self._unmet(part, requires._replace(family=kind), f"judge '{kind}'")

    def _unmet(self, part: str, requires: Requires, who: str) -> list[Lack]:
        """Requirements of a part that its model does not meet. A script plays every part."""
        model = self.models[part]
        lines = [] if isinstance(model, Scripted) else requires.unmet(model)
        return [Lack(part, f"{who} cannot be played by {model.where}: it {line}.", True) for line in lines]


class Context(AsyncExitStack):
    """The environment of a running stage. What it opens is closed with it."""

    def __init__(
        self, stage: Stage[Any], *, inputs: Mapping[str, Artifact], draft: Draft, cache: Path, progress: Progress
    ) -> None:
        super().__init__()
        self.inputs, self.draft, self.progress = inputs, draft, progress
        self.files, self.stage, self._cache_folder = stage.files, stage, cache
        self.since = float("inf")  # Start of the run: replies cached before it are counted as found
        self.generating = False  # Ask only: the readers come later, when the stage runs again from the cache
        self.reach: Callable[[ModelConfig], ModelConfig] = lambda model: model
        """A model -> how it is asked now, such as by the URL of a server that is up."""
        self._players = stage.players({part: artifact.folder for part, artifact in inputs.items()})
        self.cache: ReplyCache | None = None
        self._models: dict[str, Model] = {}

    async def model(self, part: str) -> Model | None:
        """The model that plays a part, opened once and closed with the stage; `None` without one. Its requests are counted
        under PART/STAGE."""
        config = self._players.get(part)
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
        """A judge of a kind; one that is a model is played by the model of the part `player`."""
        model = await self.model(player) if judges.requires_model(kind) else None
        config, text = self.stage.models.get(player), self.files.get(f"{player}_text")
        declared = config.model_dump(exclude_defaults=True) if config else {}
        return judges.open_judge(kind, model=model, query=query, part=part, text=text, declared=declared)


def kept(artifact: Artifact) -> set[str] | None:
    """Ids of the traces that a stage's filter kept; `None` where there was no filter."""
    return {row.trace for row in artifact.read("kept", Kept)} if artifact.has("kept") else None


def kept_traces(artifact: Artifact) -> Iterator[Trace]:
    """The traces that a stage's filter kept; all where there was no filter."""
    chosen = kept(artifact)
    return (trace for trace in artifact.read("traces", Trace) if chosen is None or trace.id in chosen)


@functools.lru_cache(maxsize=256)
def size_of(load: Callable[..., Sequence[Prompt]], *args: Any) -> tuple[Size, str]:
    """The number of prompts that `load` returns and the tokens of the longest, with its template; or why it fails."""
    try:
        prompts = load(*args)
    except UserError as error:
        return Size(0, UNKNOWN_PROMPT), str(error)
    return Size(len(prompts), max((tokens(prompt.text) for prompt in prompts), default=0)), ""


def tokens(text: str) -> int:
    """Upper bound on the tokens of a request with this text."""
    return len(text) // CHARACTERS + OVERHEAD


def judge_asks(stage: Stage[Any], kind: str, judged: Size, part: str = "judge", *, readers: int = 1) -> list[Ask]:
    """Upper bounds on what `readers` judges of a kind ask about texts, `judged` in all."""
    if not judges.requires_model(kind):
        return []
    form = resolve("judge", kind, judges.JUDGES)
    instruction, reply, rows = JUDGE_PROMPT, JUDGE_REPLY, judged.rows
    if isinstance(form, Format):
        file = stage.files.get(f"{part}_text")
        text = file.read_text(encoding="utf-8") if file and file.is_file() else form.text
        instruction = tokens("".join(turn.content for turn in form.render(Case("", "", rubric=text))))
        reply, rows = form.max_tokens, rows + readers * len(form.controls)
    return [Ask(part, rows, rows * (judged.tokens + instruction), rows * reply)]


class DetectorSettings(Strict):
    """A detector, and how many traces it reads."""

    detector: str = "rules"  # Kind of detector
    limit: int | None = None  # Only the first so many traces


D = TypeVar("D", bound=DetectorSettings)


class Detecting(Stage[D]):
    """A stage in which a detector reads traces. Models: detector, detector_2 … (a panel that votes)."""

    @property
    def panel(self) -> list[str]:
        """The parts of the models that detect."""
        return [part for part in self.models if part == "detector" or part.startswith("detector_")]

    async def detector(self, context: Context) -> Detector:
        """The detector of the settings, played by the models of the panel."""
        models = [await context.model(part) for part in self.panel]
        kind, instruction = self.settings.detector, self.files.get("detector_text")
        return detectors.open_detector(kind, models=[m for m in models if m is not None], instruction=instruction)

    def needs(self) -> list[Lack]:
        """Also what a detector of this kind lacks."""
        lacks, kind = super().needs(), self.settings.detector
        is_model = detectors.requires_model(kind)
        if is_model and not self.panel:
            how = f"say which plays it, as {{kind: {kind}, model: NAME}}."
            lacks.append(Lack("detector", f"detector '{kind}' is a model: {how}", True))
        elif "detector_text" in self.files and not is_model:
            lacks.append(Lack("detector", f"detector '{kind}' has no text that a file could replace.", True))
        return lacks

    def size(self) -> Size:
        """Upper bound on the traces that are read."""
        given, limit = super().size(), self.settings.limit
        return given if limit is None else given._replace(rows=min(given.rows, limit))

    def detector_asks(self, read: Size) -> list[Ask]:
        """Upper bounds on what the models of the panel are asked about so many traces."""
        tries = read.rows * DETECTOR_TRIES
        size = (tries, tries * (read.tokens + DETECTOR_PROMPT), tries * DETECTOR_REPLY)
        return [Ask(part, *size) for part in self.panel]


def file_needs(what: str, path: Path, form: str | None, *, intent: Intent | None = None) -> list[Lack]:
    """What is wrong with a file of rows, judged by its first rows. A missing file is reported elsewhere."""
    try:
        if path.exists() and load_file(path, form=form, glance=True).form in OWN_FORMS and intent:
            return [Lack(what, f"{path} declares an intent for each prompt: leave the intent ({intent}) out.", True)]
    except UserError as error:
        return [Lack(what, str(error))]
    return []


@functools.lru_cache(maxsize=256)
def hub_needs(what: str, file: Path | None, spec: str) -> tuple[Lack, ...]:
    """What is wrong with the name of a file on the hub, or with the file there."""
    wrong = True
    try:
        hub.parse(spec)
        wrong = False
        hub.located(file, hub=spec)
    except UserError as error:
        return (Lack(what, str(error), wrong),)
    return ()
