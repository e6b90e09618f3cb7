"""What a study means: its stages; and everything that is wrong or missing, found before anything is asked.

    prompts-POOL -> distil-FORMAT -> diagnose-FORMAT
                          `-> [repair-ARM] -> mix-ARM -> train-ARM-sSEED -> evaluate-ARM-sSEED-BENCH-ATTACK

Arms share what they have in common: one distillation serves every arm of its format, one evaluation of a base serves
every study that asks for it in the same folder. `check study`, `plan` and `run` go through `resolve`.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from pydantic import BaseModel

from demur.bench import get_bench
from demur.distil.strategy import file_of as strategy_file
from demur.distil.strategy import load as load_strategy
from demur.errors import UserError
from demur.models import BASES
from demur.models.config import Local, ModelConfig, as_model, parse_model
from demur.pipeline.checks import check_study
from demur.pipeline.dag import ordered
from demur.pipeline.stage import Stage
from demur.pipeline.stages import STAGES
from demur.pipeline.stages.diagnose import Diagnose, DiagnoseSettings
from demur.pipeline.stages.distil import Distil, DistilStageSettings
from demur.pipeline.stages.evaluate import FILE, BenchUse, Evaluate, EvaluateSettings, player
from demur.pipeline.stages.mix import Mix, MixStageSettings
from demur.pipeline.stages.prompts import Prompts
from demur.pipeline.stages.repair import Repair, RepairStageSettings
from demur.pipeline.study import STUDENT, Arm, Copy, Loaded, Study
from demur.prompts import SOURCES
from demur.prompts.load import located
from demur.registry import resolve as lookup
from demur.settings import Location, Problems

REWRITTEN = "improved"
"""The strategy whose kept traces `rewrite` is given."""


class Resolved(NamedTuple):
    """A study that is sound, its stages, and what is missing on this machine."""

    study: Study
    stages: list[Stage[Any]]
    missing: list[str]
    """One line each: the part, and how to give it."""
    notes: list[str]


def resolve(loaded: Loaded) -> Resolved:
    """The stages of a study, everything about it looked up.

    Raises:
        UserError: all that is wrong with it, one line each.
    """
    study, problems = loaded.study, loaded.problems
    if study is None:
        problems.check()
    assert study is not None
    check_study(study, problems)
    builder = _Builder(study, problems)
    stages = builder.all()
    missing = dict.fromkeys([*builder.missing, *needs(stages, problems)])
    problems.check()
    return Resolved(study, stages, list(missing), loaded.notes)


def make(data: dict[str, Any], *, where: str) -> Resolved:
    """A study of plain data, resolved."""
    problems = Problems(where)
    return resolve(Loaded(problems.read(Study, data), problems, []))


def needs(stages: Iterable[Stage[Any]], problems: Problems) -> list[str]:
    """What stages and all that they read lack on this machine; what is wrong with them is added to `problems`."""
    missing: dict[str, None] = {}
    for stage in ordered(stages):
        with problems.at(*stage.place):
            for lack in stage.needs():
                if lack.wrong:
                    problems.add(stage.place, lack.message)
                else:
                    missing[f"{lack.what:<10} {lack.message}"] = None
    return list(missing)


class _Builder:
    """Collects the stages of a study. A stage that is asked for again is the same object."""

    def __init__(self, study: Study, problems: Problems) -> None:
        self.study, self.problems = study, problems
        self.stages: dict[str, Stage[Any]] = {}
        self.missing: list[str] = []
        self.data_dir = Path(study.data_dir) if study.data_dir else None

    def all(self) -> list[Stage[Any]]:
        """All stages; what cannot be made is a problem, and left out."""
        for name, arm in self.study.arms.items():
            for copy, seed in itertools.product(self.study.copies(name), self.study.seeds_of(name)):
                trained: Stage[Any] | None = None
                if arm.trained:
                    with self.problems.at("arms", name):
                        trained = self.train(copy, seed)
                for at, use in enumerate(self.study.bench):
                    with self.problems.at("bench", at):
                        self.evaluate(copy, seed, use, trained, at)
        return list(self.stages.values())

    def add(self, stage: Stage[Any]) -> Stage[Any]:
        """Take a stage in."""
        known = self.stages.setdefault(stage.name, stage)
        if known != stage:
            raise UserError(f"two different stages would be called {stage.name}: leave one out, or change it in --set.")
        return known

    def players(self, **parts: str | Sequence[str] | None) -> dict[str, ModelConfig]:
        """The models of parts, each by the name that the study gives it, else by the part's own; parts without are left out."""
        found: dict[str, ModelConfig] = {}
        for part, said in parts.items():
            names = [said] if isinstance(said, str) else list(said or [part])
            for number, name in enumerate(names, 1):
                if name in self.study.models:
                    found[part if number == 1 else f"{part}_{number}"] = self.study.models[name]
                elif said:
                    raise UserError("")  # that there is no such model was said where it is named
        return found

    def prompts(self, pool: str) -> Stage[Any]:
        """The stage that draws a pool of prompts."""
        settings = self.study.prompts.get(pool)
        if settings is None:
            raise UserError(
                f"rows of {pool} are wanted, and the study has no pool of that name: add it under 'prompts' or 'traces', or "
                "give the rows as a file."
            )
        ours = settings.source in SOURCES or ":" in settings.source
        places = {
            "source": None if ours else Path(settings.source),
            "data": settings.data,
            "templates": settings.templates,
        }
        files = {part: located(path, self.data_dir) for part, path in places.items() if path}
        return self.add(Prompts(f"prompts-{pool}", settings, files=files, place=("prompts", pool)))

    def distil(self, pool: str, strategy: str, arm: Arm | None = None) -> Stage[Any]:
        """The stage in which a teacher answers a pool by a strategy, filtered as the study or the arm says."""
        own, study = arm or Arm(), self.study
        which = own.filter or study.filter
        suffix = "" if pool == "harmful" else f"-{pool}"
        suffix += "".join(f"-{_slug(said)}" for said in (own.filter and own.filter.kind, own.keep) if said)
        loaded = load_strategy(strategy)
        keep = own.keep or study.distil.keep
        settings = study.distil.settings(strategy=strategy, keep=keep if pool == "harmful" else "everything")
        models = self.players(
            teacher=study.distil.teachers.get(strategy) or study.distil.teacher,
            filter=which.model,
        )
        if strategy in STUDENT and not study.stand_in:  # a random model never closes its thinking
            models["teacher"] = self.base(study.base)
        inputs = {"prompts": self.prompts(pool)}
        if loaded.needs_trace:
            inputs["given"] = self.distil(pool, REWRITTEN)
        return self.add(
            Distil(
                f"distil-{Path(strategy).stem}{suffix}",
                DistilStageSettings(distil=settings, filter=which.kind),
                inputs=inputs,
                files={"strategy": strategy_file(strategy)} if strategy.endswith(".md") else {},
                models=models,
                place=("distil",),
            )
        )

    def diagnose(self, arm: Arm) -> Stage[Any]:
        """The stage that finds the failure patterns in the traces of an arm's format."""
        traces, detector = self.distil("harmful", str(arm.format), arm), self.study.detector
        return self.add(
            Diagnose(
                f"diagnose-{traces.name.removeprefix('distil-')}",
                DiagnoseSettings(detector=detector.kind),
                inputs={"traces": traces},
                models=self.players(detector=detector.model),
                place=("detector",),
            )
        )

    def repair(self, name: str, arm: Arm) -> Stage[Any]:
        """The stage that mends an arm's safety traces."""
        assert arm.repair is not None
        study, strategy = self.study, str(arm.format)
        teacher = study.distil.teachers.get(strategy) or study.distil.teacher
        return self.add(
            Repair(
                f"repair-{name}",
                RepairStageSettings(repair=arm.repair, detector=study.detector.kind),
                inputs={"traces": self.distil("harmful", strategy, arm), "findings": self.diagnose(arm)},
                models=self.players(teacher=teacher, detector=study.detector.model),
                place=("arms", name, "repair"),
            )
        )

    def mix(self, name: str, arm: Arm) -> Stage[Any]:
        """The stage that draws an arm's training rows."""
        inputs: dict[str, Stage[Any]] = {}
        files: dict[str, Path] = {}
        settings = self.study.mix_of(name)
        for share, options in settings.shares.items():
            if options.file or options.hub:
                path = located(options.file, self.data_dir) if options.file else None
                if path is not None and (path.exists() or not options.hub):
                    files[share] = path
            elif share == "safety":
                inputs[share] = self.repair(name, arm) if arm.repair else self.distil("harmful", str(arm.format), arm)
                if arm.without:
                    inputs["findings"] = self.diagnose(arm)
            else:
                inputs[share] = self.distil(share, self._other_format(share, arm))
        whole = MixStageSettings(mix=settings, held_out=self.study.held_out, without=arm.without)
        return self.add(Mix(f"mix-{name}", whole, inputs=inputs, files=files, place=("arms", name)))

    def _other_format(self, share: str, arm: Arm) -> str:
        """The strategy of rows that are not about safety. A constant refusal is no reply to them."""
        if share != "benign" or arm.format is None:
            return "default"
        wanted = arm.benign_format or self.study.benign_format
        if wanted != "same":
            return wanted
        return "default" if load_strategy(arm.format).constant is not None else arm.format

    def train(self, copy: Copy, seed: int) -> Stage[Any] | None:
        """The stage that trains an arm from one base with one seed."""
        name, arm = copy.arm, self.study.arms[copy.arm]
        if arm.format is not None and isinstance(arm.safety, int) and "harmful" not in self.study.traces:
            self.diagnose(arm)  # its pattern rates belong to the report, whether or not the mix needs them
        kind, own, shared = self.training(arm.train.get("stage"), place=("arms", name, "train"))
        data = shared | {key: value for key, value in arm.train.items() if key != "stage"} | {"seed": seed}
        train = self.problems.read(own, data, place=("arms", name, "train"))
        if train is None:
            return None
        offered: dict[str, Callable[[], Stage[Any]]] = {
            "mix": lambda: self.mix(name, arm),
            "traces": lambda: self.distil("harmful", str(arm.format), arm),
            "findings": lambda: self.diagnose(arm),
        }
        return self.add(
            kind(
                f"{kind.kind}-{copy.name}-s{seed}",
                kind.Settings(train=train, arm=copy.name, seed=seed),
                inputs={part: offered[part]() for part in kind.reads},
                models={"base": self.base(copy.base)},
                place=("arms", name),
            )
        )

    def training(
        self, stage: str | None, *, place: Location
    ) -> tuple[type[Stage[Any]], type[BaseModel], dict[str, Any]]:
        """A kind of training, its settings class, and what the study says of it for all arms.

        An arm that is trained by another kind than the study takes what that kind knows of the study's settings.
        """
        data = dict(self.study.train)
        usual = data.pop("stage", "train")
        with self.problems.at(*(place if stage else ("train",)), "stage"):
            kind = cast("type[Stage[Any]]", lookup("stage", stage or usual, STAGES))
            own = cast("type[BaseModel]", kind.Settings.model_fields["train"].annotation)
            if stage not in (None, usual):
                data = {key: value for key, value in data.items() if key in own.model_fields}
            shared = self.problems.read(own, data, place=("train",))
            return kind, own, shared.model_dump(exclude_unset=True) if shared else {}
        raise UserError("")

    def evaluate(self, copy: Copy, seed: int, use: BenchUse, trained: Stage[Any] | None, at: int) -> None:
        """The stage that runs one benchmark under one attack against one model."""
        arm, bench = self.study.arms[copy.arm], get_bench(use.name)
        files: dict[str, Path] = {}
        path = Path(use.data) if use.data else _found(bench.files, self.data_dir)
        if path is not None:
            files["data"] = path
        elif bench.name in self.study.stand_in_data:
            files["stand_in"] = Path(self.study.stand_in_data[bench.name])
        try:
            files |= {f"{FILE}{key}": path for key, path in use.attack.files(self.data_dir).items()}
        except UserError as error:
            self.missing.append(f"{'attack':<10} {error}")
        parts = {player(part): use.attack.models.get(part) for part in use.attack.parts}
        models = self.players(judge=use.judge.model if use.judge else None, **parts)
        if arm.trained and trained is None:
            return  # why it cannot be trained was said
        settings = EvaluateSettings(
            bench=use,
            arm=copy.name,
            seed=seed if arm.trained else None,
            decoding=arm.decoding,
            serve=self.study.serve,
        )
        label = f"{re.sub(r'[@=]', '-', use.name)}-{use.attack.name}{f'-{use.part}' if use.part else ''}"
        self.add(
            Evaluate(
                f"evaluate-{copy.name}-s{seed}-{label}",
                settings,
                inputs={"model": trained} if trained else {},
                files=files,
                models=models if trained else models | {"target": self.base(copy.base, serve=self.study.serve)},
                place=("bench", at),
            )
        )

    def base(self, base: str, *, serve: Mapping[str, Any] = MappingProxyType({})) -> ModelConfig:
        """The model that a base's name means, served as the study says where it is weights alone."""
        folder = base_folder(base)
        if folder is None and base in self.study.models:
            return self.study.models[base]
        model = Local(path=str(folder)) if folder else parse_model(base)
        weights = model.model_dump(include={"path", "hub"}, exclude_none=True)
        return as_model(weights | dict(serve)) if serve and isinstance(model, Local) else model


@functools.cache
def _shipped(name: str) -> Path:
    """A shipped base's folder; its files are checked against their card once a process, not once a stage."""
    folder: Path = lookup("base", name, BASES)(name)
    return folder


def base_folder(base: str) -> Path | None:
    """The folder that a base's name means; `None` when it is not on this machine."""
    if base in BASES:
        return _shipped(base)
    return Path(base) if Path(base).is_dir() or (base.endswith(".gguf") and Path(base).is_file()) else None


def _slug(text: str) -> str:
    """The last part of a name, fit for a folder's."""
    return re.sub(r"[^\w.-]+", "-", text.rpartition(":")[2])


def _found(names: Sequence[str], data_dir: Path | None) -> Path | None:
    """The first of some names that is in the folder of local copies."""
    paths = [data_dir / name for name in names] if data_dir else []
    return next((path for path in paths if path.exists()), None)
