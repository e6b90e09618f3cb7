"""`demur runs FOLDER`: a history of what was run, from each run's own results."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from demur.cli import common
from demur.cli.runner import STUDY
from demur.cli.status import standing
from demur.errors import UserError
from demur.report import Report, format
from demur.settings import read_yaml
from demur.storage.artifacts import GRAPH

TITLES = ("date", "run", "study", "arm", "model", "headline numbers")
MODEL = ("model", "path", "hub", "script", "plugin", "url")  # What a model of a study is called by, the best name first


@common.verb("json")
def runs(flags: common.Flags, folder: Path = Path("runs")) -> None:
    """Date, study, arm, model and headline numbers of every run under a folder, the newest last."""
    begun = {path: left for path in folder.rglob(GRAPH) if (left := standing(path.parent).left(path.parent))}
    found = sorted([*folder.rglob("results.json"), *begun], key=lambda path: path.stat().st_mtime)
    rows = [row for path in found for row in ([_unfinished(path, begun[path])] if path in begun else _rows(path))]
    if not rows:
        raise UserError(f"{folder} holds no results of a run.")
    if flags.json:
        common.print_json({"runs": rows})
        return
    for row in rows:
        row[TITLES[-1]] = "\n".join(row["numbers"].values()) or f"{format.NONE} {row['why']}"
        row["run"] = str(Path(row["run"]).relative_to(folder))
    common.show(TITLES, [tuple(row[key] or format.NONE for key in TITLES) for row in rows], f"under {folder}")


def _row(path: Path, **own: Any) -> dict[str, Any]:
    return {"date": f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}", "run": str(path.parent)} | own


def _unfinished(path: Path, why: str) -> dict[str, Any]:
    """The row of a run that has stages to be done, or no results yet."""
    file = path.with_name(STUDY)
    study = read_yaml(file)[0] if file.is_file() else {}
    models = [one[key] for one in (study.get("models") or {}).values() for key in MODEL if key in one][:1]
    named = [*(study.get("bases") or [study.get("base", "mini-lrm-a")]), *models] if study else []
    name, arms = study.get("name", path.parent.name), ", ".join(study.get("arms") or ())
    model = ", ".join(str(one) for one in named if one != "target")
    return _row(path, study=name, arm=arms, model=model, numbers={}, why=why)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """A row an arm, or one without numbers for a run that measured none."""
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except msgspec.MsgspecError as error:
        common.console.print(f"{path} is not read: {error}")
        return
    named = {one.arm: (one.base, *one.models[:1]) for one in report.subjects}
    models = {a: ", ".join(m for m in own if m and not {*m.split()} < {*own[-1].split()}) for a, own in named.items()}
    study = report.name if (path.parent / STUDY).is_file() else path.parent.name
    kinds = ", ".join(dict.fromkeys(name.rpartition(":")[2].partition("-")[0] for name in report.stages))
    unmeasured = "no judge scored enough" if report.arms else f"no benchmark was run (stages: {kinds})"
    for arm in report.arms or ("",):
        own = {c: e for c in report.columns if (e := report.find(arm, c)) is not None}
        numbers = {}
        for c, e in own.items():
            place, value = format.place(c.bench, c.attack), format.interval(e, c.unit)
            numbers[f"{place} {c.metric} {c.judge}".strip()] = f"{place} {format.metric(c.metric)} {value} ({c.judge})"
        why = "" if numbers else unmeasured
        yield _row(path, study=study, arm=arm, model=models.get(arm, ""), numbers=numbers, why=why)
