"""`demur status RUN`: where a run stands."""

import time
from datetime import timedelta
from pathlib import Path

import msgspec

from demur.cli import common
from demur.cli.progress import RUNNING
from demur.errors import UserError
from demur.storage.artifacts import is_whole, present


@common.verb("json")
def status(run: Path, flags: common.Flags) -> None:
    """Which stages of a run are done, how far those are that run (12/120: steps, replies), and which are not done."""
    if not present(run):
        raise UserError(f"{run} {'is no run: it has no stages.json' if run.is_dir() else 'is no folder'}.")
    stages = {name: (stage.kind, is_whole(run / "stages" / stage.folder)) for name, stage in present(run).items()}
    groups: dict[str, list[bool]] = {}
    for kind, done in stages.values():
        groups.setdefault(kind, []).append(done)
    noted: dict[str, str] = msgspec.json.decode(path.read_bytes()) if (path := run / RUNNING).is_file() else {}
    far = {name: text for name, text in noted.items() if not stages.get(name, ("", True))[1]}  # some may have ended
    waiting = [name for name, (_, done) in stages.items() if not done and name not in far]
    if flags.json:
        counts = {kind: {"done": sum(done), "of": len(done)} for kind, done in groups.items()}
        common.print_json({"run": str(run), "stages": counts, "running": far, "waiting": waiting})
        return
    common.show(("stage", "#done", "#of"), [(kind, sum(ended), len(ended)) for kind, ended in groups.items()])
    for name, text in far.items():
        ago = timedelta(seconds=round(time.time() - path.stat().st_mtime))
        common.stdout.print(f"at work: {name}: {text}  ({ago} ago)")
    if waiting:
        common.stdout.print(f"waiting: {', '.join(waiting[:8])}{' …' if len(waiting) > 8 else ''}")
    common.stdout.print(f"go on:   demur run {run}/study.yaml --out {run}" if waiting or far else "everything is done")
