from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur.errors import UserError
from demur.storage.readers import rows

cell = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=20)


@given(st.lists(st.dictionaries(st.text(max_size=5), st.none() | st.integers(-9, 9) | cell), min_size=1, max_size=6))
def test_json_and_json_lines_give_back_what_was_written(tmp_path_factory: Any, table: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("t")
    (folder / "a.jsonl").write_text("\n".join(json.dumps(row) for row in table), encoding="utf-8")
    (folder / "a.json").write_text(json.dumps(table), encoding="utf-8")
    assert list(rows(folder / "a.jsonl")) == list(enumerate(table, 1))
    assert list(rows(folder / "a.json")) == list(enumerate(table, 1))


@given(st.lists(st.tuples(cell, cell), max_size=6))
def test_csv_gives_back_cells_with_the_line_where_each_row_starts(
    tmp_path_factory: Any, table: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("t") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["prompt", "b"])
        writer.writerows(table)
    found = list(rows(path))
    assert [(row["prompt"], row["b"]) for _, row in found] == table
    starts = [2 + sum(a.count("\n") + b.count("\n") + 1 for a, b in table[:i]) for i in range(len(table))]
    assert [number for number, _ in found] == starts


def test_a_bad_row_is_an_error_with_file_and_line_or_told_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\nnot json\n[1]\n{"a": NaN}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:3: not JSON"):
        list(rows(path))
    told: list[int] = []
    assert [number for number, _ in rows(path, bad=lambda number, _: told.append(number))] == [1, 5]
    assert told == [3, 4]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "a,a\n1,2\n", "stands there twice"),
        ("a.csv", "", "no columns"),
        ("a.csv", "a,b\n1\n", "a.csv:2: 1 cells under 2 columns"),
        ("a.csv", 'a,b\n"1,2\n', "from here on"),
        ("a.json", "{", "not JSON"),
        ("a.json", "7", "expected a list"),
        ("a.xml", "<a/>", "cannot tell"),
        ("a.parquet", "no", "not readable as Parquet"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        list(rows(tmp_path / name))


def test_a_cut_emoji_does_not_break_what_follows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "so \\ud83d", "b": "\\ud83d\\ude00"}\n')
    ((_, row),) = rows(tmp_path / "a.jsonl")
    assert row == {"a": "so ?", "b": "\U0001f600"}


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        rows(tmp_path / "a.csv")
    with pytest.raises(UserError, match="is a folder"):
        rows(tmp_path)


def test_text_and_wrapped_json_and_lines_under_the_wrong_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    assert list(rows(tmp_path / "a.txt")) == [(1, {"prompt": "one"}), (3, {"prompt": "two"})]
    (tmp_path / "a.json").write_text('{"name": "x", "data": [{"a": 1}, "b"]}')
    assert list(rows(tmp_path / "a.json")) == [(1, {"a": 1}), (2, {"prompt": "b"})]
    (tmp_path / "b.json").write_text('{"a": 1}\n{"a": 2}\n')
    assert list(rows(tmp_path / "b.json")) == [(1, {"a": 1}), (2, {"a": 2})]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = [{"a": 1, "b": ["x"]}, {"a": 2, "b": []}]
    parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "a.parquet")
    assert list(rows(tmp_path / "a.parquet")) == [(1, table[0]), (2, table[1])]
