"""A kind of training from one file outside the package: named in a study, resolved, run, evaluated and reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from demur.errors import UserError
from demur.pipeline import study as studies
from demur.pipeline.resolve import make
from demur.pipeline.run import execute
from demur.records import Pair
from demur.report import build

STUDY: dict[str, Any] = {
    "name": "preferring",
    "base": "mini-lrm-a",
    "models": {"teacher": "script:demur.mini.teacher:script"},
    "prompts": {"harmful": {"source": "mini-harmful", "n": 12}},
    "distil": {"samples": 4, "keep": "whole safe"},
    "filter": "mini-harm",
    "train": {"steps": 1, "lr": 1e-3},
    "arms": {
        "raw": {},
        "preferred": {
            "format": "default",
            "safety": 4,
            "train": {"stage": "tests.extend.preference:Preference", "beta": 0.2},
        },
    },
    "bench": [{"name": "mini_harm", "limit": 5}],
}


def test_a_stage_from_a_file_of_its_own_trains_an_arm(tmp_path: Path) -> None:
    resolved = make(STUDY, where="test")
    (stage,) = [stage for stage in resolved.stages if stage.kind == "preference"]
    assert (stage.settings.train.beta, stage.settings.train.lr) == (0.2, 1e-3), "what both kinds know is shared"
    done = execute(resolved.stages, out=tmp_path, add=False)
    studies.save(resolved.study, tmp_path / "study.yaml")
    pairs = list(done["preference-preferred-s0"].read("pairs", Pair))
    assert pairs
    assert all(pair.chosen.origin.prompt == pair.rejected.origin.prompt for pair in pairs)
    report = build(tmp_path)
    assert {result.arm for result in report.results} == {"raw", "preferred"}
    assert "preference-preferred-s0" in report.stages


def test_its_settings_are_checked_before_anything_starts() -> None:
    arms = {
        "preferred": STUDY["arms"]["preferred"] | {"train": {"stage": "tests.extend.preference:Preference", "bta": 1}}
    }
    with pytest.raises(UserError, match="Did you mean 'beta'"):
        make(STUDY | {"arms": arms}, where="test")
