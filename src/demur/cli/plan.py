"""`demur plan STUDY`: what a study would do and ask, without asking anyone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from demur.cli import common
from demur.pipeline.dag import ordered
from demur.pipeline.dag import plan as planned
from demur.pipeline.estimate import outlook
from demur.pipeline.placement import schedule
from demur.pipeline.run import CACHE
from demur.registry import code_in
from demur.report.compare import forecast
from demur.report.format import number
from demur.storage.reply_cache import ReplyCache


@common.verb("out sets quick data_dir json")
def plan(study: Path, flags: common.Flags) -> None:
    """List the stages of a study, what is there already, what is missing, and an estimate of what would be asked."""
    loaded = common.load_study(study, flags)
    folder = flags.out or Path("runs") / loaded.study.name
    plain = loaded.study.model_dump(mode="json")
    notes = [*loaded.notes, *(f"code that this study runs: {named}" for named in code_in(plain))]
    files = {path for stage in ordered(loaded.stages) for path in stage.files.values() if not path.exists()}
    items = planned(loaded.stages, folder, absent=files)
    seen = outlook(items, schedule(items))
    if (folder / CACHE).is_dir():
        with ReplyCache(folder / CACHE) as cache:
            notes.append(f"{cache.count():,} replies are stored already; what is stored is not asked again")
    unpriced = ", ".join(row["part"] for row in seen["parts"] if row["requests"] and row["cost"] is None)
    notes += [*forecast(plain), *([f"without declared prices, so without a cost: {unpriced}"] if unpriced else [])]
    seen |= {"study": loaded.study.name, "missing": loaded.missing, "notes": notes}
    common.print_json(seen) if flags.json else _show(seen)
    if loaded.missing:
        raise typer.Exit(2)


def _show(seen: dict[str, Any]) -> None:
    done = {"kind": "stage", "of": "#of", "done": "#done", "requests": "#requests", "tokens": "#tokens, at most"}
    _table(seen["stages"], done)
    outs = {"tokens_in_at_most": "#tokens in, at most", "tokens_out_at_most": "#out, at most"}
    _table(seen["parts"], {"part": "part", "requests": "#requests"} | outs)
    if any(phase["models"] or phase["problem"] for phase in seen["phases"]):
        titles = ("phase", "work", "model", "cards", "#GB", "#share", "#stages", "#requests", "#tokens", "#minutes")
        common.show(titles, list(_schedule(seen["phases"])))
    hours, cost = seen["total"]["hours"], seen["total"]["cost"]
    told = [f"{hours:,} hours of these cards, trainings aside"] if hours else []
    if told := [*told, *([f"{cost:,.0f} in money"] if cost else [])]:
        common.stdout.print(f"in all, at declared speeds and prices, at most: {' and '.join(told)}")
    for line in seen["notes"]:
        common.stdout.print(line)
    for line in seen["missing"]:
        common.stdout.print(f"missing: {line}", style="yellow")


def _table(rows: list[dict[str, Any]], columns: dict[str, str]) -> None:
    """Rows with what they cost; nothing where there are none."""
    cells = [(*(row[key] for key in columns), number(row["cost"], "count", digits=2)) for row in rows]
    if cells:
        common.show((*columns.values(), "#cost, at most"), cells)


def _schedule(phases: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    """A line a model of each phase."""
    for phase in phases:
        head: tuple[Any, ...] = (phase["phase"], phase["work"])
        sizes: tuple[Any, ...] = (len(phase["stages"]), phase["requests"], phase["tokens"])
        if not phase["models"]:
            yield *head, phase["problem"] or ", ".join(phase["stages"][:3]), "", "", "", *sizes, ""
        for model in phase["models"]:
            cards, name = ", ".join(map(str, model["devices"])) or None, f"{model['part']}: {model['model']}"
            yield *head, name, cards, model["gigabytes"], model["share"], *sizes, model["minutes"] or None
            head, sizes = ("", ""), ("", "", "")
