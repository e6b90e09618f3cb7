"""`demur repair FILE`: mend or drop traces with failure patterns."""

from pathlib import Path
from typing import Any

from demur.cli import common
from demur.cli.diagnose import detecting
from demur.cli.runner import reading, run_stage
from demur.models.config import parse_model
from demur.pipeline.stage import DetectorSettings, Stage
from demur.pipeline.stages.diagnose import Diagnose
from demur.pipeline.stages.repair import Repair, RepairStageSettings
from demur.repair.settings import RepairSettings
from demur.settings import validate


@common.verb("detector teacher intent limit out cache sets json")
def repair(file: Path, flags: common.Flags) -> None:
    """Mend or drop traces with failure patterns. The originals are kept, with what was done to each."""
    plain = common.apply_sets({}, flags.sets, RepairSettings)
    if not flags.teacher and not {"with", "means"} & set(plain):
        plain["with"] = "trim,align,drop"
    kind, models = detecting(flags.detector, file)
    detection = DetectorSettings(detector=kind, limit=flags.limit)
    settings = RepairStageSettings(repair=validate(RepairSettings, plain, where="demur repair"), **dict(detection))
    inputs: dict[str, Stage[Any]] = {"traces": reading(file, flags.intent)}
    inputs["findings"] = Diagnose("diagnose", detection, inputs=dict(inputs), models=models)
    players = models | ({"teacher": parse_model(flags.teacher)} if flags.teacher else {})
    done = run_stage(Repair("repair", settings, inputs=inputs, models=players), flags)
    if not flags.json:
        rows = [(name.replace("_", " "), *counts) for name, counts in done.manifest.summary["patterns"].items()]
        common.show(("pattern, traces that show it", "#before", "#left"), rows)
