"""Files on the hub by name, from a local cache; the hub itself is never asked."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from demur.bench import get_bench, names
from demur.errors import UserError
from demur.mix.settings import MixSettings, ShareSettings
from demur.models.config import Scripted
from demur.pipeline.run import execute
from demur.pipeline.stages.evaluate import BenchUse, Evaluate, EvaluateSettings
from demur.pipeline.stages.mix import Mix, MixStageSettings
from demur.storage import hub
from demur.storage.artifacts import hash_file
from demur.storage.readers import rows

pytest.importorskip("huggingface_hub")
COMMIT = "a" * 40


@pytest.fixture
def cached(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of one data set, as huggingface_hub keeps it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "datasets--me--set"
    snapshot = folder / "snapshots" / COMMIT
    (snapshot / "data").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    for name in ("one", "other"):
        (snapshot / "data" / f"{name}.jsonl").write_text(json.dumps({"prompt": name}) + "\n")
    (snapshot / "sft_train_No CoT.json").write_text('[{"prompt": "q"}]')
    for i in range(2):
        (snapshot / "data" / f"train-0000{i}-of-00003.jsonl").write_text("{}")
    return snapshot


def test_a_file_is_found_by_its_name_with_or_without_a_revision(cached: Path) -> None:
    for spec in ("me/set:data/one.jsonl", f"me/set@{COMMIT}:data/one.jsonl", "me/set:*one.jsonl"):
        assert hub.located(None, hub=spec) == hub.fetch(spec) == cached / "data" / "one.jsonl"
    assert hub.fetch("me/set:*No CoT.json") == cached / "sft_train_No CoT.json"


def test_several_files_become_one_that_keeps_their_order_and_names(cached: Path) -> None:
    path = hub.fetch("me/set:data/other.jsonl,me/set:data/one.jsonl")
    assert [row for _, row in rows(path)] == [
        {"prompt": "other", "_split": "other"},
        {"prompt": "one", "_split": "one"},
    ]
    assert hub.located(None, hub="me/set:data/other.jsonl,me/set:data/one.jsonl") == path


def test_what_is_missing_is_an_error_before_anything_is_fetched(cached: Path, tmp_path: Path) -> None:
    here = tmp_path / "here.jsonl"
    here.write_text("{}")
    assert hub.located(here, hub="me/set:none.jsonl") == here
    for file, spec, words in (
        (
            Path("no.jsonl"),
            "me/set:none.jsonl",
            r"no\.jsonl: no such file; me/set:none\.jsonl is not in the hub's cache",
        ),
        (None, "me/set:none.jsonl", "not in the hub's cache"),
        (None, "me/other:one.jsonl", "not in the hub's cache"),
        (None, "me/set@v2:data/one.jsonl", "not in the hub's cache"),
        (None, "me/set:data/train-*.jsonl", "not in the hub's cache"),  # two shards of three
    ):
        with pytest.raises(UserError, match=words):
            hub.located(file, hub=spec)
    with pytest.raises(UserError, match="the hub gave no none"):
        hub.fetch("me/set:none.jsonl")


def test_a_name_that_is_not_on_the_hub_is_an_error_with_those_that_are(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub._why_unreachable.cache_clear()
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: SimpleNamespace(head=lambda *_, **__: None))
    monkeypatch.setattr(HfApi, "list_repo_files", lambda *_, **__: ["a/x.json", "README.md"])
    assert hub.located(None, hub="me/new:*.json") is None
    with pytest.raises(UserError, match=r"has no y\.json\. It has: a/x\.json\."):
        hub.located(None, hub="me/new:y.json")


def test_what_a_run_took_from_the_hub_is_in_its_records(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commit, file and SHA-256, of training rows and of a benchmark; where a revision is named, of that one."""
    (cached / "rows.jsonl").write_text('{"prompt": "How?", "response": "<think>\\nSo.\\n</think>\\n\\nThus."}\n')
    share = ShareSettings(hub="me/set:*rows.jsonl", n=1)
    mix = Mix("mix", MixStageSettings(mix=MixSettings(shares={"safety": share})))
    repo, revision, name = hub.parse(get_bench("math500").hub)[0]
    sums = tmp_path / f"datasets--{repo.replace('/', '--')}" / "snapshots" / str(revision) / name
    sums.parent.mkdir(parents=True)
    sums.write_text('{"problem": "What is 2 + 2?", "answer": "4"}\n')
    monkeypatch.setattr("demur.bench.load.faults", lambda *_: [])  # it is no release
    asked = Evaluate(
        "asked", EvaluateSettings(bench=BenchUse(name="math500")), models={"target": Scripted(script="target")}
    )
    done = execute([mix, asked], out=tmp_path / "run")
    for stage, path in (("mix", cached / "rows.jsonl"), ("asked", sums)):
        place = path.relative_to(tmp_path).as_posix().removeprefix("datasets--")
        assert done[stage].manifest.summary["fetched"] == {place: hash_file(path)}, stage


def test_an_unreachable_hub_is_reported_in_one_sentence_and_asked_once(
    cached: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    asked, session = list[int](), huggingface_hub.get_session

    def counted() -> object:
        asked.append(1)
        return session()

    monkeypatch.setattr(huggingface_hub, "get_session", counted)
    for _ in range(2):
        with pytest.raises(UserError, match=r"127\.0\.0\.1:9, which has me/new:y\.json, is not reached \(.*refused"):
            hub.located(None, hub="me/new:y.json")
    assert len(asked) == 1
    assert "Retrying" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("spec", ["me/set", "set:a.json", "me/set:default:train", "me/set::No CoT", "me/set:train", ""])
def test_a_specification_that_names_no_file_is_an_error(spec: str) -> None:
    with pytest.raises(UserError, match="names no file"):
        hub.parse(spec)


@pytest.mark.parametrize("name", names())
def test_the_benchmarks_name_files(name: str) -> None:
    spec = get_bench(name).hub
    assert not spec or hub.parse(spec)
