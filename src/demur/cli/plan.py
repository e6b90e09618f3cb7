"""`demur plan STUDY`: show what a study would do and ask. No model is asked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from demur.cli import common
from demur.pipeline import dag
from demur.pipeline.estimate import outlook
from demur.pipeline.placement import schedule
from demur.pipeline.run import CACHE
from demur.registry import code_in
from demur.report.compare import forecast
from demur.report.format import number
from demur.storage.reply_cache import ReplyCache

STAGES = {"kind": "stage", "of": "#of", "done": "#done", "requests": "#requests", "tokens": "#tokens, at most"}
TOKENS = {"tokens_in_at_most": "#tokens in, at most", "tokens_out_at_most": "#out, at most"}
COLUMNS = {"stages": STAGES, "parts": {"part": "part", "requests": "#requests"} | TOKENS}


@common.verb("out sets quick data_dir json")
def plan(study: Path, flags: common.Flags) -> None:
    """List the stages of a study, what is done already, what is missing, and an estimate of requests, time and cost."""
    loaded = common.load_study(study, flags)
    folder = flags.out or Path("runs") / loaded.study.name
    plain = loaded.study.model_dump(mode="json")
    notes = [*loaded.notes, *(f"code that this study runs: {named}" for named in code_in(plain))]
    files = {path for stage in dag.ordered(loaded.stages) for path in stage.files.values() if not path.exists()}
    items = dag.plan(loaded.stages, folder, absent=files)
    estimated = outlook(items, schedule(items))
    if (folder / CACHE).is_dir():
        with ReplyCache(folder / CACHE) as cache:
            notes.append(f"{cache.count():,} replies are stored already; what is stored is not asked again")
    unpriced = ", ".join(row["part"] for row in estimated["parts"] if row["requests"] and row["cost"] is None)
    notes += [*forecast(plain), *([f"without declared prices, so without a cost: {unpriced}"] if unpriced else [])]
    estimated |= {"study": loaded.study.name, "missing": loaded.missing, "notes": notes}
    common.print_json(estimated) if flags.json else _show(estimated)
    if loaded.missing:
        raise typer.Exit(2)


def _show(estimated: dict[str, Any]) -> None:
    for key, columns in COLUMNS.items():
        rows = [(*(row[c] for c in columns), number(row["cost"], "count", digits=2)) for row in estimated[key]]
        if rows:
            common.show((*columns.values(), "#cost, at most"), rows)
    if any(phase["models"] or phase["problem"] for phase in estimated["phases"]):
        titles = ("phase", "work", "model", "cards", "#GB", "#share", "#stages", "#requests", "#tokens", "#minutes")
        common.show(titles, list(_schedule(estimated["phases"])))
    hours, cost = estimated["total"]["hours"], estimated["total"]["cost"]
    totals = [f"{hours:,} hours of these cards, without training"] if hours else []
    totals += [f"{cost:,.0f} in money"] if cost else []
    if totals:
        common.stdout.print(f"in all, at declared speeds and prices, at most: {' and '.join(totals)}")
    for line in estimated["notes"]:
        common.stdout.print(line)
    for line in estimated["missing"]:
        common.stdout.print(f"missing: {line}", style="yellow")


def _schedule(phases: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    """Table rows of a schedule: one for each model of each phase."""
    for phase in phases:
        head: tuple[Any, ...] = (phase["phase"], phase["work"])
        sizes: tuple[Any, ...] = (len(phase["stages"]), phase["requests"], phase["tokens"])
        if not phase["models"]:
            yield *head, phase["problem"] or ", ".join(phase["stages"][:3]), "", "", "", *sizes, ""
        for model in phase["models"]:
            cards, name = ", ".join(map(str, model["devices"])) or None, f"{model['part']}: {model['model']}"
            yield *head, name, cards, model["gigabytes"], model["share"], *sizes, model["minutes"] or None
            head, sizes = ("", ""), ("", "", "")
