"""`demur run STUDY`: do all that a study says; go on where it stopped."""

from pathlib import Path
from typing import Annotated

import typer

from demur.cli import common
from demur.cli.runner import run_study

app = common.app("Do all that a study file says.")


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="A study file (.yaml).")],
    out: common.Out = None,
    sets: common.Set = None,
    quick: Annotated[bool, typer.Option("--quick", help="The study's own small version.")] = False,
    stand_in: Annotated[bool, common.flag("stand-in")] = False,
    on: Annotated[str, typer.Option("--on", help="local, or ray[://ADDRESS].")] = "local",
    data_dir: common.DataDir = None,
    cache: common.CacheDir = None,
    json: common.Json = False,
) -> None:
    """Do all that a study file says: distil, diagnose, mix, train, evaluate, report.

    Safe to stop at any moment: the same command goes on. Finished stages are reused as long as nothing that made them
    has changed.

    Examples:
      demur run studies/mini.yaml --out runs/mini
      demur run studies/mini.yaml --quick --set train.lr=5e-4
      demur run studies/paper_v2.yaml --stand-in --data-dir data
    """
    loaded = common.load_study(study, sets, quick=quick, data_dir=data_dir)
    folder = out or Path("runs") / loaded.study.name
    if stand_in:
        from demur.testing.small import standing_in

        loaded = standing_in(loaded.study, out=folder)
    hint = "" if stand_in else "\nTo try the whole path here with small models: add --stand-in"
    run_study(loaded, out=folder, cache=cache, on=on, json=json, hint=hint)
