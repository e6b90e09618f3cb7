"""`demur judge RUN_OR_FILE`: judge stored traces again, without asking the model that wrote them."""

import itertools
from pathlib import Path
from typing import Annotated, Any

from demur.cli import common
from demur.cli.runner import reading, run_stages, show_report
from demur.errors import UserError
from demur.judge import requires_model
from demur.models.config import ModelConfig, parse_model
from demur.pipeline.stages.importing import Import, ImportSettings
from demur.pipeline.stages.rejudge import Rejudge, RejudgeSettings
from demur.prompts.forms import load_file, require_intent
from demur.report.agreement import agreement, crossing
from demur.report.format import number
from demur.report.metrics import cells, results
from demur.report.read import VerdictIndex, evaluations
from demur.report.tables import estimate
from demur.settings import validate
from demur.storage.artifacts import Artifact, artifacts


@common.verb("intent part out cache json")
def judge(
    source: Path,
    flags: common.Flags,
    judges: Annotated[list[str] | None, common.flag("judge", "judges")] = None,
    limit: Annotated[int | None, common.flag("limit", "of-a-file", min=1)] = None,
    query: str | None = None,
) -> None:
    """Judge stored traces again: verdicts, a table and, where both were judged, thinking against answer.

    Several judges are compared with each other and with those of the run.
    """
    out = flags.out or Path("runs/judge")
    readers = [_reader(text, flags, query) for text in dict.fromkeys(judges or ["rules"])]
    sources = _sources(source, reading(source, flags.intent, limit=limit), out, flags.cache)
    stages = [
        Rejudge(f"{prefix}-{name}", settings.model_copy(update=about), files={"traces": path}, models=models)
        for (prefix, settings, models), (name, about, path) in itertools.product(readers, sources)
    ]
    done = run_stages(stages, out=out, cache=flags.cache, title="judge")
    judged, verdicts = [done[stage.name] for stage in stages[: len(sources)]], VerdictIndex()
    for stage in artifacts(out):
        if stage.manifest.kind == "judge":
            verdicts.read(stage.path("verdicts"))
    evaluated = [row for stage in _evaluations(source) or judged for row in evaluations(stage, verdicts)]
    crossed = list(crossing(row._replace(arm="", bench="", attack="") for row in evaluated))
    agreements = list(agreement(evaluated))
    if flags.json:
        by_judge: dict[str, dict[str, Any]] = {}
        for cell in crossed:
            by_judge.setdefault(cell.judge, {})[cell.name] = {"share": cell.estimate}
        more = {"n": sum(stage.rows("traces") for stage in judged), "out": str(out), "crossed": by_judge}
        more |= {"results": list(results(cells(evaluated))), "agreement": agreements}
        show_report(out, json=True, more=more)
        return
    show_report(out)
    if crossed:
        rows = [(cell.judge, cell.name.replace("_", " "), estimate(cell.estimate)) for cell in crossed]
        common.show(("judge", "thinking by answer", "#% of traces"), rows)
    if agreements:
        pairs = [(f"{a.a} and {a.b}", a.part, estimate(a.same), number(a.kappa, "count", digits=2)) for a in agreements]
        common.show(("judges", "part", "#agree, %", "#kappa"), pairs)


def _evaluations(run: Path) -> list[Artifact]:
    """The evaluations of a run; empty for a file."""
    return [stage for stage in artifacts(run) if stage.manifest.kind == "evaluate" and stage.has("traces")]


def _sources(source: Path, read: Import, out: Path, cache: Path | None) -> list[tuple[str, dict[str, Any], Path]]:
    """Each file of traces, as its name, the settings that describe it (arm, seed, benchmark) and its path."""
    if (source / "stages").is_dir():
        if read.settings != ImportSettings():
            raise UserError(f"--intent and --limit are for files: the run {source} states the intents of its prompts.")
        sources = []
        for stage in _evaluations(source):
            settings = stage.manifest.settings
            about = {"arm": settings["arm"], "seed": settings["seed"], "bench": settings["bench"]["name"]}
            sources.append((stage.manifest.name, about, stage.folder / "traces.jsonl"))
        if not sources:
            raise UserError(f"{source} has no finished evaluation. See: demur status {source}")
        return sources
    loaded = load_file(source, intent=read.settings.intent)
    if not loaded.traces:
        raise UserError(f"nothing to judge in {source}: no replies.")
    require_intent(loaded.notes)
    done = run_stages([read], out=out, cache=cache, title="read")["import"]
    return [(source.stem, {"arm": source.stem}, done.folder / "traces.jsonl")]


def _reader(text: str, flags: common.Flags, query: str | None) -> tuple[str, RejudgeSettings, dict[str, ModelConfig]]:
    """One judge, as the prefix of its stages' names, their settings and its model.
    Raises UserError: the judge or the part is unknown, or its model is missing or superfluous."""
    name, model = common.judge_of(text, unnamed="the judge's name is needed")
    if requires_model(name) and not model:
        raise UserError(f"judge '{name}' is a model: name it, as --judge {name}=URL or --judge {name}=FOLDER.")
    if model and not requires_model(name):
        raise UserError(f"judge '{name}' needs no model; write --judge {name}.")
    plain = {"judge": name, "query": query} | flags.given("part")
    label = "-".join(filter(None, ("judge", name.replace(":", "."), flags.part)))
    settings = validate(RejudgeSettings, plain, where="demur judge")
    return label, settings, {"judge": parse_model(model)} if model else {}
