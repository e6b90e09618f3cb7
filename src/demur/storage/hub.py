"""Files of data sets on the Hugging Face hub, by name: `owner/name@REVISION:FILE`, with `*` in FILE where there are several."""

import fnmatch
import functools
import re
from pathlib import Path

from demur.errors import UserError
from demur.records import digest, encode
from demur.registry import missing
from demur.storage.artifacts import cache_folder, hash_file
from demur.storage.readers import READERS, ending, rows

SPEC = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?:(?P<file>[^:]+)")
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")


def parse(spec: str) -> list[tuple[str, str | None, str]]:
    """Repository, revision and file of each part of a specification; commas part them.

    Raises UserError: it names no file of a data set.
    """
    found = []
    for part in spec.split(","):
        match = SPEC.fullmatch(part.strip())
        if match is None or ending(Path(match["file"])) not in READERS:
            raise UserError(
                f"hub: '{part.strip()}' names no file. Write owner/name:FILE or owner/name@REVISION:FILE, FILE as it is called "
                f"there (* stands for anything), ending in {', '.join(READERS)}."
            )
        found.append((match["repo"], match["revision"], match["file"]))
    return found


def located(file: Path | None, *, hub: str) -> Path | None:
    """Where a file is, without fetching it: at its path, or in the hub's cache. `None`: `fetch` gets it.

    Raises UserError: it is nowhere; the message says where it was looked for.
    """
    if file is not None and file.exists():
        return file
    said = f"{file}: no such file" if file else "no local copy"
    cached = [_files(one, local=True) for one in parse(hub)]
    if all(cached):
        return _joined(hub, [path for paths in cached for path in paths])
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{said}; {hub} is not in the hub's cache, and HF_HUB_OFFLINE is set.")
    if why := _out_of_reach(constants.ENDPOINT):
        raise UserError(f"{said}; {constants.ENDPOINT}, which has {hub}, is not reached ({why}).")
    for repo, revision, name in parse(hub):
        try:
            there = HfApi().list_repo_files(repo, repo_type="dataset", revision=revision)
        except Exception as error:  # whatever the hub's client raises: offline, gated, gone
            raise UserError(f"{said}; the hub does not give {repo}: {type(error).__name__}: {error}") from None
        if not fnmatch.filter(there, name):
            tables = ", ".join([path for path in there if ending(Path(path)) in READERS][:20])
            raise UserError(f"{said}; {repo} has no {name}. It has: {tables or 'no tables'}.")
    return None


@functools.cache
def _out_of_reach(endpoint: str) -> str:
    """Why the hub does not answer; empty: it does. Asked once, since its client tries each name for half a minute."""
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=10)
    except Exception as error:
        return str(error)
    return ""


def fetch(spec: str) -> Path:
    """The local copy of the files of a specification; several become one.

    Raises UserError: the hub has no such file, cannot be reached, or wants a login.
    """
    found = []
    for one in parse(spec):
        if not (files := _files(one, local=True) or _files(one, local=False)):
            raise UserError(f"the hub gave no {one[2]} of {one[0]}.")
        found += files
    return _joined(spec, found)


def provenance(spec: str) -> dict[str, str]:
    """What of a specification is in the hub's cache, for a run's records: OWNER--NAME/snapshots/COMMIT/FILE -> its SHA-256."""
    files = [path for one in parse(spec) for path in _files(one, local=True)]
    return {path.as_posix().rpartition("/datasets--")[2]: _hash(path) for path in files}


_hash = functools.cache(hash_file)  # Of a file of a commit, which stays: some are gigabytes, named by every evaluation


def _files(wanted: tuple[str, str | None, str], *, local: bool) -> list[Path]:
    """The files in the hub's cache, fetched first unless `local`; none where some of them are missing."""
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise missing(error, "a file of the hub") from error
    repo, revision, name = wanted
    try:
        folder = snapshot_download(
            repo, repo_type="dataset", revision=revision, allow_patterns=[name], local_files_only=local
        )
    except Exception as error:  # whatever the hub's client raises: offline, gated, gone
        if local:
            return []
        raise UserError(f"the hub did not give {repo}: {type(error).__name__}: {error}") from None
    names = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]
    files = sorted(fnmatch.filter(names, name))
    shards = {int(shard[1]) for shard in map(SHARD.search, files) if shard and "*" in name}
    return [Path(folder) / file for file in files] if not shards or shards == {len(files)} else []


def _joined(spec: str, files: list[Path]) -> Path:
    """One file of JSON Lines for several, each row with the name of its own file as `_split`."""
    if len(files) == 1:
        return files[0]
    path = cache_folder() / "hub" / f"{digest([spec, [str(file) for file in files]])}.jsonl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as out:
            for file in files:
                out.writelines(encode(row | {"_split": file.name.split(".")[0]}) + b"\n" for _, row in rows(file))
        temporary.replace(path)
    return path
