"""`demur diagnose FILE`: find the failure patterns in traces, with evidence, and how often they occur."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from demur.cli import common
from demur.cli.common import shown
from demur.cli.runner import run_stages
from demur.diagnose import DETECTORS
from demur.models.config import ModelConfig, as_model, parse_model
from demur.pipeline.stages.diagnose import Diagnose, DiagnoseSettings
from demur.pipeline.stages.importing import Import, ImportSettings
from demur.report.patterns import PatternRate, measures, patterns
from demur.report.read import read

app = common.app("Find the failure patterns in traces.")
DETECTOR = Annotated[
    str | None,
    typer.Option(
        "--detector",
        help="A model that judges (URL, folder, hub id, script:NAME), rules or mini. Default: the detector of the run that "
        "the file is from, else rules.",
    ),
]


@app.command()
def diagnose(
    file: Annotated[Path, typer.Argument(help="Traces in any known form, or a run's stage folder.")],
    detector: DETECTOR = None,
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
    where = out or Path("runs/diagnose")
    kind, models = detecting(detector, file)
    source = Import("import", ImportSettings(), files={"file": file})
    stage = Diagnose("diagnose", DiagnoseSettings(detector=kind, limit=limit), inputs={"traces": source}, models=models)
    done = run_stages([stage], out=where, cache=cache, title="diagnose")
    summary = done["diagnose"].manifest.summary
    odd = done["import"].rows("odd")
    text = markdown(where, title=f"Failure patterns in {file.name}", traces=summary["traces"], odd=odd)
    run = read(where)
    found = {"detector": summary["detector"], "rates": list(patterns(run)), "measures": measures(run)}
    plain = {"n": summary["traces"], "odd": odd, "out": str(where)} | found
    common.tell(where, text, results=found, plain=plain, json=json)
    if kind == "rules":
        common.console.print("rules are a screen: a model, by --detector, or labels (demur view) make rates")
    common.console.print(f"findings with evidence: {done['diagnose'].folder / 'findings.jsonl'}")


def detecting(text: str | None, file: Path) -> tuple[str, dict[str, ModelConfig]]:
    """The kind of a detector and who plays it: as named, else that of the run that the file is from, else the rules."""
    if text:
        return (text, {}) if text in DETECTORS else ("llm", {"detector": parse_model(text)})
    folder = next((one for one in file.resolve().parents if (one / "study.yaml").is_file()), None)
    study = yaml.safe_load((folder / "study.yaml").read_text()) if folder else {}
    model = (study.get("models") or {}).get("detector")
    return ("llm", {"detector": as_model(model)}) if model else ("rules", {})


def markdown(where: Path, *, title: str, traces: int, odd: int = 0) -> str:
    """The rates as a Markdown table: patterns and classes down, before and after the filter across."""
    run = read(where)
    rates = list(patterns(run))
    lines = [f"# {title}", "", f"{traces:,} traces, detector `{rates[0].detector if rates else 'none'}`."]
    if odd:
        lines[-1] += f" {odd:,} rows could not be read."
    scored = sum(max(r.before.n + r.before.unscored for r in rates if r.traces == name) for name in _names(rates))
    if scored < traces:
        lines[-1] += f" {traces - scored:,} of harmless prompts are not counted."
    columns: dict[str, dict[str, str]] = {}
    for rate in rates:
        for when, estimate in (("before", rate.before), ("after", rate.after)) if rate.after else (("", rate.before),):
            if estimate is not None:
                undecided = f" ({estimate.unscored} undecided)" if estimate.unscored else ""
                head = f"{rate.traces} {when}".strip()
                cell = estimate.how if estimate.value is None else shown(estimate) + undecided
                columns.setdefault(head, {})[rate.pattern] = cell
    lines += ["", "| % of traces | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for what in dict.fromkeys(rate.pattern for rate in rates):
        lines.append(f"| {what.replace('_', ' ')} | " + " | ".join(own[what] for own in columns.values()) + " |")
    lines += [
        "",
        "95 % intervals, clustered by prompt. Classes: unaware, overthinking, inconsistent (arXiv 2505.15404, v1).",
    ]
    lines += ["", "| measure | per trace |", "|---|---|"]
    for own in measures(run).values():
        lines += [f"| {name.replace('_', ' ')} | {shown(estimate, scale=1.0)} |" for name, estimate in own.items()]
    return "\n".join(lines) + "\n"


def _names(rates: list[PatternRate]) -> list[str]:
    return list(dict.fromkeys(rate.traces for rate in rates))
