"""`demur runs FOLDER`: list runs with their headline numbers, from each run's own results."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from demur.cli import common
from demur.cli.runner import STUDY
from demur.cli.status import state_of
from demur.errors import UserError
from demur.report import Report, format
from demur.settings import read_yaml
from demur.storage.artifacts import GRAPH

TITLES = ("date", "run", "study", "arm", "model", "headline numbers")
MODEL = ("model", "path", "hub", "script", "plugin", "url")  # Fields that name a model in a study, the best name first


@common.verb("json")
def runs(flags: common.Flags, folder: Path = Path("runs")) -> None:
    """List date, study, arm, model and headline numbers of every run in a folder, the newest last."""
    unfinished = {path: left for path in folder.rglob(GRAPH) if (left := state_of(path.parent).left(path.parent))}
    rows: list[dict[str, Any]] = []
    for path in sorted([*folder.rglob("results.json"), *unfinished], key=lambda path: path.stat().st_mtime):
        date = f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}"
        own = [_unfinished(path, unfinished[path])] if path in unfinished else _rows(path)
        rows += [{"date": date, "run": str(path.parent)} | row for row in own]
    if not rows:
        raise UserError(f"{folder} holds no results of a run.")
    if flags.json:
        common.print_json({"runs": rows})
        return
    for row in rows:
        row[TITLES[-1]] = "\n".join(row["numbers"].values()) or f"{format.NONE} {row['why']}"
        row["run"] = str(Path(row["run"]).relative_to(folder))
    common.show(TITLES, [tuple(row[key] or format.NONE for key in TITLES) for row in rows], f"under {folder}")


def _unfinished(path: Path, why: str) -> dict[str, Any]:
    """The row of a run with unfinished stages or without results; `why` says which."""
    file = path.with_name(STUDY)
    study = read_yaml(file)[0] if file.is_file() else {}
    models = [model[key] for model in (study.get("models") or {}).values() for key in MODEL if key in model][:1]
    bases = study.get("bases") or [study.get("base", "mini-lrm-a")] if study else []
    model = ", ".join(str(name) for name in (*bases, *models) if name != "target")
    name, arms = study.get("name", path.parent.name), ", ".join(study.get("arms") or ())
    return {"study": name, "arm": arms, "model": model, "numbers": {}, "why": why}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """One row for each arm, or a single row without numbers for a run that measured none."""
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except msgspec.MsgspecError as error:
        common.console.print(f"{path} cannot be read: {error}")
        return
    models: dict[str, str] = {}
    for subject in report.subjects:
        names = (subject.base, *subject.models[:1])  # without the base where the model's name contains it
        models[subject.arm] = ", ".join(name for name in names if name and not {*name.split()} < {*names[-1].split()})
    study = report.name if (path.parent / STUDY).is_file() else path.parent.name
    kinds = ", ".join(dict.fromkeys(name.rpartition(":")[2].partition("-")[0] for name in report.stages))
    unmeasured = "no judge scored enough" if report.arms else f"no benchmark was run (stages: {kinds})"
    for arm in report.arms or ("",):
        numbers = {}
        for c in report.columns:
            if (estimate := report.find(arm, c)) is not None:
                place, value = format.place(c.bench, c.attack), format.interval(estimate, c.unit)
                text = f"{place} {format.metric(c.metric)} {value} ({c.judge})"
                numbers[f"{place} {c.metric} {c.judge}".strip()] = text
        why = "" if numbers else unmeasured
        yield {"study": study, "arm": arm, "model": models.get(arm, ""), "numbers": numbers, "why": why}
