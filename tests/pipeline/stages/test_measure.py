"""Evaluations: a checkpoint is served once for all its benchmarks; decoding presets reach the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demur.models.config import Scripted, Served
from demur.pipeline import servers
from demur.pipeline.resolve import make
from demur.pipeline.run import execute
from demur.records import Trace


@pytest.fixture(autouse=True)
def no_server_left() -> Iterator[None]:
    yield
    servers._server.stop()


def test_weights_are_served_once_for_all_benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    running: list[str] = []

    @contextmanager
    def served(role: Served) -> Iterator[Scripted]:
        started.append(str(role.path))
        running.append(str(role.path))
        assert role.engine == "vllm"
        try:
            yield Scripted(script="target")
        finally:
            running.remove(str(role.path))

    monkeypatch.setattr("demur.models.vllm.served", served)
    plain = {
        "name": "served",
        "serve": "vllm",
        "arms": {"a": {"base": "mini-lrm-a"}, "b": {"base": "mini-lrm-b"}},
        "bench": [{"name": "mini_harm", "limit": 4}, {"name": "mini_benign", "limit": 4}],
    }
    execute(make(plain, where="test").stages, out=tmp_path, workers=1)
    assert [Path(path).name for path in started] == ["a", "b"]
    assert [Path(path).name for path in running] == ["b"], "one server at a time"


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
