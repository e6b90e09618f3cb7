"""Reads a run's evaluations, quickly and lightly: what numbers need of each trace, and none of its text.

A trace is a small row here; verdicts of any judge, from the evaluation or given later, are attached to it by its id.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec.structs import force_setattr

from demur.errors import UserError
from demur.records import Intent, Outcome, Part
from demur.storage.artifacts import Artifact, artifacts

T = TypeVar("T")
SHARED = 10_000
"""Different verdicts with scores that are looked for among later ones."""


class Asked(msgspec.Struct, frozen=True, gc=False):
    """What numbers need of a prompt."""

    id: str
    intent: Intent
    cluster: str
    category: str = ""
    attack: str = ""
    parent: str = ""

    def __post_init__(self) -> None:
        # Of millions of rows most say the same here: once in memory is enough.
        force_setattr(self, "cluster", self.id if self.cluster == self.id else self.cluster)
        force_setattr(self, "category", sys.intern(self.category))
        force_setattr(self, "attack", sys.intern(self.attack))


class Said(msgspec.Struct, frozen=True, gc=False):
    """What numbers need of a verdict."""

    label: str | None
    score: float | None = None


class _Verdict(Said, frozen=True, gc=False, kw_only=True):
    """The same, with whose it is."""

    trace: str
    judge: str
    part: Part


Verdicts = dict[tuple[str, Part], Said]


class Heard:
    """Verdicts by trace. Traces of which the same was said share one mapping, which nobody may change."""

    def __init__(self) -> None:
        self._of: dict[int, Verdicts] = {}
        self._known: dict[tuple[object, ...], Verdicts] = {}
        self.judges: dict[tuple[str, Part], None] = {}

    def add(self, verdict: _Verdict) -> None:
        """Take a verdict in; a later one of the same judge and part counts."""
        at = (sys.intern(verdict.judge), verdict.part)
        self.judges[at] = None
        trace = hash(verdict.trace)
        before = self._of.get(trace)
        self._of[trace] = self._one(before, at, verdict.label, verdict.score)

    def _one(self, before: Verdicts | None, at: tuple[str, Part], label: str | None, score: float | None) -> Verdicts:
        key = (id(before) if before else None, at, label, score)
        if (found := self._known.get(key)) is None:
            found = {**(before or {}), at: Said(label, score)}
            if score is None or len(self._known) < SHARED:
                self._known[key] = found
        return found

    def of(self, trace: str) -> Verdicts:
        """What was said of a trace."""
        return self._of.get(hash(trace), {})


class Row(msgspec.Struct, gc=False):
    """What numbers need of a trace, or of a request that got none (`outcome` is then `None`)."""

    prompt: Asked
    id: str = ""
    sample: int = 0
    outcome: Outcome | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_thinking: int | None = None
    cost: float | None = None
    verdicts: Verdicts = {}

    @property
    def cut(self) -> bool:
        """Whether a budget ended the text."""
        return self.outcome in ("cut_in_thinking", "cut_in_answer")

    @property
    def key(self) -> tuple[str, str, int]:
        """What it is an answer to: equal for two models that were asked the same, attacks of the same kind included."""
        return self.prompt.parent or self.prompt.id, self.prompt.attack, self.sample


class Evaluation(NamedTuple):
    """One arm, one seed, one benchmark under one attack."""

    arm: str
    seed: int | None
    bench: str
    attack: str
    rows: list[Row]
    judges: tuple[tuple[str, Part], ...]
    """Judges with the part that they saw; the protocol's own comes first."""
    stage: Artifact
    base: str = ""
    """Which of a study's several bases, where the arms on them are taken together."""


class Run(NamedTuple):
    """A run's folder as the report sees it."""

    folder: Path
    study: dict[str, Any]
    stages: list[Artifact]
    evaluations: list[Evaluation]

    def pooled(self) -> Run:
        """The same with the copies of an arm on several bases, `ARM@BASE`, taken together as that arm."""
        told = [e._replace(arm=arm, base=base) for e in self.evaluations for arm, base in (self.split(e.arm),)]
        return self._replace(evaluations=told)

    def split(self, arm: str) -> tuple[str, str]:
        """Arm and base of a copy; of another arm its name alone."""
        name, at, base = arm.rpartition("@")
        several = {Path(base).name for base in self.study.get("bases") or ()}
        return (name, base) if at and base in several else (arm, "")

    def of_kind(self, kind: str) -> list[Artifact]:
        """Its stages of a kind, by name."""
        return [stage for stage in self.stages if stage.manifest.kind == kind]


def read(folder: Path) -> Run:
    """A run with all its evaluations.

    Raises:
        UserError: the folder is no run, or has no finished stage.
    """
    import yaml

    path = folder / "study.yaml"
    if not (folder / "stages").is_dir():
        raise UserError(f"{folder} is no run: it has no stages. Give the folder that was named by --out.")
    study = yaml.safe_load(path.read_text()) if path.is_file() else {}
    stages = current(artifacts(folder), list((study or {}).get("arms") or {}))
    if not stages:
        raise UserError(f"{folder} has no finished stage yet. See: demur status {folder}")
    later = Heard()
    known = {m.name for m in (stage.manifest for stage in stages) if m.kind == "evaluate"}
    for stage in stages:
        if stage.manifest.kind == "judge" and known:
            for verdict in light(stage, "verdicts", _Verdict):
                later.add(verdict)
    kinds = ("evaluate",) if known else ("evaluate", "judge")
    evaluations = [e for stage in stages if stage.manifest.kind in kinds for e in _evaluations(stage, later)]
    return Run(folder, study or {}, stages, _as_asked(evaluations, (study or {}).get("bench") or []))


def _as_asked(evaluations: list[Evaluation], uses: list[Any]) -> list[Evaluation]:
    """Evaluations by arm, then in the order in which the study names its benchmarks; plain questions before attacks."""
    named = [(use, "none") if isinstance(use, str) else (use["name"], _attack_name(use)) for use in uses]
    arms = {arm: place for place, arm in enumerate(dict.fromkeys(e.arm for e in evaluations))}

    def order(e: Evaluation) -> tuple[int, int, bool]:
        at = (e.bench, e.attack)
        return arms[e.arm], named.index(at) if at in named else len(named), e.attack != "none"

    return sorted(evaluations, key=order)


def _attack_name(use: dict[str, Any]) -> str:
    attack = use.get("attack") or "none"
    return str(attack.get("name", "none") if isinstance(attack, dict) else attack)


def current(stages: list[Artifact], arms: list[str]) -> list[Artifact]:
    """Stages that belong to the study as it is now: of each name the newest, arms in the study's order.

    A folder that was used for changed settings holds both versions of a stage; the older one is no part of the report.
    """
    newest: dict[str, Artifact] = {}
    for stage in stages:
        other = newest.get(stage.manifest.name)
        if other is None or _age(stage) > _age(other):
            newest[stage.manifest.name] = stage
    place = {arm: index for index, arm in enumerate(arms)}

    def order(stage: Artifact) -> tuple[int, str]:
        arm = str(stage.manifest.settings.get("arm"))
        return place.get(arm, place.get(arm.rpartition("@")[0], len(place))), stage.manifest.name

    return sorted(newest.values(), key=order)


def _age(stage: Artifact) -> float:
    return (stage.folder / "manifest.json").stat().st_mtime


def light(stage: Artifact, name: str, kind: type[T]) -> Iterator[T]:
    """The rows of a stage's file as a struct with fewer fields: what it does not name is skipped, not kept."""
    path = stage.folder / f"{name}.jsonl"
    if not path.is_file():
        return
    decoder = msgspec.json.Decoder(kind)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield decoder.decode(line)
                except msgspec.DecodeError as error:
                    raise UserError(f"{path}:{number}: {error}") from None


def _evaluations(stage: Artifact, later: Heard) -> Iterator[Evaluation]:
    """The evaluations that a stage holds: one for each attack."""
    settings = stage.manifest.settings
    heard = Heard()
    for verdict in light(stage, "verdicts", _Verdict):
        heard.add(verdict)
    judges = dict(heard.judges)
    groups: dict[str, list[Row]] = {}
    for row in chain(light(stage, "traces", Row), light(stage, "failures", Row)):
        row.verdicts = heard.of(row.id)
        if more := later.of(row.id):
            row.verdicts = row.verdicts | more
            judges |= dict.fromkeys(more)
        groups.setdefault(family(row.prompt.attack), []).append(row)
    for attack, rows in groups.items():
        arm, seed = str(settings.get("arm", "target")), settings.get("seed")
        yield Evaluation(arm, seed, bench_name(stage), attack, rows, tuple(judges), stage)


def bench_name(stage: Artifact) -> str:
    """The benchmark that a stage measured; empty for a stage that measured none."""
    bench = stage.manifest.settings.get("bench") or ""
    return str(bench["name"] if isinstance(bench, dict) else bench)


def family(attack: str) -> str:
    """The family of an attack: `pap` of `pap:framing`."""
    return attack.partition(":")[0] or "none"
