"""Every model reply, durable before it counts.

    JOURNAL/replies.sqlite    one row a reply, keyed by the hash of the exact request and the model's identity

A reply is committed (SQLite, write-ahead log, `synchronous=FULL`) before anyone sees it, so that a killed run never asks
twice and never loses what was paid for. One thread writes: it takes what has come while it was at work, commits once,
and wakes those who wait. Identical requests are asked once, in this process by a shared future, between processes by a lock on one byte of a
side file, which dies with its holder. Failures are rows with a type. What was spent is their sum.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import queue
import sqlite3
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from demur.errors import WorkError
from demur.records import Finish, Record, encode

FILE = "replies.sqlite"
APPLICATION = 0x64656D75
FORMAT = 1
_LOCK = getattr(fcntl, "F_OFD_SETLK", fcntl.F_SETLK)
FailureKind = Literal["refused_by_server", "too_long", "timeout", "unreadable", "unavailable"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS replies(
    key BLOB PRIMARY KEY, label TEXT, model TEXT, failure TEXT, body BLOB, crc INTEGER,
    tokens_in INTEGER, tokens_out INTEGER, tokens_thinking INTEGER, retries INTEGER, cost REAL, at REAL);
CREATE TABLE IF NOT EXISTS served(model TEXT PRIMARY KEY, marks TEXT);
"""
COLUMNS = "key, label, model, failure, body, crc, tokens_in, tokens_out, tokens_thinking, retries, cost, at"
ROW = "(?,?,?,?,?,?,?,?,?,?,?,?)"
INSERT = f"INSERT OR IGNORE INTO replies({COLUMNS}) VALUES {ROW}"
AT_ONCE = (128, 32, 8, 1)
"""RecordFile of one statement: each step of SQLite gives the interpreter lock away and must win it back from the event loop."""


class Reply(Record, frozen=True, kw_only=True):
    """What came back for one request, as it came; or, with `failure`, why nothing did."""

    content: str | None = None
    reasoning: str | None = None
    """The server's own field for the thinking."""
    finish: Finish = "stop"
    failure: FailureKind | None = None
    detail: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_thinking: int | None = None
    retries: int = 0
    cost: float | None = None
    opened: bool = False
    """Whether what was sent ended inside an opened thinking."""
    served: str = ""
    """What the server called itself in this reply."""
    notes: tuple[str, ...] = ()
    first_tokens: dict[str, float] = {}
    """Log-probabilities of the likeliest first tokens, where they were asked for."""


class Line(Record, frozen=True, kw_only=True):
    """What was asked under one label: a line of the ledger."""

    role: str
    stage: str
    requests: int
    failed: int
    retries: int
    tokens_in: int
    tokens_out: int
    tokens_thinking: int
    cost: float | None
    """`None` when no price was declared."""


RecordFile = list[tuple[Any, ...]]


class _Job(NamedTuple):
    """RecordFile to commit together, and whom to tell."""

    rows: RecordFile
    loop: asyncio.AbstractEventLoop
    waiting: list[asyncio.Future[bool]]


class _Outbox:
    """What an event loop has for the writer: gathered while the writer is at work, handed over at once."""

    def __init__(self, jobs: queue.SimpleQueue[_Job | None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs = jobs
        self._rows: RecordFile = []
        self._waiting: list[asyncio.Future[bool]] = []
        self._busy = False

    def add(self, rows: RecordFile) -> asyncio.Future[bool]:
        """Commit these rows soon; the future tells whether all of them were new."""
        future: asyncio.Future[bool] = self._loop.create_future()
        self._rows += rows
        self._waiting.append(future)
        if not self._busy:
            # At the end of this turn of the loop: what else comes in it goes along.
            self._busy = True
            self._loop.call_soon(self._hand_over)
        return future

    def _hand_over(self) -> None:
        self._jobs.put(_Job(self._rows, self._loop, self._waiting))
        self._rows, self._waiting = [], []

    def told(self, waiting: list[asyncio.Future[bool]], new: bool, failed: Exception | None) -> None:
        """A commit is done: wake those who wait, and hand over what came meanwhile."""
        for future in waiting:
            if future.done():
                continue
            if failed is None:
                future.set_result(new)
            else:
                future.set_exception(failed)
        self._busy = bool(self._rows)
        if self._busy:
            self._hand_over()


def key_of(request: Any, body: bytes = b"") -> bytes:
    """16 bytes of the SHA-256 of the canonical JSON of all that is sent and of who answers, and of the body as sent."""
    return hashlib.sha256(encode(request) + b"\n" + body).digest()[:16]


class ReplyCache:
    """A folder's journal. Any number of processes on one host may have it open; close it, or use it in a `with`."""

    def __init__(self, folder: Path | None) -> None:
        """Open the journal of a folder, or make it; `None`: one that is forgotten when closed.

        Raises:
            WorkError: what is there is damaged, or no journal; the message says what to do.
        """
        self._temporary = tempfile.TemporaryDirectory(prefix="demur-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary else Path(folder or ".")
        self.path = self.folder / FILE
        self._durable = folder is not None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.database = self._connect()
            self._prepare()
            self._claims = os.open(self.folder / "claims.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except sqlite3.DatabaseError as error:
            raise self.trouble(error) from error
        except OSError as error:
            raise WorkError(f"{self.folder}: the journal cannot be opened: {error.strerror}.") from error
        self._asked: dict[bytes, asyncio.Future[Reply]] = {}
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._outboxes: dict[asyncio.AbstractEventLoop, _Outbox] = {}
        self._writer = threading.Thread(target=self._write, name="journal", daemon=True)
        self._writer.start()
        self._closed = False

    def __enter__(self) -> ReplyCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait until all is on disk, then let go."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        self._writer.join()
        self.database.close()
        os.close(self._claims)
        if self._temporary:
            self._temporary.cleanup()

    # -- asking once --------------------------------------------------------------------------------------------------

    async def once(self, key: bytes, ask: Callable[[], Awaitable[Reply]], *, label: str = "", model: str = "") -> Reply:
        """The stored reply of a request, or the one that `ask` gives, stored first.

        Whoever else asks for the same key meanwhile, here or in another process, waits for that one. When the one who asks
        is cancelled or fails, the next in line asks.
        """
        while (other := self._asked.get(key)) is not None:
            await asyncio.wait([other])
            if not other.cancelled() and other.exception() is None:
                return other.result()
        mine: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._asked[key] = mine
        try:
            at = int.from_bytes(key[:8]) >> 2
            if not _lock_byte(self._claims, at, fcntl.F_WRLCK):
                await self._until_mine(at)
            try:
                reply = self.get(key)
                if reply is None:
                    (reply,) = await self.put([(key, await ask())], label=label, model=model)
            finally:
                _lock_byte(self._claims, at, fcntl.F_UNLCK)
            mine.set_result(reply)
            return reply
        finally:
            del self._asked[key]
            mine.cancel()

    def get(self, key: bytes) -> Reply | None:
        """The stored reply of a request.

        Raises:
            WorkError: the row is damaged.
        """
        try:
            row = self.database.execute("SELECT body, crc FROM replies WHERE key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise self.trouble(error) from error
        if row is None:
            return None
        if zlib.crc32(row[0]) != row[1]:
            raise self.trouble(sqlite3.DatabaseError("a row does not match its checksum"))
        return msgspec.json.decode(row[0], type=Reply)

    async def put(self, replies: Iterable[tuple[bytes, Reply]], *, label: str = "", model: str = "") -> list[Reply]:
        """Commit replies together, and give what is stored: where another process was first, its reply."""
        now = time.time()
        pairs = list(replies)
        rows = [_row(key, reply, label, model, now) for key, reply in pairs]
        if await self._outbox().add(rows):
            return [reply for _, reply in pairs]
        return [self.get(key) or reply for key, reply in pairs]

    def _outbox(self) -> _Outbox:
        loop = asyncio.get_running_loop()
        if loop not in self._outboxes:
            self._outboxes = {old: box for old, box in self._outboxes.items() if not old.is_closed()}
            self._outboxes[loop] = _Outbox(self._jobs)
        return self._outboxes[loop]

    async def _until_mine(self, at: int) -> None:
        """Wait while another process asks this request."""
        pause = 0.01
        while not _lock_byte(self._claims, at, fcntl.F_WRLCK):
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    # -- writing ------------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        """The writer: take what a loop has gathered, commit once, tell everyone who waits for it."""
        with contextlib.closing(self._connect()) as database:
            while (job := self._jobs.get()) is not None:
                self._commit(database, job)

    def _commit(self, database: sqlite3.Connection, job: _Job) -> None:
        failed: Exception | None = None
        new = True
        try:
            database.execute("BEGIN IMMEDIATE")
            new = _insert(database, job.rows) == len(job.rows)
            database.execute("COMMIT")
        except sqlite3.Error as error:
            failed = self.trouble(error)
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
        # A loop that is gone has nobody left to tell.
        with contextlib.suppress(RuntimeError):
            job.loop.call_soon_threadsafe(self._outboxes[job.loop].told, job.waiting, new, failed)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        # A change of mode minds no timeout: of two processes that make a journal at once, one is refused.
        for left in reversed(range(3_000)):
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError as error:
                if not left or "locked" not in str(error):
                    raise
                time.sleep(0.02)
        connection.execute("PRAGMA wal_autocheckpoint=4000")  # 16 MB: each costs two syncs and copies all that changed
        connection.execute(f"PRAGMA synchronous={'FULL' if self._durable else 'OFF'}")
        return connection

    def _prepare(self) -> None:
        """Make the tables, or see that they are ours. They are looked for first: marks are committed with them."""
        (tables,) = self.database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        marks = "SELECT application_id, user_version FROM pragma_application_id, pragma_user_version"
        application, version = self.database.execute(marks).fetchone()
        if tables and application != APPLICATION:
            raise WorkError(f"{self.path} is no journal of demur. Choose another folder with --journal.")
        if tables and version != FORMAT:
            raise WorkError(f"{self.path} has format {version}, this demur reads {FORMAT}. Choose another --journal.")
        if not tables:
            self.database.executescript(
                f"BEGIN IMMEDIATE; PRAGMA application_id={APPLICATION}; PRAGMA user_version={FORMAT}; {SCHEMA} COMMIT;"
            )

    def trouble(self, error: sqlite3.Error) -> WorkError:
        """A database error in our words, with what to do."""
        text = str(error)
        if "full" in text or "disk I/O" in text:
            return WorkError(
                f"{self.path}: the disk is full or failing ({text}). What was stored is safe; nothing of the last replies "
                "was. Make room and run the same command to go on, or choose another place with --journal."
            )
        if "locked" in text or "readonly" in text:
            return WorkError(
                f"{self.path}: {text}. Another program holds it, or it may not be written; see to that and go on."
            )
        return WorkError(
            f"{self.path} is damaged ({text}). `demur retry RUN --salvage` moves it aside and keeps every row that can "
            "still be read; what is lost is asked again."
        )

    # -- looking back -------------------------------------------------------------------------------------------------

    def ledger(self) -> list[Line]:
        """What was asked and spent, by label."""
        what = "count(*), sum(failure != ''), sum(retries), sum(tokens_in), sum(tokens_out), sum(tokens_thinking), sum(cost)"
        try:
            rows = self.database.execute(f"SELECT label, {what} FROM replies GROUP BY label ORDER BY label").fetchall()
        except sqlite3.DatabaseError as error:
            raise self.trouble(error) from error
        names = ("requests", "failed", "retries", "tokens_in", "tokens_out", "tokens_thinking")
        lines = []
        for label, *counts, cost in rows:
            role, _, stage = label.partition("/")
            sums = {name: count or 0 for name, count in zip(names, counts, strict=True)}
            lines.append(Line(role=role, stage=stage, cost=cost, **sums))
        return lines

    def failures(self) -> dict[str, int]:
        """How many requests failed, by type."""
        found = self.database.execute("SELECT failure, count(*) FROM replies WHERE failure != '' GROUP BY failure")
        return dict(found.fetchall())

    def forget_failures(self) -> int:
        """Drop the rows of failed requests, so that they are asked again; gives how many."""
        return self.database.execute("DELETE FROM replies WHERE failure != ''").rowcount

    def count(self) -> int:
        """How many rows there are, failures included."""
        (count,) = self.database.execute("SELECT count(*) FROM replies").fetchone()
        return int(count)

    def has(self, keys: Sequence[bytes]) -> int:
        """How many of these requests are answered already."""
        return sum(
            self.database.execute("SELECT 1 FROM replies WHERE key=?", (key,)).fetchone() is not None for key in keys
        )

    def served(self, model: str, marks: str) -> str:
        """What the server of an identity called itself when it was first seen; `marks` when this is the first time."""
        self.database.execute("INSERT OR IGNORE INTO served(model, marks) VALUES (?, ?)", (model, marks))
        (known,) = self.database.execute("SELECT marks FROM served WHERE model = ?", (model,)).fetchone()
        return str(known)


def _insert(database: sqlite3.Connection, rows: RecordFile) -> int:
    """Insert what is not there yet; gives how many rows were new."""
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


def _lock_byte(file: int, at: int, kind: int) -> bool:
    """Lock or unlock one byte of a file without waiting; the lock belongs to this open file and dies with the process."""
    try:
        fcntl.fcntl(file, _LOCK, struct.pack("hhqqi4x", kind, os.SEEK_SET, at, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True
