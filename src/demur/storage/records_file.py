"""Lists of records on disk: only the eight-byte offset of each row is in memory.

A stage that sorts or counts all its records appends them to a `RecordFile`, computes an order from a few numbers of
each, and writes them in that order. The files are unnamed and disappear with their owner. They are in `TMPDIR`, else in
/var/tmp, since /tmp may be in memory.
"""

from __future__ import annotations

import copy
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from operator import attrgetter, eq
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from demur.errors import UserError
from demur.records import encode, read_jsonl

T = TypeVar("T")
U = TypeVar("U")
I64 = NDArray[np.int64]
BUFFER = 1 << 20  # Bytes that are written at once


class RecordFile(Sequence[T]):
    """A list of records on disk, to append to and to read, also in another order."""

    def __init__(self, kind: type[T], records: Iterable[T] = (), *, path: Path | None = None) -> None:
        """Create a list of `records`, or open the JSON Lines at `path` for reading.

        Rows are read as `kind`, which may have fewer fields than the records that were written.
        """
        self._kind, self._path = kind, path
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind)
        self._ends = array("q")
        self._order: Sequence[int] | I64 | None = None
        self._written = [0]
        self._file = path.open("rb") if path else scratch()
        # Runs when the last list or view of these rows is gone. In a cycle, `__del__` might run after the file's own.
        weakref.finalize(self._ends, _close, self._file)
        self.extend(records)
        end = 0
        for line in self._file if path else ():
            end += len(line)
            if line.strip():
                self._ends.append(end)

    def append(self, record: T) -> None:
        """Add a record."""
        assert self._order is None, "a view is read-only"
        line = encode(record)
        self._file.write(line + b"\n")
        self._ends.append((self._ends[-1] if self._ends else 0) + len(line) + 1)

    def extend(self, records: Iterable[T]) -> None:
        """Add records."""
        for record in records:
            self.append(record)

    def __len__(self) -> int:
        return len(self._ends if self._order is None else self._order)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> RecordFile[T]: ...
    def __getitem__(self, at: int | slice) -> T | RecordFile[T]:
        if isinstance(at, slice):
            return self.take(range(*at.indices(len(self))))
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        return self._read(at % len(self))

    def __iter__(self) -> Iterator[T]:
        for at in range(len(self)):
            yield self._read(at)

    def _read(self, at: int) -> T:
        try:
            return self._decoder.decode(self._line(at))
        except msgspec.DecodeError as error:
            raise UserError(f"{self._path}:{self._number(at)}: not a {self._kind.__name__}: {error}") from None

    def _line(self, at: int) -> bytes:
        row = at if self._order is None else int(self._order[at])
        if self._written[0] < len(self._ends) and self._path is None:
            self._file.flush()
            self._written[0] = len(self._ends)
        start = self._ends[row - 1] if row else 0
        return os.pread(self._file.fileno(), self._ends[row] - start, start)

    def _number(self, at: int) -> int:
        """The line of the file at which a row is; empty lines count."""
        row = at if self._order is None else int(self._order[at])
        return os.pread(self._file.fileno(), self._ends[row] - 1, 0).count(b"\n") + 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def lines(self) -> Iterator[msgspec.Raw]:
        """The rows as bytes, to be written again without being decoded."""
        for at in range(len(self)):
            yield msgspec.Raw(self._line(at).strip())

    def take(self, order: Sequence[int] | I64) -> RecordFile[T]:
        """A view of these rows in this order."""
        view = copy.copy(self)
        view._order = order if self._order is None else np.asarray(self._order)[np.asarray(order, dtype=np.int64)]
        return view

    def read_as(self, kind: type[U]) -> RecordFile[U]:
        """A view that reads the rows as a kind with fewer fields, which is faster."""
        view = cast("RecordFile[Any]", copy.copy(self))
        view._kind, view._decoder = kind, msgspec.json.Decoder(kind)
        return cast("RecordFile[U]", view)


def project(path: Path, kind: type, *fields: str) -> Iterator[tuple[Any, ...]]:
    """Yield some fields of each record of a JSON Lines file as tuples; nothing if there is no file.

    `fields` are dotted paths, such as `"id", "prompt.cluster"`. Other fields are skipped without being decoded.
    """
    pick, single = attrgetter(*fields), len(fields) == 1
    for record in read_jsonl(path, _reduced(kind, fields)) if path.is_file() else ():
        yield (pick(record),) if single else pick(record)


@cache
def _reduced(kind: type, paths: tuple[str, ...]) -> type[Any]:
    """A record with some fields of another, of the same types and defaults."""
    inner_paths: dict[str, list[str]] = {}
    for path in paths:
        name, _, rest = path.partition(".")
        inner_paths.setdefault(name, []).extend([rest] if rest else [])
    known: dict[str, Any] = {field.name: field for field in msgspec.structs.fields(kind)}
    fields: list[tuple[str, Any, Any]] = []
    for name, inner in inner_paths.items():
        field = known[name]
        default = {"default": field.default, "default_factory": field.default_factory}
        fields.append((name, _reduced(field.type, tuple(inner)) if inner else field.type, msgspec.field(**default)))
    return msgspec.defstruct(kind.__name__, fields, kw_only=True, gc=False)


def _close(file: BinaryIO) -> None:
    """Close a file; whether its last bytes still fit on the disk no longer matters."""
    with suppress(OSError):
        file.close()


def scratch() -> BinaryIO:
    """An unnamed temporary file."""
    folder = "/var/tmp" if "TMPDIR" not in os.environ and os.access("/var/tmp", os.W_OK) else None
    return cast(BinaryIO, tempfile.TemporaryFile(dir=folder, buffering=BUFFER))


def numbers(values: Iterable[int]) -> I64:
    """Integers as an array."""
    return np.fromiter(values, dtype=np.int64)


class Places:
    """An index from names to the place of their first occurrence, in sixteen bytes per name."""

    def __init__(self, names: Iterable[str]) -> None:
        hashes = numbers(map(hash, names))
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def of(self, names: Iterable[str]) -> I64:
        """The place of each name; -1 if it does not occur."""
        hashes = numbers(map(hash, names))
        if not len(self._sorted):
            return np.full(len(hashes), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._sorted, hashes), len(self._sorted) - 1)
        places: I64 = np.where(self._sorted[at] == hashes, self._order[at], -1)
        return places
