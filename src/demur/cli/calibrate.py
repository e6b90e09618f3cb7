"""`demur calibrate …`: a judge or a detector against labels that people gave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from demur.cli import common
from demur.diagnose import DETECTORS, open_detector
from demur.diagnose.exam import calibrated
from demur.interfaces import Model
from demur.judge import JUDGES, open_judge, requires_model
from demur.judge.calibrate import guard as guarded
from demur.judge.calibrate import read
from demur.judge.calibrate import refusal as against
from demur.models.config import parse_model
from demur.models.open import open_model
from demur.report.format import counted, number
from demur.report.tables import estimate
from demur.storage.reply_cache import ReplyCache

app = common.app("A judge or a detector against labels.")


@app.command()
def refusal(
    data: Annotated[
        Path, typer.Option("--data", help="Labelled replies: prompt, completion, final_label (XSTest's form).")
    ],
    limit: common.Limit = None,
    json: common.Json = False,
) -> None:
    """The offline refusal judge against people's labels, beside other judges whose labels the file has.

    Examples:

      demur calibrate refusal --data xstest_annotated_gpt4.csv

      demur calibrate refusal --data labels.jsonl --json
    """
    _show(against(data, limit=limit), json=json, title=f"rules against {data.name}")


@app.command()
def guard(
    detector: Annotated[
        str,
        typer.Option("--detector", help="NAME=MODEL such as wildguard=URL; a model alone is a llama_guard3; rules."),
    ],
    data: Annotated[Path, typer.Option("--data", help="Labelled replies: prompt, response, label (safe or unsafe).")],
    part: common.PartName = None,
    limit: common.Limit = None,
    cache: common.CacheDir = None,
    json: common.Json = False,
) -> None:
    """A harm judge against labels: sensitivity and specificity with intervals.

    Examples:

      demur calibrate guard --detector llama_guard3=http://127.0.0.1:8001/v1 --data wildguardtest.csv

      demur calibrate guard --detector http://127.0.0.1:8001/v1 --data labels.jsonl --part whole
    """
    name, equals, model = detector.partition("=")
    if name not in JUDGES and not (equals and "/" not in name):
        name, model = "llama_guard3", detector

    async def work() -> dict[str, Any]:
        async with _models([model] if requires_model(name) else [], cache) as played:
            judge = open_judge(name, model=played[0] if played else None, part=part)  # type: ignore[arg-type]
            return await guarded(judge, read(data, limit=limit))

    _show(asyncio.run(work()), json=json, title=detector)


@app.command()
def patterns(
    data: Annotated[Path | None, typer.Option("--data", help="Labelled traces; default: demur's own exam.")] = None,
    detector: Annotated[
        str, typer.Option("--detector", help="rules, mini, or a model: URL, folder, hub id.")
    ] = "rules",
    limit: common.Limit = None,
    cache: common.CacheDir = None,
    json: common.Json = False,
) -> None:
    """A detector of failure patterns against labels.

    Examples:

      demur calibrate patterns

      demur calibrate patterns --detector http://127.0.0.1:8000/v1 --data labels.jsonl --json
    """

    async def work() -> dict[str, Any]:
        if detector in DETECTORS:
            return await calibrated(open_detector(detector), data, limit=limit)
        async with _models(detector.split("+"), cache) as played:
            return await calibrated(open_detector("llm", models=played), data, limit=limit)

    report = asyncio.run(work())
    if json:
        common.print_json(report)
        return
    rows = [
        (name.replace("_", " "), *(number(score[key], "count", digits=2) for key in ("precision", "recall", "f1")),
         *(score[key] for key in ("positives", "n", "abstained")))
        for name, score in report["patterns"].items()
    ]  # fmt: skip
    titles = ("pattern", "#precision", "#recall", "#F1", "#with it", "#decided", "#abstained")
    common.show(titles, rows, f"{report['detector']} on {report['exam']}, n={report['n']}")
    macro = number(report["macro_f1"], "count", digits=3)
    common.stdout.print(f"macro-F1 {macro}, over what it decided; abstained on {report['abstained']:.1%} of decisions")


@asynccontextmanager
async def _models(names: list[str], cache: Path | None) -> AsyncIterator[list[Model]]:
    """Models by what flags call them; their replies are kept."""
    async with AsyncExitStack() as stack:
        kept = stack.enter_context(ReplyCache(cache or Path("runs/calibrate/replies"))) if names else None
        opened = (open_model(parse_model(name), cache=kept, label="calibrate") for name in names)
        yield [await stack.enter_async_context(one) for one in opened]


def _show(report: dict[str, Any], *, json: bool, title: str) -> None:
    """The figures of a judge against labels."""
    if json:
        common.print_json(report)
        return
    two = {"agreement_refused": "#served or refused, %", "agreement": "#three classes, %"}
    shares = two if "agreement_refused" in report else {"agreement": "#agreement, %"}
    rows = [
        (name, *(_share(row, key) for key in shares), number(row["kappa"], "count", digits=2), row["unscored"])
        for name, row in {"this judge": report, **report["others"]}.items()
    ]
    count = f"{title}: {report['n']} replies, {report['decided']:.1%} decided"
    common.show(("judge", *shares.values(), "#kappa", "#unscored"), rows, count)
    if unseen := report.get("unseen"):
        fitted = "The judge was fitted to this very file. " if report["fitted_to_this_file"] else ""
        common.stdout.print(
            f"{fitted}On replies of {unseen['models']} models that it was not fitted to, it agrees with people on "
            f"{unseen['agreement_refused']:.1%} of served or refused, and on {unseen['agreement']:.1%} in three classes "
            f"(n={unseen['n']}). Expected calibration error here: {report['ece']:.3f}."
        )
    rows = [
        (name, row["n"], estimate(row["recall"]), estimate(row["precision"]), *(report["confusion"][name][c] for c in report["classes"]))
        for name, row in report["classes"].items()
    ]  # fmt: skip
    titles = ("people say", "#n", "#recall, %", "#precision, %", *(f"#judged {name}" for name in report["classes"]))
    common.show(titles, rows, "this judge, class by class")
    for name in ("sensitivity", "specificity"):
        if name in report:
            common.stdout.print(f"{name}: {counted(report[name])}")


def _share(row: dict[str, Any], key: str) -> str:
    """A share with its interval, in percent."""
    low, share, high = (f"{100 * row[f'{key}{end}']:.1f}" for end in ("_low", "", "_high"))
    return f"{share} [{low}–{high}]"
