"""`demur runs FOLDER`: a history of what was run, from each run's own results."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from demur.cli import common
from demur.cli.runner import STUDY
from demur.errors import UserError
from demur.report import Report, format

TITLES = ("date", "run", "study", "arm", "model", "headline numbers")
app = common.app("All runs under a folder with their headline numbers.")


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look, sub-folders included.")] = Path("runs"),
    json: common.Json = False,
) -> None:
    """Date, study, arm, model and headline numbers of every run under a folder, the newest last.

    Examples:

      demur runs

      demur runs /data/runs --json
    """
    found = sorted(folder.rglob("results.json"), key=lambda path: path.stat().st_mtime)
    rows = [row for path in found for row in _rows(path)]
    if not rows:
        raise UserError(f"{folder} holds no results of a run.")
    if json:
        common.print_json({"runs": rows})
        return
    cells = [
        (
            *(row[key] or format.NONE for key in TITLES[:-1]),
            "; ".join(row["numbers"].values()) or f"{format.NONE} {row['why']}",
        )
        for row in rows
    ]
    common.show(TITLES, cells)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """A row an arm, or one without numbers for a run that measured none."""
    date = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    about = {"date": date, "run": str(path.parent)}
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except msgspec.MsgspecError as error:
        common.console.print(f"{path} is not read: {error}")
        return
    models = {one.arm: ", ".join(dict.fromkeys(filter(None, (one.base, *one.models[:1])))) for one in report.subjects}
    study = report.name if (path.parent / STUDY).is_file() else path.parent.name
    kinds = ", ".join(dict.fromkeys(name.partition("-")[0] for name in report.stages))
    why = "no judge scored enough" if report.arms else f"no benchmark was run (stages: {kinds})"
    for arm in report.arms or ("",):
        own = {c: e for c in report.columns if (e := report.find(arm, c)) is not None}
        numbers = {
            " ".join((place := format.place(c.bench, c.attack), c.metric, c.judge)).strip(): " ".join(
                (place, format.metric(c.metric), format.interval(e, c.unit), f"({c.judge})")
            )
            for c, e in own.items()
        }
        yield about | {
            "study": study,
            "arm": arm,
            "model": models.get(arm, ""),
            "numbers": numbers,
            "why": "" if numbers else why,
        }
