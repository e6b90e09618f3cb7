"""RecordFile of whatever table a person has: JSON Lines, JSON, CSV, TSV, Parquet, or text with one entry a line.

A row always comes with the number under which its owner finds it again: the line where it starts, or the row's number
where lines mean nothing (JSON arrays, Parquet). What a row's keys mean is not decided here.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from demur.errors import UserError

Row = dict[str, Any]
Bad = Callable[[int, str], None]
"""Told the number of a row that cannot be read, and why."""
CELL = 1 << 30
"""Characters a CSV cell may have; the library's own bound is 128 KiB, which one trace can exceed."""
WRAPPERS = ("data", "rows", "examples", "prompts", "instances", "train", "test")
"""Keys under which a JSON object may hold the list of rows."""


def rows(path: Path, *, bad: Bad | None = None) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a table, each with its line number (row number for `.json` and `.parquet`), from 1.

    Args:
        path: a file ending in .jsonl, .json, .csv, .tsv, .parquet or .txt. A line of text becomes `{"prompt": line}`.
        bad: told of each row that cannot be read; without it such a row is an error.

    Raises:
        UserError: no such file, an unknown ending, or a row that is no row (with file and line).
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file, one of {', '.join(READERS)}.")
    if not path.exists():
        raise UserError(f"{path}: no such file.")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: cannot tell what '{path.suffix}' holds. Allowed: {', '.join(READERS)}.")

    def refuse(number: int, reason: str) -> None:
        raise UserError(f"{path}:{number}: {reason}")

    return reader(path, bad or refuse)


def _json_lines(path: Path, bad: Bad) -> Iterator[tuple[int, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not text.strip():
                continue
            try:
                row = _json(text)
            except ValueError as error:
                bad(number, f"not JSON: {error}")
                continue
            if isinstance(row, dict):
                yield number, row
            else:
                bad(number, f"a row is an object of keys and values, this is {type(row).__name__}.")


def _json_list(path: Path, bad: Bad) -> Iterator[tuple[int, Row]]:
    """A JSON array of objects, an object that holds one, or JSON Lines under the wrong name."""
    try:
        data = _json(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:
        if _looks_like_lines(path):
            yield from _json_lines(path, bad)
            return
        raise UserError(f"{path}: not JSON: {error}") from None
    if isinstance(data, dict):
        data = next((data[key] for key in WRAPPERS if isinstance(data.get(key), list)), [data])
    if not isinstance(data, list):
        raise UserError(f"{path}: expected a list of objects, found {type(data).__name__}.")
    for number, row in enumerate(data, 1):
        if isinstance(row, dict):
            yield number, row
        elif isinstance(row, str):
            yield number, {"prompt": row}
        else:
            bad(number, f"a row is an object of keys and values, this is {type(row).__name__}.")


def _looks_like_lines(path: Path) -> bool:
    """Whether the first line is a whole JSON object."""
    with path.open("rb") as file:
        try:
            return isinstance(_json(file.readline()), dict)
        except ValueError:
            return False


def _json(text: bytes) -> Any:
    """A JSON value. NaN, which pandas and Python write, is let through; half a surrogate pair, which is what a cut emoji
    leaves and no UTF-8 can hold, becomes a question mark."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        value = json.loads(text)
        return json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))


def _separated(delimiter: str) -> Callable[[Path, Bad], Iterator[tuple[int, Row]]]:
    def read(path: Path, bad: Bad) -> Iterator[tuple[int, Row]]:
        csv.field_size_limit(CELL)
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = _header(path, reader)
            start = reader.line_num + 1
            while True:
                try:
                    cells = next(reader, None)
                except (csv.Error, UnicodeDecodeError) as error:
                    # Where a quote is left open nothing behind it can be trusted.
                    bad(start, f"not readable as CSV from here on: {error}")
                    return
                if cells is None:
                    return
                if len(cells) == len(header):
                    yield start, dict(zip(header, cells, strict=True))
                elif cells:
                    bad(start, f"{len(cells)} cells under {len(header)} columns ({', '.join(header)}).")
                start = reader.line_num + 1

    return read


def _header(path: Path, reader: Any) -> list[str]:
    """The names of the columns."""
    try:
        header = [name.strip() for name in next(reader, [])]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}:1: not readable as CSV: {error}") from None
    twice = [a for a, b in pairwise(sorted(header)) if a == b]
    if not header or twice:
        said = f"column '{twice[0]}' stands there twice." if twice else "there are no columns."
        raise UserError(f"{path}:1: {said}")
    return header


def _parquet(path: Path, bad: Bad) -> Iterator[tuple[int, Row]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as error:
        from demur.registry import missing

        raise missing(error, f"reading {path}") from error
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pyarrow.ArrowInvalid as error:
        bad(number + 1, f"not readable as Parquet: {error}")


def _text(path: Path, bad: Bad) -> Iterator[tuple[int, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                bad(number, f"not UTF-8: {error}")
                continue
            if text:
                yield number, {"prompt": text}


READERS: dict[str, Callable[[Path, Bad], Iterator[tuple[int, Row]]]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
    ".txt": _text,
}
