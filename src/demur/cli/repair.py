"""`demur repair FILE`: mend or drop traces with failure patterns, and say what became of them."""

from pathlib import Path
from typing import Annotated

import typer

from demur.cli import common
from demur.cli.diagnose import DETECTOR, detecting
from demur.cli.runner import reading, run_stage
from demur.models.config import parse_model
from demur.pipeline.stages.diagnose import Diagnose, DiagnoseSettings
from demur.pipeline.stages.repair import Repair, RepairStageSettings
from demur.repair.settings import RepairSettings
from demur.settings import validate

app = common.app("Mend or drop traces with failure patterns.")


@app.command()
def repair(
    file: Annotated[Path, typer.Argument(help="Traces in any known form, or a run's stage folder.")],
    detector: DETECTOR = None,
    teacher: common.Teacher = None,
    intent: common.Intent = None,
    limit: common.Limit = None,
    out: common.Out = None,
    cache: common.CacheDir = None,
    sets: common.Set = None,
    json: common.Json = False,
) -> None:
    """Repair traces; originals stay beside them, with what was done to each.

    Examples:
      demur repair traces.jsonl --set with=trim,align,drop --out runs/r
      demur repair runs/a/stages/distil-default-1a2b --teacher http://127.0.0.1:8000/v1 --set with=reask,drop
    """
    plain = common.apply_sets({}, sets)
    if not teacher and not {"with", "means"} & set(plain):
        plain["with"] = "trim,align,drop"
    settings = validate(RepairSettings, plain, where="demur repair")
    kind, models = detecting(detector, file)
    read = reading(file, intent)
    found = Diagnose("diagnose", DiagnoseSettings(detector=kind, limit=limit), inputs={"traces": read}, models=models)
    players = models | ({"teacher": parse_model(teacher)} if teacher else {})
    own = RepairStageSettings(repair=settings, detector=kind, limit=limit)
    mended = Repair("repair", own, inputs={"traces": read, "findings": found}, models=players)
    done = run_stage(mended, out=out or Path("runs/repair"), cache=cache, json=json)
    if not json:
        rows = [(name.replace("_", " "), *counts) for name, counts in done.manifest.summary["patterns"].items()]
        common.show(("pattern, traces in which it was found", "#before", "#left"), rows)
