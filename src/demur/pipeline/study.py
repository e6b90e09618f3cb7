"""A study: plain data under a strict schema, in one YAML file; `resolve.py` turns it into stages.

The settings of each stage are defined beside that stage; the class `Study` is composed of them.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import AfterValidator, Field, field_validator, model_validator

from demur.distil.settings import DistilSettings, Keep
from demur.mix.settings import MixDefaults, MixSettings, ShareSettings
from demur.models.config import ModelConfig, as_model, parse_model
from demur.pipeline.stage import Use
from demur.pipeline.stages.evaluate import BenchUse
from demur.pipeline.stages.probe import ProbeSettings
from demur.prompts import PromptsSettings
from demur.records import Part, Pattern
from demur.repair.settings import Intervention, RepairSettings
from demur.settings import LineTable, Problems, Strict, changed, connection, names, override, read_yaml, validate
from demur.storage.artifacts import atomic_write

SELF = "self"  # A teacher: the weights under training
CLIFF = "cliff"  # A filter: it probes where traces decide
SELF_WRITTEN = ("self", "structured", "rewrite")  # Strategies whose traces the model under training writes itself
LONGEST = 64  # Characters of the name of an arm or a study
LOSS = "loss"  # A metric of findings that belongs to no benchmark


def valid_name(name: str) -> str:
    """The name of an arm or a study, unchanged. Raises ValueError: it cannot name a folder, such as a path."""
    if not re.fullmatch(rf"\w[\w.-]{{0,{LONGEST - 1}}}", name):
        how = f"up to {LONGEST} letters, digits, '_', '-' and '.', since it names folders"
        raise ValueError(f"'{name}' is not a valid name: {how}")
    return name


class Arm(Strict):
    """One model of the comparison: a base as it is, or trained on a mix."""

    after: str | None = names("arm", None)
    """Another arm from whose checkpoint (of the same base and seed) this one is trained: preferences after fine-tuning, another
    round of self-training. Without training data of its own it is that checkpoint, such as with another decoding."""
    base: str | None = names("base", None)  # A folder, hub id, `mini-lrm-a`; untrained, a URL too
    format: str | None = names("strategy", None)  # Of its traces; without it and shares from files: not trained
    teacher: str | None = names("model", None)  # The model that writes its traces, or `self`: its own weights
    distil: dict[str, Any] = {}  # Settings of distillation in which its safety traces differ from the study's
    safety: int | ShareSettings = 0
    maths: int | ShareSettings = 0
    benign: int | ShareSettings = 0
    without: tuple[Pattern, ...] = ()  # Safety traces with one of these patterns are left out
    filter: Use | None = names("judge", None)
    """Another judge than the study's for its safety traces, such as one that is known to leak. `cliff` follows the study's: it
    asks `model` (else the arm's own weights) at each part of a thinking, and removes rows whose refusal fades."""
    keep: Keep | None = None  # Another rule than the study's: `everything` leaves the traces unfiltered
    benign_format: str | None = names("strategy", None)  # Another strategy than the study's for the benign rows
    repair: RepairSettings | None = None  # Repair the safety traces first, such as `{with: [trim, align, drop]}`
    decoding: str | Intervention | None = names("decoding", None)
    """A defence by decoding alone: zero, less or primer (`models/sampling.py`), or {cue, insert}: a reminder in mid-thinking."""
    train: dict[str, Any] = {}  # Training settings in which it differs from the study
    seeds: tuple[int, ...] | None = Field(default=None, min_length=1)  # Default: the study's

    @property
    def trained(self) -> bool:
        """Whether the arm has any training data."""
        shares = (self.safety, self.maths, self.benign)
        return self.format is not None or any(isinstance(share, ShareSettings) for share in shares)


class Comparison(Strict):
    """Two arms that the report compares on one benchmark, paired by prompt."""

    a: str = names("arm")
    b: str = names("arm")
    bench: str = ""  # Empty: every benchmark
    margin: float | None = None  # For a test that `b` is worse than `a` by at most this, in the metric's unit


class Evidence(Strict):
    """A test that a finding rests on: arm `a` against arm `b`, paired by prompt, over all seeds and bases."""

    a: str = names("arm")
    b: str = names("arm")
    metric: str = "attack_success"  # One of a benchmark's, or `loss`: nats a response token on held-out rows at the end
    bench: str = ""  # Empty: every benchmark that has the metric, pooled
    attack: tuple[str, ...] = ()  # Empty: all attacks of the benchmarks, pooled
    part: Part | None = None  # Another part than each benchmark's judge reads first
    expect: Literal["lower", "higher", "same"]  # How `a` compares to `b` if the claim is true
    by: float = Field(gt=0)  # The smallest difference that matters, in the metric's unit (0.05: five points)
    weights: dict[str, Annotated[float, Field(gt=0)]] = {}  # Attack (`none`: plain) -> weight; default: equal

    @field_validator("attack", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class ProbeUse(ProbeSettings):
    """Where in their thinking the arms decide to refuse: replies to a benchmark are cut, and the answer forced."""

    bench: str
    attack: str = "none"  # One of the benchmark's attacks in this study


class TamperUse(Strict):
    """How soon fine-tuning undoes an arm: attack success after some steps on rows without safety data."""

    name: str  # Of the rows, such as benign
    rows: Arm  # Training rows and settings, in the form of an arm; `train` overrides the study's
    steps: tuple[int, ...] = (5, 10, 50)  # Where the curve is measured; 0 is the arm as it was
    bench: str
    attack: str = "none"
    arms: tuple[str, ...] = names("arm", ())  # Empty: every arm
    seeds: tuple[int, ...] = ()  # Empty: those of each arm


class Finding(Strict):
    """A claim that the study tests: supported when all of its evidence is, refuted when some is."""

    claim: str
    evidence: tuple[Evidence, ...] = Field(min_length=1)


class Copy(NamedTuple):
    """An arm on one of its bases."""

    name: str  # `ARM`, or `ARM@BASE` where the study has several bases
    arm: str
    base: str


class Teaching(DistilSettings):
    """How traces are made, and by which models."""

    teacher: str | None = names("model", None)  # The model that writes traces; default: the one named teacher
    teachers: dict[str, str] = names("model", {})  # Strategy -> the model that writes its traces, where they differ
    classifier: str | None = names("model", None)  # Assigns a policy to each prompt; default: the prompt's category

    def settings(self, **changes: Any) -> DistilSettings:
        """The settings of a stage."""
        shared = self.model_dump(exclude={"teacher", "teachers", "classifier"})
        return validate(DistilSettings, shared | changes, where="distil")


class Study(Strict):
    """Everything that a run does."""

    name: Annotated[str, AfterValidator(valid_name)] = "unnamed"  # Required, which `resolve` checks
    question: str = ""  # The question that the study answers; the report's first line
    base: str = names("base", "mini-lrm-a")
    bases: tuple[str, ...] = names("base", ())
    """Several bases instead: every arm that names none is made from each, and the report pools them."""
    revisions: dict[str, str] = {}  # Hub id of a base -> its branch, tag or commit
    models: dict[str, ModelConfig] = {}
    """Models by name. A part that names no model is played by the model of the part's own name: teacher, filter, judge,
    attacker, attack_judge, detector."""
    prompts: dict[str, PromptsSettings] = {}  # Pools of prompts: harmful, benign, maths
    traces: dict[str, ShareSettings] = {}  # Pools of ready traces from files, such as maths
    distil: Teaching = Teaching()
    benign_format: str = names("strategy", "default")  # The strategy for benign prompts; `same`: that of the arm
    detector: Use = names("detector", Use(kind="rules"))  # Default: the model `detector` where there is one; else rules
    filter: Use = names("judge", Use(kind="rules"))  # The judge that decides which distilled traces are kept
    mix: MixDefaults = MixDefaults()
    train: dict[str, Any] = {}  # Settings of training, or with `stage: KIND` those of another stage that trains
    arms: dict[Annotated[str, AfterValidator(valid_name)], Arm] = {}
    bench: tuple[BenchUse, ...] = ()
    probe: tuple[ProbeUse, ...] = ()
    tamper: tuple[TamperUse, ...] = ()
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    compare: tuple[Comparison, ...] = ()
    findings: tuple[Finding, ...] = ()  # Claims with the tests that decide them; the report's first table
    fixed: tuple[str, ...] = names("measured", ())  # Benchmarks whose prompts are the whole population, not a sample
    held_out: int = Field(default=0, ge=0)  # Safety rows of each arm kept out of training to measure learnability on
    data_dir: str | None = connection(None)
    serve: dict[str, Any] = {}
    """How bases and trained models are served for their benchmarks, with the settings of a served model: `vllm`, or {engine:
    vllm, tensor_parallel: 2, max_model_len: 40000, …}. Empty: they run in the stage's own process."""
    workers: int | None = connection(None, ge=1)  # Stages at a time without GPUs; default: the cores, or 1 with GPUs
    stand_in: bool = False  # Every model replaced by small local ones; the report says so in its header
    stand_in_data: dict[str, str] = {}  # Benchmark -> a few rows where it has no local copy. Only `--stand-in` sets it
    quick: dict[str, Any] = {}  # Overrides, by path, for `--quick`

    @field_validator("serve", mode="before")
    @classmethod
    def _engine(cls, value: Any) -> Any:
        """An engine alone is short for `{engine: …}`; all settings are checked as those of a served model."""
        value = {"engine": value} if isinstance(value, str) and value else value or {}
        if value:
            as_model({"path": "."} | value, where="serve")
        return value

    @model_validator(mode="before")
    @classmethod
    def _by_model(cls, data: Any) -> Any:
        has_model = isinstance(data, dict) and "detector" in _entries(data, "models")
        return {"detector": "llm"} | data if has_model else data

    def mix_of(self, name: str, arm: Arm | None = None) -> MixSettings:
        """The mix of an arm: the study's settings, with the arm's shares."""
        arm, shares = arm or self.arms[name], dict[str, Any]()
        for share, wanted in (("safety", arm.safety), ("maths", arm.maths), ("benign", arm.benign)):
            defaults = self.mix.shares.get(share)
            options = defaults.model_dump(exclude_unset=True) if defaults else {}
            if isinstance(wanted, ShareSettings):
                shares[share] = options | wanted.model_dump(exclude_unset=True)
            elif wanted:
                pool = self.traces.get("harmful" if share == "safety" else share)
                ready = pool.model_dump(exclude_unset=True) if pool else {}
                shares[share] = options | ready | {"n": wanted}
        data = self.mix.model_dump(exclude_unset=True) | {"shares": shares}
        return validate(MixSettings, data, where=f"mix of arm '{name}'")

    def copies(self, name: str) -> list[Copy]:
        """An arm on each of its bases."""
        base = self.arms[name].base
        if base is not None or not self.bases:
            return [Copy(name, name, self.base if base is None else base)]
        return [Copy(f"{name}@{Path(base).name}", name, base) for base in self.bases]

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """The seeds of an arm; one that is neither trained nor follows another arm has a single one."""
        arm = self.arms[name]
        return (arm.seeds or self.seeds) if arm.trained or arm.after else (0,)


class Loaded(NamedTuple):
    """A study as far as it could be read, and its problems."""

    study: Study | None
    problems: Problems
    notes: list[str]  # What was left out together with what an override removed


def read(path: Path, *, sets: list[str] | None = None, quick: bool = False) -> Loaded:
    """A study from its file, with overrides applied and problems collected. Raises UserError: there is no such YAML file."""
    data, lines = read_yaml(path)
    problems, arms = Problems(str(path), lines), set(_entries(data, "arms"))
    for place, message in lines.duplicates.items():
        problems.add(place, message)
    for key, value in _entries(data, "quick").items() if quick else ():
        with problems.at("quick", key):
            data = changed(data, str(key).split("."), value, f"quick: {key}", [Study])
            lines.move(("quick", str(key)), tuple(str(key).split(".")))
    base, removals = data.get("base"), {f"arms.{name}=null": name for name in arms}
    for item in sets or []:
        with problems.at():
            data = override(_spelled_out(data, item), item, Study)
            if item in removals:
                del data["arms"][removals[item]]
            lines.overridden.append(item.partition("=")[0].split("."))
    data, notes = _pruned(data, lines, gone=arms - set(_entries(data, "arms")))
    several = data.get("bases") and any(item.startswith("bases=") for item in sets or [])
    if base and data.get("base") == base and several:
        del data["base"]
        notes.append(f"base: {base} gives way to the bases of --set")
    return Loaded(problems.read(Study, data), problems, notes)


def _entries(data: dict[str, Any], key: str) -> dict[Any, Any]:
    """A mapping in the data; empty where the value is not a mapping, which the schema reports."""
    return value if isinstance(value := data.get(key), dict) else {}


def _spelled_out(data: dict[str, Any], item: str) -> dict[str, Any]:
    """The data with a model that is given as a word written as a mapping, where an override changes one of its settings."""
    match = re.match(r"models\.([^.=]+)\.", item)
    word = _entries(data, "models").get(match[1]) if match else None
    if match is None or not isinstance(word, str):
        return data
    model = parse_model(word).model_dump(mode="json", exclude_unset=True)
    return data | {"models": data["models"] | {match[1]: model}}


def _pruned(data: dict[str, Any], lines: LineTable, *, gone: set[str]) -> tuple[dict[str, Any], list[str]]:
    """The data without what names arms that an override left out, and a note on each section that this changed."""
    notes: list[str] = []
    for key in ("compare", "findings", "tamper"):
        rows = data.get(key)
        if gone and isinstance(rows, list):
            pruned = [_without_arms(row, gone) for row in rows]
            kept = [at for at, row in enumerate(rows) if pruned[at] is not None or row is None]
            data = data | {key: [pruned[at] for at in kept]}
            for new, old in enumerate(kept):
                lines.move((key, str(old)), (key, str(new)))
            if lost := len(rows) - len(kept):
                notes.append(f"{key}: {lost} of {len(rows)} left out: they name arms left out")
            if shorter := sum(after not in (None, row) for row, after in zip(rows, pruned, strict=True)):
                notes.append(f"{key}: {shorter} of {len(rows)} now without the arms left out")
    return data, notes


def _without_arms(row: Any, gone: set[str]) -> Any:
    """A comparison, finding or tampering without the arms `gone`; `None` when nothing is left to measure."""
    if not isinstance(row, dict):
        return row
    if isinstance(arms := row.get("arms"), list) and arms:  # an empty list means every arm
        left = [arm for arm in arms if str(arm) not in gone]
        return row | {"arms": left} if left else None
    pairs = row.get("evidence", [row])
    pairs = [pair for pair in pairs if isinstance(pair, dict)] if isinstance(pairs, list) else []
    return None if gone & {str(pair.get(side)) for pair in pairs for side in ("a", "b")} else row


def save(study: Study, path: Path) -> None:
    """Write the resolved study."""
    data = study.model_dump(mode="json", exclude_defaults=True)
    atomic_write(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120))
