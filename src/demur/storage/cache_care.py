"""Reads what a damaged reply cache still holds.

A damaged file is read page by page, as sqlite3's `.recover` does, and never through the tables that may be broken: time is
linear in its size. A row counts when its body matches its checksum. Format: https://sqlite.org/fileformat2.html.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demur.errors import WorkError

MARK = "damaged"
"""A file beside the cache: it was found damaged, and is rebuilt when it is next opened."""
VALUES = 12
"""Columns of a reply's row: key first, model third, failure fourth, body fifth, checksum sixth, time last."""
Pages = dict[int, memoryview]


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error means that the file is not what was written."""
    text = str(error)
    return any(phrase in text for phrase in ("malformed", "not a database", "checksum", "encrypted", "no such column"))


def trouble(path: Path, error: Exception) -> WorkError:
    """What went wrong with a cache in our words, with what to do; damage is marked, so that the next start mends it."""
    text = str(error)
    if not isinstance(error, sqlite3.Error):
        return WorkError(f"{path}: {error!r}")
    if "full" in text or "disk I/O" in text:
        return WorkError(
            f"{path}: the disk is full or failing ({text}). What was stored is safe; nothing of the last replies was. "
            "Make room and run the same command to go on."
        )
    if not is_damage(error):
        return WorkError(f"{path}: {text}. Another program holds it, or it may not be written; see to that and go on.")
    with contextlib.suppress(OSError):
        path.with_name(MARK).touch()
    return WorkError(
        f"{path} is damaged ({text}). Run the same command again: it keeps every reply that can be read, and asks for the "
        "others again."
    )


def is_read(log: bytes, database: sqlite3.Connection) -> bool:
    """Whether SQLite has read a write-ahead log up to its last commit; at the first damaged frame it stops without a word."""
    size: int = database.execute("PRAGMA page_size").fetchone()[0]
    frames = [struct.unpack_from(">4I", log, at) for at in range(32, len(log) - size - 23, size + 24)]
    # Each frame bears the log's two salts. What an earlier log left behind has others: its first salt is one less.
    mine = frames[0][2:] if frames else ()
    written = max((i for i, (_, commit, *salts) in enumerate(frames, 1) if commit and tuple(salts) == mine), default=0)
    if not written or struct.unpack_from(">I", log, 16)[0] == (mine[0] + 1) % 2**32:
        return True
    seen: int = database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
    return seen >= written


def rescued(path: Path) -> tuple[list[tuple[Any, ...]], int, Path]:
    """Move a damaged cache aside and read it.

    Returns:
        every row that can still be read, failures excepted; how many are known to be lost; where the file is now.
    """
    aside = path.parent / f"damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    aside.mkdir()
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        if (path.parent / name).exists():
            (path.parent / name).rename(aside / name)
    pages, usable = _pages(aside / path.name)
    rows: dict[bytes, tuple[Any, ...]] = {}
    known: set[bytes] = set()
    for page in pages.values():
        for record in _records(page, pages, usable):
            if not record or not isinstance(record[0], bytes) or len(record[0]) != 16:
                continue
            known.add(record[0])
            whole = len(record) == VALUES and isinstance(record[4], bytes) and zlib.crc32(record[4]) == record[5]
            if whole and (record[0] not in rows or rows[record[0]][-1] < record[-1]):
                rows[record[0]] = tuple(record)
    lost = len(known) - len(rows)
    return [row for row in rows.values() if not row[3]], lost, aside


def _pages(path: Path) -> tuple[Pages, int]:
    """The pages of a file, those of its write-ahead log in the place of older ones."""
    data = memoryview(path.read_bytes())
    size = int.from_bytes(data[16:18]) if len(data) > 18 else 0
    size = {1: 65536}.get(size, size)
    size = size if 512 <= size <= 65536 and size & (size - 1) == 0 else 4096
    pages = {at // size + 1: data[at : at + size] for at in range(0, len(data), size)}
    log = path.with_name(f"{path.name}-wal")
    frames = memoryview(log.read_bytes()) if log.exists() else memoryview(b"")
    for at in range(32, len(frames) - size - 23, size + 24):
        number, _, *salts = struct.unpack_from(">4I", frames, at)
        if salts == list(struct.unpack_from(">2I", frames, 16)):
            pages[number] = frames[at + 24 : at + 24 + size]
    return pages, size


def _records(page: memoryview, pages: Pages, usable: int) -> Iterator[list[Any]]:
    """The records in the cells of a leaf of a table, or of any page of an index; of what is no such page nothing."""
    for start in (0, 100) if len(page) == usable else ():
        kind = page[start]
        if kind not in (0x0D, 0x0A, 0x02):
            continue
        first = start + (12 if kind == 0x02 else 8)
        for i in range(min(int.from_bytes(page[start + 3 : start + 5]), (usable - first) // 2)):
            at = int.from_bytes(page[first + 2 * i : first + 2 * i + 2]) + (4 if kind == 0x02 else 0)
            with contextlib.suppress(IndexError, ValueError, struct.error, KeyError):
                yield _record(_payload(page, at, table=kind == 0x0D, pages=pages, usable=usable))


def _payload(page: memoryview, at: int, *, table: bool, pages: Pages, usable: int) -> bytes:
    """The bytes of a cell, with what overflows it."""
    length, at = _varint(page, at)
    if table:
        _, at = _varint(page, at)
    most = usable - 35 if table else (usable - 12) * 64 // 255 - 23
    least = (usable - 12) * 32 // 255 - 23
    if length <= most:
        return bytes(page[at : at + length])
    here = least + (length - least) % (usable - 4)
    here = here if here <= most else least
    parts, following = [bytes(page[at : at + here])], int.from_bytes(page[at + here : at + here + 4])
    left = length - here
    while left > 0:
        more = pages[following]
        parts.append(bytes(more[4 : 4 + left]))
        if len(parts[-1]) == 0:
            raise ValueError("an overflow page without content")
        left -= len(parts[-1])
        following = int.from_bytes(more[:4])
    return b"".join(parts)


def _record(data: bytes) -> list[Any]:
    """The values of a record."""
    view = memoryview(data)
    end, at = _varint(view, 0)
    kinds = []
    while at < end:
        kind, at = _varint(view, at)
        kinds.append(kind)
    values: list[Any] = []
    for kind in kinds:
        size = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)[kind] if kind < 10 else (kind - 12) // 2
        raw = bytes(view[at : at + size])
        if len(raw) != size:
            raise ValueError("a truncated record")
        at += size
        if kind in (0, 8, 9):
            values.append({0: None, 8: 0, 9: 1}[kind])
        elif kind < 7:
            values.append(int.from_bytes(raw, signed=True))
        elif kind == 7:
            values.append(struct.unpack(">d", raw)[0])
        else:
            values.append(raw if kind % 2 == 0 else raw.decode("utf-8", "replace"))
    return values


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of one to nine bytes, and where it ends."""
    value = 0
    for i in range(8):
        value = value << 7 | data[at + i] & 0x7F
        if data[at + i] < 0x80:
            return value, at + i + 1
    return value << 8 | data[at + 8], at + 9
