"""The reply cache's file: its tables, and what a damaged one still holds.

A damaged file is read page by page, as sqlite3's `.recover` does (Python's module has none, nor has the program as Debian builds
it), and never through the tables that may be broken: time is linear in its size. A row counts when its body matches its
checksum. Format: https://sqlite.org/fileformat2.html.
"""

import contextlib
import logging
import os
import sqlite3
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demur.errors import WorkError

APPLICATION, FORMAT = 0x64656D75, 2
SCHEMA = f"""
BEGIN IMMEDIATE; PRAGMA application_id={APPLICATION}; PRAGMA user_version={FORMAT};
CREATE TABLE IF NOT EXISTS replies(
    key BLOB PRIMARY KEY, label TEXT, model TEXT, failure TEXT, body BLOB, crc INTEGER,
    tokens_in INTEGER, tokens_out INTEGER, tokens_thinking INTEGER, retries INTEGER, cost REAL, at REAL);
CREATE TABLE IF NOT EXISTS served(model TEXT PRIMARY KEY, marks TEXT);
CREATE TABLE IF NOT EXISTS counted(n INTEGER);
INSERT INTO counted SELECT count(*) FROM replies WHERE NOT EXISTS (SELECT 1 FROM counted);
CREATE TRIGGER IF NOT EXISTS more AFTER INSERT ON replies BEGIN UPDATE counted SET n = n + 1; END;
CREATE TRIGGER IF NOT EXISTS fewer AFTER DELETE ON replies BEGIN UPDATE counted SET n = n - 1; END;
COMMIT;
"""
OBJECTS = 7  # What SQLite lists of this schema, its own indexes included
COLUMNS = "key, label, model, failure, body, crc, tokens_in, tokens_out, tokens_thinking, retries, cost, at"
ROW = f"({','.join('?' * 12)})"
INSERT = f"INSERT OR IGNORE INTO replies({COLUMNS}) VALUES {ROW}"

MARK = "damaged"  # A file beside the cache: it was found damaged, and is rebuilt when it is next opened
NEW = "rebuilt.sqlite"
Pages = dict[int, memoryview]
Rows = list[tuple[Any, ...]]
log = logging.getLogger("demur")


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


def rebuilt(path: Path, stored: int) -> None:
    """Put a new cache in the place of a damaged one that held `stored` rows; failures are left out, to be asked again.

    The damaged file stays where it is until the new one is whole, and goes into a folder beside it then.
    """
    rows = _rows(*_pages(path))
    good = [row for row in rows if not row[3]]
    new = path.with_name(NEW)
    new.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=OFF")  # it is whole, or is begun anew
        database.executescript(SCHEMA + "BEGIN")
        database.executemany(INSERT, good)
        database.execute("COMMIT")
    log.warning(
        "%s was damaged: %d replies could be read and are used, %d could not and are asked again; the damaged file is in %s",
        path, len(good), max(stored - len(rows), 0), swapped(path),
    )  # fmt: skip


def swapped(path: Path) -> Path:
    """Move a damaged cache into a folder of its own, which is returned, and the new one into its place."""
    aside = path.parent / f"damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    aside.mkdir()
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        if (path.parent / name).exists():
            (path.parent / name).rename(aside / name)
    path.with_name(NEW).rename(path)
    return aside


def _rows(pages: Pages, usable: int) -> Rows:
    """Every reply's row in these pages, the newest of each."""
    rows, width = dict[bytes, tuple[Any, ...]](), ROW.count("?")
    for page in pages.values():
        for record in _records(page, pages, usable):
            whole = len(record) == width and isinstance(record[4], bytes) and zlib.crc32(record[4]) == record[5]
            if whole and (record[0] not in rows or rows[record[0]][-1] < record[-1]):
                rows[record[0]] = tuple(record)
    return list(rows.values())


def _pages(path: Path) -> tuple[Pages, int]:
    """The whole pages of a file, those of its write-ahead log in the place of older ones."""
    data = memoryview(path.read_bytes() if path.exists() else b"")
    size = int.from_bytes(data[16:18]) if len(data) > 18 else 0
    size = {1: 65536}.get(size, size)
    size = size if 512 <= size <= 65536 and size & (size - 1) == 0 else 4096
    pages = {at // size + 1: data[at : at + size] for at in range(0, len(data) - size + 1, size)}
    wal = path.with_name(f"{path.name}-wal")
    frames = memoryview(wal.read_bytes() if wal.exists() else b"")
    for at in range(32, len(frames) - size - 23, size + 24):
        number, _, *salts = struct.unpack_from(">4I", frames, at)
        if salts == list(struct.unpack_from(">2I", frames, 16)):
            pages[number] = frames[at + 24 : at + 24 + size]
    return pages, size


def _records(page: memoryview, pages: Pages, usable: int) -> Iterator[list[Any]]:
    """The records in the cells of a leaf of a table; of what is no such page nothing."""
    for start in (0, 100):
        if page[start] == 0x0D:
            for i in range(min(int.from_bytes(page[start + 3 : start + 5]), (usable - start - 8) // 2)):
                at = int.from_bytes(page[start + 8 + 2 * i : start + 10 + 2 * i])
                with contextlib.suppress(IndexError, ValueError, struct.error, KeyError):
                    yield _record(_payload(page, at, pages, usable))


def _payload(page: memoryview, at: int, pages: Pages, usable: int) -> bytes:
    """The bytes of a cell, with what overflows it."""
    length, at = _varint(page, at)
    _, at = _varint(page, at)
    if length > len(pages) * usable:
        raise ValueError("longer than the file")
    most, least = usable - 35, (usable - 12) * 32 // 255 - 23
    here = least + (length - least) % (usable - 4)
    here = length if length <= most else here if here <= most else least
    data, following = bytearray(page[at : at + here]), page[at + here : at + here + 4]
    while len(data) < length:
        more = pages[int.from_bytes(following)]
        data += more[4 : 4 + length - len(data)]
        following = more[:4]
    return bytes(data)


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
