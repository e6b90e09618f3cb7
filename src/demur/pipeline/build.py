"""From a study to its stages.

    prompts-POOL -> distil-FORMAT -> diagnose-FORMAT
                          `-> [cliff-ARM] -> [repair-ARM] -> mix-ARM -> train-ARM-sSEED -> evaluate-ARM-sSEED-BENCH-ATTACK -> [probe]

Arms share stages: one distillation serves every arm of its format, one evaluation of a base every study of the run's folder.
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
from demur.pipeline.study import CLIFF, SELF, SELF_WRITTEN, Arm, Copy, ProbeUse, Study, TamperUse
from demur.prompts import SOURCES
from demur.prompts.load import located
from demur.registry import resolve as lookup
from demur.settings import Location, Problems
from demur.storage.readers import READERS
from demur.train.settings import TrainSettings

REWRITTEN = "improved"  # The strategy whose kept traces the strategy `rewrite` rewrites


class _Owner(NamedTuple):
    """The arm that training rows are for; with a copy and a seed where its own weights may write them."""

    name: str
    arm: Arm
    place: Location
    copy: Copy | None = None
    seed: int = 0

    @property
    def label(self) -> str:
        """The name of its own stages, which it shares with no other arm."""
        copy = self.copy if SELF in (self.arm.teacher, self.arm.filter and self.arm.filter.model) else None
        return f"{copy.name}-s{self.seed}" if copy else self.name


class Builder:
    """Builds the stages of a study, each of them once."""

    def __init__(self, study: Study, problems: Problems) -> None:
        self.study, self.problems = study, problems
        self.stages: dict[str, Stage[Any]] = {}
        self.missing: list[tuple[Location, Lack]] = []
        self.building: list[Copy] = []  # Copies whose earlier arms are being built, against circles of `after`
        self.data_dir = Path(study.data_dir) if study.data_dir else None

    def all(self) -> list[Stage[Any]]:
        """All stages. One that cannot be built is a problem, and is left out of the stages that read it."""
        study = self.study
        rows: dict[Location, Arm] = {("tamper", at, "rows"): use.rows for at, use in enumerate(study.tamper)}
        for place, arm in ({(): Arm()} | {("arms", name): arm for name, arm in study.arms.items()} | rows).items():
            self.training(arm, (*place, "train"))  # reports settings that are wrong even where nothing is trained
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
        """Add a stage; returns the one of this name that is there already if they are equal."""
        known = self.stages.setdefault(stage.name, stage)
        if known == stage:
            return known
        # Where their settings have problems their names may differ once those are solved.
        if not (self.problems.within(*stage.place) or self.problems.within(*known.place)):
            message = f"another stage '{stage.kind}' would have the same name: leave one of the two out."
            self.problems.add(stage.place, message)
        other = replace(stage, name=f"{stage.name} of {stage.place}")
        return self.stages.setdefault(other.name, other)

    def players(self, **parts: str | Sequence[str] | None) -> dict[str, ModelConfig]:
        """The models that play parts, each by its given name, else by the part's own; parts without a model are left out."""
        models: dict[str, ModelConfig] = {}
        for part, given in parts.items():
            for number, name in enumerate([given] if isinstance(given, str) else given or [part], 1):
                if name in self.study.models:
                    models[part if number == 1 else f"{part}_{number}"] = self.study.models[name]
        return models

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

    def distil(self, pool: str, strategy: str, owner: _Owner | None = None) -> Stage[Any]:
        """The stage in which a teacher answers a pool by a strategy, filtered as the study or the arm asks."""
        arm, study = owner.arm if owner else Arm(), self.study
        safety = pool == "harmful"
        filtering = arm.filter if safety and arm.filter and arm.filter.kind != CLIFF else study.filter
        loaded = load_strategy(strategy)
        changes: dict[str, Any] = {"strategy": strategy, "keep": (arm.keep if safety else None) or study.distil.keep}
        changes |= arm.distil if safety else {"keep": "everything", "begin": Begin()}
        if owner is None and study.distil.begin.traces:
            changes["begin"] = Begin()  # the traces that others begin with
        place: Location = owner.place if owner else ("distil",)
        settings = study.distil.settings(strategy=strategy)
        with self.problems.at(*place, "distil"):
            settings = study.distil.settings(**changes)
        labels = ("" if safety else pool, filtering is arm.filter and filtering.kind, safety and arm.keep)
        # `module:name` counts by its last part, with characters that a folder may have.
        suffix = "".join("-" + re.sub(r"[^\w.-]+", "-", label.rpartition(":")[2]) for label in labels if label)
        if owner and (arm.teacher or (safety and arm.distil)):
            suffix += f"-{owner.label}"
        models = self.players(teacher=self._teacher(arm, strategy), filter=filtering.model)
        if loaded.policies:
            models |= self.players(classifier=study.distil.classifier)
        inputs: dict[str, Stage[Any]] = {}
        with self.problems.at(*place):
            inputs["prompts"] = self.prompts(pool)
        if strategy in SELF_WRITTEN and (study.serve or not study.stand_in):  # a random model never closes its thinking
            models["teacher"] = base_of(self.study, study.base, serve=study.serve)
        if arm.teacher == SELF and owner and owner.copy:
            inputs |= self.weights("teacher", owner.copy, owner.seed, models)
        if loaded.needs_trace:
            inputs["given"] = self.distil(pool, REWRITTEN)
        if settings.begin.traces:
            inputs["begun"] = self.distil(pool, settings.begin.traces)
        files = filtering.files("filter") | ({"strategy": strategy_file(strategy)} if strategy.endswith(".md") else {})
        if settings.begin.file:
            files["begin"] = located(Path(settings.begin.file), self.data_dir)
        whole = DistilStageSettings(distil=settings, filter=filtering.kind)
        name = f"distil-{Path(strategy).stem}{suffix}"
        return self.add(Distil(name, whole, inputs=inputs, files=files, models=models, place=("distil",)))

    def _teacher(self, arm: Arm, strategy: str) -> str | None:
        """The name of the model that writes an arm's traces; `None` for its own weights."""
        if arm.teacher:
            return None if arm.teacher == SELF else arm.teacher
        return self.study.distil.teachers.get(strategy) or self.study.distil.teacher

    def weights(self, part: str, copy: Copy, seed: int, models: dict[str, ModelConfig]) -> dict[str, Stage[Any]]:
        """Part -> the stage that trains the weights from which a copy starts; empty where it starts from its base, which is
        added to `models` either way, since a checkpoint has the properties of its base."""
        models[part] = base_of(self.study, copy.base)
        after = self.study.arms[copy.arm].after
        if after not in self.study.arms or copy in self.building:  # `check_study` reports it
            return {}
        self.building.append(copy)
        same_base = (other for other in self.study.copies(after) if other.base == copy.base)
        trained = self.train(next(same_base, Copy(after, after, copy.base)), seed)
        self.building.pop()
        return {part: trained} if trained else {}

    def traces(self, owner: _Owner) -> Stage[Any]:
        """The stage that makes an arm's safety traces, before they are repaired."""
        traces, cliff = self.distil("harmful", str(owner.arm.format), owner), owner.arm.filter
        if cliff is None or cliff.kind != CLIFF:
            return traces
        models = self.players(judge=self.study.filter.model, target=cliff.model)
        inputs = {"traces": traces}
        if owner.copy and not cliff.model:
            inputs |= self.weights("target", owner.copy, owner.seed, models)
        settings = ProbeStageSettings(probe=ProbeSettings(), judge=self.study.filter.kind, keep=True)
        files, place = self.study.filter.files("judge"), (*owner.place, "filter")
        return self.add(Probe(f"cliff-{owner.label}", settings, inputs=inputs, files=files, models=models, place=place))

    def diagnose(self, owner: _Owner) -> Stage[Any]:
        """The stage that finds the failure patterns in the traces of an arm's format."""
        traces, detector = self.distil("harmful", str(owner.arm.format), owner), self.study.detector
        name, settings = f"diagnose-{traces.name.removeprefix('distil-')}", DetectorSettings(detector=detector.kind)
        models, files = self.players(detector=detector.model), detector.files("detector")
        inputs = {"traces": traces}
        return self.add(Diagnose(name, settings, inputs=inputs, files=files, models=models, place=("detector",)))

    def repair(self, owner: _Owner) -> Stage[Any]:
        """The stage that repairs an arm's safety traces."""
        arm, study = owner.arm, self.study
        assert arm.repair is not None
        models = self.players(teacher=self._teacher(arm, str(arm.format)), detector=study.detector.model)
        inputs = {"traces": self.traces(owner), "findings": self.diagnose(owner)}
        if arm.teacher == SELF and owner.copy:
            inputs |= self.weights("teacher", owner.copy, owner.seed, models)
        settings = RepairStageSettings(repair=arm.repair, detector=study.detector.kind)
        name, files, place = f"repair-{owner.label}", study.detector.files("detector"), (*owner.place, "repair")
        return self.add(Repair(name, settings, inputs=inputs, files=files, models=models, place=place))

    def mix(self, owner: _Owner, *, held_out: int) -> Stage[Any]:
        """The stage that draws an arm's training rows."""
        inputs: dict[str, Stage[Any]] = {}
        files: dict[str, Path] = {}
        name, arm = owner.name, owner.arm
        settings = self.study.mix_of(name, arm)
        for share, options in settings.shares.items():
            if options.file or options.hub:
                path = located(options.file, self.data_dir) if options.file else None
                if path is not None and (path.exists() or not options.hub):
                    files[share] = path
            elif share == "safety":
                inputs[share] = self.repair(owner) if arm.repair else self.traces(owner)
                if arm.without:
                    inputs["findings"] = self.diagnose(owner)
            else:
                inputs[share] = self.distil(share, self._other_format(share, arm), owner)
        whole = MixStageSettings(mix=settings, held_out=held_out, without=arm.without)
        return self.add(Mix(f"mix-{owner.label}", whole, inputs=inputs, files=files, place=owner.place))

    def _other_format(self, share: str, arm: Arm) -> str:
        """The strategy of rows that are not safety data: never one whose replies are a constant refusal."""
        if share != "benign" or arm.format is None:
            return "default"
        wanted = arm.benign_format or self.study.benign_format
        if wanted != "same":
            return wanted
        return "default" if load_strategy(arm.format).constant is not None else arm.format

    def train(self, copy: Copy, seed: int) -> Stage[Any] | None:
        """The stage that trains an arm from one base with one seed."""
        name, arm = copy.arm, self.study.arms[copy.arm]
        if not arm.trained or not (arm.safety or arm.maths or arm.benign):  # `check_study` reports a format alone
            return None
        owner = _Owner(name, arm, ("arms", name), copy, seed)
        if arm.format is not None and isinstance(arm.safety, int) and "harmful" not in self.study.traces:
            self.diagnose(owner)  # the report shows its pattern rates, whether or not the mix needs them
        kind, train = self.training(arm, (*owner.place, "train"), seed=seed)
        if train is None:
            return None
        offered: dict[str, Callable[[], Stage[Any]]] = {
            "mix": lambda: self.mix(owner, held_out=self.study.held_out),
            "traces": lambda: self.distil("harmful", str(arm.format), owner),
            "findings": lambda: self.diagnose(owner),
        }
        models: dict[str, ModelConfig] = {}
        inputs = self.weights("base", copy, seed, models)
        with self.problems.at(*owner.place):
            inputs |= {part: offered[part]() for part in kind.reads}
        settings, label = kind.Settings(train=train, arm=copy.name, seed=seed), f"{kind.kind}-{copy.name}-s{seed}"
        return self.add(kind(label, settings, inputs=inputs, models=models, place=owner.place))

    def training(self, arm: Arm, place: Location, **more: int) -> tuple[type[Stage[Any]], BaseModel | None]:
        """The kind of stage that trains an arm, and its settings: the study's, the arm's, and `more`; `None` where the latter
        two are empty. A kind that differs from the study's takes those of the study's settings that it knows."""
        shared, changes = dict(self.study.train), dict(arm.train)
        usual = shared.pop("stage", "train")
        stage, kind = changes.pop("stage", usual), cast("type[Stage[Any]]", Train)
        with self.problems.at(*(place if "stage" in arm.train else ("train",)), "stage"):
            kind = lookup("stage", stage, STAGES)
        model = cast("type[BaseModel]", kind.Settings.model_fields["train"].annotation)
        if stage != usual:
            shared = {key: value for key, value in shared.items() if key in model.model_fields}
        valid = self.problems.read(model, shared, place=("train",)) if shared else None
        settings = (valid.model_dump(exclude_unset=True) if valid else {}) | changes | more
        return kind, self.problems.read(model, settings, place=place) if changes or more else None

    def tamper(self, copy: Copy, seed: int, use: TamperUse, trained: Stage[Any] | None, at: int) -> None:
        """Add the trainings and evaluations that show how soon fine-tuning undoes an arm."""
        if (use.arms and copy.arm not in use.arms) or (use.seeds and seed not in use.seeds):
            return
        owner = _Owner(f"tamper-{use.name}", use.rows, ("tamper", at, "rows"))
        arm = use.rows.model_copy(update={"train": {"stage": "train"} | use.rows.train})
        inputs = {"mix": self.mix(owner, held_out=0)} | ({"base": trained} if trained else {})
        models, (number, bench) = {"base": base_of(self.study, copy.base)}, self.bench(use.bench, use.attack)
        for steps in filter(None, use.steps):
            kind, train = self.training(arm, (*owner.place, "train"), seed=seed, steps=steps)
            more = {"train": train or TrainSettings(), "tampered": Tampered(rows=use.name, steps=steps)}
            settings, name = kind.Settings(arm=copy.name, seed=seed, **more), f"{copy.name}-s{seed}-{use.name}-{steps}"
            stage = kind(f"tamper-{name}", settings, inputs=inputs, models=models, place=("tamper", at))
            self.evaluate(copy, seed, bench, self.add(stage), number)

    def bench(self, name: str, attack: str) -> tuple[int, BenchUse]:
        """The place and settings of one of the study's benchmarks."""
        for at, use in enumerate(self.study.bench):
            if (use.name, use.attack.name) == (name, attack):
                return at, use
        raise UserError("")  # without a message, since `check_study` reports it

    def probe(self, copy: Copy, seed: int, use: ProbeUse, trained: Stage[Any] | None, at: int) -> None:
        """Add the stage that shows where in its thinking an arm decides to refuse."""
        number, bench = self.bench(use.bench, use.attack)
        evaluated = self.evaluate(copy, seed, bench, trained, number)
        probe = ProbeSettings(**use.model_dump(exclude={"bench", "attack"}))
        same = {key: getattr(evaluated.settings, key) for key in ("arm", "seed", "serve")}
        settings = ProbeStageSettings(probe=probe, judge=bench.judge_kind, bench=bench.name, **same)
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
        models["target"] = base_of(self.study, copy.base, serve=self.study.serve)
        tampered: Tampered | None = getattr(trained.settings, "tampered", None) if trained else None
        more: dict[str, Any] = {"seed": seed} if arm.trained or arm.after else {}
        more |= {"decoding": arm.decoding, "serve": self.study.serve, "tampered": tampered}
        settings = EvaluateSettings(bench=use, arm=copy.name, **more)
        labels = [f"{tampered.rows}-{tampered.steps}"] if tampered else []
        labels += [re.sub(r"[@=]", "-", use.name), use.attack.name, *([use.part] if use.part else [])]
        name = f"evaluate-{copy.name}-s{seed}-{'-'.join(labels)}"
        inputs = {"target": trained} if trained else {}
        return self.add(Evaluate(name, settings, inputs=inputs, files=files, models=models, place=("bench", at)))


def base_of(study: Study, base: str, *, serve: Mapping[str, Any] = MappingProxyType({})) -> ModelConfig:
    """The model that a base names, served as the study asks if it is weights. Raises UserError: an unknown name."""
    folder = base_folder(base)
    if folder is None and base in study.models:
        return study.models[base]
    model = Local(path=str(folder)) if folder else parse_model(base)
    if isinstance(model, Local) and base in study.revisions:
        model = model.model_copy(update={"revision": study.revisions[base]})
    weights = model.model_dump(include={"path", "hub", "revision"}, exclude_defaults=True)
    return as_model(weights | dict(serve)) if serve and isinstance(model, Local) else model
