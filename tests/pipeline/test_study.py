"""Studies: what a file may say, what it may not, and that each that ships is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from demur.errors import UserError
from demur.models.config import Remote
from demur.pipeline import study as studies
from demur.pipeline.dag import ordered, plan
from demur.pipeline.resolve import Resolved, resolve

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "studies").rglob("*.yaml"))
SMALL = """
name: small
base: mini-lrm-a
models: {teacher: "script:demur.mini.teacher:script"}
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


def load(path: Path, *, sets: list[str] | None = None, quick: bool = False) -> Resolved:
    return resolve(studies.read(path, sets=sets, quick=quick))


def stages(path: Path, *sets: str) -> dict[str, Any]:
    """All stages by name."""
    return {stage.name: stage for stage in ordered(load(path, sets=list(sets)).stages)}


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
    path: Path, study_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    loaded, made, _, _ = load(path, sets=[f"data_dir={study_data}"])
    nodes = ordered(made)
    evaluations = [node for node in nodes if node.kind == "evaluate" and not node.settings.tampered]
    assert len(evaluations) == len(loaded.bench) * sum(
        len(loaded.copies(arm)) * len(loaded.seeds_of(arm)) for arm in loaded.arms
    )
    trainings = [node for node in nodes if node.kind == "train" and not node.settings.tampered]
    assert {node.inputs["mix"].name.partition("@")[0] for node in trainings} == {
        f"mix-{name}" for name, arm in loaded.arms.items() if arm.trained
    }
    assert {node.name for node in made} == {node.name for node in nodes}
    monkeypatch.setattr("demur.pipeline.dag.hash_path", str)
    # What `make small` fetches need not be there for its study to be sound.
    planned = plan(made, tmp_path, absent=[path for path in (Path(loaded.base),) if path.suffix == ".gguf"])
    assert len({item.folder for item in planned}) == len(planned)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_is_saved_is_the_same_study(path: Path, tmp_path: Path) -> None:
    loaded = load(path).study
    studies.save(loaded, tmp_path / "study.yaml")
    assert load(tmp_path / "study.yaml").study == loaded


def test_overrides_reach_every_depth(small: Path) -> None:
    sets = ["train.lr=5e-4", "arms.short.safety=6", "bench.1.limit=3", "seeds=[4]", "base=mini-lrm-b"]
    loaded, made = load(small, sets=sets).study, stages(small, *sets)
    assert made["train-short-s4"].settings.train.lr == 2e-3, "the settings of an arm go before those of the study"
    assert made["train-nocot-s7"].settings.train.lr == 5e-4
    assert loaded.mix_of("short").shares["safety"].n == 6
    assert loaded.bench[1].limit == 3
    assert (loaded.seeds_of("raw"), loaded.seeds_of("short"), loaded.seeds_of("nocot")) == ((0,), (4,), (7,))
    assert loaded.base == "mini-lrm-b"


def test_overrides_go_before_the_quick_version_and_that_before_the_file(small: Path) -> None:
    assert load(small).study.train["steps"] == 5
    quick = load(small, quick=True).study
    assert (quick.train["steps"], quick.seeds) == (2, (1,))
    assert load(small, quick=True, sets=["train.steps=3"]).study.train["steps"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compare": [{"a": "short", "b": "shorter"}]}, "unknown arm 'shorter'"),
        ({"arms": {"short": {"format": "short", "safety": 8, "maths": 5}}, "compare": []}, "no pool of that name"),
        ({"arms": {"short": {"format": "short"}}, "compare": []}, "has a format and no safety rows"),
        ({"armz": {}}, "armz"),
        ({"seeds": []}, "'seeds' is empty: at least one is wanted"),
        (
            {"arms": {"raw": {}, "short": {"format": "short", "safety": 8, "seeds": []}}, "compare": []},
            "short.seeds' is empty",
        ),
        ({"train": {"learning_rate": 1}}, "learning_rate"),
        ({"arms": {"short": {"format": "short", "safety": 8, "train": {"lrr": 1}}}, "compare": []}, "lrr"),
        ({"stand_in_data": {"advbench": "x"}}, "stand_in_data is for smoke runs alone"),
    ],
)
def test_what_is_wrong_is_named(small: Path, change: dict[str, object], message: str) -> None:
    small.write_text(yaml.safe_dump(yaml.safe_load(SMALL) | change))
    with pytest.raises(UserError, match=message):
        load(small)


@pytest.mark.parametrize(
    ("change", "message"),
    [("bench=[{name: advbenchh}]", "advbenchh"), ("arms.short.format=shorty", "shorty")],
)
def test_an_unknown_benchmark_or_strategy_is_named(small: Path, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(small, sets=[change])


def test_arms_share_what_they_have_in_common(small: Path) -> None:
    nodes = stages(small)
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
    assert nodes["evaluate-raw-s0-mini_harm-none"].settings.seed is None
    assert "target" not in nodes["evaluate-raw-s0-mini_harm-none"].inputs
    assert nodes["evaluate-short-s1-mini_harm-none"].inputs["target"] is nodes["train-short-s1"]


def test_only_what_a_change_reaches_gets_another_fingerprint(small: Path, tmp_path: Path) -> None:
    def marks(*sets: str) -> dict[str, str]:
        items = plan(load(small, sets=list(sets)).stages, tmp_path)
        return {item.name: item.fingerprint for item in items}

    before, after = marks(), marks("arms.short.train.lr=3e-3")
    changed = {name for name in before if before[name] != after[name]}
    assert changed
    assert all(name.startswith(("train-short", "evaluate-short")) for name in changed)
    assert len(changed) == 2 + 2 * 2


@pytest.fixture
def several(small: Path) -> Path:
    small.write_text(SMALL.replace("base: mini-lrm-a", "bases: [mini-lrm-a, mini-lrm-c]"))
    return small


def test_every_arm_is_made_from_every_base(several: Path) -> None:
    names = set(stages(several))
    assert {"train-short@mini-lrm-a-s1", "train-short@mini-lrm-c-s2", "train-nocot@mini-lrm-c-s7"} <= names
    assert {"evaluate-raw@mini-lrm-a-s0-mini_harm-none", "evaluate-raw@mini-lrm-c-s0-mini_harm-none"} <= names
    assert sum(name.startswith("mix-") for name in names) == 2  # the data is the same for all
    alone = stages(several, "arms.nocot.base=mini-lrm-b")
    assert [name for name in alone if name.startswith("train-nocot")] == ["train-nocot-s7"]


def test_an_arm_may_filter_in_its_own_way(small: Path) -> None:
    leaking = ["distil.keep=whole safe", "filter=mini-harm", "arms.short.filter=demur.mini.judge:LEAK_20"]
    nodes = stages(small, *leaking)
    assert nodes["distil-short-LEAK_20"].settings.filter == "demur.mini.judge:LEAK_20"
    assert (
        nodes["mix-short"].inputs["safety"]
        is nodes["diagnose-short-LEAK_20"].inputs["traces"]
        is nodes["distil-short-LEAK_20"]
    )
    assert nodes["distil-nocot"].settings.filter == "mini-harm"
    unfiltered = stages(small, *leaking[:2], "arms.short.keep=everything")
    assert unfiltered["distil-short-everything"].settings.distil.keep == "everything"
    assert unfiltered["distil-nocot"].settings.distil.keep == "whole safe"


def test_strategies_of_a_package_are_found_from_anywhere(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small.parent)
    wanted = "arms.short.format=demur.mini:strategies/matched_inconsistency.md"
    nodes = stages(small, wanted)
    assert Path(nodes["distil-matched_inconsistency"].files["strategy"]).is_file()
    own = stages(small, wanted, "arms.short.benign_format=improved")
    assert own["mix-short"].inputs["benign"].name == "distil-improved-benign"


def test_bases_of_an_override_take_the_place_of_the_base(small: Path) -> None:
    loaded = studies.read(small, sets=["bases=[mini-lrm-a, mini-lrm-b]"])
    loaded.problems.check()
    assert loaded.study is not None
    assert loaded.study.bases == ("mini-lrm-a", "mini-lrm-b")
    assert any("gives way to the bases" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["arms.short.filter=mini-harms"], "mini-harm"),
        (["arms.short.filter=mini-harm", "arms.short.keep=everything"], "give one of the two"),
        (["arms.raw.filter=mini-harm"], "no teacher writes them"),
        (["arms.short.keep=nothing"], "keep"),
        (["bases=[mini-lrm-a, mini-lrm-b]", "base=mini-lrm-b"], "both given"),
        (["findings=[{claim: x, evidence: []}]"], "evidence"),
        (["findings=[{claim: x, evidence: [{a: shorty, b: raw, expect: lower, by: 0.1}]}]"], "short"),
        (["findings=[{claim: x, evidence: [{a: short, b: raw, expect: lower, by: 0}]}]"], "by"),
        (["findings=[{claim: x, evidence: [{a: short, b: raw, expect: less, by: 0.1}]}]"], "expect"),
        (["findings=[{claim: x, evidence: [{a: short, b: raw, expect: lower, by: 0.1, metric: speed}]}]"], "speed"),
        (["findings=[{claim: x, evidence: [{a: short, b: raw, expect: lower, by: 0.1, attack: pap}]}]"], "pap"),
        (["findings=[{claim: x, evidence: [{a: short, b: raw, expect: lower, by: 0.1, part: thinking}]}]"], "also"),
        (["findings=[{claim: x, evidence: [{a: short, b: raw, expect: lower, by: 0.1, weights: {pap: 2}}]}]"], "pap"),
        (["findings=[{claim: x, evidence: [{a: short, b: raw, expect: lower, by: 0.1, weights: {none: 0}}]}]"], "weights"),
        (["fixed=[mini_harms]"], "mini_harm"),
        (["findings=[{claim: x, evidence: [{a: short, b: nocot, expect: lower, by: 0.1, metric: loss}]}]"], "held_out"),
    ],
)  # fmt: skip
def test_what_filters_bases_and_findings_may_not_be(small: Path, sets: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(small, sets=sets)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["bases=[a/x, b/x]"], "different last names"),
        (["base=mini-lrm-b"], "both given"),
        (["arms.short.format=self"], "takes one base"),
    ],
)
def test_what_several_bases_forbid(several: Path, sets: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(several, sets=sets)


REACHED = (
    "models.teacher.timeout=999",
    "models.teacher.in_flight=3",
    "models.teacher.tries=2",
    "models.teacher.patience=7",
    "models.teacher.key_env=OTHER",
    "models.teacher.prices={input: 1}",
    "models.teacher.headers={X-Team: a}",
    "models.teacher.url=http://127.0.0.1:10/v1",
    "train.threads=2",
    "train.micro_tokens=2048",
    "train.processes=2",
    "train.device=cpu",
    "workers=3",
    "bench.1.max_unscored=0.5",
)


@pytest.mark.parametrize("item", REACHED)
def test_how_a_thing_is_reached_or_run_redoes_nothing(item: str, small: Path, tmp_path: Path) -> None:
    teacher = "models.teacher={url: 'http://127.0.0.1:9/v1', model: t, revision: '1'}"

    def marks(*sets: str) -> dict[str, str]:
        return {i.name: i.fingerprint for i in plan(load(small, sets=[teacher, *sets]).stages, tmp_path)}

    assert marks() == marks(item)
    assert marks() != marks("models.teacher.revision=b")


def test_a_model_that_is_a_word_is_spelled_out_where_a_setting_changes(small: Path) -> None:
    small.write_text(SMALL.replace('"script:demur.mini.teacher:script"', "'http://127.0.0.1:9/v1'"))
    made = load(small, sets=["models.teacher.timeout=5"]).study.models["teacher"]
    assert isinstance(made, Remote)
    assert (made.where, made.timeout) == ("http://127.0.0.1:9/v1", 5.0)
