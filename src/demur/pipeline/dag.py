"""A graph of stages: their order, and what makes each the same as one that was done before.

A fingerprint covers a stage's kind and version, its identity settings, the identities of its models, the fingerprints of
its inputs and the content of the outside files that it reads. So the whole graph is known before anything starts, the
same question is never worked out twice, and a changed one never finds an old answer.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from demur.errors import UserError
from demur.pipeline.stage import Stage
from demur.records import digest
from demur.settings import identity_of
from demur.storage.artifacts import GRAPH, Present, atomic_write, hash_path, is_whole, present


class Planned(NamedTuple):
    """A stage with its fingerprint, its folder, and the fingerprints and folders of all that it reads."""

    stage: Stage[Any]
    fingerprint: str
    folder: Path
    inputs: dict[str, str]
    folders: dict[str, Path]  # Of the stages among these

    @property
    def name(self) -> str:
        """The stage's."""
        return self.stage.name

    @property
    def done(self) -> bool:
        """Whether its records are there, in the sizes in which they were written."""
        return is_whole(self.folder)


def ordered(stages: Iterable[Stage[Any]]) -> list[Stage[Any]]:
    """The stages with all that they read, inputs first."""
    depth: dict[str, int] = {}
    found: dict[str, Stage[Any]] = {}

    def visit(stage: Stage[Any]) -> int:
        known = found.get(stage.name)
        assert known is None or known is stage or known == stage, f"two different stages named {stage.name}"
        if stage.name not in depth:
            depth[stage.name] = 1 + max((visit(one) for one in stage.inputs.values()), default=0)
            found[stage.name] = stage
        return depth[stage.name]

    for stage in stages:
        visit(stage)
    return sorted(found.values(), key=lambda stage: depth[stage.name])


def plan(stages: Sequence[Stage[Any]], out: Path, *, absent: Iterable[Path] = ()) -> list[Planned]:
    """Fingerprints and folders of all stages, inputs first; `absent` are files that are yet to come.

    Raises UserError: another outside file is missing.
    """
    planned: dict[str, Planned] = {}
    hashes: dict[Path, str] = dict.fromkeys(absent, "absent")
    for stage in ordered(stages):
        inputs = {part: planned[one.name].fingerprint for part, one in stage.inputs.items()}
        # A file's name may say how it is read; a model's folder may be called anything.
        inputs |= {f"file:{part}": f"{path.name} {_hash(path, hashes)}" for part, path in stage.files.items()}
        models = {part: _model(model, hashes) for part, model in stage.models.items()}
        mark = digest([stage.kind, stage.version, stage.identity(), models, inputs])
        folders = {part: planned[one.name].folder for part, one in stage.inputs.items()}
        planned[stage.name] = Planned(stage, mark, out / "stages" / f"{stage.name}-{mark[:8]}", inputs, folders)
    return list(planned.values())


def _model(model: Any, hashes: dict[Path, str]) -> dict[str, Any]:
    """The identity of a model; weights on this machine count by their content."""
    data = identity_of(model)
    if data.get("path"):
        data["path"] = _hash(Path(data["path"]), hashes)
    return data


def _hash(path: Path, known: dict[Path, str]) -> str:
    """Content hash of an outside file or folder, once for each."""
    if path not in known:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder.")
        known[path] = hash_path(path)
    return known[path]


def write_graph(planned: Sequence[Planned], out: Path, *, add: bool) -> None:
    """Say which stages are the run's: these alone, or these beside those that were (`add`)."""
    rows = ((item.name, item.folder.name, item.stage.kind, item.fingerprint) for item in planned)
    new = {name: Present(folder=folder, kind=kind, fingerprint=mark) for name, folder, kind, mark in rows}
    old = {name: stage for name, stage in present(out).items() if name not in new} if add else {}
    atomic_write(out / GRAPH, msgspec.json.format(msgspec.json.encode(old | new), indent=1))
