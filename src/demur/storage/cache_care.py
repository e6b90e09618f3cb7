"""The reply cache's database file: its schema, its errors, and the recovery of rows from a damaged one.

Recovery does not follow the B-tree, which may be broken. It shows SQLite one leaf page after the other as if that were
the whole table, and keeps rows whose body matches its checksum. Time is linear in the size. (sqlite3's `.recover` is
similar, but neither Python's module nor Debian's program has it.) Format: https://sqlite.org/fileformat2.html.
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
OBJECTS = 7  # Tables, triggers and indexes of this schema
COLUMNS = "key, label, model, failure, body, crc, tokens_in, tokens_out, tokens_thinking, retries, cost, at"
ROW = f"({','.join('?' * 12)})"
INSERT = f"INSERT OR IGNORE INTO replies({COLUMNS}) VALUES {ROW}"

MARK = "damaged"  # Name of an empty file beside the cache: damage was found, and the next start rebuilds the cache
NEW = "rebuilt.sqlite"
LEAF = 0x0D  # First byte of a page that holds rows of a table
Pages = dict[int, memoryview]
Rows = list[tuple[Any, ...]]
log = logging.getLogger("demur")


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error means that the file is damaged."""
    text = str(error)
    return any(phrase in text for phrase in ("malformed", "not a database", "checksum", "encrypted", "no such column"))


def explained(path: Path, error: Exception) -> WorkError:
    """An error of the cache as a message with what to do. Marks damage on disk, so that the next start repairs it."""
    text = str(error)
    if not isinstance(error, sqlite3.Error):
        return WorkError(f"{path}: {error!r}")
    if "full" in text or "disk I/O" in text:
        return WorkError(
            f"{path}: the disk is full or failing ({text}). What was stored is safe; the last replies were not stored. "
            "Make room and run the same command to go on."
        )
    if not is_damage(error):
        return WorkError(f"{path}: {text}. Another program locks it, or it is not writable: solve that and run again.")
    with contextlib.suppress(OSError):
        path.with_name(MARK).touch()
    return WorkError(
        f"{path} is damaged ({text}). Run the same command again: it keeps every reply that can be read, and asks "
        "for the others again."
    )


def rebuild(path: Path, stored: int) -> None:
    """Replace a damaged cache that held `stored` rows by one with the rows that can be read, except failures.

    The damaged file stays in place until the new one is complete; then it is moved into a folder beside it.
    """
    rows = _rows(*_pages(path))
    replies = [row for row in rows if not row[3]]
    new = path.with_name(NEW)
    new.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=OFF")  # an incomplete file is written again from the start
        database.executescript(SCHEMA + "BEGIN")
        database.executemany(INSERT, replies)
        database.execute("COMMIT")
    message = (
        "%s was damaged: %d replies could be read and are used, %d could not and are asked again; the damaged file"
    )
    log.warning(f"{message} is in %s", path, len(replies), max(stored - len(rows), 0), swap_in(path))


def swap_in(path: Path) -> Path:
    """Move a damaged cache into a new folder, which is returned, and the rebuilt one into its place."""
    aside = path.parent / f"damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    aside.mkdir()
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        if (path.parent / name).exists():
            (path.parent / name).rename(aside / name)
    path.with_name(NEW).rename(path)
    return aside


def _rows(pages: Pages, size: int) -> Rows:
    """The newest row of every reply in pages of a size; each leaf is read as if it were the whole table."""
    rows = dict[bytes, tuple[Any, ...]]()
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        database.text_factory = lambda text: text.decode("utf-8", "replace")
        database.executescript(f"PRAGMA page_size={size}; CREATE TABLE replies({COLUMNS})")
        last = max(pages, default=1)
        first = bytearray(database.serialize()[:size])  # The header and the table's schema
        first[28:32] = last.to_bytes(4)  # The number of pages
        blank = bytes(size)
        database.deserialize(b"".join([first, *(pages.get(at, blank) for at in range(2, last + 1))]))
        database.execute("PRAGMA writable_schema=ON")
        for leaf in (number for number, page in pages.items() if number > 1 and page[0] == LEAF):
            database.execute("UPDATE sqlite_master SET rootpage = ?", (leaf,))
            database.execute("PRAGMA writable_schema=RESET")
            with contextlib.suppress(sqlite3.DatabaseError):
                for row in database.execute(f"SELECT {COLUMNS} FROM replies"):
                    key, body, crc, at = row[0], row[4], row[5], row[-1]
                    intact = isinstance(body, bytes) and zlib.crc32(body) == crc
                    if intact and (key not in rows or rows[key][-1] < at):
                        rows[key] = row
            database.execute("PRAGMA writable_schema=ON")
    return list(rows.values())


def _pages(path: Path) -> tuple[Pages, int]:
    """The complete pages of a file by number, the newest of file and write-ahead log, and their size in bytes."""
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
