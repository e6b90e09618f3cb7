"""`demur distil`: a teacher's traces for prompts under a strategy, filtered by a judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from demur.cli import common
from demur.cli.runner import run_stages
from demur.distil.run import REASONS, TokenStats
from demur.distil.settings import DistilSettings
from demur.distil.strategy import load
from demur.errors import UserError
from demur.judge import JUDGES
from demur.models.config import ModelConfig, parse_model
from demur.pipeline.stages.distil import Distil, DistilStageSettings
from demur.pipeline.stages.importing import Import, ImportSettings
from demur.pipeline.stages.prompts import Prompts
from demur.prompts.settings import PromptsSettings
from demur.storage.artifacts import Artifact

app = common.app("A teacher's traces for prompts, filtered.")


@app.command()
def distil(
    data: Annotated[Path, typer.Option("--data", help="Prompts in any known form.")],
    teacher: common.Teacher = None,
    judge: common.JudgeModel = None,
    given: Annotated[
        Path | None, typer.Option("--given", help="Safe traces of the same prompts, for strategy rewrite.")
    ] = None,
    limit: common.Limit = None,
    seed: common.Seed = 0,
    out: common.Out = None,
    cache: common.CacheDir = None,
    sets: common.Set = None,
    json: common.Json = False,
) -> None:
    """Make traces: ask a teacher under a strategy, judge, keep what the rule keeps. Every drop has a reason.

    Examples:

      demur distil --data harmful.jsonl --set strategy=improved --teacher http://127.0.0.1:8000/v1 --judge llama_guard3=http://127.0.0.1:8001/v1

      demur distil --data nocot.json --set strategy=nocot

      demur distil --data harmful.jsonl --set strategy=./mine.md --set until_safe=1 --set keep='answer safe' --teacher ./model --judge llama_guard3=./guard
    """
    settings: DistilSettings = common.validated(DistilSettings, common.apply_sets({"seed": seed}, sets))
    stage = _stage(settings, data=data, teacher=teacher, judge=judge, given=given, limit=limit)
    where = out or Path("runs/distil")
    done = run_stages([stage], out=where, cache=cache, title="distil")[stage.name]
    text = markdown(done, strategy=Path(settings.strategy).stem)
    common.tell(where, text, plain={"out": str(where)} | done.manifest.summary, json=json)
    common.console.print(f"traces: {done.folder / 'traces.jsonl'}")


def _stage(
    settings: DistilSettings,
    *,
    data: Path,
    teacher: str | None,
    judge: str | None,
    given: Path | None,
    limit: int | None,
) -> Distil:
    """The distillation, with the stages that read its prompts and given traces."""
    constant = load(settings.strategy).constant is not None
    # A constant reply needs no filter, whatever the keep rule says.
    kind, models = ("", dict[str, ModelConfig]()) if constant or not settings.parts else _filter(judge)
    if teacher:
        models["teacher"] = parse_model(teacher)
    drawn = PromptsSettings(source=str(data), n=limit)
    inputs: dict[str, Prompts | Import] = {"prompts": Prompts("prompts", drawn, files={"source": data})}
    if given:
        inputs["given"] = Import("import-given", ImportSettings(), files={"file": given})
    files = {"strategy": Path(settings.strategy)} if settings.strategy.endswith(".md") else {}
    name = f"distil-{Path(settings.strategy).stem}"
    return Distil(name, DistilStageSettings(distil=settings, filter=kind), inputs=inputs, files=files, models=models)


def _filter(text: str | None) -> tuple[str, dict[str, ModelConfig]]:
    """The filter's kind, and its model where it has one: NAME, NAME=MODEL."""
    if text is None:
        raise UserError("the keep rule needs a judge: --judge NAME or NAME=MODEL, or --set keep=everything.")
    name, model = common.judge_of(text)
    if name in JUDGES:
        return name, {"filter": parse_model(model)} if model else {}
    raise UserError(f"--judge {text}: no judge of that name. Allowed: {', '.join(sorted(JUDGES))}, or NAME=MODEL.")


def markdown(artifact: Artifact, *, strategy: str) -> str:
    """The funnel and the lengths, as Markdown."""
    summary = artifact.manifest.summary
    lines = [f"# Distilled with {strategy}", "", "| | replies |", "|---|---|"]
    funnel = summary["funnel"]
    steps = [step for step in ("asked", "answered", "failed", *REASONS, "kept", "fell_back") if step in funnel]
    lines += [f"| {step.replace('_', ' ')} | {funnel[step]:,} |" for step in steps]
    lines += ["", "| tokens | n | mean | 90th percentile |", "|---|---|---|---|"]
    for which, value in summary["tokens"].items():
        stats = msgspec.convert(value, TokenStats)
        mean = f"{stats.mean:.1f}" if stats.mean is not None else "–"
        p90 = f"{stats.p90:.0f}" if stats.p90 is not None else "–"
        lines.append(f"| {which} | {stats.n:,} | {mean} | {p90} |")
    return "\n".join(lines) + "\n"
