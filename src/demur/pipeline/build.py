"""What a study means: its stages.

    prompts-POOL -> distil-FORMAT -> diagnose-FORMAT
                          `-> [cliff-ARM] -> [repair-ARM] -> mix-ARM -> train-ARM-sSEED -> evaluate-ARM-sSEED-BENCH-ATTACK -> [probe]

Arms share what they have in common: one distillation serves every arm of its format, one evaluation of a base serves
every study that asks for it in the same folder.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from pydantic import BaseModel

from demur.bench import get_bench
from demur.bench.load import local
from demur.distil.settings import Begin
from demur.distil.strategy import file_of as strategy_file
from demur.distil.strategy import load as load_strategy
from demur.errors import UserError
from demur.models.checkpoint import base_folder
from demur.models.config import Local, ModelConfig, as_model, parse_model
from demur.pipeline.stage import DetectorSettings, Lack, Stage, Tampered
from demur.pipeline.stages import STAGES
from demur.pipeline.stages.diagnose import Diagnose
from demur.pipeline.stages.distil import Distil, DistilStageSettings
from demur.pipeline.stages.evaluate import FILE, BenchUse, Evaluate, EvaluateSettings, player
from demur.pipeline.stages.mix import Mix, MixStageSettings
from demur.pipeline.stages.probe import Probe, ProbeSettings, ProbeStageSettings
from demur.pipeline.stages.prompts import Prompts
from demur.pipeline.stages.repair import Repair, RepairStageSettings
from demur.pipeline.stages.train import Train
from demur.pipeline.study import CLIFF, SELF, STUDENT, Arm, Copy, ProbeUse, Study, TamperUse
from demur.prompts import SOURCES
from demur.prompts.load import located
from demur.registry import resolve as lookup
from demur.settings import Location, Problems
from demur.storage.readers import READERS
from demur.train.settings import TrainSettings

REWRITTEN = "improved"  # The strategy whose kept traces `rewrite` is given


class _Maker(NamedTuple):
    """For whom training rows are made: an arm, of which a copy and a seed where its own weights write them."""

    name: str
    arm: Arm
    place: Location
    copy: Copy | None = None
    seed: int = 0

    @property
    def label(self) -> str:
        """What stages that are its alone are called by."""
        own = self.copy if SELF in (self.arm.teacher, self.arm.filter and self.arm.filter.model) else None
        return f"{own.name}-s{self.seed}" if own else self.name


class Builder:
    """Collects the stages of a study. A stage that is asked for again is the same object."""

    def __init__(self, study: Study, problems: Problems) -> None:
        self.study, self.problems = study, problems
        self.stages: dict[str, Stage[Any]] = {}
        self.missing: list[tuple[Location, Lack]] = []
        self.making: list[Copy] = []
        self.data_dir = Path(study.data_dir) if study.data_dir else None

    def all(self) -> list[Stage[Any]]:
        """All stages; what cannot be made is a problem, and left out of what reads it."""
        study = self.study
        rows: dict[Location, Arm] = {("tamper", at, "rows"): use.rows for at, use in enumerate(study.tamper)}
        for place, arm in ({(): Arm()} | {("arms", name): arm for name, arm in study.arms.items()} | rows).items():
            self.training(arm, (*place, "train"))
        then: dict[str, Callable[..., object]] = {"bench": self.evaluate, "probe": self.probe, "tamper": self.tamper}
        for name, arm in study.arms.items():
            for copy, seed in itertools.product(study.copies(name), study.seeds_of(name)):
                trained: Stage[Any] | None = None
                with self.problems.at("arms", name):
                    trained = self.train(copy, seed) if arm.trained else self.weights("", copy, seed, {}).get("")
                for section, make in then.items():
                    for at, use in enumerate(getattr(study, section)):
                        with self.problems.at(section, at):
                            make(copy, seed, use, trained, at)
        return list(self.stages.values())

    def add(self, stage: Stage[Any]) -> Stage[Any]:
        """Take a stage in."""
        known = self.stages.setdefault(stage.name, stage)
        if known == stage:
            return known
        if not (self.problems.within(*stage.place) or self.problems.within(*known.place)):  # else they may yet differ
            told = f"another stage '{stage.kind}' would have the same name: leave one of the two out."
            self.problems.add(stage.place, told)
        other = replace(stage, name=f"{stage.name} of {stage.place}")
        return self.stages.setdefault(other.name, other)

    def players(self, **parts: str | Sequence[str] | None) -> dict[str, ModelConfig]:
        """The models of parts, each by the name that the study gives it, else by the part's own; parts without are left out."""
        found: dict[str, ModelConfig] = {}
        for part, said in parts.items():
            names = [said] if isinstance(said, str) else list(said or [part])
            for number, name in enumerate(names, 1):
                if name in self.study.models:
                    found[part if number == 1 else f"{part}_{number}"] = self.study.models[name]
        return found

    def prompts(self, pool: str) -> Stage[Any]:
        """The stage that draws a pool of prompts."""
        settings = self.study.prompts.get(pool)
        if settings is None:
            how = "add it under 'prompts' or 'traces', or give the rows as a file."
            raise UserError(f"rows of {pool} are wanted, and the study has no pool of that name: {how}")
        places = {"data": settings.data, "templates": settings.templates}
        source = located(Path(settings.source), self.data_dir)
        if settings.source not in SOURCES and (source.exists() or "/" in settings.source or source.suffix in READERS):
            places["source"] = source
        files = {part: located(path, self.data_dir) for part, path in places.items() if path}
        return self.add(Prompts(f"prompts-{pool}", settings, files=files, place=("prompts", pool)))

    def distil(self, pool: str, strategy: str, maker: _Maker | None = None) -> Stage[Any]:
        """The stage in which a teacher answers a pool by a strategy, filtered as the study or the arm says."""
        own, study = maker.arm if maker else Arm(), self.study
        safety = pool == "harmful"
        which = own.filter if safety and own.filter and own.filter.kind != CLIFF else study.filter
        loaded = load_strategy(strategy)
        changes: dict[str, Any] = {"strategy": strategy, "keep": (own.keep if safety else None) or study.distil.keep}
        changes |= own.distil if safety else {"keep": "everything", "begin": Begin()}
        if maker is None and study.distil.begin.traces:
            changes["begin"] = Begin()  # what others begin with begins itself with nothing
        place: Location = maker.place if maker else ("distil",)
        settings = study.distil.settings(strategy=strategy)
        with self.problems.at(*place, "distil"):
            settings = study.distil.settings(**changes)
        names = ("" if safety else pool, which is own.filter and which.kind, safety and own.keep)
        # Of a name the last part, fit for a folder's.
        suffix = "".join("-" + re.sub(r"[^\w.-]+", "-", said.rpartition(":")[2]) for said in names if said)
        if maker and (own.teacher or (safety and own.distil)):
            suffix += f"-{maker.label}"
        models = self.players(teacher=self._teacher(own, strategy), filter=which.model)
        if loaded.policies:
            models |= self.players(classifier=study.distil.classifier)
        inputs: dict[str, Stage[Any]] = {}
        with self.problems.at(*place):
            inputs["prompts"] = self.prompts(pool)
        if strategy in STUDENT and (study.serve or not study.stand_in):  # a random model never closes its thinking
            models["teacher"] = base_of(self.study, study.base, serve=study.serve)
        if own.teacher == SELF and maker and maker.copy:
            inputs |= self.weights("teacher", maker.copy, maker.seed, models)
        if loaded.needs_trace:
            inputs["given"] = self.distil(pool, REWRITTEN)
        if settings.begin.traces:
            inputs["begun"] = self.distil(pool, settings.begin.traces)
        files = which.files("filter") | ({"strategy": strategy_file(strategy)} if strategy.endswith(".md") else {})
        if settings.begin.file:
            files["begin"] = located(Path(settings.begin.file), self.data_dir)
        name, how = f"distil-{Path(strategy).stem}{suffix}", DistilStageSettings(distil=settings, filter=which.kind)
        return self.add(Distil(name, how, inputs=inputs, files=files, models=models, place=("distil",)))

    def _teacher(self, arm: Arm, strategy: str) -> str | None:
        """The name of the model that writes an arm's traces; its own weights have none."""
        if arm.teacher:
            return None if arm.teacher == SELF else arm.teacher
        return self.study.distil.teachers.get(strategy) or self.study.distil.teacher

    def weights(self, part: str, copy: Copy, seed: int, models: dict[str, ModelConfig]) -> dict[str, Stage[Any]]:
        """The stage whose checkpoint plays a part for a training that goes on from it; none where it begins from a base.

        The base is among `models` either way: what a checkpoint is and needs is known by it.
        """
        models[part] = base_of(self.study, copy.base)
        after = self.study.arms[copy.arm].after
        if after not in self.study.arms or copy in self.making:  # `check_study` says why
            return {}
        self.making.append(copy)
        same = (one for one in self.study.copies(after) if one.base == copy.base)
        trained = self.train(next(same, Copy(after, after, copy.base)), seed)
        self.making.pop()
        return {part: trained} if trained else {}

    def traces(self, maker: _Maker) -> Stage[Any]:
        """The stage whose traces are an arm's safety data, before they are repaired."""
        traces, which = self.distil("harmful", str(maker.arm.format), maker), maker.arm.filter
        if which is None or which.kind != CLIFF:
            return traces
        models = self.players(judge=self.study.filter.model, target=which.model)
        inputs = {"traces": traces}
        if maker.copy and not which.model:
            inputs |= self.weights("target", maker.copy, maker.seed, models)
        settings = ProbeStageSettings(probe=ProbeSettings(), judge=self.study.filter.kind, keep=True)
        files, place = self.study.filter.files("judge"), (*maker.place, "filter")
        return self.add(Probe(f"cliff-{maker.label}", settings, inputs=inputs, files=files, models=models, place=place))

    def diagnose(self, maker: _Maker) -> Stage[Any]:
        """The stage that finds the failure patterns in the traces of an arm's format."""
        traces, detector = self.distil("harmful", str(maker.arm.format), maker), self.study.detector
        name, settings = f"diagnose-{traces.name.removeprefix('distil-')}", DetectorSettings(detector=detector.kind)
        models, files = self.players(detector=detector.model), detector.files("detector")
        inputs = {"traces": traces}
        return self.add(Diagnose(name, settings, inputs=inputs, files=files, models=models, place=("detector",)))

    def repair(self, maker: _Maker) -> Stage[Any]:
        """The stage that mends an arm's safety traces."""
        arm, study = maker.arm, self.study
        assert arm.repair is not None
        models = self.players(teacher=self._teacher(arm, str(arm.format)), detector=study.detector.model)
        inputs = {"traces": self.traces(maker), "findings": self.diagnose(maker)}
        if arm.teacher == SELF and maker.copy:
            inputs |= self.weights("teacher", maker.copy, maker.seed, models)
        settings = RepairStageSettings(repair=arm.repair, detector=study.detector.kind)
        name, files, place = f"repair-{maker.label}", study.detector.files("detector"), (*maker.place, "repair")
        return self.add(Repair(name, settings, inputs=inputs, files=files, models=models, place=place))

    def mix(self, maker: _Maker, *, held_out: int) -> Stage[Any]:
        """The stage that draws an arm's training rows."""
        inputs: dict[str, Stage[Any]] = {}
        files: dict[str, Path] = {}
        name, arm = maker.name, maker.arm
        settings = self.study.mix_of(name, arm)
        for share, options in settings.shares.items():
            if options.file or options.hub:
                path = located(options.file, self.data_dir) if options.file else None
                if path is not None and (path.exists() or not options.hub):
                    files[share] = path
            elif share == "safety":
                inputs[share] = self.repair(maker) if arm.repair else self.traces(maker)
                if arm.without:
                    inputs["findings"] = self.diagnose(maker)
            else:
                inputs[share] = self.distil(share, self._other_format(share, arm), maker)
        whole = MixStageSettings(mix=settings, held_out=held_out, without=arm.without)
        return self.add(Mix(f"mix-{maker.label}", whole, inputs=inputs, files=files, place=maker.place))

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
        if not arm.trained or not (arm.safety or arm.maths or arm.benign):  # `check_study` says so of a format alone
            return None
        maker = _Maker(name, arm, ("arms", name), copy, seed)
        if arm.format is not None and isinstance(arm.safety, int) and "harmful" not in self.study.traces:
            self.diagnose(maker)  # its pattern rates belong to the report, whether or not the mix needs them
        kind, train = self.training(arm, (*maker.place, "train"), seed=seed)
        if train is None:
            return None
        offered: dict[str, Callable[[], Stage[Any]]] = {
            "mix": lambda: self.mix(maker, held_out=self.study.held_out),
            "traces": lambda: self.distil("harmful", str(arm.format), maker),
            "findings": lambda: self.diagnose(maker),
        }
        models: dict[str, ModelConfig] = {}
        inputs = self.weights("base", copy, seed, models)
        with self.problems.at(*maker.place):
            inputs |= {part: offered[part]() for part in kind.reads}
        settings, own_name = kind.Settings(train=train, arm=copy.name, seed=seed), f"{kind.kind}-{copy.name}-s{seed}"
        return self.add(kind(own_name, settings, inputs=inputs, models=models, place=maker.place))

    def training(self, arm: Arm, place: Location, **more: int) -> tuple[type[Stage[Any]], BaseModel | None]:
        """The kind of stage that trains an arm, and its settings: the study's, the arm's, and `more`; `None`: none are given.

        An arm that is trained by another kind than the study takes what that kind knows of the study's settings.
        """
        shared, own = dict(self.study.train), dict(arm.train)
        usual = shared.pop("stage", "train")
        stage, kind = own.pop("stage", usual), cast("type[Stage[Any]]", Train)
        with self.problems.at(*(place if "stage" in arm.train else ("train",)), "stage"):
            kind = lookup("stage", stage, STAGES)
        known = cast("type[BaseModel]", kind.Settings.model_fields["train"].annotation)
        if stage != usual:
            shared = {key: value for key, value in shared.items() if key in known.model_fields}
        read = self.problems.read(known, shared, place=("train",)) if shared else None
        own = (read.model_dump(exclude_unset=True) if read else {}) | own | more if own or more else {}
        return kind, self.problems.read(known, own, place=place) if own else None

    def tamper(self, copy: Copy, seed: int, use: TamperUse, trained: Stage[Any] | None, at: int) -> None:
        """The trainings and evaluations that show how soon fine-tuning undoes an arm."""
        if (use.arms and copy.arm not in use.arms) or (use.seeds and seed not in use.seeds):
            return
        maker = _Maker(f"tamper-{use.name}", use.rows, ("tamper", at, "rows"))
        arm = use.rows.model_copy(update={"train": {"stage": "train"} | use.rows.train})
        rows, base = self.mix(maker, held_out=0), base_of(self.study, copy.base)
        number, bench = self.bench(use.bench, use.attack)
        for steps in filter(None, use.steps):
            kind, train = self.training(arm, (*maker.place, "train"), seed=seed, steps=steps)
            how = {"train": train or TrainSettings(), "tampered": Tampered(rows=use.name, steps=steps)}
            settings, name = kind.Settings(arm=copy.name, seed=seed, **how), f"{copy.name}-s{seed}-{use.name}-{steps}"
            inputs = {"mix": rows} | ({"base": trained} if trained else {})
            stage = kind(f"tamper-{name}", settings, inputs=inputs, models={"base": base}, place=("tamper", at))
            self.evaluate(copy, seed, bench, self.add(stage), number)

    def bench(self, name: str, attack: str) -> tuple[int, BenchUse]:
        """One of the study's benchmarks, and its place."""
        for at, use in enumerate(self.study.bench):
            if (use.name, use.attack.name) == (name, attack):
                return at, use
        raise UserError("")  # `check_study` said that there is none

    def probe(self, copy: Copy, seed: int, use: ProbeUse, trained: Stage[Any] | None, at: int) -> None:
        """The stage that shows where in its thinking an arm decides to refuse."""
        number, bench = self.bench(use.bench, use.attack)
        evaluated = self.evaluate(copy, seed, bench, trained, number)
        probe = ProbeSettings(**use.model_dump(exclude={"bench", "attack"}))
        known = {key: getattr(evaluated.settings, key) for key in ("arm", "seed", "serve")}
        settings = ProbeStageSettings(probe=probe, judge=bench.judge_kind, bench=bench.name, **known)
        models = {part: model for part, model in evaluated.models.items() if part in ("judge", "target")}
        inputs = {"traces": evaluated} | ({"target": trained} if trained else {})
        name = evaluated.name.replace("evaluate-", "probe-", 1)
        self.add(Probe(name, settings, inputs=inputs, models=models, place=("probe", at)))

    def evaluate(self, copy: Copy, seed: int, use: BenchUse, trained: Stage[Any] | None, at: int) -> Stage[Any]:
        """The stage that runs one benchmark under one attack against one model."""
        arm, bench = self.study.arms[copy.arm], get_bench(use.name)
        files = use.judge.files("judge") if use.judge else {}
        path = Path(use.data) if use.data else local(bench, self.data_dir)
        if path is not None:
            files["data"] = path
        elif bench.name in self.study.stand_in_data:
            files["stand_in"] = Path(self.study.stand_in_data[bench.name])
        try:
            files |= {f"{FILE}{key}": path for key, path in use.attack.files(self.data_dir).items()}
        except UserError as error:
            self.missing.append((("bench", at), Lack("attack", str(error))))
        parts = {player(part): use.attack.models.get(part) for part in use.attack.parts}
        models = self.players(judge=use.judge.model if use.judge else None, **parts)
        tampered: Tampered | None = getattr(trained.settings, "tampered", None) if trained else None
        how: dict[str, Any] = {"seed": seed} if arm.trained or arm.after else {}
        how |= {"decoding": arm.decoding, "serve": self.study.serve, "tampered": tampered}
        settings = EvaluateSettings(bench=use, arm=copy.name, **how)
        label = f"{f'{tampered.rows}-{tampered.steps}-' if tampered else ''}{re.sub(r'[@=]', '-', use.name)}-{use.attack.name}{f'-{use.part}' if use.part else ''}"
        inputs = {"target": trained} if trained else {}
        models |= {"target": base_of(self.study, copy.base, serve=self.study.serve)}
        name = f"evaluate-{copy.name}-s{seed}-{label}"
        return self.add(Evaluate(name, settings, inputs=inputs, files=files, models=models, place=("bench", at)))


def base_of(study: Study, base: str, *, serve: Mapping[str, Any] = MappingProxyType({})) -> ModelConfig:
    """The model that a base's name means, served as the study says where it is weights alone.

    Raises UserError: it means none.
    """
    folder = base_folder(base)
    if folder is None and base in study.models:
        return study.models[base]
    model = Local(path=str(folder)) if folder else parse_model(base)
    if isinstance(model, Local) and base in study.revisions:
        model = model.model_copy(update={"revision": study.revisions[base]})
    weights = model.model_dump(include={"path", "hub", "revision"}, exclude_defaults=True)
    return as_model(weights | dict(serve)) if serve and isinstance(model, Local) else model
