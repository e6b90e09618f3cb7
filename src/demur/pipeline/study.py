"""A study: plain data under a strict schema. One file says all that is done; `graph.py` turns it into stages.

The settings of each stage are defined where that stage lives; a study is composed of them. A YAML file and the class
`Study` are the same thing, and every verb of the command line runs as a small study.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, Field, field_validator, model_validator

from demur.attack import NO_ATTACK, AttackUse
from demur.bench import get_bench
from demur.distil.settings import DistilSettings, Keep
from demur.errors import UserError, unknown
from demur.judge import requires_model
from demur.mix.settings import MixSettings, ShareSettings
from demur.models.config import ModelConfig, parse_model
from demur.models.decoding import PRESETS
from demur.prompts.settings import PromptsSettings
from demur.records import Part, Pattern
from demur.repair.settings import RepairSettings
from demur.settings import STRICT, LineTable, override, read_yaml, validate
from demur.storage.artifacts import atomic_write
from demur.train.settings import TrainSettings

STUDENT = ("self", "structured", "rewrite")
"""Strategies whose traces the model under training writes itself."""
LOSS = "loss"
"""The metric of a finding that is no benchmark's."""


class Arm(BaseModel):
    """One model of the comparison: a base as it is, or trained on a mix."""

    model_config = STRICT

    base: str | None = None
    """A folder, a hub id, `mini-lrm-a` or, for an arm that is not trained, a URL. Default: the study's."""
    format: str | None = None
    """The strategy whose traces are the safety data. Without it and without shares from files the arm is not trained."""
    safety: int | ShareSettings = 0
    maths: int | ShareSettings = 0
    benign: int | ShareSettings = 0
    without: tuple[Pattern, ...] = ()
    """Safety traces in which the detector found one of these patterns are left out."""
    filter: str | None = None
    """Another judge than the study's for this arm's safety traces, such as one that is known to leak."""
    keep: Keep | None = None
    """Another rule than the study's: `everything` leaves the traces unfiltered."""
    benign_format: str | None = None
    """Another strategy than the study's for the benign rows."""
    repair: RepairSettings | None = None
    """Repair the safety traces first, such as `{with: [trim, align, drop]}`."""
    decoding: str | None = None
    """A defence by decoding alone: zero, less or primer (`models/decoding.py`)."""
    train: dict[str, Any] = {}
    """Training settings in which this arm differs from the study's."""
    seeds: tuple[int, ...] | None = None
    """Seeds of this arm; default: the study's."""

    @property
    def trained(self) -> bool:
        """Whether the arm has any training data."""
        return self.format is not None or any(
            isinstance(s, ShareSettings) for s in (self.safety, self.maths, self.benign)
        )


class BenchUse(BaseModel):
    """A benchmark as this study uses it. What is left out is as the benchmark's protocol says."""

    model_config = STRICT

    name: str
    attack: AttackUse = NO_ATTACK
    judge: str | None = None
    """Another judge than the protocol's."""
    part: Part | None = None
    """Another part than the protocol's."""
    also: tuple[Part, ...] = ()
    """Further parts that the same judge reads, such as `[thinking]`: the report crosses thinking with answer."""
    limit: int | None = Field(default=None, ge=1)
    seed: int = 0
    """Which prompts, for a set that is generated."""
    samples: int | None = Field(default=None, ge=1)
    sampling: dict[str, Any] = {}
    """Sampling settings in which this study differs from the protocol."""
    data: str | None = None
    """A local copy."""
    max_unscored: float = Field(default=0.05, ge=0, le=1)
    """Share of replies on which the judge itself may fail before the run does."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """`xstest` is short for `{name: xstest}`."""
        return {"name": value} if isinstance(value, str) else value


class Comparison(BaseModel):
    """A claim that the report tests: two arms on one benchmark, paired by prompt."""

    model_config = STRICT

    a: str
    b: str
    bench: str = ""
    """Empty: every benchmark."""
    margin: float | None = None
    """For `b not worse than a by more than this`, in the metric's unit."""


class Evidence(BaseModel):
    """A test that a finding rests on: what arm `a` does against arm `b`, paired by prompt, over all seeds and bases."""

    model_config = STRICT

    a: str
    b: str
    metric: str = "attack_success"
    """One of a benchmark's, or `loss`: nats a response token on held-out rows at the end of training."""
    bench: str = ""
    """Empty: every benchmark that has the metric, pooled."""
    attack: tuple[str, ...] = ()
    """Empty: however the benchmarks put their questions, pooled."""
    part: Part | None = None
    """Another part than the one that each benchmark's judge reads first."""
    expect: Literal["lower", "higher", "same"]
    """What the claim expects of `a`."""
    by: float = Field(gt=0)
    """The smallest difference that matters, in the metric's unit (0.05: five points). Less is the same."""

    @field_validator("attack", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Finding(BaseModel):
    """A claim that the study puts to the test: seen when all of its evidence is, not seen when some is shown to fail."""

    model_config = STRICT

    claim: str
    evidence: tuple[Evidence, ...] = Field(min_length=1)


class Copy(NamedTuple):
    """An arm on one of its bases."""

    name: str
    """`ARM`, or `ARM@BASE` where the study has several bases."""
    arm: str
    base: str


class Study(BaseModel):
    """Everything that a run does."""

    model_config = STRICT

    name: str
    question: str = ""
    """What the study is asked; the report's first line."""
    base: str = "mini-lrm-a"
    bases: tuple[str, ...] = ()
    """Several bases in its place: every arm that names none is made from each, and the report pools them."""
    roles: dict[str, ModelConfig] = {}
    """Who answers: teacher, judge, attacker, attack_judge …"""
    prompts: dict[str, PromptsSettings] = {}
    """Pools of prompts: harmful, benign, maths."""
    traces: dict[str, ShareSettings] = {}
    """Pools of ready traces from files, such as maths."""
    distil: DistilSettings = DistilSettings()
    benign_format: str = "default"
    """The strategy for benign prompts; `same`: that of the arm."""
    detector: str = "rules"
    filter: str = "rules"
    """The judge that decides which distilled traces are kept."""
    mix: dict[str, Any] = {}
    """Settings of every mix; the arms say how much of each share."""
    train: TrainSettings = TrainSettings()
    arms: dict[str, Arm] = {}
    bench: tuple[BenchUse, ...] = ()
    seeds: tuple[int, ...] = (0,)
    compare: tuple[Comparison, ...] = ()
    findings: tuple[Finding, ...] = ()
    """Claims with the tests that decide them; the report's first table."""
    held_out: int = Field(default=0, ge=0)
    """Safety rows of each arm kept out of training to measure learnability on."""
    data_dir: str | None = None
    serve: Literal["", "vllm", "transformers"] = ""
    """Serve each model under test by this engine, once for all its benchmarks; empty: run it in the stage's own process."""
    workers: int | None = Field(default=None, ge=1)
    """Stages at the same time; default: the cores, or 1 with an accelerator."""
    stand_in: bool = False
    """Every model replaced by small local ones; the report says so across its head."""
    stand_in_data: dict[str, str] = {}
    """Benchmark -> a few rows in its form, where there is no copy of the release. Only `--stand-in` sets it."""
    quick: dict[str, Any] = {}
    """Overrides, by path, for `--quick`."""

    @field_validator("roles", mode="before")
    @classmethod
    def _roles(cls, value: Any) -> Any:
        """A role may be written as one word: a URL, a folder, a hub id or `script:NAME`."""
        if not isinstance(value, dict):
            return value
        return {name: parse_model(role) if isinstance(role, str) else role for name, role in value.items()}

    def train_of(self, arm: str, seed: int) -> TrainSettings:
        """The training settings of one arm and seed."""
        merged = self.train.model_dump() | self.arms[arm].train | {"seed": seed}
        return validate(TrainSettings, merged, where=f"arm '{arm}'")

    def mix_of(self, name: str) -> MixSettings:
        """The mix of an arm: the study's settings, with the arm's shares."""
        arm = self.arms[name]
        options = dict(self.mix.get("shares", {}))
        shares: dict[str, Any] = {}
        for share, wanted in (("safety", arm.safety), ("maths", arm.maths), ("benign", arm.benign)):
            if isinstance(wanted, ShareSettings):
                shares[share] = options.get(share, {}) | wanted.model_dump(exclude_unset=True)
            elif wanted:
                pool = self.traces.get("harmful" if share == "safety" else share)
                ready = pool.model_dump(exclude_unset=True) if pool else {}
                shares[share] = options.get(share, {}) | ready | {"n": wanted}
        return validate(MixSettings, self.mix | {"shares": shares}, where=f"mix of arm '{name}'")

    def copies(self, name: str) -> list[Copy]:
        """An arm on each of its bases."""
        base = self.arms[name].base
        if base is not None or not self.bases:
            return [Copy(name, name, self.base if base is None else base)]
        return [Copy(f"{name}@{Path(one).name}", name, one) for one in self.bases]

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        """The seeds of an arm; an arm that is not trained has one."""
        if not self.arms[arm].trained:
            return (0,)
        seeds = self.arms[arm].seeds
        return self.seeds if seeds is None else seeds


def load(path: Path, *, sets: list[str] | None = None, quick: bool = False) -> Study:
    """A study from its file, with overrides applied.

    Raises:
        UserError: anything wrong in the file or an override.
    """
    data, lines = read_yaml(path)
    if quick:
        for key, value in (data.get("quick") or {}).items():
            data = override(
                data, f"{key}={yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1e9).strip()}"
            )
    for item in sets or []:
        data = override(data, item)
    return make(data, where=str(path), lines=lines)


def make(data: dict[str, Any], *, where: str, lines: LineTable | None = None) -> Study:
    """A study from plain data: the schema first, then what only the whole can tell."""
    study = validate(Study, data, where=where, lines=lines)
    if study.stand_in_data and not study.stand_in:
        raise UserError(f"{where}: stand_in_data is for stand-ins alone: a benchmark's copy goes under its 'data'.")
    for name in study.arms:
        study.train_of(name, 0)
        _check_arm(study, name, where)
        if study.arms[name].trained:
            study.mix_of(name)
    known = set(study.arms)
    for comparison in study.compare:
        for arm in (comparison.a, comparison.b):
            if arm not in known:
                raise UserError(f"{where}: compare names the arm '{arm}'. There are: {', '.join(sorted(known))}.")
    _check_bases(study, where)
    for finding in study.findings:
        for evidence in finding.evidence:
            _check_evidence(study, evidence, f"{where}, finding '{finding.claim}'")
    return study


def _check_bases(study: Study, where: str) -> None:
    """Several bases must be told apart, and nothing else may speak of them."""
    if study.bases and "base" in study.model_fields_set:
        raise UserError(f"{where}: 'base' and 'bases' are both given. For one base set bases=[] as well.")
    labels = [Path(base).name for base in study.bases]
    if len(set(labels)) < len(labels) or any("@" in name for name in study.arms if study.bases):
        raise UserError(
            f"{where}: bases need different last names, and their arms names without @: ARM@BASE is a copy."
        )


def _check_evidence(study: Study, evidence: Evidence, where: str) -> None:
    """What a finding rests on must be measured by the study."""
    for arm in (evidence.a, evidence.b):
        if arm not in study.arms:
            raise unknown("arm", arm, study.arms, where=f" in {where}")
        if evidence.metric == LOSS and not (study.arms[arm].trained and study.held_out):
            raise UserError(f"{where}: '{LOSS}' is measured on held_out rows of trained arms; '{arm}' has none.")
    if evidence.metric == LOSS:
        return
    uses = [use for use in study.bench if evidence.bench in ("", use.name)]
    metrics = {metric.name for use in uses for metric in get_bench(use.name).metrics}
    attacks = {use.attack.name for use in uses}
    parts = {part for use in uses for part in (use.part or get_bench(use.name).part, *use.also)}
    if not uses:
        raise unknown("benchmark", evidence.bench, {use.name for use in study.bench}, where=f" in {where}")
    if evidence.metric not in metrics:
        raise unknown("metric", evidence.metric, metrics | {LOSS}, where=f" in {where}")
    for attack in evidence.attack:
        if attack not in attacks:
            raise unknown("attack", attack, attacks, where=f" in {where}")
    if evidence.part and evidence.part not in parts:
        raise UserError(f"{where}: no judge reads the {evidence.part}. Add it under 'also' of the benchmark.")


def _check_arm(study: Study, name: str, where: str) -> None:
    """What an arm needs must be in the study."""
    arm = study.arms[name]
    pools = {"harmful": arm.safety, "benign": arm.benign, "maths": arm.maths}
    for pool, share in pools.items():
        wanted = share if isinstance(share, int) else 0
        if wanted and pool not in study.prompts and pool not in study.traces:
            raise UserError(
                f"{where}: arm '{name}' wants {wanted} rows of {pool}, and the study has no pool of that name. "
                f"Add it under 'prompts' or 'traces', or give the rows as a file."
            )
    if arm.decoding is not None and arm.decoding not in PRESETS:
        raise unknown("decoding preset", arm.decoding, PRESETS, where=f" in {where}, arm '{name}'")
    if (arm.filter or arm.keep or arm.benign_format) and (arm.format is None or not isinstance(arm.safety, int)):
        raise UserError(f"{where}: arm '{name}' says how its traces are filtered, and no teacher writes them for it.")
    if arm.filter and arm.keep == "everything":
        raise UserError(f"{where}: arm '{name}' names a filter and keeps everything: give one of the two.")
    if arm.filter:
        requires_model(arm.filter)  # an unknown name is told here
    if study.bases and {arm.format, arm.benign_format} & set(STUDENT):
        raise UserError(f"{where}: arm '{name}' trains a model on its own traces, which takes one base: set 'base'.")
    if arm.format is not None and not arm.safety:
        raise UserError(f"{where}: arm '{name}' has a format and no safety rows: set safety to how many.")


def save(study: Study, path: Path) -> None:
    """Write the resolved study."""
    data = study.model_dump(mode="json", exclude_defaults=True)
    atomic_write(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120))
