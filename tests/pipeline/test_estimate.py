"""What a study would ask, estimated without asking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from demur.pipeline import study
from demur.pipeline.dag import plan
from demur.pipeline.estimate import outlook
from demur.pipeline.resolve import make, resolve
from demur.pipeline.run import CACHE, execute
from demur.storage.reply_cache import ReplyCache

ROOT = Path(__file__).resolve().parents[2]


def test_the_miniature_study_foreseen(tmp_path: Path) -> None:
    loaded = resolve(study.read(ROOT / "studies" / "mini.yaml"))
    seen = outlook(plan(loaded.stages, tmp_path), [])
    requests = {row["part"]: row["requests"] for row in seen["parts"]}
    assert requests["target"] == 7 * (5 * 100 + 30 + 8 * 30), "the searcher asks eight times a goal"
    # Five strategies ask for 1,200 harmful and 400 benign prompts, a constant one for none; maths once.
    assert requests["teacher"] == 5 * 1200 + 5 * 400 + 200
    assert loaded.missing == []
    assert all(row["done"] == 0 for row in seen["stages"])
    assert not list(tmp_path.iterdir()), "foreseeing writes nothing"


def test_prices_and_model_detectors_are_counted(tmp_path: Path) -> None:
    loaded = make(
        {
            "name": "priced",
            "models": {
                "teacher": {"url": "http://127.0.0.1:9/v1", "model": "t", "prices": {"input": 1.0, "output": 10.0}},
                "detector": "http://127.0.0.1:9/v1",
            },
            "prompts": {"harmful": {"source": "mini-harmful", "n": 50}},
            "distil": {"keep": "everything", "max_tokens": 100},
            "detector": "llm",
            "arms": {"a": {"format": "improved", "safety": 40}},
            "bench": ["mini_harm"],
        },
        where="test",
    )
    seen = outlook(plan(loaded.stages, tmp_path), [])
    by_part = {row["part"]: row for row in seen["parts"]}
    assert by_part["teacher"]["tokens_out_at_most"] == 50 * 100
    assert by_part["detector"]["requests"] == 3 * 50, "what cannot be read is asked again"
    [cost] = [row["cost"] for row in seen["stages"] if row["kind"] == "distil"]
    assert cost == pytest.approx((by_part["teacher"]["tokens_in_at_most"] * 1 + 5000 * 10) / 1e6)


TINY: dict[str, Any] = {
    "name": "tiny",
    "base": "mini-lrm-a",
    "models": {
        "teacher": "script:demur.mini.teacher:script",
        "guard": "script:stand_in",
        "attacker": "script:stand_in",
        "attack_judge": {"script": "stand_in"},
        "auditor": "script:stand_in",
    },
    "prompts": {"harmful": {"source": "mini-harmful", "n": 12}, "benign": {"source": "mini-benign", "n": 6}},
    "distil": {"keep": "thinking and answer safe", "until_safe": 1, "bound": 3, "max_tokens": 300},
    "filter": {"kind": "llama_guard3", "model": "guard"},
    "detector": {"kind": "llm", "model": "auditor"},
    "benign_format": "same",
    "mix": {"dedupe": "none"},
    "train": {"lr": 1e-3, "steps": 1, "batch": 2},
    "bench": [
        {
            "name": "mini_harm",
            "limit": 3,
            "attack": {"name": "pair", "streams": 2, "iterations": 2, "target_max_tokens": 60},
            "judge": {"kind": "llama_guard3", "model": "guard"},
            "also": ["thinking"],
        },
        {
            "name": "mini_harm",
            "limit": 2,
            "attack": {"name": "tap", "iterations": 2, "branches": 2, "width": 2, "target_max_tokens": 60},
        },
        {"name": "mini_harm", "limit": 3, "attack": "pap-written"},
        {"name": "mini_harm", "limit": 3, "samples": 2, "attack": "mini-adaptive"},
        {"name": "mini_arithmetic", "limit": 3, "samples": 3},
    ],
}


def spent(out: Path) -> dict[str, list[int]]:
    """Requests and tokens by part, as the reply cache counts them."""
    sums: dict[str, list[int]] = {}
    with ReplyCache(out / CACHE) as cache:
        for line in cache.ledger():
            row = sums.setdefault(line.part, [0, 0, 0])
            for index, value in enumerate((line.requests, line.tokens_in, line.tokens_out)):
                row[index] += value or 0
    return sums


@pytest.mark.slow
def test_a_plan_bounds_what_a_run_asks(tmp_path: Path) -> None:
    """Searches, written rewrites, templates, repair with re-asking, and a judge of two parts."""
    wrappers = tmp_path / "wrappers.txt"
    wrappers.write_text("Say please. {question}\nOnce upon a time: {question}\n")
    plain = TINY | {
        "arms": {
            "raw": {},
            "repaired": {
                "format": "default",
                "safety": 4,
                "benign": 4,
                "repair": {"with": "trim,reask,drop", "tries": 2},
            },
        },
        "bench": [*TINY["bench"], {"name": "mini_harm", "limit": 3, "attack": f"template={wrappers}"}],
    }
    resolved = make(plain, where="test")
    assert resolved.missing == []
    seen = outlook(plan(resolved.stages, tmp_path), [])
    most = {
        row["part"]: [row["requests"], row["tokens_in_at_most"], row["tokens_out_at_most"]] for row in seen["parts"]
    }
    execute(resolved.stages, out=tmp_path, workers=1)
    asked = spent(tmp_path)
    assert set(asked) == {"target", "teacher", "filter", "judge", "attacker", "attack_judge", "detector"}
    assert set(most) == set(asked), "nobody is planned for who is never asked"
    for part, counts in asked.items():
        assert all(count <= bound for count, bound in zip(counts, most[part], strict=True)), (part, counts, most[part])
    again = outlook(plan(resolved.stages, tmp_path), [])
    assert again["parts"] == [], "what is done asks nothing"
