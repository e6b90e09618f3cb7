"""`demur diagnose FILE`: find failure patterns in traces and how often they occur."""

from pathlib import Path

from demur.cli import common
from demur.cli.runner import reading, run_stage
from demur.diagnose import DETECTORS
from demur.models.config import ModelConfig, as_model, parse_model
from demur.pipeline.stage import DetectorSettings
from demur.pipeline.stages.diagnose import Diagnose
from demur.settings import read_yaml


@common.verb("detector intent limit out cache json")
def diagnose(file: Path, flags: common.Flags) -> None:
    """Find failure patterns in traces: findings with evidence, and rates with intervals for each pattern."""
    kind, models = detecting(flags.detector, file)
    settings, source = DetectorSettings(detector=kind, limit=flags.limit), reading(file, flags.intent)
    run_stage(Diagnose("diagnose", settings, inputs={"traces": source}, models=models), flags)
    if kind == "rules":
        common.console.print("rules only select traces to read; --detector MODEL or labels (demur view) give rates")


def detecting(text: str | None, file: Path) -> tuple[str, dict[str, ModelConfig]]:
    """The kind of a detector and its models: as `text` says, else as in the run to which the file belongs, else rules."""
    if text:
        return (text, {}) if text in DETECTORS else ("llm", {"detector": parse_model(text)})
    folder = next((parent for parent in file.resolve().parents if (parent / "study.yaml").is_file()), None)
    study = read_yaml(folder / "study.yaml")[0] if folder else {}
    model = (study.get("models") or {}).get("detector")
    return ("llm", {"detector": as_model(model)}) if model else ("rules", {})
