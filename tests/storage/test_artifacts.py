"""Artifacts are complete or do not count; records survive the trip through a file."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur.errors import UserError
from demur.records import Prompt, digest, encode, read_jsonl, write_jsonl
from demur.storage.artifacts import Artifact, Draft, Manifest, artifacts, hash_path, is_published
from demur.thinking import traced

PROMPTS = st.builds(
    Prompt,
    text=st.text(max_size=30),
    intent=st.sampled_from(["harmful", "borderline", "benign", "maths", "code"]),
    category=st.text(max_size=5),
    gold=st.one_of(st.none(), st.text(max_size=5)),
)


@given(prompts=st.lists(PROMPTS, max_size=5))
def test_records_survive_a_file(tmp_path_factory: pytest.TempPathFactory, prompts: list[Prompt]) -> None:
    path = tmp_path_factory.mktemp("records") / "prompts.jsonl"
    assert write_jsonl(path, prompts) == len(prompts)
    assert list(read_jsonl(path, Prompt)) == prompts


def test_a_wrong_row_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"text":"a","intent":"benign"}\n{"text":"b","intent":"evil"}\n')
    with pytest.raises(UserError, match=r"p\.jsonl:2: not a Prompt: Invalid enum value 'evil'"):
        list(read_jsonl(path, Prompt))


def test_unknown_fields_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"text":"a","intent":"benign","txet":"b"}\n')
    with pytest.raises(UserError, match="txet"):
        list(read_jsonl(path, Prompt))


def test_ids_are_content(tmp_path: Path) -> None:
    one = Prompt(text="a", intent="harmful")
    assert one.id == Prompt(text="a", intent="harmful", source="elsewhere").id
    assert one.id != Prompt(text="a", intent="harmful", attack="pap", parent=one.id).id
    assert one.cluster == one.id
    assert Prompt(text="wrapped", intent="harmful", parent=one.id).cluster == one.id
    with pytest.raises(AttributeError):
        one.text = "b"  # type: ignore[misc]
    trace = traced(one, "x", model="m")
    assert trace.id != msgspec.structs.replace(trace, id="", raw="y").id


def test_no_manifest_no_artifact(tmp_path: Path) -> None:
    folder = tmp_path / "stages" / "a-1"
    folder.mkdir(parents=True)
    draft = Draft(folder)
    draft.write("prompts", [Prompt(text="a", intent="benign")])
    assert not is_published(folder)
    with pytest.raises(UserError, match="not a finished stage"):
        Artifact(folder)
    assert artifacts(tmp_path) == []
    draft.publish(Manifest(name="a", kind="make", version=1, fingerprint="0", settings={}, inputs={}))
    [artifact] = artifacts(tmp_path)
    assert artifact.rows("prompts") == 1
    assert artifact.rows("traces") == 0
    assert [p.text for p in artifact.read("prompts", Prompt)] == ["a"]


def test_a_damaged_manifest_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="Delete the folder"):
        Artifact(tmp_path)


def test_the_hash_of_a_folder_is_its_content(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "f").write_text("x")
    assert hash_path(one) == hash_path(two)
    (two / "sub" / "g").write_text("")
    assert hash_path(one) != hash_path(two)


@given(st.dictionaries(st.text(max_size=3), st.integers(), max_size=5))
def test_canonical_json_does_not_depend_on_order(data: dict[str, int]) -> None:
    assert encode(data) == encode(dict(reversed(data.items())))
    assert digest(data) == digest(dict(reversed(data.items())))
