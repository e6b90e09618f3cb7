"""Every setting reaches what is done, or is refused: enumerated from the settings classes, so that a new field cannot be forgotten.

A field is part of a fingerprint unless it says how something is reached; a study's field changes the graph of stages; and
every other one is read while small studies run here, or in the test that is named for it.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import demur
from demur.pipeline.dag import ordered, plan
from demur.pipeline.resolve import make
from demur.pipeline.run import execute
from demur.settings import Strict, identity_of, override
from demur.testing.server import serving

SOURCE = Path(demur.__file__).parent
STUDY: dict[str, Any] = {
    "name": "tiny",
    "base": "mini-lrm-a",
    "models": {"teacher": "script:demur.mini.teacher:script", "other": "script:echo"},
    "prompts": {"harmful": {"source": "mini-harmful", "n": 24}, "benign": {"source": "mini-benign", "n": 8}},
    "distil": {"samples": 4, "keep": "answer safe"},
    "filter": "mini-harm",
    "detector": "mini",
    "train": {"steps": 1, "lr": 1e-3, "batch": 2},
    "arms": {
        "raw": {},
        "first": {"format": "default", "safety": 4, "benign": 2, "repair": {"with": "drop"}},
    },
    "bench": [{"name": "mini_harm", "limit": 2}, {"name": "mini_harm", "attack": "mini-adaptive", "limit": 2}],
    "probe": [{"bench": "mini_harm", "limit": 2}],
    "tamper": [{"name": "benign", "rows": {"benign": 2}, "steps": [1], "bench": "mini_harm"}],
}
FIRST = "arms.first"
CHANGES: dict[str, dict[str, Any]] = {
    "Study": {
        "base": "base=mini-lrm-b", "models": "models.teacher=script:echo", "prompts": "prompts.harmful.n=11",
        "traces": f"traces.harmful={{file: {__file__}, n: 4}}", "distil": "distil.samples=3", "benign_format": "benign_format=short",
        "detector": "detector=rules", "filter": "filter=rules", "mix": "mix.seed=1", "train": "train.steps=2",
        "arms": "arms.more={}", "bench": "bench.0.limit=3", "probe": "probe.0.limit=1", "tamper": "tamper.0.steps=[2]",
        "seeds": "seeds=[0, 1]", "held_out": "held_out=1", "serve": "serve=vllm", "bases": ("base=", "bases=[mini-lrm-a, mini-lrm-b]"),
        "revisions": ("arms.hub={base: o/n}", "revisions.o/n=v1"),         "stand_in_data": ("stand_in=true", f"stand_in_data.mini_harm={__file__}"),
    },
    "Arm": {
        "after": ("arms.second={format: short, safety: 4}", f"{FIRST}.after=second"), "base": f"{FIRST}.base=mini-lrm-b", "format": f"{FIRST}.format=short",
        "teacher": f"{FIRST}.teacher=other", "distil": f"{FIRST}.distil.samples=3", "safety": f"{FIRST}.safety=3",
        "maths": f"{FIRST}.maths={{file: {__file__}, n: 1}}", "benign": f"{FIRST}.benign=1", "without": f"{FIRST}.without=[weak_vacillation]",
        "filter": f"{FIRST}.filter=rules", "keep": f"{FIRST}.keep=everything", "benign_format": f"{FIRST}.benign_format=short",
        "repair": f"{FIRST}.repair.with=trim", "decoding": f"{FIRST}.decoding=zero", "train": f"{FIRST}.train.steps=2", "seeds": f"{FIRST}.seeds=[1]",
    },
    "Teaching": {
        "teacher": "distil.teacher=other", "teachers": "distil.teachers.default=other",
        "classifier": (f"{FIRST}.format=FOLDER/policies.md", "distil.classifier=other"),
    },
    "MixDefaults": {
        "shares": "mix.shares.safety.cap=3", "total": ("tamper=[]", f"{FIRST}.safety={{ratio: 0.5}}", f"{FIRST}.benign={{ratio: 0.5}}", "mix.total=6"), "dedupe": "mix.dedupe=none", "similarity": "mix.similarity=0.7",
        "seed": "mix.seed=1",
    },
    "ProbeUse": {"bench": "probe=[]", "attack": "probe.0.attack=mini-adaptive"},
    "TamperUse": {
        "name": "tamper.0.name=other", "rows": "tamper.0.rows.benign=1", "steps": "tamper.0.steps=[2]", "bench": "tamper=[]",
        "attack": "tamper.0.attack=mini-adaptive", "arms": "tamper.0.arms=[first]", "seeds": "tamper.0.seeds=[7]",
    },
}  # fmt: skip
"""Study class -> field -> what changes it, and with it the stages; of several the last is the change, the others its ground."""
REPORTED = {
    "Study": {"name", "question", "compare", "findings", "fixed", "quick", "data_dir", "workers", "stand_in"},
    "Comparison": {"a", "b", "bench", "margin"},
    "Evidence": {"a", "b", "metric", "bench", "attack", "part", "expect", "by", "weights"},
    "Finding": {"claim", "evidence"},
}
"""What makes no other stages: what a report says of them, and how a run is done (tests/report, tests/pipeline)."""
CONNECTION = {
    "Use": {"model", "text"}, "Study": {"data_dir", "workers"}, "BenchUse": {"max_unscored"},
    "Remote": {"url", "key_env", "headers", "prices", "tries", "patience", "on_swap", "timeout", "least_speed", "in_flight"},
    "Served": {"devices", "tensor_parallel", "memory", "start_within", "timeout", "least_speed", "in_flight"},
    "Local": {"device", "batch", "threads"}, "Scripted": {"timeout", "in_flight"}, "HttpModel": {"timeout", "least_speed", "in_flight"},
    "TrainSettings": {
        "packing", "micro_batch", "micro_tokens", "checkpointing", "checkpoint_every", "threads", "processes", "parallel", "device", "report_to",
    },
}  # fmt: skip
"""Fields in no fingerprint; a model or a text that a part names is in it as what it is."""


def classes(kind: type[Strict] = Strict) -> Iterator[type[Strict]]:
    """All settings classes of the package."""
    for own in kind.__subclasses__():
        if own.__module__.startswith("demur."):
            yield own
        yield from classes(own)


@pytest.fixture(scope="module")
def ours() -> list[type[Strict]]:
    for path in (
        one for name in ("settings", "stages/*", "models/*", "attack/*") for one in SOURCE.rglob(f"{name}.py")
    ):
        importlib.import_module(
            f"demur.{path.relative_to(SOURCE).with_suffix('').as_posix().replace('/', '.')}".removesuffix(".__init__")
        )
    found = list(dict.fromkeys(classes()))
    assert len(found) > 30
    return found


def test_a_fingerprint_has_every_field_but_connections(ours: list[type[Strict]]) -> None:
    for kind in ours:
        required: dict[str, Any] = {name: "x" for name, field in kind.model_fields.items() if field.is_required()}
        settings = kind.model_construct(**required)
        if "revision" in kind.model_fields:  # without one the address says which model it is
            settings = settings.model_copy(update={"revision": "1"})
        same = {
            name
            for name in kind.model_fields
            if identity_of(settings.model_copy(update={name: "changed"})) == identity_of(settings)
        }
        assert same == CONNECTION.get(kind.__name__, set()), kind.__name__


def marks(change: str | tuple[str, ...], folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Stages and their fingerprints of the study before and after a change."""
    *ground, last = (change,) if isinstance(change, str) else change
    data, found = STUDY, list[dict[str, str]]()
    for item in (*ground, None, last):
        if item is not None:
            data = override(data, item.replace("FOLDER", str(folder)))
        if item in (None, last):
            data = {key: value for key, value in data.items() if key != "base" or value}
            stages = make(data, where="test").stages
            absent = {path for stage in ordered(stages) for path in stage.files.values() if not path.exists()}
            found.append({item.name: item.fingerprint for item in plan(stages, Path("out"), absent=absent)})
    return found[0], found[1]


def test_every_field_of_a_study_makes_other_stages_or_is_the_reports(ours: list[type[Strict]], tmp_path: Path) -> None:
    (tmp_path / "policies.md").write_text(
        "---\nname: policies\nplace: user\nsource: policies\n---\n{policy} {prompt}\n"
    )
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "default.md").write_text("Think.")
    for kind in (one for one in ours if one.__module__ == "demur.pipeline.study"):
        own = set(kind.__annotations__)
        assert own == set(CHANGES.get(kind.__name__, ())) | REPORTED.get(kind.__name__, set()), kind.__name__
        for field, change in CHANGES.get(kind.__name__, {}).items():
            before, after = marks(change, tmp_path)
            assert before != after, f"{kind.__name__}.{field} is dropped in silence"


RUNS: list[dict[str, Any]] = [
    STUDY,
    {
        "name": "other", "base": "script:echo", "models": {"attacker": "script:echo", "attack_judge": "script:echo"}, "arms": {"raw": {}},
        "bench": [
            {"name": "mini_harm", "limit": 1, "attack": {"name": name, **settings}}
            for name, settings in {
                "pair": {"streams": 1, "iterations": 1}, "tap": {"iterations": 1, "branches": 1}, "crescendo": {"iterations": 1},
                "prefill": {}, "hijack": {}, "tokens": {},
            }.items()
        ],
    },
]  # fmt: skip


READ_IN = {
    "models.config": "models/client models/transport models/answering models/wire models/vllm models/config models/local pipeline/placement",
    "models.sampling": "models/answering models/wire models/local models/client interfaces", "attack.static": "attack/static", "attack.pap": "attack/pap", "distil.settings": "distil/run pipeline/stages/distil",
    "mix.settings": "mix/settings mix/draw pipeline/stages/mix prompts/publish", "repair.settings": "repair/run repair/cut repair/settings",
    "pipeline.stages.evaluate": "report/read pipeline/stages/evaluate", "pipeline.stages.probe": "report/details pipeline/stages/probe",
    "pipeline.stages.train": "report/training report/read", "pipeline.stages.rejudge": "pipeline/stages/rejudge report/read",
    "pipeline.stages.importing": "pipeline/stages/importing", "train.settings": "train/model train/prepare train/batches",
}  # fmt: skip
"""Where settings are read that the studies here do not come to: of weights that a server or a GPU holds, and the like."""


@pytest.mark.slow
def test_every_other_field_is_read_where_its_work_is_done(
    ours: list[type[Strict]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: set[tuple[type, str]] = set()

    def spy(self: Any, name: str) -> Any:
        if name in type(self).__pydantic_fields__:
            reader = sys._getframe(1).f_globals.get("__name__", "")
            if reader.startswith("demur.") and reader != "demur.settings":
                reads.update((kind, name) for kind in type(self).__mro__)
        return object.__getattribute__(self, name)

    monkeypatch.setattr(Strict, "__getattribute__", spy, raising=False)
    with serving("echo") as server:
        asked = {
            "name": "asked",
            "base": "m",
            "models": {"m": server.url},
            "arms": {"raw": {}},
            "bench": [{"name": "mini_harm", "limit": 1}],
        }
        for number, study in enumerate((*RUNS, asked)):
            resolved = make(study, where="test")
            for stage in ordered(resolved.stages):
                stage.estimate()
            execute(resolved.stages, out=tmp_path / str(number), add=False)
    unread = []
    for kind in (one for one in ours if one.__module__ != "demur.pipeline.study"):
        paths = READ_IN.get(kind.__module__.removeprefix("demur."), "").split()
        text = "".join((SOURCE / f"{path}.py").read_text() for path in paths)
        left = [name for name in kind.__annotations__ if name in kind.model_fields and (kind, name) not in reads]
        unread += [f"{kind.__name__}.{name}" for name in left if not re.search(rf"\.{name}\b|[\"']{name}[\"']", text)]
    assert not unread
