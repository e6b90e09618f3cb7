"""`demur status RUN`: where a run stands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from demur.cli import common
from demur.errors import UserError
from demur.storage.artifacts import is_whole, present

app = common.app("Where a run stands.")


@app.command()
def status(run: Annotated[Path, typer.Argument(help="The folder of a run.")], json: common.Json = False) -> None:
    """Which stages of a run are done and which are not.

    Examples:
      demur status runs/mini
      demur status runs/mini --json
    """
    if not present(run):
        raise UserError(f"{run} is no run: it has no stages.json.")
    stages = {name: (stage.kind, is_whole(run / "stages" / stage.folder)) for name, stage in present(run).items()}
    groups: dict[str, list[bool]] = {}
    for kind, done in stages.values():
        groups.setdefault(kind, []).append(done)
    waiting = [name for name, (_, done) in stages.items() if not done]
    if json:
        counts = {kind: {"done": sum(done), "of": len(done)} for kind, done in groups.items()}
        common.print_json({"run": str(run), "stages": counts, "waiting": waiting})
        return
    common.show(("stage", "#done", "#of"), [(kind, sum(ended), len(ended)) for kind, ended in groups.items()])
    if waiting:
        common.stdout.print(f"waiting: {', '.join(waiting[:8])}{' …' if len(waiting) > 8 else ''}")
        common.stdout.print(f"go on:   demur run {run}/study.yaml --out {run}")
    else:
        common.stdout.print("everything is done")
