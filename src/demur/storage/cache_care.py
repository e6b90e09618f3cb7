"""What one does with whole journals: take in another's rows, rescue what a damaged one still holds."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demur.errors import UserError
from demur.storage.reply_cache import COLUMNS, FILE, INSERT, ReplyCache


def merge(journal: ReplyCache, other: Path) -> int:
    """Take in the rows of another journal's folder that are not in this one; gives how many.

    Raises:
    UserError: there is no journal.
    """
    if not (other / FILE).is_file():
        raise UserError(f"{other} holds no journal ({FILE}).")
    database = journal.database
    database.execute("ATTACH ? AS other", (str(other / FILE),))
    try:
        taken = database.execute(f"INSERT OR IGNORE INTO main.replies({COLUMNS}) SELECT {COLUMNS} FROM other.replies")
        database.execute("INSERT OR IGNORE INTO main.served SELECT * FROM other.served")
        return taken.rowcount
    except sqlite3.DatabaseError as error:
        raise journal.trouble(error) from error
    finally:
        database.execute("DETACH other")


def salvage(folder: Path) -> tuple[int, Path]:
    """Move a damaged journal aside and start a new one with every row that can still be read.

    Returns:
        the number of rows saved, and where the damaged file is now.

    Raises:
        UserError: there is no journal.
    """
    if not (folder / FILE).is_file():
        raise UserError(f"{folder} holds no journal ({FILE}).")
    aside = folder / f"damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    aside.mkdir()
    for name in (FILE, f"{FILE}-wal", f"{FILE}-shm"):
        if (folder / name).exists():
            (folder / name).rename(aside / name)
    saved = 0
    with ReplyCache(folder) as new, contextlib.closing(sqlite3.connect(aside / FILE)) as old:
        new.database.execute("BEGIN IMMEDIATE")
        for row in _readable(old, 1, 1 << 40):
            if zlib.crc32(row[4]) == row[5]:
                saved += new.database.execute(INSERT, row).rowcount
        new.database.execute("COMMIT")
    return saved, aside


def _readable(database: sqlite3.Connection, low: int, high: int) -> Iterator[tuple[Any, ...]]:
    """The rows between two row ids that can be read: a range that cannot is halved until single rows are left out."""
    query = f"SELECT {COLUMNS} FROM replies NOT INDEXED WHERE rowid BETWEEN ? AND ?"
    try:
        rows = database.execute(query, (low, high)).fetchmany(1000)
        full = len(rows) == 1000
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        rows, full = [], low < high
    if not full:
        yield from rows
        return
    middle = (low + high) // 2
    yield from _readable(database, low, middle)
    yield from _readable(database, middle + 1, high)
