"""`demur judge RUN_OR_FILE`: judge stored traces again, without asking the model that wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from demur.bench.metrics import STORED
from demur.cli import common
from demur.cli.runner import run_stages, tell
from demur.errors import UserError, unknown
from demur.judge import requires_model
from demur.models.config import parse_model
from demur.pipeline.stages.importing import Import, ImportSettings
from demur.pipeline.stages.rejudge import Rejudge, RejudgeSettings
from demur.records import Trace, Verdict, read_jsonl
from demur.report.agreement import agreement, crossing, majority
from demur.report.metrics import cells, of_records, results
from demur.storage.artifacts import artifacts

app = common.app("Judge stored traces again, without asking the model.")


@app.command()
def judge(
    source: Annotated[Path, typer.Argument(help="A run's folder, or a file of traces in any known form.")],
    judges: Annotated[
        list[str] | None,
        typer.Option("--judge", help="Judge by name, or NAME=MODEL such as llama_guard3=URL. Repeatable."),
    ] = None,
    part: Annotated[str | None, typer.Option("--part", help="thinking, answer or whole; default: the judge's.")] = None,
    query: Annotated[str | None, typer.Option("--query", help="question or sent; default: the judge's.")] = None,
    out: common.Out = None,
    cache: common.CacheDir = None,
    json: common.Json = False,
) -> None:
    """Judge stored traces again: verdicts, a table, and thinking crossed with answer where both were judged.

    Several judges are compared with each other, and their majority is reported too.

    Examples:

      demur judge runs/e --judge rules --part thinking --out runs/e2

      demur judge runs/e --judge rules --judge wildguard=http://127.0.0.1:8001/v1

      demur judge star1.json --judge llama_guard3=./Llama-Guard-3-8B --part whole --json
    """
    where = out or Path("runs/judge")
    _known("--part", part, ("thinking", "answer", "whole"))
    _known("--query", query, ("question", "sent"))
    sources = _sources(source, where, cache)
    stages = [
        _stage(text, {"part": part, "query": query}, settings, path)
        for text in dict.fromkeys(judges or ["rules"])
        for settings, path in sources
    ]
    run_stages(stages, out=where, cache=cache, title="judge")
    traces, verdicts = _all(sources, [stage for stage in artifacts(where) if stage.manifest.kind == "judge"])
    extra = _beside(traces, verdicts)
    if json:
        common.print_json({"n": len(traces), "out": str(where)} | extra)
        return
    tell(where)
    _show(extra)


def _known(flag: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise unknown(flag, value, allowed)


def _sources(source: Path, where: Path, cache: Path | None) -> list[tuple[dict[str, Any], Path]]:
    """Each file of traces, with what its stage says of it: arm, seed and benchmark."""
    if (source / "stages").is_dir():
        found = []
        for stage in artifacts(source):
            settings = stage.manifest.settings
            if stage.manifest.kind == "evaluate" and stage.has("traces"):
                about = {"arm": settings["arm"], "seed": settings["seed"], "bench": settings["bench"]["name"]}
                found.append((about | {"of": stage.manifest.name}, stage.folder / "traces.jsonl"))
        if not found:
            raise UserError(f"{source} has no finished evaluation. See: demur status {source}")
        return found
    read = Import("import", ImportSettings(), files={"file": source})
    done = run_stages([read], out=where, cache=cache, title="read")["import"]
    about = {"arm": source.stem, "seed": None, "bench": "demur.bench.metrics:STORED", "of": source.stem}
    return [(about, done.folder / "traces.jsonl")]


def _stage(text: str, how: dict[str, Any], about: dict[str, Any], path: Path) -> Rejudge:
    """The stage that puts one judge to one file of traces.

    Raises:
        UserError: an unknown judge, or one that needs a model and has none.
    """
    name, _, model = text.partition("=")
    settings = RejudgeSettings(judge=name, **how, **{key: about[key] for key in ("arm", "seed", "bench")})
    models = {"judge": parse_model(model)} if model else {}
    if requires_model(name):
        if not model:
            raise UserError(f"judge '{name}' is a model: say which, as --judge {name}=URL or {name}=FOLDER.")
    elif model:
        raise UserError(f"judge '{name}' needs no model; say --judge {name}.")
    label = "-".join(str(piece) for piece in (name.replace(":", "."), how["part"] or "", about["of"]) if piece)
    return Rejudge(f"judge-{label}", settings, files={"traces": path}, models=models)


def _all(sources: list[tuple[dict[str, Any], Path]], stages: list[Any]) -> tuple[list[Trace], list[Verdict]]:
    """All traces, with the new verdicts and those that the evaluations had given them."""
    traces = [trace for _, path in sources for trace in read_jsonl(path, Trace)]
    verdicts = [verdict for stage in stages for verdict in stage.read("verdicts", Verdict)]
    for _, path in sources:
        old = path.with_name("verdicts.jsonl")
        verdicts += read_jsonl(old, Verdict) if old.exists() else []
    known = {trace.id for trace in traces}
    unique = {(v.trace, v.judge, v.query, v.part): v for v in verdicts if v.trace in known}
    return traces, list(unique.values())


def _beside(traces: list[Trace], verdicts: list[Verdict]) -> dict[str, Any]:
    """Rates of each judge and part, thinking by answer, and how far judges agree."""
    pairs = list(agreement(of_records(STORED, traces, verdicts)))
    evaluations = of_records(STORED, traces, [*verdicts, *(majority(verdicts) if pairs else [])])
    crossed: dict[str, dict[str, Any]] = {}
    for cell in crossing(evaluations):
        crossed.setdefault(cell.judge, {})[cell.name] = {"share": cell.estimate, "examples": cell.examples}
    return {"results": list(results(cells(evaluations))), "crossed": crossed, "agreement": pairs}


def _show(extra: dict[str, Any]) -> None:
    for judge, crossed in extra["crossed"].items():
        rows = [(name.replace("_", " "), common.percent(cell["share"])) for name, cell in crossed.items()]
        title = f"thinking by answer, judge {judge}"
        common.stdout.print(common.table(("cell", "% of traces"), rows, left=2, title=title))
    for pair in extra["agreement"]:
        agree = f"{common.percent(pair.same)}, kappa {common.said(pair.kappa)}"
        common.stdout.print(f"{pair.a} and {pair.b} agree on the {pair.part} in {agree}")
