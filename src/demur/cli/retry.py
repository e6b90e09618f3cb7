"""`demur retry RUN`: ask failed requests again, and redo what was made without them."""

import shutil
from pathlib import Path

from demur.cli import common
from demur.cli.cost import folder_of
from demur.cli.runner import run_study
from demur.errors import UserError, plural
from demur.storage.artifacts import artifacts, locked
from demur.storage.reply_cache import ReplyCache


@common.verb("cache json")
def retry(run: Path, flags: common.Flags) -> None:
    """Forget failed requests and the stages that were made without their replies, then go on with the run."""
    with ReplyCache(folder_of(run, flags.cache)) as kept, locked(run):
        removed = forget_stages(run, {line.stage for line in kept.ledger() if line.failed})
        forgotten, stages = plural(kept.forget_failures(), "failed request"), plural(len(removed), "stage")
    common.console.print(f"{forgotten} will be asked again; {stages} will be made again")
    try:
        study = common.load_study(run / "study.yaml", common.Flags())
    except UserError as error:
        common.console.print(f"now run the command that made {run} again ({error})")
        return
    run_study(study, out=run, cache=flags.cache, json=flags.json)


def forget_stages(run: Path, names: set[str]) -> list[str]:
    """Remove the stages of these names, those that hold failures, and all that was made from them; returns the names."""
    there = artifacts(run)
    gone = {a.manifest.fingerprint for a in there if a.manifest.name in names or a.rows("failures")}
    while further := {a.manifest.fingerprint for a in there if gone.intersection(a.manifest.inputs.values())} - gone:
        gone |= further
    removed = [artifact for artifact in there if artifact.manifest.fingerprint in gone]
    for artifact in removed:
        shutil.rmtree(artifact.folder)
    return [artifact.manifest.name for artifact in removed]
