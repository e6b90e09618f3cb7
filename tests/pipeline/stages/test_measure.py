"""Evaluations: decoding presets reach the model."""

from __future__ import annotations

from pathlib import Path

from demur.pipeline.resolve import make
from demur.pipeline.run import execute
from demur.records import Trace


def test_a_decoding_preset_begins_the_reply(tmp_path: Path) -> None:
    plain = {
        "name": "decoding",
        "base": "mini-lrm-a",
        "arms": {"raw": {}, "zero": {"decoding": "zero"}},
        "bench": [{"name": "mini_harm", "limit": 3}],
    }
    done = execute(make(plain, where="test").stages, out=tmp_path, workers=1)
    raw = list(done["evaluate-raw-s0-mini_harm-none"].read("traces", Trace))
    zero = list(done["evaluate-zero-s0-mini_harm-none"].read("traces", Trace))
    assert all(trace.thinking for trace in raw)
    assert all(trace.thinking == "" for trace in zero)
    assert all(trace.sampling.prefill for trace in zero)
