"""What a user writes about a model, and what is said when it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from demur.errors import UserError
from demur.models.config import ModelConfig, SamplingSettings, parse_model
from demur.records import Sampling


def test_text_becomes_a_role(tmp_path: Path) -> None:
    assert parse_model("http://localhost:8000/v1").url == ("http://localhost:8000/v1",)
    assert parse_model("https://a/v1,http://b/v1").url == ("https://a/v1", "http://b/v1")
    assert parse_model(str(tmp_path)).path == str(tmp_path)
    assert parse_model("script:stand_in").script == "stand_in"
    assert parse_model("my.module:function").script == "my.module:function"
    assert parse_model("Qwen/Qwen3-8B").hub == "Qwen/Qwen3-8B"


@pytest.mark.parametrize("text", ["", "nothing", "./not/there", "/not/there", "~/not/there", "a/b/c", "ftp://x/y"])
def test_what_is_no_model_says_what_is_allowed(text: str) -> None:
    with pytest.raises(UserError, match=r"script:NAME"):
        parse_model(text)


def test_a_role_is_exactly_one_thing() -> None:
    for said in ({}, {"path": "a", "hub": "b/c"}, {"url": "http://x", "script": "echo"}):
        with pytest.raises(ValidationError, match="exactly one of url, path, hub and script"):
            ModelConfig.model_validate(said)
    with pytest.raises(ValidationError, match="is no URL"):
        ModelConfig.model_validate({"url": "localhost:8000"})
    with pytest.raises(ValidationError, match="Extra inputs"):
        ModelConfig.model_validate({"url": "http://x", "modle": "m"})
    assert ModelConfig.model_validate({"url": "http://x/v1"}).url == ("http://x/v1",)


def test_what_is_missing_is_listed_without_asking_anyone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    monkeypatch.delenv("NO_HEADER", raising=False)
    role = ModelConfig(url=("http://x/v1",), key_env="NO_KEY", headers={"X-A": "$NO_HEADER", "X-B": "plain"})
    assert [line.split()[0] for line in role.missing()] == ["NO_KEY", "NO_HEADER"]
    (line,) = ModelConfig(path=str(tmp_path / "gone")).missing()
    assert "is no folder" in line
    assert ModelConfig(path=str(tmp_path)).missing() == []


def test_a_roles_sampling_changes_only_what_it_says() -> None:
    base = Sampling(temperature=0.1, max_tokens=9, system="s")
    assert SamplingSettings().over(base) == base
    assert SamplingSettings(temperature=0.0, thinking_budget=3).over(base) == Sampling(
        temperature=0.0, max_tokens=9, system="s", thinking_budget=3
    )
