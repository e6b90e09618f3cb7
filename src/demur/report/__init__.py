"""The report of a run: numbers first (`build`), then how they are told (`write`, `terminal`).

read.py      a run's folder -> rows              metrics.py   rows -> estimates, by arm and column
tests.py     arms against arms                   agreement.py judges against judges
patterns.py  patterns in traces                  training.py  funnels, mixes, learnability
data.py      all of it -> Report                 words.py     numbers in words
tell.py      terminal, Markdown, CSV, JSON       page.py      report.html, with the drawings of figures.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from demur.report.data import Report, build
from demur.report.data import plain as as_json
from demur.report.tell import as_csv, json_bytes, markdown, terminal
from demur.storage.artifacts import atomic_write


def write(run: Path | Sequence[Path], out: Path | None = None, *, built: Report | None = None) -> dict[str, Path]:
    """Write results.json, results.csv, summary.md and report.html into the first run, or into `out`; gives their paths.

    `built` is their report, where it is there already.
    """
    from demur.report.page import page

    folders = [run] if isinstance(run, Path) else list(run)
    report = built or build(folders)
    place = out or folders[0]
    place.mkdir(parents=True, exist_ok=True)
    contents: dict[str, tuple[str, bytes | str]] = {
        "json": ("results.json", json_bytes(report)),
        "csv": ("results.csv", as_csv(report)),
        "markdown": ("summary.md", markdown(report)),
        "html": ("report.html", page(report, folders)),
    }
    for name, content in contents.values():
        atomic_write(place / name, content)
    return {kind: place / name for kind, (name, _) in contents.items()}


__all__ = ["Report", "as_json", "build", "terminal", "write"]
