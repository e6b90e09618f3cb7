"""`demur report RUN…`: the tables and the page of a run, or of several runs side by side."""

from pathlib import Path

from demur.cli import common
from demur.cli.runner import show_report


@common.verb("json")
def report(runs: list[Path], flags: common.Flags, out: Path | None = None) -> None:
    """Write results.json, results.csv, summary.md and report.html, and print the table of results."""
    show_report(*runs, out=out or (None if len(runs) == 1 else Path("runs/report")), json=flags.json)
