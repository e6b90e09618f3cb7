"""`demur judge RUN_OR_FILE`: judge stored traces again, without asking the model that wrote them."""

from pathlib import Path
from typing import Annotated, Any, get_args

from demur.cli import common
from demur.cli.runner import reading, run_stages, tell
from demur.errors import UserError, unknown
from demur.judge import requires_model
from demur.models.config import parse_model
from demur.pipeline.stages.importing import Import
from demur.pipeline.stages.rejudge import Rejudge, RejudgeSettings
from demur.prompts.forms import certain
from demur.records import Part, Query
from demur.report.agreement import agreement, crossing
from demur.report.format import number
from demur.report.metrics import cells, results
from demur.report.read import Evaluation, VerdictIndex, evaluations
from demur.report.tables import estimate
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
    for flag, value, allowed in (("--part", flags.part, get_args(Part)), ("--query", query, get_args(Query))):
        if value is not None and value not in allowed:
            raise unknown(flag, value, allowed)
    sources = _sources(source, reading(source, flags.intent, limit=limit), where, flags.cache)
    stages = [
        _stage(text, {"part": flags.part, "query": query}, settings, path)
        for text in dict.fromkeys(judges or ["rules"])
        for settings, path in sources
    ]
    done = run_stages(stages, out=where, cache=flags.cache, title="judge")
    judged = [done[stage.name] for stage in stages[: len(sources)]]
    found = _evaluations(_measured(source) or judged, where)
    crossed = list(crossing(e._replace(arm="", bench="", attack="") for e in found))
    agree = list(agreement(found))
    if flags.json:
        apart: dict[str, dict[str, Any]] = {}
        for cell in crossed:
            apart.setdefault(cell.judge, {})[cell.name] = {"share": cell.estimate}
        traces = sum(stage.rows("traces") for stage in judged)
        told = {"results": list(results(cells(found))), "crossed": apart, "agreement": agree}
        common.print_json({"n": traces, "out": str(where)} | told)
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


def _sources(source: Path, read: Import, where: Path, cache: Path | None) -> list[tuple[dict[str, Any], Path]]:
    """Each file of traces, with what its stage says of it: arm, seed and benchmark."""
    if (source / "stages").is_dir():
        found = []
        for stage in _measured(source):
            settings = stage.manifest.settings
            about = {"arm": settings["arm"], "seed": settings["seed"], "bench": settings["bench"]["name"]}
            found.append((about | {"of": stage.manifest.name}, stage.folder / "traces.jsonl"))
        if not found:
            raise UserError(f"{source} has no finished evaluation. See: demur status {source}")
        return found
    done = run_stages([read], out=where, cache=cache, title="read")["import"]
    if not done.rows("traces"):
        raise UserError(f"nothing to judge in {source}: no replies.")
    certain(done.manifest.summary["notes"])
    about = {"arm": source.stem, "seed": None, "bench": "demur.bench.metrics:STORED", "of": source.stem}
    return [(about, done.folder / "traces.jsonl")]


def _stage(text: str, how: dict[str, Any], about: dict[str, Any], path: Path) -> Rejudge:
    """The stage that puts one judge to one file of traces.

    Raises UserError: an unknown judge, or one that needs a model and has none.
    """
    name, model = common.judge_of(text, unnamed="traces are judged by a name")
    settings = RejudgeSettings(judge=name, **how, **{key: about[key] for key in ("arm", "seed", "bench")})
    models = {"judge": parse_model(model)} if model else {}
    if requires_model(name):
        if not model:
            raise UserError(f"judge '{name}' is a model: say which, as --judge {name}=URL or {name}=FOLDER.")
    elif model:
        raise UserError(f"judge '{name}' needs no model; say --judge {name}.")
    label = "-".join(str(piece) for piece in (name.replace(":", "."), how["part"] or "", about["of"]) if piece)
    return Rejudge(f"judge-{label}", settings, files={"traces": path}, models=models)


def _evaluations(traces: list[Artifact], where: Path) -> list[Evaluation]:
    """The traces of some stages with their own verdicts and all that were given in a folder."""
    given = VerdictIndex()
    for stage in artifacts(where):
        if stage.manifest.kind == "judge":
            given.read(stage.path("verdicts"))
    return [one for stage in traces for one in evaluations(stage, given)]
