from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur.errors import UserError
from demur.storage.readers import Row, inert, rows

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


def test_a_bad_row_is_an_error_with_file_and_line_or_reported_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\nnot json\n[1]\n{"a": NaN}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:3: not JSON"):
        list(rows(path))
    reported: list[int] = []
    assert [number for number, _ in rows(path, bad=lambda number, _: reported.append(number))] == [1, 5]
    assert reported == [3, 4]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "a,a\n1,2\n", "appears twice"),
        ("a.csv", "", "no columns"),
        ("a.csv", "a,b\n1\n", "a.csv:2: 1 cells under 2 columns"),
        ("a.csv", 'a,b\n"1,2\n', "from here on"),
        ("a.json", "{", "not JSON"),
        ("a.json", "7", "a row is an object"),
        ("a.json", "[" * 100_000, "not"),
        ("a.jsonl.gz", "{}", "not readable"),
        ("a.jsonl.zst", "{}", "not readable"),
        ("a.csv", "\0a,b\n1,2\n", "not readable"),
        ("a.jsonl", '{"a": 1}\n{"a": 1} {"a": 2}', "several values in a line"),
        ("a.xml", "<a/>", "unknown file type"),
        ("a.parquet", "no", "not readable as Parquet"),
    ],
)
def test_what_is_wrong_is_an_error(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        list(rows(tmp_path / name))


def test_a_truncated_emoji_does_not_break_what_follows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "so \\ud83d", "b": "\\ud83d\\ude00"}\n')
    ((_, row),) = rows(tmp_path / "a.jsonl")
    assert row == {"a": "so ?", "b": "\U0001f600"}


ROWS = [{"prompt": "Wie schärfe ich ein Messer?", "b": "1"}, {"prompt": "zwei\nZeilen \u2028 \U0001f600", "b": ""}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in ROWS)
TABLE = 'prompt,b\r\nWie schärfe ich ein Messer?,1\r\n"zwei\nZeilen \u2028 \U0001f600",\r\n'
PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", LINES),
        ("a.json", LINES),
        ("a.json", json.dumps(ROWS, ensure_ascii=False)),
        ("a.json", json.dumps(ROWS, ensure_ascii=False, indent=1)),
        ("a.jsonl", json.dumps(ROWS, ensure_ascii=False)),
        ("a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False, indent=1) for row in ROWS)),
        ("a.json", json.dumps({"version": 1, "data": ROWS}, ensure_ascii=False)),
        ("a.csv", TABLE),
        ("a.csv", TABLE.replace(",", ";")),
        ("a.tsv", TABLE.replace(",", "\t")),
    ],
)
def test_however_a_table_was_saved_its_rows_are_the_same(
    tmp_path: Path, name: str, text: str, pack: str, encoding: str
) -> None:
    path = tmp_path / (name + pack)
    path.write_bytes(PACK[pack](text.encode(encoding)))
    assert [row for _, row in rows(path)] == ROWS


def test_compressed_by_zstandard(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(LINES.encode("utf-16")))
    assert [row for _, row in rows(tmp_path / "a.jsonl.zst")] == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_only_the_rows_that_are_not_utf8_are_lost(tmp_path: Path, name: str) -> None:
    lines = {"a.jsonl": ['{"prompt": "ä"}', '{"prompt": "b"}'], "a.csv": ["prompt", "ä", "b"], "a.txt": ["ä", "b"]}[
        name
    ]
    (tmp_path / name).write_bytes("\n".join(lines).encode("latin-1"))
    reported: list[tuple[int, str]] = []
    found = list(rows(tmp_path / name, bad=lambda number, reason: reported.append((number, reason))))
    assert [row for _, row in found] == [{"prompt": "b"}]
    assert (
        reported == [(len(lines) - 1, "not UTF-8: the byte 0xe4; save the file as UTF-8.")] or "0xe4" in reported[0][1]
    )


def test_a_truncated_compressed_file_gives_what_it_holds_and_then_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((LINES * 5000).encode())[:-20])
    found: list[tuple[int, Row]] = []
    with pytest.raises(UserError, match="not readable"):
        found.extend(rows(tmp_path / "a.jsonl.gz"))


def test_no_line_is_read_without_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demur.storage.readers.LONGEST", 1 << 10)
    bomb = gzip.compress(b'{"prompt": "' + b"a" * (1 << 20))
    for name in ("a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.txt.gz"):
        (tmp_path / name).write_bytes(bomb)
        with pytest.raises(UserError, match="a line of more than 1,024"):
            list(rows(tmp_path / name))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\ufeff=1", "\uff1d1", " =1", "\r1", "|calc"])
def test_formulas_are_disarmed_and_nothing_else_is(text: str) -> None:
    assert inert(text) == f"'{text}"
    assert (inert("a=1"), inert(""), inert(-1), inert(None)) == ("a=1", "", -1, None)


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
