"""Readers of users' tables: JSON Lines, JSON, CSV, TSV, Parquet, or text with one entry per line; also as .gz or .zst.

Each row comes with a number by which its owner can find it: the line where it starts, or the row's own number where
there are no lines (a JSON document, Parquet). What its keys mean is decided elsewhere. Files are hostile input: a bad
file is a `UserError`, a bad row can also be passed to a callback, and no read is unbounded.
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
OnBad = Callable[[int, str], None]  # Called with the number of a row that cannot be read, and the reason
Reader = Callable[[Path, OnBad], Iterator[tuple[int, Row]]]
LONGEST = 1 << 30  # Most characters of a line, a cell or a JSON document
WRAPPERS = ("data", "rows", "examples", "prompts", "instances", "train", "test")  # Keys of a JSON object's list of rows
UNDECODED = re.compile("[\udc80-\udcff]")  # How the error handler `surrogateescape` marks bytes that are not UTF-8


def rows(path: Path, *, bad: OnBad | None = None) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a table, each with its line number (row number for a JSON document and Parquet), from 1.

    A row that cannot be read is passed to `bad`, if given. A line of plain text becomes `{"prompt": line}`.

    Raises UserError: no such file, an unknown suffix, a damaged file, or an unreadable row (with file and line).
    """
    if not path.is_file():
        reason = f"is a folder; give a file, one of {', '.join(READERS)}" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {reason}.")
    reader = READERS.get(ending(path))
    if reader is None:
        raise UserError(f"{path}: unknown file type. Allowed: {', '.join(READERS)}, also as .gz or .zst.")

    def refuse(number: int, reason: str) -> None:
        raise UserError(f"{path}:{number}: {reason}")

    return _read(path, reader, bad or refuse)


def ending(path: Path) -> str:
    """The suffix that names a file's format: `.jsonl` for `a.jsonl` and for `a.jsonl.gz`."""
    compressed = path.suffix.lower() in (".gz", ".zst")
    return (Path(path.stem) if compressed else path).suffix.lower()


def inert(value: Any) -> Any:
    """A cell that no spreadsheet reads as a formula: a text that looks like one gets an apostrophe in front."""
    start = value.lstrip("\ufeff\u200b\u200c\u200d\u2060\u00a0 ")[:1] if isinstance(value, str) else ""
    return f"'{value}" if start and unicodedata.normalize("NFKC", start) in "=+-@\t\r\n|" else value


def _read(path: Path, reader: Reader, bad: OnBad) -> Iterator[tuple[int, Row]]:
    """A reader's rows, with the errors of a damaged file as `UserError`."""
    try:
        yield from reader(path, bad)
    except Exception as error:
        damaged = isinstance(error, (OSError, EOFError, UnicodeError, RecursionError, zlib.error))
        if damaged or type(error).__name__ == "ZstdError":
            raise UserError(f"{path}: not readable: {error or type(error).__name__}") from None
        raise


def _opened(path: Path) -> TextIO:
    """A file's decompressed text. UTF-16 is detected by its mark, or by a zero byte beside the first letter."""
    suffix = path.suffix.lower()
    if suffix == ".zst":
        try:
            import zstandard
        except ModuleNotFoundError as error:
            raise missing(error, f"reading {path}") from error
        file = io.BufferedReader(zstandard.open(path, "rb"))
    else:
        file = cast(io.BufferedReader, gzip.open(path) if suffix == ".gz" else path.open("rb"))  # noqa: SIM115
    head = file.peek(2)[:2]
    if head in (b"\xff\xfe", b"\xfe\xff"):
        return io.TextIOWrapper(file, "utf-16", errors="surrogateescape", newline="")
    if b"\0" in head:
        return io.TextIOWrapper(file, "utf-16-be" if head[:1] == b"\0" else "utf-16-le", newline="")
    return io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")


def _lines(path: Path) -> Iterator[str]:
    with _opened(path) as file:
        while line := file.readline(LONGEST):
            if len(line) == LONGEST:
                raise UserError(f"{path}: a line of more than {LONGEST:,} characters.")
            yield line


def _not_utf8(text: str) -> str:
    """Why a text is not UTF-8; empty: it is."""
    match = None if text.isascii() else UNDECODED.search(text)
    return f"not UTF-8: the byte 0x{ord(match[0]) - 0xDC00:02x}; save the file as UTF-8." if match else ""


def _json(path: Path, bad: OnBad) -> Iterator[tuple[int, Row]]:
    """JSON Lines, or a document (an array, an object around one, objects over many lines), whatever the suffix."""
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
            if len(values) == 1:
                values = _unwrapped(values[0])
            yield from _objects(values, bad)
    for number, line in chain(head, lines) if by_line else ():
        try:
            yield from _objects([_value(line)], bad, number)
        except ValueError as error:
            bad(number, f"not JSON: {error}")


def _unwrapped(value: Any) -> list[Any]:
    """The rows of a document with one value: a list, an object around one, or a row."""
    if isinstance(value, dict):
        return next((value[key] for key in WRAPPERS if isinstance(value.get(key), list)), [value])
    return value if isinstance(value, list) else [value]


def _objects(values: Sequence[Any], bad: OnBad, first: int = 1) -> Iterator[tuple[int, Row]]:
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
    """The JSON values that follow each other in a text. NaN, which pandas writes, is accepted; half a surrogate pair,
    the rest of a truncated emoji, becomes a question mark."""
    try:
        return [msgspec.json.decode(text)]
    except (msgspec.DecodeError, UnicodeError):
        if reason := _not_utf8(text):
            raise ValueError(reason) from None
    values, at = list[Any](), len(text) - len(text.lstrip())
    while at < len(text) or not values:
        value, end = json.JSONDecoder().raw_decode(text, at)
        values.append(value)
        at = re.compile(r"\s*").match(text, end).end()  # type: ignore[union-attr]
    return cast("list[Any]", json.loads(json.dumps(values, ensure_ascii=False).encode(errors="replace")))


def _csv(path: Path, bad: OnBad) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(LONGEST)
    lines = _lines(path)
    head = next(lines, "")
    usual = "\t" if ending(path) == ".tsv" else ","
    # In countries with a decimal comma, spreadsheets separate cells by semicolons.
    delimiter = usual if usual in head else max(usual, ";", "\t", key=head.count)
    reader = csv.reader(chain([head] if head else [], lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            if header is None:
                header = [name.strip() for name in cells]
                if repeated := [a for a, b in pairwise(sorted(header)) if a == b]:
                    raise UserError(f"{path}:1: column {repeated[0]!r} appears twice.")
            elif reason := _not_utf8("".join(cells)):
                bad(start, reason)
            elif len(cells) == len(header):
                yield start, dict(zip(header, cells, strict=True))
            elif cells:
                bad(start, f"{len(cells)} cells under {len(header)} columns: {header}.")
            start = reader.line_num + 1
    except csv.Error as error:  # after an open quote, nothing that follows can be trusted
        bad(start, f"not readable as CSV from here on: {error}")
    if not header:
        raise UserError(f"{path}:1: there are no columns.")


def _parquet(path: Path, bad: OnBad) -> Iterator[tuple[int, Row]]:
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


def _text(path: Path, bad: OnBad) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(_lines(path), 1):
        if reason := _not_utf8(line):
            bad(number, reason)
        elif text := line.strip():
            yield number, {"prompt": text}


READERS: dict[str, Reader] = {
    ".jsonl": _json, ".json": _json, ".parquet": _parquet, ".csv": _csv, ".tsv": _csv, ".txt": _text,
}  # fmt: skip
