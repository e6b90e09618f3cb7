"""What a study means: its stages, as plain data.

    prompts-POOL -> distil-FORMAT -> diagnose-FORMAT
                          `-> [repair-ARM] -> mix-ARM -> train-ARM-sSEED -> evaluate-ARM-sSEED-BENCH-ATTACK

Arms share what they have in common: one distillation serves every arm of its format, one evaluation of a base serves
every study that asks for it in the same folder.
"""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path
from typing import Any

from demur.bench import get_bench
from demur.distil.strategy import file_of as strategy_file
from demur.distil.strategy import load as load_strategy
from demur.errors import UserError
from demur.models import BASES
from demur.models.config import ModelConfig, parse_model
from demur.pipeline.hardware import lacking
from demur.pipeline.run import Node
from demur.pipeline.study import STUDENT, Arm, BenchUse, Copy, Study
from demur.prompts import SOURCES
from demur.prompts.load import located
from demur.registry import resolve

REWRITTEN = "improved"
"""The strategy whose kept traces `rewrite` is given."""


class Graph:
    """Collects the nodes of a study; asking for one that is there already gives its name."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.nodes: dict[str, Node] = {}

    def add(self, node: Node) -> str:
        """Take a node in."""
        known = self.nodes.setdefault(node.name, node)
        assert known == node, f"two different stages named {node.name}"
        return node.name

    def prompts(self, pool: str) -> str:
        """The stage that draws a pool of prompts."""
        settings = self.study.prompts[pool]
        named = settings.source in SOURCES or ":" in settings.source
        places = {
            "source": None if named else Path(settings.source),
            "data": settings.data,
            "templates": settings.templates,
        }
        found = {role: located(path, _path(self.study.data_dir)) for role, path in places.items() if path}
        files = {role: str(path) for role, path in found.items()}
        return self.add(Node(name=f"prompts-{pool}", kind="prompts", settings=_dump(settings), files=files))

    def distil(self, pool: str, strategy: str, arm: Arm | None = None) -> str:
        """The stage in which a teacher answers a pool by a strategy, filtered as the study or the arm says."""
        own = arm or Arm()
        suffix = "" if pool == "harmful" else f"-{pool}"
        suffix += "".join(f"-{_slug(said)}" for said in (own.filter, own.keep) if said)
        settings = self.study.distil.model_copy(
            update={"strategy": strategy} | ({"keep": own.keep} if own.keep else {})
        )
        if pool != "harmful":
            settings = settings.model_copy(update={"keep": "everything"})
        roles = self._roles("teacher", "safety_filter", "judge")
        inputs = {"prompts": self.prompts(pool)}
        if strategy in STUDENT and not self.study.stand_in:  # a random model never closes its thinking
            roles["teacher"] = self._student()
        if load_strategy(strategy).needs_trace:
            inputs["given"] = self.distil(pool, REWRITTEN)
        node = Node(
            name=f"distil-{Path(strategy).stem}{suffix}",
            kind="distil",
            settings={"distil": _dump(settings), "filter": own.filter or self.study.filter} | roles,
            inputs=inputs,
            files={"strategy": str(strategy_file(strategy))} if strategy.endswith(".md") else {},
        )
        return self.add(node)

    def _student(self) -> dict[str, Any]:
        """The model to be trained, as the writer of its own traces."""
        folder = base_folder(self.study.base)
        return _dump(ModelConfig(path=str(folder)) if folder else parse_model(self.study.base))

    def diagnose(self, arm: Arm) -> str:
        """The stage that finds the failure patterns in the traces of an arm's format."""
        assert arm.format is not None
        settings = {"name": self.study.detector} | self._roles("detector")
        traces = self.distil("harmful", arm.format, arm)
        name = f"diagnose-{traces.removeprefix('distil-')}"
        return self.add(Node(name=name, kind="diagnose", settings=settings, inputs={"traces": traces}))

    def repair(self, name: str, arm: Arm) -> str:
        """The stage that mends an arm's safety traces."""
        assert arm.format is not None and arm.repair is not None  # noqa: PT018
        settings = {
            "repair": arm.repair.model_dump(mode="json", by_alias=True),
            "name": self.study.detector,
        } | self._roles("teacher", "detector")
        inputs = {"traces": self.distil("harmful", arm.format, arm), "findings": self.diagnose(arm)}
        return self.add(Node(name=f"repair-{name}", kind="repair", settings=settings, inputs=inputs))

    def mix(self, name: str, arm: Arm) -> str:
        """The stage that draws an arm's training rows."""
        inputs: dict[str, str] = {}
        files: dict[str, str] = {}
        settings = self.study.mix_of(name)
        for share, options in settings.shares.items():
            if options.file or options.hub:
                path = located(options.file, _path(self.study.data_dir)) if options.file else None
                if path is not None and (path.exists() or not options.hub):
                    files[share] = str(path)
            elif share == "safety":
                assert arm.format is not None
                inputs[share] = self.repair(name, arm) if arm.repair else self.distil("harmful", arm.format, arm)
                if arm.without:
                    inputs["findings"] = self.diagnose(arm)
            else:
                inputs[share] = self.distil(share, self._other_format(share, arm))
        plain: dict[str, Any] = {"mix": _dump(settings), "held_out": self.study.held_out}
        if arm.without:
            plain["without"] = list(arm.without)
        return self.add(Node(name=f"mix-{name}", kind="mix", settings=plain, inputs=inputs, files=files))

    def _other_format(self, share: str, arm: Arm) -> str:
        """The strategy of rows that are not about safety. A constant refusal is no reply to them."""
        if share != "benign" or arm.format is None:
            return "default"
        wanted = arm.benign_format or self.study.benign_format
        if wanted != "same":
            return wanted
        return "default" if load_strategy(arm.format).constant is not None else arm.format

    def train(self, copy: Copy, seed: int) -> str:
        """The stage that trains an arm from one base with one seed."""
        arm = self.study.arms[copy.arm]
        settings: dict[str, Any] = {"train": _dump(self.study.train_of(copy.arm, seed)), "arm": copy.name, "seed": seed}
        base, files = self._base(copy)
        return self.add(
            Node(
                name=f"train-{copy.name}-s{seed}",
                kind="train",
                settings=settings | base,
                inputs={"mix": self.mix(copy.arm, arm)},
                files=files,
            )
        )

    def evaluate(self, copy: Copy, seed: int, use: BenchUse) -> str:
        """The stage that runs one benchmark under one attack against one model."""
        arm = self.study.arms[copy.arm]
        settings: dict[str, Any] = {"arm": copy.name, "seed": seed if arm.trained else None, "bench": _dump(use)}
        settings |= {"decoding": arm.decoding} if arm.decoding else {}
        settings |= {"serve": self.study.serve} if self.study.serve else {}
        inputs: dict[str, str] = {}
        files: dict[str, str] = {}
        if arm.trained:
            inputs["model"] = self.train(copy, seed)
            self.diagnose_format(arm)
        else:
            base, files = self._base(copy)
            settings |= base
        bench = get_bench(use.name)
        path = _path(use.data) or _found(bench.files, self.study.data_dir)
        if path is not None:
            files["data"] = str(path)
        elif bench.name in self.study.stand_in_data:
            files["stand_in"] = self.study.stand_in_data[bench.name]
        files |= {f"attack_{key}": str(path) for key, path in use.attack.files(_path(self.study.data_dir)).items()}
        settings |= self._roles("judge", *use.attack.parts.values())
        label = f"{use.name.replace('@', '-')}-{use.attack.name}{f'-{use.part}' if use.part else ''}"
        return self.add(
            Node(
                name=f"evaluate-{copy.name}-s{seed}-{label}",
                kind="evaluate",
                settings=settings,
                inputs=inputs,
                files=files,
            )
        )

    def diagnose_format(self, arm: Arm) -> None:
        """The pattern rates of an arm's format belong to the report, whether or not the mix needs them."""
        if arm.format is not None and isinstance(arm.safety, int) and "harmful" not in self.study.traces:
            self.diagnose(arm)

    def _base(self, copy: Copy) -> tuple[dict[str, Any], dict[str, str]]:
        """How a stage names the base: a role in its settings, and a folder whose content counts."""
        folder = base_folder(copy.base)
        if folder is not None:
            return {}, {"base": str(folder)}
        role = self.study.roles.get(copy.base) or parse_model(copy.base)
        return {"target": _dump(role)}, {"base": role.path} if role.path else {}

    def _roles(self, *names: str) -> dict[str, Any]:
        """The roles of a stage, as plain data."""
        return {name: _dump(self.study.roles[name]) for name in names if name in self.study.roles}


def graph(study: Study) -> list[Node]:
    """All stages of a study.

    Raises:
        UserError: a benchmark, a strategy or a local copy that is not there.
    """
    built = Graph(study)
    for name, arm in study.arms.items():
        for copy, seed in itertools.product(study.copies(name), study.seeds_of(name)):
            if arm.trained:
                built.train(copy, seed)
            for use in study.bench:
                built.evaluate(copy, seed, use)
    return list(built.nodes.values())


@functools.cache
def _shipped(name: str) -> Path:
    """A shipped base's folder; its files are checked against their card once a process, not once a stage."""
    folder: Path = resolve("base", name, BASES)(name)
    return folder


def base_folder(base: str) -> Path | None:
    """The folder that a base's name means; `None` when it is not on this machine."""
    if base in BASES:
        return _shipped(base)
    return Path(base) if Path(base).is_dir() else None


def missing(study: Study) -> list[str]:
    """What a study needs and does not have: one line each, with how to give it. Asks no one."""
    lines = [f"{name:<10} {line}" for name, role in study.roles.items() for line in role.missing()]
    for _, name, base in (copy for arm in study.arms for copy in study.copies(arm)):
        arm = study.arms[name]
        if base not in study.roles and base_folder(base) is None:
            try:
                parse_model(base)
            except UserError as error:
                lines.append(f"{'base':<10} of arm '{name}': {error}")
        if arm.trained and study.train.device != "cpu":
            settings = study.train_of(name, 0)
            if lack := lacking(base, lora=settings.lora is not None, processes=settings.processes):
                lines.append(f"{'train':<10} {lack}")
    return list(dict.fromkeys(lines))


def _dump(settings: Any) -> dict[str, Any]:
    """Settings as plain data, defaults included: they are part of what was done."""
    data: dict[str, Any] = settings.model_dump(mode="json")
    return data


def _slug(text: str) -> str:
    """The last part of a name, fit for a folder's."""
    return re.sub(r"[^\w.-]+", "-", text.rpartition(":")[2])


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _found(names: tuple[str, ...], data_dir: str | None) -> Path | None:
    """The first of some names that is in the folder of local copies."""
    for name in names if data_dir else ():
        path = Path(str(data_dir)) / name
        if path.exists():
            return path
    return None
