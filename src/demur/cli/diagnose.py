"""`demur diagnose FILE`: find the failure patterns in traces, with evidence, and how often they occur."""

from pathlib import Path
from typing import Annotated

import typer

from demur.cli import common
from demur.cli.runner import reading, run_stage
from demur.diagnose import DETECTORS
from demur.models.config import ModelConfig, as_model, parse_model
from demur.pipeline.stages.diagnose import Diagnose, DiagnoseSettings
from demur.settings import read_yaml

app = common.app("Find the failure patterns in traces.")
DETECTOR = Annotated[str | None, common.flag("detector")]


@app.command()
def diagnose(
    file: Annotated[Path, typer.Argument(help="Traces in any known form, or a run's stage folder.")],
    detector: DETECTOR = None,
    intent: common.Intent = None,
    limit: common.Limit = None,
    out: common.Out = None,
    cache: common.CacheDir = None,
    json: common.Json = False,
) -> None:
    """Find the failure patterns in traces: findings with evidence, and rates with intervals per pattern and class.

    Examples:
      demur diagnose star1.json --out runs/d
      demur diagnose runs/a/stages/distil-default-1a2b --detector http://127.0.0.1:8000/v1
      demur diagnose traces.jsonl --limit 100 --json
    """
    kind, models = detecting(detector, file)
    source = reading(file, intent)
    stage = Diagnose("diagnose", DiagnoseSettings(detector=kind, limit=limit), inputs={"traces": source}, models=models)
    run_stage(stage, out=out or Path("runs/diagnose"), cache=cache, json=json)
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
