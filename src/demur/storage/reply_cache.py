"""The reply cache: every model reply is durable before it is used.

    RUN/replies/replies.sqlite    one row per reply, keyed by a hash of the exact request and the model's identity

A reply is committed (SQLite, write-ahead log, `synchronous=FULL`) before it is returned, so that a killed run asks
nothing twice and loses nothing that was paid for. One thread commits together whatever arrived during its last commit.
Identical requests are sent once: within a process they share a future, between processes a lock on one byte of a side
file, which ends with its holder. Failures are rows with a type. What was spent is the sum over all rows.

A damaged file is detected, and rebuilt from its readable rows when it is next opened. The side file counts committed
rows, because SQLite silently ignores a log from its first damaged or missing frame on.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import sqlite3
import struct
import tempfile
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from demur.errors import WorkError
from demur.records import FailureKind, Finish, Record, encode
from demur.storage import cache_care
from demur.storage.cache_care import APPLICATION, COLUMNS, FORMAT, INSERT, OBJECTS, ROW, Rows

FILE = "replies.sqlite"
_LOCK = getattr(fcntl, "F_OFD_SETLK", fcntl.F_SETLK)
_LOCK_WAITING = getattr(fcntl, "F_OFD_SETLKW", fcntl.F_SETLKW)

REPLACE = f"""
INSERT INTO replies({COLUMNS}) VALUES {ROW} ON CONFLICT(key) DO UPDATE SET
    failure = excluded.failure, body = excluded.body, crc = excluded.crc, at = excluded.at,
    tokens_in = ifnull(tokens_in + excluded.tokens_in, excluded.tokens_in),
    tokens_out = ifnull(tokens_out + excluded.tokens_out, excluded.tokens_out),
    tokens_thinking = ifnull(tokens_thinking + excluded.tokens_thinking, excluded.tokens_thinking),
    retries = retries + 1 + excluded.retries, cost = ifnull(cost + excluded.cost, excluded.cost)
"""
"""Replaces a reply; the tokens and costs of the old one are kept in the sums."""
AT_ONCE = (128, 32, 8, 1)  # Rows per statement: each one releases the interpreter lock and waits for it again

log = logging.getLogger("demur")


class Reply(Record, frozen=True, kw_only=True):
    """A model's reply to one request, unchanged; or, with `failure`, why there is none."""

    content: str | None = None
    reasoning: str | None = None  # The server's own field for the thinking
    finish: Finish = "stop"
    failure: FailureKind | None = None
    detail: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_thinking: int | None = None
    retries: int = 0
    cost: float | None = None
    opened: bool = False  # Whether the prompt as sent ended inside an opened thinking
    served: str = ""  # The model's name in the server's reply
    notes: tuple[str, ...] = ()
    first_tokens: dict[str, float] = {}  # Log-probabilities of the likeliest first tokens, if they were requested


class LedgerLine(Record, frozen=True, kw_only=True):
    """What was asked and spent under one label."""

    part: str
    stage: str
    requests: int
    failed: int
    retries: int
    tokens_in: int | None  # `None`, as below, if no reply gives a count; few servers count thinking tokens
    tokens_out: int | None
    tokens_thinking: int | None
    cost: float | None  # `None` if no price was declared


class _Batch(NamedTuple):
    """Rows to insert and rows to replace in one commit, and the futures that wait for it."""

    rows: Rows
    replacements: Rows
    waiting: list[asyncio.Future[bool]]


def key_of(request: Any, body: bytes = b"") -> bytes:
    """16 bytes of the SHA-256 of the request's fields, as canonical JSON, and of the body as sent."""
    return hashlib.sha256(encode(request) + b"\n" + body).digest()[:16]


class ReplyCache(contextlib.AbstractContextManager["ReplyCache"]):
    """The replies in a folder. Any number of processes on one host may have it open."""

    def __init__(self, folder: Path | None, *, since: float = float("inf")) -> None:
        """Open or create a folder's cache, or a temporary one. Raises WorkError: the file cannot be used.

        `hits` counts the replies that were found and had been stored before the time `since`.
        """
        self._temporary = tempfile.TemporaryDirectory(prefix="demur-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary else Path(folder or ".")
        self.path = self.folder / FILE
        self._durable = folder is not None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._claims = os.open(self.folder / "claims.lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self.database = self._opened()
                fcntl.flock(self._claims, fcntl.LOCK_SH)
            except BaseException:
                os.close(self._claims)
                raise
        except sqlite3.DatabaseError as error:
            raise cache_care.explained(self.path, error) from error
        except OSError as error:
            raise WorkError(f"{self.folder}: the reply cache cannot be opened: {error.strerror}.") from error
        self.hits, self._since = 0, since
        self._asked: dict[bytes, asyncio.Future[Reply]] = {}
        self._writer = ThreadPoolExecutor(1, "reply cache")
        self._commits = self._connect()
        self._next = _Batch([], [], [])
        self._flusher: asyncio.Task[None] | None = None
        self._closed = False

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Commit everything, then close the file."""
        if self._closed:
            return
        self._closed = True
        self._writer.shutdown()
        self._commit(self._next)
        self._commits.close()
        self.database.close()
        os.close(self._claims)
        if self._temporary:
            self._temporary.cleanup()

    async def once(
        self, key: bytes, ask: Callable[[], Awaitable[Reply]], *, label: str = "", model: str = "", fresh: bool = False
    ) -> Reply:
        """The stored reply of a request, or the one that `ask` returns, which is stored first.

        Other callers with the same key, here or in another process, wait meanwhile. If `ask` is cancelled or fails, the
        next caller asks. With `fresh`, `ask` is called in any case, and a stored reply is replaced.
        """
        while (other := self._asked.get(key)) is not None:
            await asyncio.wait([other])
            if not fresh and not other.cancelled() and other.exception() is None:
                return other.result()
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._asked[key] = future
        try:
            at, pause = int.from_bytes(key[:8]) >> 2, 0.01
            while not _lock_byte(self._claims, at, fcntl.F_WRLCK):
                await asyncio.sleep(pause)  # another process is asking
                pause = min(pause * 1.5, 0.5)
            try:
                reply = None if fresh else self.get(key)
                if reply is None:
                    (reply,) = await self.put([(key, await ask())], label=label, model=model, replace=fresh)
            finally:
                _lock_byte(self._claims, at, fcntl.F_UNLCK)
            future.set_result(reply)
            return reply
        finally:
            del self._asked[key]
            future.cancel()

    def get(self, key: bytes) -> Reply | None:
        """The stored reply of a request; `None` if there is none, or if its row is damaged."""
        for body, crc, at in self._rows("SELECT body, crc, at FROM replies WHERE key = ?", key):
            if zlib.crc32(body) == crc:
                self.hits += at < self._since
                return msgspec.json.decode(body, type=Reply)
            log.warning("%s: a stored reply is damaged, and is asked again", self.path)
            self._delete("key = ?", key)
        return None

    async def put(
        self, replies: Iterable[tuple[bytes, Reply]], *, label: str = "", model: str = "", replace: bool = False
    ) -> list[Reply]:
        """Commit replies together and return what is stored: where another process was first, its reply."""
        pairs = list(replies)
        rows = [_row(key, reply, label, model, time.time()) for key, reply in pairs]
        (self._next.replacements if replace else self._next.rows).extend(rows)
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._next.waiting.append(future)
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        if await future:
            return [reply for _, reply in pairs]
        return [self.get(key) or reply for key, reply in pairs]

    async def _flush(self) -> None:
        """Commit in the writer's thread what has gathered, until there is no more, and wake those who wait."""
        while self._next.waiting:
            batch, self._next = self._next, _Batch([], [], [])
            new, failed = await asyncio.get_running_loop().run_in_executor(self._writer, self._commit, batch)
            for future in batch.waiting:
                # An event loop that has ended may leave futures behind: their rows are committed, but nobody waits.
                if future.done() or future.get_loop().is_closed():
                    continue
                if failed is None:
                    future.set_result(new)
                else:
                    future.set_exception(failed)

    def _commit(self, batch: _Batch) -> tuple[bool, Exception | None]:
        """Whether all rows were new, or why nothing was stored."""
        try:
            self._commits.execute("BEGIN IMMEDIATE")
            new = _insert(self._commits, batch.rows) == len(batch.rows)
            self._commits.executemany(REPLACE, batch.replacements)
            self._commits.execute("COMMIT")
            self._mark(self._commits)
            return new, None
        except Exception as error:
            # Those who wait must get any error, so that the run ends with its reason.
            with contextlib.suppress(sqlite3.Error):
                self._commits.execute("ROLLBACK")
            return False, cache_care.explained(self.path, error)

    def _opened(self) -> sqlite3.Connection:
        """The database, rebuilt first where it is damaged."""
        mark = self.folder / cache_care.MARK
        try:
            fcntl.flock(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            fcntl.flock(self._claims, fcntl.LOCK_SH)  # once a process that opens the file at this moment has checked it
            alone = False
        stored = int.from_bytes(os.pread(self._claims, 8, 0))
        log_file = self.path.with_name(f"{FILE}-wal")
        # The log of a killed process is saved, since SQLite deletes it on closing.
        log_data = log_file.read_bytes() if alone and log_file.exists() else b""
        if alone and self.path.with_name(cache_care.NEW).exists() and not self.path.exists():
            cache_care.swap_in(self.path)  # a process was killed during it
        if not mark.exists():
            try:
                database = self._prepared(self._connect())
                if not alone or database.execute("SELECT n FROM counted").fetchone()[0] >= stored:
                    return database
                database.close()
                log_file.write_bytes(log_data)
            except sqlite3.DatabaseError as error:
                if not cache_care.is_damage(error):
                    raise
        if not alone:
            raise WorkError(f"{self.path} is damaged and another process uses it: end that, then run the same command.")
        cache_care.rebuild(self.path, stored)
        mark.unlink(missing_ok=True)
        database = self._prepared(self._connect())
        self._mark(database)
        return database

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        # The change of mode ignores the timeout, so two processes that create a cache at once take turns here.
        _lock_byte(self._claims, 1 << 62, fcntl.F_WRLCK, wait=True)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        finally:
            _lock_byte(self._claims, 1 << 62, fcntl.F_UNLCK)
        connection.execute("PRAGMA wal_autocheckpoint=4000")  # 16 MB: each costs two syncs and copies all that changed
        connection.execute(f"PRAGMA synchronous={'FULL' if self._durable else 'OFF'}")
        return connection

    def _prepared(self, database: sqlite3.Connection) -> sqlite3.Connection:
        """Create the tables, or check that they are demur's."""
        columns = "application_id, user_version, (SELECT count(*) FROM sqlite_master)"
        query = f"SELECT {columns} FROM pragma_application_id, pragma_user_version"
        application, version, objects = database.execute(query).fetchone()
        if objects and (application, version) != (APPLICATION, FORMAT):
            raise WorkError(f"{self.path} is not a reply cache of demur in format {FORMAT}. Choose another folder.")
        if objects < OBJECTS:
            database.executescript(cache_care.SCHEMA)
        return database

    def _mark(self, database: sqlite3.Connection, count: int | None = None) -> None:
        """Write the number of rows into the side file, which the next start compares with the database."""
        count = database.execute("SELECT n FROM counted").fetchone()[0] if count is None else count
        with contextlib.suppress(OSError):
            os.pwrite(self._claims, count.to_bytes(8), 0)

    def _delete(self, condition: str, *values: Any) -> int:
        """Delete rows; returns how many. The count is zero meanwhile: if killed, too low is better than too high."""
        self._mark(self.database, 0)
        deleted = self._rows(f"DELETE FROM replies WHERE {condition} RETURNING 1", *values)
        self._mark(self.database)
        return len(deleted)

    def merge(self, folder: Path) -> int:
        """Add the rows of another folder's cache that are not in this one; returns how many."""
        with ReplyCache(folder) as other:
            rows = other._rows(f"SELECT {COLUMNS} FROM replies")
        return _insert(self.database, rows)

    def _rows(self, query: str, *values: Any) -> list[Any]:
        """All rows of a query. Raises WorkError: the file is damaged or cannot be used."""
        try:
            return self.database.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise cache_care.explained(self.path, error) from error

    def ledger(self) -> list[LedgerLine]:
        """What was asked and spent, by label."""
        names = LedgerLine.__struct_fields__
        sums = ", ".join(f"sum({name})" for name in names[4:])
        query = f"SELECT label, count(*), sum(failure != ''), {sums} FROM replies GROUP BY label ORDER BY label"
        rows = [(*label.partition("/")[::2], *counts) for label, *counts in self._rows(query)]
        return [LedgerLine(**dict(zip(names, row, strict=True))) for row in rows]

    def failures(self) -> dict[str, int]:
        """The number of failed requests, by type."""
        return dict(self._rows("SELECT failure, count(*) FROM replies WHERE failure != '' GROUP BY failure"))

    def forget_failures(self) -> int:
        """Delete the rows of failed requests, so that they are asked again; returns how many."""
        return self._delete("failure != ''")

    def count(self) -> int:
        """The number of rows, failures included."""
        return int(self._rows("SELECT n FROM counted")[0][0])

    def answered(self, model: str) -> bool:
        """Whether a model has ever replied."""
        return bool(self._rows("SELECT 1 FROM replies WHERE model = ? AND failure = '' LIMIT 1", model))

    def served(self, model: str, marks: str) -> str:
        """The server's name for the model of an identity when it was first used; `marks` if that is now."""
        self._rows("INSERT OR IGNORE INTO served(model, marks) VALUES (?, ?)", model, marks)
        return str(self._rows("SELECT marks FROM served WHERE model = ?", model)[0][0])


def _insert(database: sqlite3.Connection, rows: Rows) -> int:
    """Insert the rows whose key is new; returns how many."""
    at = new = 0
    for size in AT_ONCE:
        statement = INSERT + f",{ROW}" * (size - 1)
        while len(rows) - at >= size:
            values = [value for row in rows[at : at + size] for value in row]
            new += database.execute(statement, values).rowcount
            at += size
    return new


def _row(key: bytes, reply: Reply, label: str, model: str, now: float) -> tuple[Any, ...]:
    body = encode(reply)
    counts = (reply.tokens_in, reply.tokens_out, reply.tokens_thinking, reply.retries, reply.cost)
    return (key, label, model, reply.failure or "", body, zlib.crc32(body), *counts, now)


def _lock_byte(file: int, at: int, kind: int, *, wait: bool = False) -> bool:
    """Lock or unlock one byte of a file. The lock belongs to this open file and ends with the process."""
    try:
        fcntl.fcntl(file, _LOCK_WAITING if wait else _LOCK, struct.pack("hhqqi4x", kind, os.SEEK_SET, at, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True
