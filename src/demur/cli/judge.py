"""`demur judge RUN_OR_FILE`: judge stored traces again, without asking the model that wrote them."""

import itertools
from pathlib import Path
from typing import Annotated, Any

from demur.cli import common
from demur.cli.runner import reading, run_stages, tell
from demur.errors import UserError
from demur.judge import requires_model
from demur.models.config import ModelConfig, parse_model
from demur.pipeline.stages.importing import Import, ImportSettings
from demur.pipeline.stages.rejudge import Rejudge, RejudgeSettings
from demur.prompts.forms import require_intent
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
    """Judge stored traces again: verdicts, a table, and thinking crossed with answer where both were judged.

    Several judges are compared with each other, and with those of the run.
    """
    where = flags.out or Path("runs/judge")
    readers = [_reader(text, flags, query) for text in dict.fromkeys(judges or ["rules"])]
    sources = _sources(source, reading(source, flags.intent, limit=limit), where, flags.cache)
    stages = [
        Rejudge(f"{name}-{of}", settings.model_copy(update=about), files={"traces": path}, models=models)
        for (name, settings, models), (of, about, path) in itertools.product(readers, sources)
    ]
    done = run_stages(stages, out=where, cache=flags.cache, title="judge")
    judged, verdicts = [done[stage.name] for stage in stages[: len(sources)]], VerdictIndex()
    for stage in artifacts(where):
        if stage.manifest.kind == "judge":
            verdicts.read(stage.path("verdicts"))
    found = [one for stage in _measured(source) or judged for one in evaluations(stage, verdicts)]
    crossed = list(crossing(e._replace(arm="", bench="", attack="") for e in found))
    agree = list(agreement(found))
    if flags.json:
        names = {cell.judge for cell in crossed}
        apart = {name: {own.name: {"share": own.estimate} for own in crossed if own.judge == name} for name in names}
        traces = sum(stage.rows("traces") for stage in judged)
        told = {"results": list(results(cells(found))), "crossed": apart, "agreement": agree}
        tell(where, json=True, more={"n": traces, "out": str(where)} | told)
        return
    tell(where)
    if crossed:
        rows = [(cell.judge, cell.name.replace("_", " "), estimate(cell.estimate)) for cell in crossed]
        common.show(("judge", "thinking by answer", "#% of traces"), rows)
    if agree:
        pairs = [(f"{a.a} and {a.b}", a.part, estimate(a.same), number(a.kappa, "count", digits=2)) for a in agree]
        common.show(("judges", "part", "#agree, %", "#kappa"), pairs)


def _measured(run: Path) -> list[Artifact]:
    """The evaluations of a run; none where it is a file."""
    return [stage for stage in artifacts(run) if stage.manifest.kind == "evaluate" and stage.has("traces")]


def _sources(source: Path, read: Import, where: Path, cache: Path | None) -> list[tuple[str, dict[str, Any], Path]]:
    """Each file of traces with its name, and what its stage says of it: arm, seed and benchmark."""
    if (source / "stages").is_dir():
        if read.settings != ImportSettings():
            raise UserError(f"--intent and --limit are for files: {source} says itself what its prompts want.")
        found = []
        for stage in _measured(source):
            settings = stage.manifest.settings
            about = {"arm": settings["arm"], "seed": settings["seed"], "bench": settings["bench"]["name"]}
            found.append((stage.manifest.name, about, stage.folder / "traces.jsonl"))
        if not found:
            raise UserError(f"{source} has no finished evaluation. See: demur status {source}")
        return found
    done = run_stages([read], out=where, cache=cache, title="read")["import"]
    if not done.rows("traces"):
        raise UserError(f"nothing to judge in {source}: no replies.")
    require_intent(done.manifest.summary["notes"])
    return [(source.stem, {"arm": source.stem}, done.folder / "traces.jsonl")]


def _reader(text: str, flags: common.Flags, query: str | None) -> tuple[str, RejudgeSettings, dict[str, ModelConfig]]:
    """One judge: how its stages' names begin, what they are set to, and its model.

    Raises UserError: an unknown judge or part, or a judge that needs a model and has none.
    """
    name, model = common.judge_of(text, unnamed="traces are judged by a name")
    if requires_model(name) and not model:
        raise UserError(f"judge '{name}' is a model: say which, as --judge {name}=URL or {name}=FOLDER.")
    if model and not requires_model(name):
        raise UserError(f"judge '{name}' needs no model; say --judge {name}.")
    plain = {"judge": name, "query": query} | flags.given("part")
    label = "-".join(filter(None, ("judge", name.replace(":", "."), flags.part)))
    settings = validate(RejudgeSettings, plain, where="demur judge")
    return label, settings, {"judge": parse_model(model)} if model else {}
