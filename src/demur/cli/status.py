"""`demur status RUN`: where a run stands."""

import fcntl
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec

from demur.cli import common
from demur.cli.progress import FAILED, RUNNING
from demur.cli.runner import STUDIES, STUDY
from demur.errors import UserError
from demur.storage.artifacts import LOCK, is_whole, stage_graph


class Standing(NamedTuple):
    """Where a run stands: each of its stages with its kind and whether it is done, and of those that are not what is known."""

    stages: dict[str, tuple[str, bool]]
    running: dict[str, str]
    stopped: dict[str, str]  # How far a process was that is no more
    failed: dict[str, str]
    waiting: list[str]

    def left(self, run: Path) -> str:
        """What there is still to do, also for `demur runs`; empty: nothing."""
        done = sum(ended for _, ended in self.stages.values())
        if done < len(self.stages):
            return f"unfinished, {done} of {len(self.stages)} stages (demur status {run})"
        return "" if (run / "results.json").exists() else f"everything is done but the report: demur report {run}"


def standing(run: Path) -> Standing:
    """Where a run stands, as its graph, its stages and the note of its last process have it."""
    stages = {name: (stage.kind, is_whole(run / "stages" / stage.folder)) for name, stage in stage_graph(run).items()}
    noted: dict[str, str] = msgspec.json.decode(path.read_bytes()) if (path := run / RUNNING).is_file() else {}
    noted = {name: text for name, text in noted.items() if not stages.get(name, ("", True))[1]}  # some may have ended
    failed = {name: text.removeprefix(FAILED) for name, text in noted.items() if text.startswith(FAILED)}
    far = {name: text for name, text in noted.items() if name not in failed}
    waiting = [name for name, (_, done) in stages.items() if not done and name not in noted]
    return Standing(stages, *((far, {}) if far and _held(run) else ({}, far)), failed, waiting)


def _held(run: Path) -> bool:
    """Whether a process is at work in a run's folder."""
    if not (run / LOCK).is_file():
        return False
    with (run / LOCK).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


@common.verb("json")
def status(run: Path, flags: common.Flags) -> None:
    """Which stages of a run are done, how far those are that run (12/120: steps, replies), and which are not done."""
    if not stage_graph(run):
        raise UserError(f"{run} {'is no run: it has no stages.json' if run.is_dir() else 'is no folder'}.")
    found = standing(run)
    groups: dict[str, list[bool]] = {}
    for kind, done in found.stages.values():
        groups.setdefault(kind, []).append(done)
    if flags.json:
        counts = {kind: {"done": sum(done), "of": len(done)} for kind, done in groups.items()}
        common.print_json({"run": str(run)} | found._asdict() | {"stages": counts})
        return
    common.show(("stage", "#done", "#of"), [(kind, sum(ended), len(ended)) for kind, ended in groups.items()])
    for word, far in (("at work", found.running), ("stopped", found.stopped)):
        for name, text in far.items():
            ago = timedelta(seconds=round(time.time() - (run / RUNNING).stat().st_mtime))
            common.stdout.print(f"{word}: {name}: {text}  ({ago} ago)")
    for name, text in found.failed.items():
        common.stdout.print(f"failed: {name}: {text}", soft_wrap=True)
    if waiting := found.waiting:
        common.stdout.print(f"waiting: {', '.join(waiting[:8])}{' …' if len(waiting) > 8 else ''}")
    again = f"demur retry {run}" if (run / STUDIES).is_dir() else f"demur run {run}/{STUDY} --out {run}"
    again = again if (run / STUDY).exists() else "run the same command again"
    undone = any(not done for _, done in found.stages.values())
    common.stdout.print(f"go on:   {again}" if undone else found.left(run) or "everything is done")
