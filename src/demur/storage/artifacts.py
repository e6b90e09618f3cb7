"""Artifacts: folders that are complete or do not count, and are reused until something that made them changes.

    RUN/stages/NAME-HASH/    records as JSON Lines or a checkpoint, then manifest.json, last and by atomic rename
    RUN/stages.json          the stages of the current graph; other folders in `stages` were made by earlier settings

A stage whose files differ from its manifest is never used: a wrong size is detected at once, wrong content when a file
is first read. Only the manifest contains times and hosts.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

import demur
from demur.errors import UserError, WorkError
from demur.records import Record, digest, encode, read_jsonl, write_jsonl
from demur.storage.records_file import RecordFile

MANIFEST, GRAPH, LOCK, COMMANDS = "manifest.json", "stages.json", ".lock", "commands.txt"
T = TypeVar("T")


class FileInfo(Record, frozen=True, kw_only=True):
    """A file of an artifact: SHA-256, size in bytes, and rows where it holds records."""

    sha256: str
    size: int
    rows: int | None = None


class Manifest(Record, frozen=True, kw_only=True):
    """What an artifact is and what it was made from. `host` and `seconds` are not results."""

    name: str
    kind: str
    version: int
    fingerprint: str  # Changes with everything that can change the records
    settings: dict[str, Any]
    inputs: dict[str, str]  # Part of each input -> its fingerprint; `file:PART` -> hash of an outside file
    models: dict[str, Any] = {}  # Part -> the declaration of the model that played it
    files: dict[str, FileInfo] = {}
    summary: dict[str, Any] = {}  # Counts for people, to be seen at a glance
    host: dict[str, str] = {}
    seconds: float = 0.0


class Artifact:
    """A published folder."""

    def __init__(self, folder: Path) -> None:
        """Open it. Raises UserError: there is no manifest, or it cannot be read."""
        self.folder = folder
        try:
            self.manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
        except FileNotFoundError:
            raise UserError(f"{folder} is not a finished stage: it has no {MANIFEST}.") from None
        except msgspec.DecodeError as error:
            raise UserError(f"{folder / MANIFEST} is damaged: {error}. Delete the folder and run again.") from None

    def has(self, name: str) -> bool:
        """Whether it holds `name.jsonl`."""
        return f"{name}.jsonl" in self.manifest.files

    def path(self, name: str) -> Path:
        """The path of `name.jsonl`, verified on first use. Raises WorkError: it is not what the stage wrote."""
        path = self.folder / f"{name}.jsonl"
        info = self.manifest.files.get(path.name)
        stat = path.stat() if path.is_file() else None
        if info is None or (stat and (path, stat.st_size, stat.st_mtime_ns) in _verified):
            return path
        if stat is None or stat.st_size != info.size or hash_file(path) != info.sha256:
            raise WorkError(f"{path} is damaged: it is not what its stage wrote. Delete {self.folder} and run again.")
        _verified.add((path, stat.st_size, stat.st_mtime_ns))
        return path

    def read(self, name: str, kind: type[T]) -> Iterator[T]:
        """The records of `name.jsonl`."""
        return read_jsonl(self.path(name), kind)

    def table(self, name: str, kind: type[T]) -> RecordFile[T]:
        """The records of `name.jsonl` as a list that stays on the disk."""
        return RecordFile(kind, path=self.path(name))

    def rows(self, name: str) -> int:
        """How many records `name.jsonl` holds."""
        info = self.manifest.files.get(f"{name}.jsonl")
        return info.rows or 0 if info else 0


_verified: set[tuple[Path, int, int]] = set()  # Path, size and time of files that match their manifest


class Draft:
    """A folder under construction."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.line = ""  # What was done, in one line for people
        self.summary: dict[str, Any] = {}
        self._rows: dict[str, int] = {}

    def write(self, name: str, records: Iterable[Any]) -> int:
        """Write `name.jsonl`; returns the number of records."""
        lines = records.lines() if isinstance(records, RecordFile) else records
        count = write_jsonl(self.folder / f"{name}.jsonl", lines)
        self._rows[f"{name}.jsonl"] = count
        return count

    def publish(self, manifest: Manifest) -> Artifact:
        """Hash and sync the files, then publish the folder by renaming its manifest into place."""
        files: dict[str, FileInfo] = {}
        for path in sorted(self.folder.rglob("*")):
            relative = path.relative_to(self.folder).as_posix()
            if path.is_file() and relative != MANIFEST:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                    sha = hashlib.file_digest(file, "sha256").hexdigest()
                files[relative] = FileInfo(sha256=sha, size=path.stat().st_size, rows=self._rows.get(relative))
        host = {"demur": demur.__version__, "python": platform.python_version(), "machine": platform.machine()}
        summary = self.summary | ({"line": self.line} if self.line else {})
        complete = replace(manifest, files=files, summary=summary, host=host)
        atomic_write(self.folder / MANIFEST, msgspec.json.format(encode(complete), indent=1))
        return Artifact(self.folder)


def is_published(folder: Path) -> bool:
    """Whether a stage folder has a manifest."""
    return (folder / MANIFEST).is_file()


def is_whole(folder: Path) -> bool:
    """Whether a stage folder is published and its files have the sizes in its manifest."""
    if not is_published(folder):
        return False
    files = Artifact(folder).manifest.files
    sizes = {name: (folder / name).stat().st_size for name in files if (folder / name).is_file()}
    return sizes == {name: info.size for name, info in files.items()}


class StageEntry(Record, frozen=True, kw_only=True):
    """A stage of a run's current graph."""

    folder: str
    kind: str
    fingerprint: str


def stage_graph(run: Path) -> dict[str, StageEntry]:
    """The stages of a run's current graph by name, done or not; empty if no graph was ever written."""
    path = run / GRAPH
    return msgspec.json.decode(path.read_bytes(), type=dict[str, StageEntry]) if path.is_file() else {}


def artifacts(run: Path) -> list[Artifact]:
    """The published stages of a run's current graph, in its order; without a graph, all stages by name."""
    folders = [run / "stages" / stage.folder for stage in stage_graph(run).values()]
    if not folders:
        folders = sorted(path.parent for path in (run / "stages").glob(f"*/{MANIFEST}"))
    return [Artifact(folder) for folder in folders if is_published(folder)]


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a file completely or not at all: a temporary file beside it is synced, then renamed."""
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
    """A hash of a file, or of a folder's files and their relative names, without hidden files and the manifest."""
    if path.is_file():
        return hash_file(path)[:16]
    names = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".") and p.name != MANIFEST)
    return digest([[p.relative_to(path).as_posix(), hash_file(p)] for p in names])


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Lock a run's folder, so that only one process at a time builds its stages. Raises WorkError: it is locked."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise WorkError(f"{run} is in use by another demur process. Wait for it, or take another --out.") from None
        yield


@contextlib.contextmanager
def drafted(folder: Path, *, fresh: bool = True) -> Iterator[tuple[Draft, float]]:
    """A draft folder and the time when its work began. Unless `fresh`, it keeps what an interrupted attempt left."""
    if folder.exists() and (fresh or is_published(folder)):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    yield Draft(folder), time.monotonic()


def cache_folder() -> Path:
    """The folder for large files that can be made again: `DEMUR_CACHE`, or `demur` in the user's cache folder."""
    configured = os.environ.get("DEMUR_CACHE")
    return Path(configured or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "demur")
