"""`demur status RUN`: show how far a run is."""

import fcntl
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec

from demur.cli import common
from demur.cli.progress import FAILED, RUNNING
from demur.cli.runner import STUDIES, STUDY
from demur.errors import UserError
from demur.storage.artifacts import LOCK, is_whole, stage_graph


class State(NamedTuple):
    """How far a run is."""

    stages: dict[str, tuple[str, bool]]  # Stage -> its kind, and whether it is done
    running: dict[str, str]  # Stage -> how far it is, such as `12/120`
    stopped: dict[str, str]  # The same for stages whose process has ended
    failed: dict[str, str]  # Stage -> the reason
    waiting: list[str]  # Stages that have not started

    def left(self, run: Path) -> str:
        """What is left to do, as a sentence; empty if nothing is."""
        done = sum(ended for _, ended in self.stages.values())
        if done < len(self.stages):
            return f"unfinished, {done} of {len(self.stages)} stages (demur status {run})"
        return "" if (run / "results.json").exists() else f"everything is done but the report: demur report {run}"


def state_of(run: Path) -> State:
    """How far a run is, from its graph, its finished stages and what its last process wrote to `running.json`."""
    stages = {name: (stage.kind, is_whole(run / "stages" / stage.folder)) for name, stage in stage_graph(run).items()}
    saved: dict[str, str] = msgspec.json.decode(path.read_bytes()) if (path := run / RUNNING).is_file() else {}
    saved = {name: text for name, text in saved.items() if not stages.get(name, ("", True))[1]}  # may be out of date
    failed = {name: text.removeprefix(FAILED) for name, text in saved.items() if text.startswith(FAILED)}
    far = {name: text for name, text in saved.items() if name not in failed}
    waiting = [name for name, (_, done) in stages.items() if not done and name not in saved]
    running, stopped = (far, {}) if far and _in_use(run) else ({}, far)
    return State(stages, running, stopped, failed, waiting)


def _in_use(run: Path) -> bool:
    """Whether a process holds the lock of a run's folder."""
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
    """Show which stages of a run are done, how far the running ones are (12/120 steps or replies), and which wait."""
    if not stage_graph(run):
        raise UserError(f"{run} is not a {'run: it has no stages.json' if run.is_dir() else 'folder'}.")
    state = state_of(run)
    total = Counter(kind for kind, _ in state.stages.values())
    finished = Counter(kind for kind, done in state.stages.values() if done)
    if flags.json:
        counts = {kind: {"done": finished[kind], "of": count} for kind, count in total.items()}
        common.print_json({"run": str(run)} | state._asdict() | {"stages": counts})
        return
    common.show(("stage", "#done", "#of"), [(kind, finished[kind], count) for kind, count in total.items()])
    for word, far in (("running", state.running), ("stopped", state.stopped)):
        for name, text in far.items():
            ago = timedelta(seconds=round(time.time() - (run / RUNNING).stat().st_mtime))
            common.stdout.print(f"{word}: {name}: {text}  ({ago} ago)")
    for name, text in state.failed.items():
        common.stdout.print(f"failed: {name}: {text}", soft_wrap=True)
    if waiting := state.waiting:
        common.stdout.print(f"waiting: {', '.join(waiting[:8])}{' …' if len(waiting) > 8 else ''}")
    command = f"demur retry {run}" if (run / STUDIES).is_dir() else f"demur run {run}/{STUDY} --out {run}"
    command = command if (run / STUDY).exists() else "run the same command again"
    unfinished = finished != total
    common.stdout.print(f"to go on: {command}" if unfinished else state.left(run) or "everything is done")
