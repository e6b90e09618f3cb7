"""Files of data sets on the Hugging Face hub, named as `owner/name@REVISION:FILE`, where FILE may contain `*`."""

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
    """Repository, revision and pattern of each comma-separated part. Raises UserError: a part names no table."""
    parts = []
    for part in spec.split(","):
        match = SPEC.fullmatch(part.strip())
        if match is None or ending(Path(match["file"])) not in READERS:
            raise UserError(
                f"hub: '{part.strip()}' names no file. Write owner/name:FILE or owner/name@REVISION:FILE, with FILE as "
                f"it is named on the hub (* matches anything), ending in {', '.join(READERS)}."
            )
        parts.append((match["repo"], match["revision"], match["file"]))
    return parts


def located(file: Path | None, *, hub: str) -> Path | None:
    """The local path of a file: its own, or that in the hub's cache. `None`: it is on the hub, to be fetched.

    Raises UserError: it is nowhere; the message names the places.
    """
    if file is not None and file.exists():
        return file
    lack = f"{file}: no such file" if file else "no local copy"
    cached = [_files(part, local=True) for part in parse(hub)]
    if all(cached):
        return _joined(hub, [path for paths in cached for path in paths])
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{lack}; {hub} is not in the hub's cache, and HF_HUB_OFFLINE is set.")
    if reason := _why_unreachable(constants.ENDPOINT):
        raise UserError(f"{lack}; {constants.ENDPOINT}, which has {hub}, is not reached ({reason}).")
    for repo, revision, name in parse(hub):
        try:
            files = HfApi().list_repo_files(repo, repo_type="dataset", revision=revision)
        except Exception as error:  # the hub's client raises many types: offline, gated, deleted
            raise UserError(f"{lack}; the hub does not give {repo}: {type(error).__name__}: {error}") from None
        if not fnmatch.filter(files, name):
            tables = ", ".join([path for path in files if ending(Path(path)) in READERS][:20])
            raise UserError(f"{lack}; {repo} has no {name}. It has: {tables or 'no tables'}.")
    return None


@functools.cache
def _why_unreachable(endpoint: str) -> str:
    """Why the hub does not answer; empty: it does. Cached, since its client retries each name for half a minute."""
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=10)
    except Exception as error:
        return str(error)
    return ""


def fetch(spec: str) -> Path:
    """A local copy of a specification's files, joined if there are several. Raises UserError: the hub gives none."""
    paths = []
    for part in parse(spec):
        if not (files := _files(part, local=True) or _files(part, local=False)):
            raise UserError(f"the hub gave no {part[2]} of {part[0]}.")
        paths += files
    return _joined(spec, paths)


def provenance(spec: str) -> dict[str, str]:
    """The files of a specification in the hub's cache: OWNER--NAME/snapshots/COMMIT/FILE -> SHA-256."""
    files = [path for part in parse(spec) for path in _files(part, local=True)]
    return {path.as_posix().rpartition("/datasets--")[2]: _hash(path) for path in files}


_hash = functools.cache(hash_file)  # A file of a commit never changes; some have gigabytes and many evaluations


def _files(part: tuple[str, str | None, str], *, local: bool) -> list[Path]:
    """The files of a part in the hub's cache, fetched first unless `local`; none if a shard is missing."""
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise missing(error, "a file of the hub") from error
    repo, revision, name = part
    try:
        folder = snapshot_download(
            repo, repo_type="dataset", revision=revision, allow_patterns=[name], local_files_only=local
        )
    except Exception as error:  # the hub's client raises many types: offline, gated, deleted
        if local:
            return []
        raise UserError(f"the hub did not give {repo}: {type(error).__name__}: {error}") from None
    names = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]
    files = sorted(fnmatch.filter(names, name))
    shards = {int(shard[1]) for shard in map(SHARD.search, files) if shard and "*" in name}
    return [Path(folder) / file for file in files] if not shards or shards == {len(files)} else []


def _joined(spec: str, files: list[Path]) -> Path:
    """The only file, or one of JSON Lines with the rows of all, each with the name of its file as `_split`."""
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
