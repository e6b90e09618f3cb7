"""Problems of a settings file are reported with place, nearest key and allowed keys."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from demur.errors import UserError
from demur.settings import LineTable, Problems, Strict, connection, identity_of, override, read_yaml, validate


class Inner(Strict):
    """An inner model."""

    train: float = 1.0
    steps: int = 2


class Outer(Strict):
    """An outer model."""

    name: str
    arms: dict[str, Inner] = {}
    share: int | Inner = 0
    items: tuple[Inner, ...] = ()


TEXT = "name: x\narms:\n  improved:\n    train: 2\n    trian: 3\n"


def checked(model: type[BaseModel], data: object, lines: LineTable) -> None:
    """Read the data of a file."""
    problems = Problems("study.yaml", lines)
    problems.read(model, data)
    problems.check()


def test_unknown_key_has_line_and_nearest(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(TEXT)
    data, lines = read_yaml(path)
    with pytest.raises(UserError) as error:
        checked(Outer, data, lines)
    assert str(error.value) == (
        "study.yaml:5: unknown key 'trian' in 'arms.improved'. Did you mean 'train'? Allowed: steps, train."
    )


def test_unknown_key_of_a_set() -> None:
    with pytest.raises(UserError, match=r"unknown key 'nmae'\. Did you mean 'name'"):
        validate(Outer, override({"name": "x"}, "nmae=1"), where="--set")


def test_wrong_value_in_a_list_and_in_a_union() -> None:
    with pytest.raises(UserError, match=r"items\.0\.steps"):
        validate(Outer, {"name": "x", "items": [{"steps": "many"}]}, where="f")
    with pytest.raises(UserError, match=r"unknown key 'stpes' in 'share'. Did you mean 'steps'"):
        validate(Outer, {"name": "x", "share": {"stpes": 1}}, where="f")


def test_of_a_union_what_is_wrong_with_the_member_that_fits_best_is_said() -> None:
    with pytest.raises(UserError) as error:
        validate(Outer, {"name": "x", "share": {"steps": "many"}}, where="f")
    assert str(error.value).startswith("f: 'share.steps' = 'many'")
    assert "\n" not in str(error.value)


class Listed(Strict):
    """A list of words, under another name than the field's."""

    model_config = ConfigDict(populate_by_name=True)
    means: tuple[Literal["trim", "drop"], ...] = Field(default=("trim",), alias="with", min_length=1)
    dtype: Literal[8, 16] = 8


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("with: []", "study.yaml:1: 'with' is empty: at least one is wanted. Allowed: drop, trim."),
        ("with:", "study.yaml:1: 'with' is empty: a list is wanted, such as [drop]. Allowed: drop, trim."),
        ("with: {}", "study.yaml:1: 'with' is empty: a list is wanted, such as [drop]. Allowed: drop, trim."),
        (
            "with:\n- trimm",
            "study.yaml:2: 'with.0' = 'trimm': no such value. Did you mean 'trim'? Allowed: drop, trim.",
        ),
        ("wiht: [trim]", "study.yaml:1: unknown key 'wiht'. Did you mean 'with'? Allowed: dtype, with."),
        ("dtype: 9", "study.yaml:1: 'dtype' = 9: Input should be 8 or 16"),
    ],
)
def test_an_empty_or_wrong_word_of_a_list_is_said_with_the_words_that_are_allowed(
    written: str, message: str, tmp_path: Path
) -> None:
    (path := tmp_path / "study.yaml").write_text(written)
    data, lines = read_yaml(path)
    with pytest.raises(UserError) as error:
        checked(Listed, data, lines)
    assert str(error.value) == message


def test_missing_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'name' is missing"):
        validate(Outer, {}, where="f")
    with pytest.raises(UserError, match="no such study file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="not readable as YAML"):
        read_yaml(tmp_path / "bad.yaml")


def test_override_reads_yaml_and_leaves_the_original() -> None:
    data = {"name": "x", "items": [{"steps": 1}]}
    assert override(data, "items.0.steps=5")["items"] == [{"steps": 5}]
    assert override(data, "arms.a.train=1e-3")["arms"] == {"a": {"train": 1e-3}}
    assert data == {"name": "x", "items": [{"steps": 1}]}
    with pytest.raises(UserError, match="write it as"):
        override(data, "items")
    with pytest.raises(UserError, match=r"what is there, 'vllm', has no 'width'"):  # the word would be lost
        override({"serve": "vllm"}, "serve.width=2")


KEYS = st.text(alphabet="abc", min_size=1, max_size=3)


@given(path=st.lists(KEYS, min_size=1, max_size=4), value=st.integers())
def test_an_override_can_be_read_back(path: list[str], value: int) -> None:
    data: object = override({"z": 1}, f"{'.'.join(path)}={value}")
    for key in path:
        assert isinstance(data, dict)
        data = data[key]
    assert data == value


def test_line_of_a_place_that_is_not_there_is_its_parents() -> None:
    table = LineTable(TEXT)
    assert table.line(("arms", "improved", "steps")) == 3
    assert table.line(()) == 1


def test_a_wrong_key_that_the_file_does_not_have_came_from_an_override(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: x\narms:\n  improved:\n    train: 2\n")
    data, lines = read_yaml(path)
    with pytest.raises(UserError, match=r"^--set: unknown key 'trian' in 'arms\.improved'"):
        checked(Outer, override(data, "arms.improved.trian=1"), lines)


def test_what_a_file_says_nothing_of_is_an_overrides_only_where_one_speaks_of_it(tmp_path: Path) -> None:
    (path := tmp_path / "study.yaml").write_text("name: x\n")
    _, lines = read_yaml(path)
    for where in ("study.yaml:1", "--set"):
        problems = Problems("study.yaml", lines)
        problems.add(("distil", "teacher"), "no model writes")
        with pytest.raises(UserError, match=f"^{where}: no model writes"):
            problems.check()
        lines.overridden.append(["distil", "n"])


def test_identity_leaves_connections_out_at_any_depth() -> None:
    class Inner(BaseModel):
        lr: float = 0.1
        threads: int = connection(1)

    class Outer(BaseModel):
        name: str
        inner: Inner = Inner()
        many: tuple[Inner, ...] = (Inner(threads=3),)
        timeout: float = connection(5.0)
        file: Path = Path("a")

    assert identity_of(Outer(name="x")) == {"name": "x", "inner": {"lr": 0.1}, "many": [{"lr": 0.1}], "file": "a"}
    assert identity_of(Outer(name="x", timeout=9.0)) == identity_of(Outer(name="x"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [1]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghij")), "aliases written out"),
        ("a: &a [*a]\n", "nested too deeply"),
        ("a: " + "[" * 60 + "]" * 60, "nested too deeply"),
        ("a: " + "[" * 100_000, "not readable as YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "not readable as YAML"),
        ("a: !made {b: 1}\n", "not readable as YAML"),
    ],
)  # fmt: skip
def test_tags_and_bombs_of_yaml_are_refused_at_once(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        read_yaml(tmp_path / "study.yaml")


def test_aliases_within_reason_are_read(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("a: &a {n: 1}\nb: *a\n")
    assert read_yaml(tmp_path / "study.yaml")[0] == {"a": {"n": 1}, "b": {"n": 1}}


def test_a_brace_in_a_wrong_value_is_text() -> None:
    from demur.pipeline.study import Study

    for wrong, message in (
        ({"name": "{x}"}, "'{x}' is not a valid name"),
        ({"name": "x", "seeds": "{0}"}, "such as [{0}]"),
    ):
        with pytest.raises(UserError) as error:
            validate(Study, wrong, where="s.yaml")
        assert message in str(error.value)


def test_what_was_said_to_be_wrong_is_not_said_to_be_missing_too() -> None:
    from demur.pipeline.study import Study

    with pytest.raises(UserError) as error:
        validate(Study, {"name": "x", "findings": [{"claim": "c", "evidence": []}]}, where="s.yaml")
    assert str(error.value) == "s.yaml: 'findings.0.evidence' is empty: at least one is wanted"


@pytest.mark.parametrize(("item", "place", "wanted"), [
    ("bench.0.attack.width=5", ("bench", 0, "attack"), {"name": "tap", "width": 5}),
    ("bench.0.judge.text=x.md", ("bench", 0, "judge"), {"kind": "rules", "text": "x.md"}),
    ("bench.1.limit=3", ("bench", 1, "name"), "xstest"),
    ("arms.x.safety.cap=2", ("arms", "x", "safety"), {"n": 300, "cap": 2}),
    ("distil.begin.share=0.3", ("distil", "begin"), {"text": "Ok", "share": 0.3}),
    ("train.lora.rank=8", ("train", "lora"), {"rank": 8}),
])  # fmt: skip
def test_a_word_that_is_short_for_a_mapping_keeps_its_meaning_when_a_key_below_it_is_set(
    item: str, place: tuple[Any, ...], wanted: object
) -> None:
    from demur.pipeline.study import Study

    bench = [{"name": "advbench", "attack": "tap", "judge": "rules"}, "xstest"]
    data: Any = {"name": "a", "arms": {"x": {"safety": 300}}, "bench": bench, "distil": {"begin": "Ok"}}
    found: Any = override(data | {"train": {"lora": True}}, item, Study)
    for key in place:
        found = found[key]
    assert found == wanted
