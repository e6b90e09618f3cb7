"""`demur repair FILE`: mend or drop traces with failure patterns, and audit what that did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from demur.cli import common
from demur.cli.common import shown
from demur.cli.diagnose import DETECTOR, detecting
from demur.cli.runner import run_stages
from demur.models.config import parse_model
from demur.pipeline.stages.diagnose import Diagnose, DiagnoseSettings
from demur.pipeline.stages.importing import Import, ImportSettings
from demur.pipeline.stages.repair import Repair, RepairStageSettings
from demur.records import Estimate
from demur.repair.run import Audit
from demur.repair.settings import RepairSettings

app = common.app("Mend or drop traces with failure patterns.")


@app.command()
def repair(
    file: Annotated[Path, typer.Argument(help="Traces in any known form, or a run's stage folder.")],
    detector: DETECTOR = None,
    teacher: common.Teacher = None,
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
    settings = common.validated(RepairSettings, plain)
    where = out or Path("runs/repair")
    kind, models = detecting(detector, file)
    read = Import("import", ImportSettings(), files={"file": file})
    found = Diagnose("diagnose", DiagnoseSettings(detector=kind, limit=limit), inputs={"traces": read}, models=models)
    mended = Repair(
        "repair",
        RepairStageSettings(repair=settings, detector=kind, limit=limit),
        inputs={"traces": read, "findings": found},
        models=models | ({"teacher": parse_model(teacher)} if teacher else {}),
    )
    done = run_stages([mended], out=where, cache=cache, title="repair")["repair"]
    summary = done.manifest.summary
    text = markdown(summary, title=f"Repair of {file.name}")
    plain = {"out": str(where), "traces": done.rows("traces")} | summary
    common.tell(where, text, results=summary, plain=plain, json=json)
    common.console.print(f"repaired traces: {done.folder / 'traces.jsonl'} (originals and actions beside them)")


def markdown(summary: dict[str, Any], *, title: str) -> str:
    """The audit as Markdown."""
    audit = msgspec.convert(summary["audit"], Audit)
    lines = [f"# {title}", "", ", ".join(f"{count:,} {did}" for did, count in audit.counts.items()) + ".", ""]
    lines += ["| % of the traces that are left | before | after | change, points |", "|---|---|---|---|"]
    for change in audit.changes:
        gap = change.difference
        paired = Estimate(value=gap.value, low=gap.low, high=gap.high, n=gap.n)
        name = change.pattern.replace("_", " ")
        lines.append(f"| {name} | {shown(change.before)} | {shown(change.after)} | {shown(paired)} |")
    lines += ["", f"Kept: {shown(audit.kept)} % of the traces. Characters saved per trace: "]
    lines[-1] += f"{shown(audit.characters_saved, scale=1.0)}; tokens: {shown(audit.tokens_saved, scale=1.0)}."
    lines += ["", "95 % intervals, clustered by prompt; changes are paired over the same prompts."]
    return "\n".join(lines) + "\n"
