"""`demur diagnose FILE`: find the failure patterns in traces, with evidence, and how often they occur."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from demur.cli import common
from demur.cli.runner import run_nodes
from demur.diagnose import DETECTORS
from demur.diagnose.rates import ROWS, PatternRate
from demur.pipeline.run import Node
from demur.pipeline.stages.patterns import shown
from demur.records import Estimate
from demur.storage.artifacts import Artifact, is_published

app = common.app("Find the failure patterns in traces.")
DETECTOR = Annotated[
    str, typer.Option("--detector", help="rules, mini, or a model that judges: URL, folder, hub id, script:NAME.")
]


@app.command()
def diagnose(
    file: Annotated[Path, typer.Argument(help="Traces in any known form, or a run's stage folder.")],
    detector: DETECTOR = "rules",
    limit: common.Limit = None,
    out: common.Out = None,
    journal: common.JournalDir = None,
    json: common.Json = False,
) -> None:
    """Find the failure patterns in traces: findings with evidence, and rates with intervals per pattern and class.

    Examples:

      demur diagnose star1.json --out runs/d

      demur diagnose runs/a/stages/distil-default-1a2b --detector http://127.0.0.1:8000/v1

      demur diagnose traces.jsonl --limit 100 --json
    """
    where = out or Path("runs/diagnose")
    settings = detector_settings(detector) | kept_of(file) | ({"limit": limit} if limit else {})
    done = run_nodes(
        [
            Node(name="import", kind="import", settings={}, files={"file": str(file)}),
            Node(name="diagnose", kind="diagnose", settings=settings, inputs={"traces": "import"}),
        ],
        out=where,
        journal=journal,
        title="diagnose",
    )
    summary = done["diagnose"].manifest.summary
    odd = done["import"].manifest.summary.get("odd", 0)
    text = markdown(summary, title=f"Failure patterns in {file.name}", odd=odd)
    plain = {"n": summary["traces"], "odd": odd, "out": str(where)} | summary
    common.tell(where, text, results=summary, plain=plain, json=json)
    common.console.print(f"findings with evidence: {done['diagnose'].folder / 'findings.jsonl'}")


def kept_of(file: Path) -> dict[str, Any]:
    """Which traces passed the filter, where the file is a finished distillation."""
    kept = Artifact(file).manifest.summary.get("kept") if is_published(file) else None
    return {} if kept is None else {"kept": kept}


def detector_settings(text: str) -> dict[str, Any]:
    """The settings of a stage that detects: a detector by name, or a model for the detector `llm`."""
    if text in DETECTORS:
        return {"name": text}
    return {"name": "llm", "detector": common.role(text)}


def markdown(summary: dict[str, Any], *, title: str, odd: int = 0) -> str:
    """The rates as a Markdown table: patterns and classes down, before and after the filter across."""
    rates = [msgspec.convert(rate, PatternRate) for rate in summary["rates"]]
    lines = [f"# {title}", "", f"{summary['traces']:,} traces, detector `{summary['detector']}`."]
    if odd:
        lines[-1] += f" {odd:,} rows could not be read."
    if summary["harmless"]:
        lines[-1] += f" {summary['harmless']:,} of harmless prompts are not counted."
    columns = list(dict.fromkeys((rate.group, rate.when) for rate in rates))
    heads = [
        " ".join(part for part in (group, "" if when == "all" else when) if part) or "share" for group, when in columns
    ]
    lines += ["", "| % of traces | " + " | ".join(heads) + " |", "|---|" + "---|" * len(columns)]
    cells = {(rate.what, rate.group, rate.when): rate.estimate for rate in rates}
    for what in ROWS:
        row = [cells[(what, *column)] for column in columns]
        undecided = [f" ({e.unscored} undecided)" if e.unscored else "" for e in row]
        shown_row = [shown(e) + u for e, u in zip(row, undecided, strict=True)]
        lines.append(f"| {what.replace('_', ' ')} | " + " | ".join(shown_row) + " |")
    lines += [
        "",
        "95 % intervals, clustered by prompt. Classes: unaware, overthinking, inconsistent (arXiv 2505.15404, v1).",
    ]
    lines += ["", "| measure | per trace |", "|---|---|"]
    for name, value in summary["measures"].items():
        estimate = msgspec.convert(value, Estimate)
        lines.append(f"| {name.replace('_', ' ')} | {shown(estimate, scale=1.0)} |")
    return "\n".join(lines) + "\n"
