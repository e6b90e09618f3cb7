"""The reply cache's file: its tables, and what a damaged one still holds.

A damaged file is read page by page, as sqlite3's `.recover` does (Python's module has none, nor has the program as Debian builds
it), and never through the tree that may be broken: SQLite is shown one leaf of it after the other as a table. Time is linear in the
size. A row counts when its body matches its checksum. Format: https://sqlite.org/fileformat2.html.
"""

import contextlib
import logging
import os
import sqlite3
import struct
import time
import zlib
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
LEAF = 0x0D  # How a page begins that holds rows of a table
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


def _rows(pages: Pages, size: int) -> Rows:
    """Every reply's row in these pages, the newest of each: each leaf is read as if it were the whole of the table."""
    rows = dict[bytes, tuple[Any, ...]]()
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        database.text_factory = lambda text: text.decode("utf-8", "replace")
        database.executescript(f"PRAGMA page_size={size}; CREATE TABLE replies({COLUMNS})")
        first = bytearray(
            database.serialize()[:size]
        )  # the table's description; in the header stands how many pages there are
        first[28:32] = max(pages, default=1).to_bytes(4)
        nothing = bytes(size)
        database.deserialize(b"".join((first, *(pages.get(at, nothing) for at in range(2, max(pages, default=1) + 1)))))
        database.execute("PRAGMA writable_schema=ON")
        for leaf in (number for number, page in pages.items() if number > 1 and page[0] == LEAF):
            database.execute("UPDATE sqlite_master SET rootpage = ?", (leaf,))
            database.execute("PRAGMA writable_schema=RESET")
            with contextlib.suppress(sqlite3.DatabaseError):
                for row in database.execute(f"SELECT {COLUMNS} FROM replies"):
                    whole = isinstance(row[4], bytes) and zlib.crc32(row[4]) == row[5]
                    if whole and (row[0] not in rows or rows[row[0]][-1] < row[-1]):
                        rows[row[0]] = row
            database.execute("PRAGMA writable_schema=ON")
    return list(rows.values())


def _pages(path: Path) -> tuple[Pages, int]:
    """The whole pages of a file, those of its write-ahead log in the place of older ones, and their size."""
    data = memoryview(path.read_bytes() if path.exists() else b"")
    size = int.from_bytes(data[16:18]) if len(data) > 18 else 0
    size = {1: 65536}.get(size, size)
    size = size if 512 <= size <= 65536 and size & (size - 1) == 0 else 4096
    pages = {at // size + 1: data[at : at + size] for at in range(0, len(data) - size + 1, size)}
    wal = path.with_name(f"{path.name}-wal")
    frames = memoryview(wal.read_bytes() if wal.exists() else b"")
    for at in range(32, len(frames) - size - 23, size + 24):
        number, _, *salts = struct.unpack_from(">4I", frames, at)
        if salts == list(struct.unpack_from(">2I", frames, 16)) and number * size <= len(data) + len(frames):
            pages[number] = frames[at + 24 : at + 24 + size]
    return pages, size
