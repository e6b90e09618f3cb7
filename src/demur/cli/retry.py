"""`demur retry RUN`: send failed requests again and redo the stages that lack their replies."""

import shutil
from pathlib import Path

from demur.cli import common
from demur.cli.cost import folder_of
from demur.cli.runner import STUDIES, STUDY, require, run_stages, show_report
from demur.errors import UserError, plural
from demur.pipeline.dag import Planned, plan
from demur.pipeline.run import check_servers
from demur.storage.artifacts import COMMANDS, Artifact, artifacts, is_whole, locked, stage_graph
from demur.storage.reply_cache import ReplyCache


@common.verb("cache json")
def retry(run: Path, flags: common.Flags) -> None:
    """Send failed requests again and redo every stage that lacks their replies, then finish the run.

    Nothing is removed while a server that these stages ask is down.
    """
    with ReplyCache(folder_of(run, flags.cache)) as replies, locked(run):
        failed = {(line.part, line.stage) for line in replies.ledger() if line.failed}
        outdated = lacking(run, {stage for _, stage in failed})
        undone = {stage.folder for stage in stage_graph(run).values() if not is_whole(run / "stages" / stage.folder)}
        studies, orphans = _by_study(run, undone | {artifact.folder.name for artifact in outdated})
        todo = [item for items, _ in studies for item in items]
        played = [(part, item.name, model) for item in todo for part, model in item.stage.models.items()]
        retried = {model.where for part, name, model in played if (part, name) in failed}
        check_servers(todo, replies.folder, retried=retried)
        for artifact in outdated:
            shutil.rmtree(artifact.folder)
        requests, stages = plural(replies.forget_failures(), "failed request"), plural(len(outdated), "stage")
    common.console.print(f"{requests} will be asked again; {stages} will be made again")
    for items, workers in reversed(studies):
        run_stages([item.stage for item in items], out=run, cache=flags.cache, workers=workers, title="retry")
    if orphans:
        commands = (run / COMMANDS).read_text() if (run / COMMANDS).is_file() else ""
        common.console.print(f"now run the command that made {', '.join(sorted(orphans))} again\n{commands}".rstrip())
    if studies or (not orphans and (run / STUDY).is_file()):
        show_report(run, json=flags.json)


def lacking(run: Path, names: set[str]) -> list[Artifact]:
    """The stages with these names, those that recorded failures, and every stage made from them."""
    stages = artifacts(run)
    marks = {a.manifest.fingerprint for a in stages if a.manifest.name in names or a.rows("failures")}
    while further := {a.manifest.fingerprint for a in stages if marks.intersection(a.manifest.inputs.values())} - marks:
        marks |= further
    return [artifact for artifact in stages if artifact.manifest.fingerprint in marks]


def _by_study(run: Path, folders: set[str]) -> tuple[list[tuple[list[Planned], int | None]], set[str]]:
    """For each study of the run, its stages with these folders and its number of workers; and the folders that no study makes.
    Raises UserError: something that a study needs is missing."""
    studies, errors = list[tuple[list[Planned], int | None]](), list[UserError]()
    for path in [run / STUDY, *sorted((run / STUDIES).glob("*.yaml"))]:
        if not folders or not path.is_file():
            continue
        try:
            study, stages, missing, _ = common.load_study(path, common.Flags())
            items = [item for item in plan(stages, run) if item.folder.name in folders]
            if items or missing:
                require(missing)
        except UserError as error:
            errors.append(error)
            continue
        if items:
            studies.append((items, study.workers))
            folders = folders - {item.folder.name for item in items}
    if folders and errors:
        raise errors[0]
    return studies, folders
