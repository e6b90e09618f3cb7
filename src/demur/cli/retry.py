"""`demur retry RUN`: ask failed requests again, and redo what was made without them."""

import shutil
from pathlib import Path
from typing import Any

from demur.cli import common
from demur.cli.cost import folder_of
from demur.cli.runner import STUDIES, STUDY, require, run_stages, tell
from demur.errors import UserError, plural
from demur.pipeline.dag import plan
from demur.pipeline.stage import Stage
from demur.storage.artifacts import COMMANDS, Artifact, artifacts, is_whole, locked, stage_graph
from demur.storage.reply_cache import ReplyCache


@common.verb("cache json")
def retry(run: Path, flags: common.Flags) -> None:
    """Forget failed requests and the stages that were made without their replies, then go on with the run."""
    with ReplyCache(folder_of(run, flags.cache)) as kept, locked(run):
        gone = lacking(run, {line.stage for line in kept.ledger() if line.failed})
        undone = {s.folder for s in stage_graph(run).values() if not is_whole(run / "stages" / s.folder)}
        found, left = _by_study(run, undone | {artifact.folder.name for artifact in gone})
        for artifact in gone:
            shutil.rmtree(artifact.folder)
        forgotten, stages = plural(kept.forget_failures(), "failed request"), plural(len(gone), "stage")
    common.console.print(f"{forgotten} will be asked again; {stages} will be made again")
    for own, workers in reversed(found):
        run_stages(own, out=run, cache=flags.cache, workers=workers, title="retry")
    if left:
        typed = (run / COMMANDS).read_text() if (run / COMMANDS).is_file() else ""
        common.console.print(f"now run the command that made {', '.join(sorted(left))} again\n{typed}".rstrip())
    if found or (not left and (run / STUDY).is_file()):
        tell(run, json=flags.json)


def lacking(run: Path, names: set[str]) -> list[Artifact]:
    """The stages of these names, those that hold failures, and all that was made from them."""
    there = artifacts(run)
    gone = {a.manifest.fingerprint for a in there if a.manifest.name in names or a.rows("failures")}
    while further := {a.manifest.fingerprint for a in there if gone.intersection(a.manifest.inputs.values())} - gone:
        gone |= further
    return [artifact for artifact in there if artifact.manifest.fingerprint in gone]


def _by_study(run: Path, folders: set[str]) -> tuple[list[tuple[list[Stage[Any]], int | None]], set[str]]:
    """The stages of some folders, by the studies of the run that make them, with their workers; and what folders no study makes.

    Raises UserError: what makes one is missing here.
    """
    found, wrong = [], []
    for path in [run / STUDY, *sorted((run / STUDIES).glob("*.yaml"))]:
        if not folders or not path.is_file():
            continue
        try:
            study, stages, missing, _ = common.load_study(path, common.Flags())
            own = {one.folder.name: one.stage for one in plan(stages, run) if one.folder.name in folders}
            if own or missing:
                require(missing)
        except UserError as error:
            wrong.append(error)
            continue
        if own:
            found.append((list(own.values()), study.workers))
            folders = folders - {*own}
    if folders and wrong:
        raise wrong[0]
    return found, folders
