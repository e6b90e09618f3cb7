"""Artifacts: folders that are whole or do not exist, and are reused when nothing that made them has changed.

    RUN/stages/NAME-HASH/    records as JSON Lines or a checkpoint, then manifest.json, last and by atomic rename

The fingerprint covers a stage's kind and version, its settings and its inputs' fingerprints, so that the same question
is never worked out twice and a changed one never finds an old answer. Times and hosts stand in the manifest alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

import demur
from demur.errors import UserError, WorkError
from demur.records import Record, digest, encode, read_jsonl, write_jsonl
from demur.storage.records_file import RecordFile

MANIFEST = "manifest.json"
T = TypeVar("T")


class FileInfo(Record, frozen=True, kw_only=True):
    """A file of an artifact: SHA-256, size in bytes, and rows where it holds records."""

    sha256: str
    size: int
    rows: int | None = None


class Manifest(Record, frozen=True, kw_only=True):
    """What an artifact is and came from. `host` and `seconds` say where it was made and do not count as results."""

    name: str
    kind: str
    version: int
    fingerprint: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    """Role of each input -> its fingerprint."""
    files: dict[str, FileInfo]
    summary: dict[str, Any] = {}
    """Counts that a reader wants at a glance: kept, dropped, why."""
    host: dict[str, str] = {}
    seconds: float = 0.0


class Artifact:
    """A published folder."""

    def __init__(self, folder: Path) -> None:
        """Open it.

        Raises:
            UserError: there is no manifest, or it is not one.
        """
        self.folder = folder
        try:
            self.manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
        except FileNotFoundError:
            raise UserError(f"{folder} is no finished stage: it has no {MANIFEST}.") from None
        except msgspec.DecodeError as error:
            raise UserError(f"{folder / MANIFEST} is damaged: {error}. Delete the folder and run again.") from None

    def has(self, name: str) -> bool:
        """Whether it holds `name.jsonl`."""
        return f"{name}.jsonl" in self.manifest.files

    def read(self, name: str, kind: type[T]) -> Iterator[T]:
        """The records of `name.jsonl`."""
        return read_jsonl(self.folder / f"{name}.jsonl", kind)

    def table(self, name: str, kind: type[T]) -> RecordFile[T]:
        """The records of `name.jsonl` as a list that stays on the disk."""
        return RecordFile(kind, path=self.folder / f"{name}.jsonl")

    def rows(self, name: str) -> int:
        """How many records `name.jsonl` holds."""
        info = self.manifest.files.get(f"{name}.jsonl")
        return info.rows or 0 if info else 0


def fingerprint(*, kind: str, version: int, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """16 hexadecimal digits that change with everything that can change the result."""
    return digest([kind, version, settings, inputs])


class Draft:
    """A folder under construction. Whatever an interrupted attempt left is kept for those that can go on from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary: dict[str, Any] = {}
        self._rows: dict[str, int] = {}

    def write(self, name: str, records: Iterable[Any]) -> int:
        """Write `name.jsonl`; gives the number of records."""
        lines = records.lines() if isinstance(records, RecordFile) else records
        count = write_jsonl(self.folder / f"{name}.jsonl", lines)
        self._rows[f"{name}.jsonl"] = count
        return count

    def publish(
        self, *, name: str, kind: str, version: int, settings: dict[str, Any], inputs: dict[str, str], seconds: float
    ) -> Artifact:
        """Hash the files, then make the folder exist by renaming its manifest into place."""
        files: dict[str, FileInfo] = {}
        for path in sorted(self.folder.rglob("*")):
            relative = path.relative_to(self.folder).as_posix()
            if path.is_file() and relative != MANIFEST:
                sha = hash_file(path)
                files[relative] = FileInfo(sha256=sha, size=path.stat().st_size, rows=self._rows.get(relative))
        manifest = Manifest(
            name=name,
            kind=kind,
            version=version,
            fingerprint=fingerprint(kind=kind, version=version, settings=settings, inputs=inputs),
            settings=settings,
            inputs=inputs,
            files=files,
            summary=self.summary,
            host={"demur": demur.__version__, "python": platform.python_version(), "machine": platform.machine()},
            seconds=round(seconds, 3),
        )
        atomic_write(self.folder / MANIFEST, msgspec.json.format(encode(manifest), indent=1))
        return Artifact(self.folder)


def is_published(folder: Path) -> bool:
    """Whether a stage folder exists in the sense of the design: with a manifest."""
    return (folder / MANIFEST).is_file()


def artifacts(run: Path) -> list[Artifact]:
    """All published stages of a run, by name."""
    folders = sorted(path.parent for path in (run / "stages").glob(f"*/{MANIFEST}"))
    return [Artifact(folder) for folder in folders]


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all: a temporary file beside it, synced, then renamed."""
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_path(path: Path) -> str:
    """A hash of a file, or of a folder's files and their relative names; hidden files and manifests do not count."""
    if path.is_file():
        return hash_file(path)[:16]
    names = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".") and p.name != MANIFEST)
    return digest([[p.relative_to(path).as_posix(), hash_file(p)] for p in names])


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run's folder: two processes must not build the same stages at the same time.

    Raises:
        WorkError: another process holds it.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise WorkError(
                f"{run} is in use by another demur process. Wait for it, or choose another --out."
            ) from None
        yield


@contextlib.contextmanager
def drafted(folder: Path, *, fresh: bool = True) -> Iterator[tuple[Draft, float]]:
    """A draft folder and the time its work began; `fresh` clears what an interrupted attempt left."""
    if fresh and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    yield Draft(folder), time.monotonic()


def cache_folder() -> Path:
    """Where large things lie that can be made again: `DEMUR_CACHE`, or `demur` in the user's cache folder."""
    own = os.environ.get("DEMUR_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "demur"
