"""Rows of whatever table a person has: JSON Lines, JSON, CSV, TSV, Parquet, or text with one entry a line; also .gz or .zst.

A row always comes with the number under which its owner finds it again: the line where it starts, or the row's number
where lines mean nothing (JSON in one piece, Parquet). What a row's keys mean is not decided here. Files are hostile input: what
is wrong with one is a `UserError`, or is passed to `bad` where only a row is wrong, and nothing is read without a bound.
"""

import csv
import gzip
import io
import json
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, TextIO, cast

import msgspec

from demur.errors import UserError
from demur.registry import missing

Row = dict[str, Any]
Bad = Callable[[int, str], None]  # Called with the number of a row that cannot be read, and why
LONGEST = 1 << 30  # Characters of a line or a cell, and of JSON that is read in one piece
WRAPPERS = ("data", "rows", "examples", "prompts", "instances", "train", "test")  # Keys of a JSON object's list of rows
UNDECODED = re.compile("[\udc80-\udcff]")


def rows(path: Path, *, bad: Bad | None = None) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a table, each with its line number (row number for JSON in one piece and Parquet), from 1.

    Args:
        path: a file with an ending of `READERS`, perhaps with .gz or .zst behind it. A line of text becomes `{"prompt": line}`.
        bad: called for each row that cannot be read; without it such a row is an error.

    Raises UserError: no such file, an unknown ending, a damaged file, or a row that is no row (with file and line).
    """
    if not path.is_file():
        reason = f"is a folder; give a file, one of {', '.join(READERS)}" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {reason}.")
    reader = READERS.get(ending(path))
    if reader is None:
        raise UserError(f"{path}: cannot tell what it holds. Allowed: {', '.join(READERS)}, also as .gz or .zst.")

    def refuse(number: int, reason: str) -> None:
        raise UserError(f"{path}:{number}: {reason}")

    return _read(path, reader, bad or refuse)


def ending(path: Path) -> str:
    """The ending that says what a file holds: `.jsonl` for `a.jsonl` and for `a.jsonl.gz`."""
    packed = path.suffix.lower() in (".gz", ".zst")
    return (Path(path.stem) if packed else path).suffix.lower()


def inert(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: what would be one gets an apostrophe in front."""
    start = value.lstrip("\ufeff\u200b\u200c\u200d\u2060\u00a0 ")[:1] if isinstance(value, str) else ""
    return f"'{value}" if start and unicodedata.normalize("NFKC", start) in "=+-@\t\r\n|" else value


def _read(path: Path, reader: Callable[[Path, Bad], Iterator[tuple[int, Row]]], bad: Bad) -> Iterator[tuple[int, Row]]:
    try:
        yield from reader(path, bad)
    except Exception as error:
        damaged = isinstance(error, (OSError, EOFError, UnicodeError, RecursionError, zlib.error))
        if damaged or type(error).__name__ == "ZstdError":
            raise UserError(f"{path}: not readable: {error or type(error).__name__}") from None
        raise


def _opened(path: Path) -> TextIO:
    """A file's unpacked text. UTF-16 shows by its mark or by a zero byte beside the first letter; what is not UTF-8 stays marked."""
    if path.suffix.lower() == ".zst":
        try:
            import zstandard
        except ModuleNotFoundError as error:
            raise missing(error, f"reading {path}") from error
        file = io.BufferedReader(zstandard.open(path, "rb"))
    else:
        file = cast(io.BufferedReader, gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb"))  # noqa: SIM115
    head = file.peek(2)[:2]
    zero = "utf-16-be" if head[:1] == b"\0" else "utf-16-le" if head[1:] == b"\0" else "utf-8-sig"
    encoding = "utf-16" if head in (b"\xff\xfe", b"\xfe\xff") else zero
    return io.TextIOWrapper(file, encoding, errors="surrogateescape" if zero == "utf-8-sig" else "strict", newline="")


def _lines(path: Path) -> Iterator[str]:
    with _opened(path) as file:
        while line := file.readline(LONGEST):
            if len(line) == LONGEST:
                raise UserError(f"{path}: a line of more than {LONGEST:,} characters.")
            yield line


def _not_utf8(text: str) -> str:
    found = None if text.isascii() else UNDECODED.search(text)
    return f"not UTF-8: the byte 0x{ord(found[0]) - 0xDC00:02x}; save the file as UTF-8." if found else ""


def _json(path: Path, bad: Bad) -> Iterator[tuple[int, Row]]:
    """JSON Lines, or JSON in one piece (an array, an object around one, objects over many lines), whatever the ending says."""
    lines = ((number, line) for number, line in enumerate(_lines(path), 1) if line.strip())
    head = list(islice(lines, 2))
    try:
        by_line = not head or (isinstance(_value(head[0][1]), dict) and (len(head) == 2 or ending(path) != ".json"))
    except ValueError:
        by_line = False
    if not by_line:
        with _opened(path) as file:
            text = file.read(LONGEST)
        try:
            values = _values(text)
        except ValueError as error:
            by_line = ending(path) == ".jsonl"
            if not by_line:
                bad(head[0][0], f"not JSON: {error}")
        else:
            only = values[0] if len(values) == 1 else None
            inner = only if isinstance(only, list) else None
            if isinstance(only, dict):
                inner = next((only[key] for key in WRAPPERS if isinstance(only.get(key), list)), None)
            yield from _objects(values if inner is None else inner, bad)
    for number, line in chain(head, lines) if by_line else ():
        try:
            yield from _objects([_value(line)], bad, number)
        except ValueError as error:
            bad(number, f"not JSON: {error}")


def _objects(values: Sequence[Any], bad: Bad, first: int = 1) -> Iterator[tuple[int, Row]]:
    for number, value in enumerate(values, first):
        if isinstance(value, (dict, str)):
            yield number, value if isinstance(value, dict) else {"prompt": value}
        else:
            bad(number, f"a row is an object of keys and values, this is {type(value).__name__}.")


def _value(line: str) -> Any:
    values = _values(line)
    if len(values) > 1:
        raise ValueError("several values in a line")
    return values[0]


def _values(text: str) -> list[Any]:
    """The JSON values that follow each other in a text. NaN, which pandas writes, is let through; half a surrogate pair,
    which is what a cut emoji leaves and no UTF-8 can hold, becomes a question mark."""
    try:
        return [msgspec.json.decode(text)]
    except (msgspec.DecodeError, UnicodeError):
        if reason := _not_utf8(text):
            raise ValueError(reason) from None
    found, at = list[Any](), len(text) - len(text.lstrip())
    while at < len(text) or not found:
        value, end = json.JSONDecoder().raw_decode(text, at)
        found.append(value)
        at = re.compile(r"\s*").match(text, end).end()  # type: ignore[union-attr]
    return cast("list[Any]", json.loads(json.dumps(found, ensure_ascii=False).encode(errors="replace")))


def _csv(path: Path, bad: Bad) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(LONGEST)
    lines = _lines(path)
    head = next(lines, "")
    usual = "\t" if ending(path) == ".tsv" else ","
    # Where a comma is the decimal sign, spreadsheets separate by semicolons.
    delimiter = usual if usual in head else max(usual, ";", "\t", key=head.count)
    reader = csv.reader(chain([head] if head else [], lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            if header is None:
                header = [name.strip() for name in cells]
                if twice := [a for a, b in pairwise(sorted(header)) if a == b]:
                    raise UserError(f"{path}:1: column {twice[0]!r} stands there twice.")
            elif reason := _not_utf8("".join(cells)):
                bad(start, reason)
            elif len(cells) == len(header):
                yield start, dict(zip(header, cells, strict=True))
            elif cells:
                bad(start, f"{len(cells)} cells under {len(header)} columns: {header}.")
            start = reader.line_num + 1
    except csv.Error as error:  # where a quote is left open nothing behind it can be trusted
        bad(start, f"not readable as CSV from here on: {error}")
    if not header:
        raise UserError(f"{path}:1: there are no columns.")


def _parquet(path: Path, bad: Bad) -> Iterator[tuple[int, Row]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as error:
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
    for number, line in enumerate(_lines(path), 1):
        if reason := _not_utf8(line):
            bad(number, reason)
        elif text := line.strip():
            yield number, {"prompt": text}


READERS: dict[str, Callable[[Path, Bad], Iterator[tuple[int, Row]]]] = {
    ".jsonl": _json, ".json": _json, ".parquet": _parquet, ".csv": _csv, ".tsv": _csv, ".txt": _text,
}  # fmt: skip
