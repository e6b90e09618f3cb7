"""An attack and a benchmark, each from one file outside the package: named in a study, resolved, run and reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.extend.persuasion import Rewrite

from demur.errors import UserError
from demur.pipeline import study as studies
from demur.pipeline.resolve import make
from demur.pipeline.run import execute
from demur.report import build
from demur.storage.artifacts import Artifact

SOFT = {"name": "tests.extend.persuasion:Soft", "rounds": 3, "attacker": "writer"}


def run(out: Path, **study: Any) -> tuple[Any, dict[str, Artifact]]:
    resolved = make({"name": "extended", "arms": {"raw": {}}} | study, where="test")
    done = execute(resolved.stages, out=out, add=False)
    studies.save(resolved.study, out / "study.yaml")
    return build(out), done


def test_an_attack_with_settings_and_queries(tmp_path: Path) -> None:
    models = {"writer": "script:echo"}
    report, done = run(
        tmp_path, base="script:target", models=models, bench=[{"name": "mini_harm", "limit": 5, "attack": SOFT}]
    )
    (stage,) = done.values()
    assert len(list(stage.read("rewrites", Rewrite))) == 15
    shown = {(result.attack, result.metric) for result in report.results}
    assert any(metric == "attack_success" for _, metric in shown)
    assert {attack for attack, _ in shown} != {"none"}


def test_its_settings_its_parts_and_what_it_asks_are_known_before_it_starts(tmp_path: Path) -> None:
    study = {"name": "x", "base": "script:target", "arms": {"raw": {}}}
    with pytest.raises(UserError, match="Did you mean 'rounds'"):
        make(study | {"bench": [{"name": "mini_harm", "attack": {"name": SOFT["name"], "round": 1}}]}, where="test")
    with pytest.raises(UserError, match="for its part 'attacker'"):
        make(study | {"bench": [{"name": "mini_harm", "attack": SOFT["name"]}]}, where="test")
    use = {"name": "mini_harm", "limit": 5, "attack": SOFT}
    resolved = make(study | {"models": {"writer": "script:echo"}, "bench": [use]}, where="test")
    asks = {ask.part: ask.requests for stage in resolved.stages for ask in stage.estimate()}
    assert (asks["attacker"], asks["target"]) == (15, 5)


def test_a_benchmark_with_labels_of_its_own(tmp_path: Path) -> None:
    report, _ = run(
        tmp_path, base="script:tests.extend.candour:says", bench=[{"name": "tests.extend.candour:CANDOUR", "limit": 8}]
    )
    (result,) = [r for r in report.results if r.metric == "candour"]
    assert (result.estimate.value, result.estimate.n, result.better) == (0.5, 8, "higher")
    assert result.judge == "candour"


def test_begun_replies_are_held_against_what_the_target_can_continue() -> None:
    study = {"name": "x", "arms": {"raw": {}}, "bench": [{"name": "mini_harm", "attack": "pivot"}]}
    target = {"url": "http://127.0.0.1:9/v1", "model": "m", "revision": "1"}
    with pytest.raises(UserError, match="prefill"):
        make(study | {"base": "t", "models": {"t": target}}, where="test")
    make(study | {"base": "t", "models": {"t": target | {"prefill": "plain"}}}, where="test")
