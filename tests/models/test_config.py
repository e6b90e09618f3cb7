"""How a user describes a model, and the errors for descriptions that are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from demur.errors import UserError
from demur.models.config import (
    Custom,
    Local,
    ModelConfig,
    Remote,
    Scripted,
    Served,
    as_model,
    parse_model,
)
from demur.models.requires import Requires, guard_of
from demur.models.sampling import SamplingSettings
from demur.records import Sampling
from demur.settings import Strict, identity_of, validate


def test_text_becomes_a_model(tmp_path: Path) -> None:
    assert parse_model("http://localhost:8000/v1/") == Remote(url=("http://localhost:8000/v1",))
    assert parse_model("https://a/v1, http://b/v1") == Remote(url=("https://a/v1", "http://b/v1"))
    assert parse_model("$HERE") == Remote(url=("$HERE",))
    assert parse_model(str(tmp_path)) == Local(path=str(tmp_path))
    assert parse_model("small.gguf") == Local(path="small.gguf")
    assert parse_model("script:stand_in") == Scripted(script="stand_in")
    assert parse_model("my.module:function") == Scripted(script="my.module:function")
    assert parse_model("Qwen/Qwen3-8B") == Local(hub="Qwen/Qwen3-8B")


@pytest.mark.parametrize(
    "text", ["", "nothing", "./not/there", "/not/there", "~/not/there", "a/b/c", "ftp://x/y", "a b/c", "a/b..c", "-a/b"]
)
def test_a_wrong_text_is_an_error_with_what_is_allowed(text: str) -> None:
    with pytest.raises(UserError, match=r"script:NAME"):
        parse_model(text)


def test_a_models_kind_follows_from_its_keys() -> None:
    assert isinstance(as_model({"url": "http://x/v1"}), Remote)
    assert isinstance(as_model({"path": "x"}), Local)
    assert isinstance(as_model({"hub": "a/b"}), Local)
    assert isinstance(as_model({"hub": "a/b", "engine": "vllm"}), Served)
    assert isinstance(as_model({"script": "echo"}), Scripted)
    assert as_model("script:echo") == as_model({"script": "echo"}) == as_model(Scripted(script="echo"))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({}, "one of url, path, hub, script"),
        ({"url": "http://x", "modle": "m"}, "unknown key 'modle' in 'model'. Did you mean 'model'?"),
        ({"url": "http://x", "batch": 8}, "unknown key 'batch'"),
        ({"path": "x", "timeout": 8}, "unknown key 'timeout'"),
        ({"path": "x", "engine": "transformers"}, "Allowed: vllm"),
        ({"path": "x", "hub": "a/b"}, "exactly one of path and hub"),
        ({"hub": "a b/c"}, "not a hub id"),
        ({"url": "localhost:8000"}, "not a URL"),
        ({"url": []}, "'model.url' is empty: at least one is wanted"),
        ({"script": "echo", "url": "http://x"}, "unknown key 'script'"),
        ({"url": "http://x", "sampling": {"thinking_bugdet": 3}}, "unknown key 'thinking_bugdet' in 'model.sampling'. Did you mean 'thinking_budget'?"),
        ({"url": "http://x", "headers": {"X-Api-Key": "abc"}}, "is a secret"),
    ],
)  # fmt: skip
def test_a_setting_that_a_kind_does_not_use_is_an_error(written: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        as_model(written)
    assert message in str(error.value)


def test_no_password_of_a_url_is_kept_or_shown() -> None:
    for written in ("http://user:s3cret@host/v1", "https://s3cret@host/v1"):
        with pytest.raises(UserError, match=r"write \$NAME") as error:
            parse_model(written)
        assert "s3cret" not in str(error.value)


def test_errors_name_the_place_of_a_model_in_a_study() -> None:
    class Study(Strict):
        models: dict[str, ModelConfig] = {}

    study = validate(Study, {"models": {"a": "script:echo", "b": {"url": "http://x"}}}, where="s")
    assert study.models["a"] == Scripted(script="echo")
    with pytest.raises(UserError, match=r"unknown key 'modle' in 'models\.b'\. Did you mean 'model'\?"):
        validate(Study, {"models": {"b": {"url": "http://x", "modle": 1}}}, where="s")


def test_what_is_missing_is_listed_without_asking_anyone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    monkeypatch.delenv("NO_HEADER", raising=False)
    remote = Remote(url=("http://x/v1",), key_env="NO_KEY", headers={"X-A": "$NO_HEADER", "X-B": "plain"})
    assert [line.split()[0] for line in remote.missing()] == ["NO_KEY", "NO_HEADER"]
    (line,) = Local(path=str(tmp_path / "gone")).missing()
    assert "is neither a folder" in line
    assert "is neither a folder" in Local(path=str(tmp_path / "gone.gguf")).missing()[0]
    assert Local(path=str(tmp_path)).missing() == []
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("DEMUR_VLLM", raising=False)
    assert "vLLM is not there" in Served(engine="vllm", path=str(tmp_path)).missing()[0]


def test_connection_is_in_no_fingerprint_and_the_address_is_unless_something_else_identifies_the_model() -> None:
    one = identity_of(Remote(url=("http://a/v1",), model="m"))
    assert one == identity_of(
        Remote(url=("http://a/v1",), model="m", timeout=9, tries=1, in_flight=3, key_env="K", headers={"X-B": "b"})
    )
    assert one != identity_of(Remote(url=("http://b/v1",), model="m"))
    declared = [identity_of(Remote(url=(url,), model="m", revision="r")) for url in ("http://a/v1", "http://b/v1")]
    assert declared[0] == declared[1]
    assert identity_of(Local(path="x")) == identity_of(Local(path="x", device="cpu", batch=3, threads=2))
    assert identity_of(Local(path="x")) != identity_of(Local(path="x", dtype="bfloat16"))


def test_a_guard_plays_its_own_judge_and_nothing_else() -> None:
    guard = Served(engine="vllm", hub="meta-llama/Llama-Guard-3-8B")
    assert Requires(family="llama_guard3").unmet(guard) == []
    assert "can only play a judge of kind llama_guard3" in Requires().unmet(guard)[0]
    assert Requires(family="wildguard").unmet(guard)
    assert guard_of("/models/allenai_wildguard-7B") == "wildguard"
    assert guard_of("", "Qwen3Guard-Gen-8B") == "qwen3guard"
    # What a server serves is not known: only a known guard is refused.
    assert Requires(family="llama_guard3").unmet(Remote(url=("http://x",), model="default")) == []
    assert guard_of("/data/llama-guard-3-tests/qwen3") == ""


@pytest.mark.parametrize(
    ("requires", "able"),
    [
        (Requires(logprobs=True), {"first_tokens": 5}),
        (Requires(prefill=True), {"prefill": "plain"}),
        (Requires(api="completions"), {"api": "completions"}),
        (Requires(prefill=True), {"api": "completions"}),
    ],
)
def test_what_a_part_requires_is_held_against_the_declaration(requires: Requires, able: dict[str, Any]) -> None:
    assert len(requires.unmet(as_model({"url": "http://x"}))) == 1
    assert requires.unmet(as_model({"url": "http://x", **able})) == []


def test_what_a_model_is_declared_to_refuse() -> None:
    model = Remote(url=("http://x",), forbidden=("temperature", "system"), thinking="tags")
    assert len(Requires(temperature=True, system=True, own_thinking=False).unmet(model)) == 3
    assert Requires(own_thinking=True).unmet(model) == []
    assert Requires(own_thinking=True).unmet(Remote(url=("http://x",), thinking="none"))


def test_sampling_settings_change_only_what_is_set() -> None:
    base = Sampling(temperature=0.1, max_tokens=9, system="s")
    assert SamplingSettings().override(base) == base
    assert SamplingSettings(temperature=0.0, thinking_budget=3).override(base) == Sampling(
        temperature=0.0, max_tokens=9, system="s", thinking_budget=3
    )


def test_settings_of_a_plug_in_are_checked_by_its_class() -> None:
    custom = Custom(plugin="tests.models.plugged:Backend", settings={"word": "x"})
    assert custom.missing() == []
    (line,) = Custom(plugin="tests.models.plugged:Backend", settings={"wrod": "x"}).missing()
    assert "Did you mean 'word'" in line
    (line,) = Custom(plugin="tests.models.plugged:Nothing").missing()
    assert "has no 'Nothing'" in line
    (line,) = Scripted(script="demur.mini.teacher:scrip").missing()
    assert "has no 'scrip'" in line, "a module of demur's own may run"


def test_a_models_own_sampling_fills_what_a_request_leaves_unset() -> None:
    from tests.made import replies

    from demur.interfaces import requests_for
    from demur.records import Prompt

    model = as_model({"script": "echo", "sampling": {"prefill": "Well, ", "top_k": 5}})
    prompts = [Prompt(text="hello", intent="benign")]
    unset, set_ = Sampling(), Sampling(prefill="No: ")
    for sampling, start in ((unset, "Well, "), (set_, "No: ")):
        (trace,) = replies(model, list(requests_for(prompts, sampling)))
        assert trace.raw.startswith(start)  # type: ignore[union-attr]
        assert (trace.sampling.prefill, trace.sampling.top_k) == (start, 5)  # type: ignore[union-attr]


def test_what_every_request_sets_is_not_set_at_the_model() -> None:
    with pytest.raises(UserError, match="temperature"):
        as_model({"script": "echo", "sampling": {"temperature": 0.1}})


def test_a_script_that_takes_too_long_is_a_failure() -> None:
    from tests.made import replies

    from demur.interfaces import requests_for
    from demur.records import Failure, Prompt

    model = as_model({"script": "tests.models.test_config:slow", "timeout": 0.05})
    (found,) = replies(model, list(requests_for([Prompt(text="hello", intent="benign")], Sampling())))
    assert isinstance(found, Failure)
    assert found.kind == "timeout"


def slow(messages: Any, sampling: Sampling, rng: Any) -> str:
    import time

    time.sleep(0.5)
    return "late"
