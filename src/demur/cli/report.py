"""`demur report RUN…`: tables and the page of a run, or of several side by side."""

from pathlib import Path
from typing import Annotated

import typer

from demur.cli import common
from demur.cli.runner import tell


@common.verb("json")
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs; several are laid side by side.")],
    flags: common.Flags,
    out: Annotated[Path | None, typer.Option("--out", help="Default: the run, or runs/report for several.")] = None,
) -> None:
    """Write results.json, results.csv, summary.md and report.html, and print the table."""
    tell(*runs, out=out or (None if len(runs) == 1 else Path("runs/report")), json=flags.json)
