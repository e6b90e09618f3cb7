"""Studies: what a file may say, what it may not, and that each that ships is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from demur import study as studies
from demur.errors import UserError
from demur.execute import plan
from demur.graph import graph
from demur.stages import KINDS

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "studies").rglob("*.yaml"))
SMALL = """
name: small
base: mini-lrm-a
roles: {teacher: "script:demur.mini.teacher:script"}
prompts:
  harmful: {source: mini-harmful, n: 20}
  benign: {source: mini-benign, n: 10}
distil: {keep: everything}
train: {lr: 1.0e-3, steps: 5}
arms:
  raw: {}
  short: {format: short, safety: 8, benign: 4, train: {lr: 2.0e-3}}
  nocot: {format: nocot, safety: 8, seeds: [7]}
bench:
  - mini_harm
  - {name: mini_harm, attack: mini-seen, limit: 5}
seeds: [1, 2]
quick: {train.steps: 2, seeds: [1]}
compare: [{a: short, b: nocot}]
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_every_study_ships() -> None:
    names = {path.relative_to(ROOT / "studies").as_posix() for path in SHIPPED}
    assert {"paper_released.yaml", "paper_v1.yaml", "paper_v2.yaml", "safebench.yaml", "check_model.yaml"} <= names
    assert {"teacher", "samples", "benign", "learning_rate", "epochs", "formats"} == {
        path.stem for path in SHIPPED if path.parent.name == "ablations"
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_study_that_ships_loads_and_its_graph_builds(
    path: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    loaded = studies.load(path, sets=[f"data_dir={data_dir}"])
    nodes = graph(loaded)
    evaluations = [node for node in nodes if node.kind == "evaluate"]
    assert len(evaluations) == len(loaded.bench) * sum(
        len(loaded.copies(arm)) * len(loaded.seeds_of(arm)) for arm in loaded.arms
    )
    assert {node.inputs["mix"] for node in nodes if node.kind == "train"} == {
        f"mix-{name}" for name, arm in loaded.arms.items() if arm.trained
    }
    planned = plan(nodes, KINDS, tmp_path)
    assert len({item.folder for item in planned}) == len(planned)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_is_saved_is_the_same_study(path: Path, tmp_path: Path) -> None:
    loaded = studies.load(path)
    studies.save(loaded, tmp_path / "study.yaml")
    assert studies.load(tmp_path / "study.yaml") == loaded


def test_overrides_reach_every_depth(small: Path) -> None:
    sets = ["train.lr=5e-4", "arms.short.safety=6", "bench.1.limit=3", "seeds=[4]", "base=mini-lrm-b"]
    loaded = studies.load(small, sets=sets)
    assert loaded.train.lr == 5e-4
    assert loaded.train_of("short", 4).lr == 2e-3, "what an arm says goes before what the study says"
    assert loaded.train_of("nocot", 4).lr == 5e-4
    assert loaded.mix_of("short").shares["safety"].n == 6
    assert loaded.bench[1].limit == 3
    assert (loaded.seeds_of("raw"), loaded.seeds_of("short"), loaded.seeds_of("nocot")) == ((0,), (4,), (7,))
    assert loaded.base == "mini-lrm-b"


def test_overrides_go_before_the_quick_version_and_that_before_the_file(small: Path) -> None:
    assert studies.load(small).train.steps == 5
    quick = studies.load(small, quick=True)
    assert (quick.train.steps, quick.seeds) == (2, (1,))
    assert studies.load(small, quick=True, sets=["train.steps=3"]).train.steps == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"compare": [{"a": "short", "b": "shorter"}]}, "compare names the arm 'shorter'"),
        ({"arms": {"short": {"format": "short", "safety": 8, "maths": 5}}, "compare": []}, "no pool of that name"),
        ({"arms": {"short": {"format": "short"}}, "compare": []}, "has a format and no safety rows"),
        ({"armz": {}}, "armz"),
        ({"train": {"learning_rate": 1}}, "learning_rate"),
        ({"arms": {"short": {"format": "short", "safety": 8, "train": {"lrr": 1}}}, "compare": []}, "lrr"),
        ({"stand_in_data": {"advbench": "x"}}, "stand_in_data is for stand-ins alone"),
    ],
)
def test_what_is_wrong_is_named(small: Path, change: dict[str, object], said: str) -> None:
    small.write_text(yaml.safe_dump(yaml.safe_load(SMALL) | change))
    with pytest.raises(UserError, match=said):
        studies.load(small)


@pytest.mark.parametrize(
    ("change", "said"),
    [("bench=[{name: advbenchh}]", "advbenchh"), ("arms.short.format=shorty", "shorty")],
)
def test_an_unknown_benchmark_or_strategy_is_named(small: Path, change: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        graph(studies.load(small, sets=[change]))


def test_arms_share_what_they_have_in_common(small: Path) -> None:
    nodes = {node.name: node for node in graph(studies.load(small))}
    assert [name for name in nodes if name.startswith("distil-")] == [
        "distil-short",
        "distil-default-benign",
        "distil-nocot",
    ]
    assert [name for name in nodes if name.startswith("train-")] == [
        "train-short-s1",
        "train-short-s2",
        "train-nocot-s7",
    ]
    assert nodes["evaluate-raw-s0-mini_harm-none"].settings["seed"] is None
    assert "model" not in nodes["evaluate-raw-s0-mini_harm-none"].inputs


def test_only_what_a_change_reaches_gets_another_fingerprint(small: Path, tmp_path: Path) -> None:
    def marks(*sets: str) -> dict[str, str]:
        items = plan(graph(studies.load(small, sets=list(sets))), KINDS, tmp_path)
        return {item.node.name: item.fingerprint for item in items}

    before, after = marks(), marks("arms.short.train.lr=3e-3")
    changed = {name for name in before if before[name] != after[name]}
    assert changed
    assert all(name.startswith(("train-short", "evaluate-short")) for name in changed)
    assert len(changed) == 2 + 2 * 2
