"""`demur diagnose FILE`: find the failure patterns in traces, with evidence, and how often they occur."""

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
    """Find the failure patterns in traces: findings with evidence, and rates with intervals per pattern and class."""
    kind, models = detecting(flags.detector, file)
    settings, source = DetectorSettings(detector=kind, limit=flags.limit), reading(file, flags.intent)
    run_stage(Diagnose("diagnose", settings, inputs={"traces": source}, models=models), flags)
    if kind == "rules":
        common.console.print("rules are a screen: a model, by --detector, or labels (demur view) make rates")


def detecting(text: str | None, file: Path) -> tuple[str, dict[str, ModelConfig]]:
    """The kind of a detector and who plays it: as named, else that of the run that the file is from, else the rules."""
    if text:
        return (text, {}) if text in DETECTORS else ("llm", {"detector": parse_model(text)})
    folder = next((one for one in file.resolve().parents if (one / "study.yaml").is_file()), None)
    study = read_yaml(folder / "study.yaml")[0] if folder else {}
    model = (study.get("models") or {}).get("detector")
    return ("llm", {"detector": as_model(model)}) if model else ("rules", {})
