"""Records on the disk in place of lists: what stays in memory of a row is where it ends, eight bytes, and no text.

A stage that must sort or count its records as a whole appends them to `RecordFile` as they come, works out an order from a few
numbers of each, and writes them in that order. The files are nameless and vanish with their owner; they lie in `TMPDIR`,
else in /var/tmp, since /tmp may be memory.
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
BUFFER = 1 << 20


class RecordFile(Sequence[T]):
    """A list of records that lies on the disk: append, read, and look at it in another order."""

    def __init__(self, kind: type[T], records: Iterable[T] = (), *, path: Path | None = None) -> None:
        """Make an empty one and fill it, or open a file of records to read.

        Args:
            kind: what a row is read as; it may have fewer fields than what was written, where it allows for more.
            records: to begin with.
            path: a file of JSON Lines in place of a new one.
        """
        self._kind, self._path = kind, path
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind)
        self._ends = array("q")
        self._order: Sequence[int] | I64 | None = None
        self._written = [0]
        self._file = path.open("rb") if path else scratch()
        # When the last list and view of these rows has gone. Not by __del__: of a circle of rubbish the file might go first, and complain.
        weakref.finalize(self._ends, _closed, self._file)
        self.extend(records)
        end = 0
        for line in self._file if path else ():
            end += len(line)
            if line.strip():
                self._ends.append(end)

    def append(self, record: T) -> None:
        """Add a record."""
        assert self._order is None, "a view is for reading"
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
        """The line of the file at which a row stands; empty lines count."""
        row = at if self._order is None else int(self._order[at])
        return os.pread(self._file.fileno(), self._ends[row] - 1, 0).count(b"\n") + 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def lines(self) -> Iterator[msgspec.Raw]:
        """The rows as they were written, for writing them again without reading them."""
        for at in range(len(self)):
            yield msgspec.Raw(self._line(at).strip())

    def take(self, order: Sequence[int] | I64) -> RecordFile[T]:
        """These rows in this order, without copying them."""
        view = copy.copy(self)
        view._order = order if self._order is None else np.asarray(self._order)[np.asarray(order, dtype=np.int64)]
        return view

    def read_as(self, kind: type[U]) -> RecordFile[U]:
        """The same rows read as a kind with fewer fields, which costs less."""
        view = cast("RecordFile[Any]", copy.copy(self))
        view._kind, view._decoder = kind, msgspec.json.Decoder(kind)
        return cast("RecordFile[U]", view)


def project(path: Path, kind: type, *fields: str) -> Iterator[tuple[Any, ...]]:
    """`read_jsonl` of some fields of each record; nothing where there is no file.

    `fields` are dotted paths, such as `"id", "prompt.cluster"`; the others are skipped unread.
    """
    pick, alone = attrgetter(*fields), len(fields) == 1
    for record in read_jsonl(path, _reduced(kind, fields)) if path.is_file() else ():
        yield (pick(record),) if alone else pick(record)


@cache
def _reduced(kind: type, fields: tuple[str, ...]) -> type[Any]:
    """A record with fewer fields, of the same types and defaults."""
    heads: dict[str, list[str]] = {}
    for field in fields:
        head, _, rest = field.partition(".")
        heads.setdefault(head, []).extend([rest] if rest else [])
    known = {field.name: field for field in msgspec.structs.fields(kind)}
    made: list[tuple[str, Any, Any]] = []
    for head, inner in heads.items():
        own: Any = known[head]
        default = {"default": own.default, "default_factory": own.default_factory}
        made.append((head, _reduced(own.type, tuple(inner)) if inner else own.type, msgspec.field(**default)))
    return msgspec.defstruct(kind.__name__, made, kw_only=True, gc=False)


def _closed(file: BinaryIO) -> None:
    """Let a file go; whether its last bytes still fit on the disk no longer matters."""
    with suppress(OSError):
        file.close()


def scratch() -> BinaryIO:
    """A nameless file that vanishes with its owner."""
    usual = "/var/tmp" if "TMPDIR" not in os.environ and os.access("/var/tmp", os.W_OK) else None
    return cast(BinaryIO, tempfile.TemporaryFile(dir=usual, buffering=BUFFER))


def numbers(values: Iterable[int]) -> I64:
    """Whole numbers as an array."""
    return np.fromiter(values, dtype=np.int64)


class Places:
    """Where each of many names stands first, in sixteen bytes a name."""

    def __init__(self, names: Iterable[str]) -> None:
        hashes = numbers(map(hash, names))
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def of(self, names: Iterable[str]) -> I64:
        """The place of each name; -1: it is not among them."""
        wanted = numbers(map(hash, names))
        if not len(self._sorted):
            return np.full(len(wanted), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        found: I64 = np.where(self._sorted[at] == wanted, self._order[at], -1)
        return found
