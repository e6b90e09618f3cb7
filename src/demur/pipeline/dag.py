"""A graph of stages: their order and fingerprints.

A fingerprint covers a stage's kind and version, its identity settings, the identities of its models, the fingerprints of
its inputs and the content of the outside files that it reads. So the whole graph is known before anything starts, finished
stages are reused, and a changed stage never finds old results.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from demur.errors import UserError
from demur.pipeline.stage import Stage
from demur.records import digest
from demur.settings import identity_of
from demur.storage.artifacts import GRAPH, StageEntry, atomic_write, hash_path, is_whole, stage_graph


class Planned(NamedTuple):
    """A stage with its fingerprint and folder, and those of what it reads."""

    stage: Stage[Any]
    fingerprint: str
    folder: Path
    inputs: dict[str, str]  # Part -> fingerprint of a stage, or `file:PART` -> name and hash of a file
    folders: dict[str, Path]  # Part -> folder of a stage

    @property
    def name(self) -> str:
        """The name of the stage."""
        return self.stage.name

    @property
    def done(self) -> bool:
        """Whether all its records exist, in the sizes in which they were written."""
        return is_whole(self.folder)


def ordered(stages: Iterable[Stage[Any]]) -> list[Stage[Any]]:
    """The stages with all that they read, inputs first."""
    depth: dict[str, int] = {}
    known: dict[str, Stage[Any]] = {}

    def visit(stage: Stage[Any]) -> int:
        if stage.name not in known:
            depth[stage.name] = 1 + max((visit(source) for source in stage.inputs.values()), default=0)
        first = known.setdefault(stage.name, stage)
        assert first == stage, f"two different stages named {stage.name}"
        return depth[stage.name]

    for stage in stages:
        visit(stage)
    return sorted(known.values(), key=lambda stage: depth[stage.name])


def plan(stages: Sequence[Stage[Any]], out: Path, *, absent: Iterable[Path] = ()) -> list[Planned]:
    """Fingerprints and folders of all stages, inputs first. Raises UserError: an outside file is missing that is not
    among the `absent` ones, which do not exist yet."""
    planned: dict[str, Planned] = {}
    hashes: dict[Path, str] = dict.fromkeys(absent, "absent")
    for stage in ordered(stages):
        inputs = {part: planned[source.name].fingerprint for part, source in stage.inputs.items()}
        # The name of a file may decide how it is read; the name of a model's folder decides nothing.
        inputs |= {f"file:{part}": f"{path.name} {_hash(path, hashes)}" for part, path in stage.files.items()}
        models = {part: identity_of(model) for part, model in stage.models.items()}
        for model in models.values():
            if model.get("path"):  # weights on this machine count by their content
                model["path"] = _hash(Path(model["path"]), hashes)
        fingerprint = digest([stage.kind, stage.version, stage.identity(), models, inputs])
        folders = {part: planned[source.name].folder for part, source in stage.inputs.items()}
        folder = out / "stages" / f"{stage.name}-{fingerprint[:8]}"
        planned[stage.name] = Planned(stage, fingerprint, folder, inputs, folders)
    return list(planned.values())


def _hash(path: Path, known: dict[Path, str]) -> str:
    """Content hash of an outside file or folder, computed once."""
    if path not in known:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder.")
        known[path] = hash_path(path)
    return known[path]


def write_graph(planned: Sequence[Planned], out: Path, *, add: bool) -> None:
    """Write which stages are the run's: these alone, or with `add` also those that were."""
    graph = stage_graph(out) if add else {}
    for item in planned:
        graph.pop(item.name, None)  # so that it follows those that stay
        graph[item.name] = StageEntry(folder=item.folder.name, kind=item.stage.kind, fingerprint=item.fingerprint)
    atomic_write(out / GRAPH, msgspec.json.format(msgspec.json.encode(graph), indent=1))
