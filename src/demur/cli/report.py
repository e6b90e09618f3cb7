"""`demur report RUN…`: tables and the page of a run, or of several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from demur import report as reports
from demur.cli import common

app = common.app("Tables and the HTML page of a run.")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs; several are laid side by side.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write; default: the run, or runs/report for several.")
    ] = None,
    json: common.Json = False,
) -> None:
    """Write results.json, results.csv, summary.md and report.html, and print the table.

    Examples:

      demur report runs/mini

      demur report runs/a runs/b --out runs/both
    """
    place = out or (runs[0] if len(runs) == 1 else Path("runs/report"))
    built = reports.build(runs)
    paths = reports.write(runs, place, built=built)
    if json:
        common.print_json(reports.as_json(built))
    else:
        common.stdout.print(reports.terminal(built))
    common.console.print(f"report: {paths['html']} · look through the traces: demur view {runs[0]}")
