"""`demur plan STUDY`: what a study would do and ask, without asking anyone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from demur.cli import common
from demur.errors import UserError
from demur.pipeline.dag import plan as planned
from demur.pipeline.estimate import cached, outlook

app = common.app("What a study would do, without doing it.")


@app.command()
def plan(
    study: Annotated[Path, typer.Argument(help="A study file (.yaml).")],
    out: common.Out = None,
    sets: common.Set = None,
    quick: Annotated[bool, typer.Option("--quick", help="The study's own small version.")] = False,
    data_dir: common.DataDir = None,
    json: common.Json = False,
) -> None:
    """List the stages of a study, what is there already, what is missing, and an estimate of what would be asked.

    Examples:

      demur plan studies/mini.yaml

      demur plan studies/paper_v2.yaml --data-dir data --json
    """
    loaded = common.load_study(study, sets, quick=quick, data_dir=data_dir)
    folder = out or Path("runs") / loaded.study.name
    missing = list(loaded.missing)
    try:
        seen = outlook(planned(loaded.stages, folder))
    except UserError as error:
        seen = {"stages": [], "parts": [], "notes": []}
        missing = missing or [str(error)]
    seen |= {"study": loaded.study.name, "missing": missing, "notes": [*loaded.notes, *seen["notes"], *cached(folder)]}
    if json:
        common.print_json(seen)
        return
    rows = [
        (*(row[key] for key in ("kind", "of", "done", "requests", "tokens")), common.said(row["cost"]))
        for row in seen["stages"]
    ]
    columns = ("stage", "of", "done", "requests", "tokens, at most", "cost, at most")
    common.stdout.print(common.table(columns, rows))
    for row in seen["parts"]:
        sizes = f"{row['tokens_in_at_most']:,} tokens in, {row['tokens_out_at_most']:,} out at most"
        common.stdout.print(f"{row['part']}: {row['requests']:,} requests, {sizes}")
    for line in seen["notes"]:
        common.stdout.print(line, markup=False)
    for line in seen["missing"]:
        common.stdout.print(f"missing: {line}", markup=False, style="yellow")
