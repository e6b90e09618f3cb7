"""`demur calibrate …`: a judge or a detector against labels that people gave."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from demur.cli import common
from demur.diagnose import DETECTORS, open_detector
from demur.diagnose.exam import calibrated
from demur.judge import JUDGES, open_judge, requires_model
from demur.judge.calibrate import read
from demur.judge.calibrate import refusal as against
from demur.models.config import parse_model
from demur.models.open import open_model
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
    _told(against(data, limit=limit), json=json, title=f"rules against {data.name}")


@app.command()
def guard(
    detector: Annotated[
        str,
        typer.Option("--detector", help="NAME=MODEL such as wildguard=URL; a model alone is a llama_guard3; rules."),
    ],
    data: Annotated[Path, typer.Option("--data", help="Labelled replies: prompt, response, label (safe or unsafe).")],
    part: Annotated[str | None, typer.Option("--part", help="thinking, answer or whole; default: the judge's.")] = None,
    limit: common.Limit = None,
    cache: common.CacheDir = None,
    json: common.Json = False,
) -> None:
    """A harm judge against labels: sensitivity and specificity with intervals.

    Examples:

      demur calibrate guard --detector llama_guard3=http://127.0.0.1:8001/v1 --data wildguardtest.csv

      demur calibrate guard --detector http://127.0.0.1:8001/v1 --data labels.jsonl --part whole
    """
    report = asyncio.run(_calibrated(detector, data, part=part, limit=limit, cache=cache))
    _told(report, json=json, title=detector)


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
    report = asyncio.run(_scored(data, detector=detector, limit=limit, cache=cache))
    if json:
        common.print_json(report)
        return
    rows = []
    for pattern, score in report["patterns"].items():
        shares = [common.said(score[key]) for key in ("precision", "recall", "f1")]
        rows.append((pattern.replace("_", " "), *shares, *(score[key] for key in ("positives", "n", "abstained"))))
    columns = ("pattern", "precision", "recall", "F1", "with it", "decided", "abstained")
    title = f"{report['detector']} on {report['exam']}, n={report['n']}"
    common.stdout.print(common.table(columns, rows, title=title))
    macro = common.said(report["macro_f1"], ".3f", none="– (no pattern occurs)")
    common.stdout.print(f"macro-F1 {macro}, over what it decided; abstained on {report['abstained']:.1%} of decisions")


async def _scored(data: Path | None, *, detector: str, limit: int | None, cache: Path | None) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        if detector in DETECTORS:
            return await calibrated(open_detector(detector), data, limit=limit)
        kept = stack.enter_context(ReplyCache(cache or Path("runs/calibrate/replies")))
        models = [
            await stack.enter_async_context(open_model(parse_model(one), cache=kept, label="detector/calibrate"))
            for one in detector.split("+")
        ]
        return await calibrated(open_detector("llm", models=models), data, limit=limit)


async def _calibrated(detector: str, data: Path, *, part: Any, limit: int | None, cache: Path | None) -> dict[str, Any]:
    """Open the judge and hold it against the labels."""
    from demur.judge.calibrate import guard as against

    name, equals, model = detector.partition("=")
    if name not in JUDGES and not (equals and "/" not in name):
        name, model = "llama_guard3", detector
    rows = read(data, limit=limit)
    async with AsyncExitStack() as stack:
        played = None
        if requires_model(name):
            kept = stack.enter_context(ReplyCache(cache)) if cache else None
            played = await stack.enter_async_context(
                open_model(parse_model(model), cache=kept, label="judge/calibrate")
            )
        return await against(open_judge(name, model=played, part=part), rows)


def _told(report: dict[str, Any], *, json: bool, title: str) -> None:
    """The figures of a judge against labels."""
    if json:
        common.print_json(report)
        return
    say = common.stdout.print
    say(f"[bold]{title}[/bold]: {report['n']} replies, {report['decided']:.1%} decided", highlight=False)
    rows = []
    two = "agreement_refused" in report
    for name, row in {"this judge": report, **report["others"]}.items():
        shares = [_share(row, key) for key in (*(["agreement_refused"] if two else []), "agreement")]
        recall = common.said(row.get("recall_partial"), ".0f", scale=100)
        rows.append((name, *shares, common.said(row["kappa"]), *([recall] if two else []), row["unscored"]))
    named = ("served or refused, %", "three classes, %") if two else ("agreement, %",)
    last = ("partial recall, %", "unscored") if two else ("unscored",)
    say(common.table(("judge", *named, "kappa", *last), rows))
    if two:
        unseen = report["unseen"]
        fitted = "The judge was fitted to this very file. " if report["fitted_to_this_file"] else ""
        say(
            f"{fitted}On replies of {unseen['models']} models that it was not fitted to, it agrees with people on "
            f"{unseen['agreement_refused']:.1%} of served or refused, and on {unseen['agreement']:.1%} in three classes "
            f"(n={unseen['n']}). Expected calibration error here: {report['ece']:.3f}."
        )
    rows = []
    for name, row in report["classes"].items():
        confusion = (report["confusion"][name][other] for other in report["classes"])
        rows.append((name, row["n"], common.percent(row["recall"]), common.percent(row["precision"]), *confusion))
    columns = ("people say", "n", "recall, %", "precision, %", *(f"said {name}" for name in report["classes"]))
    say(common.table(columns, rows, title="this judge, class by class"))
    for name in ("sensitivity", "specificity"):
        if name in report:
            say(f"{name}: {common.percent(report[name])}")


def _share(row: dict[str, Any], key: str) -> str:
    """A share with its interval, in percent."""
    low, share, high = (f"{100 * row[f'{key}{end}']:.1f}" for end in ("_low", "", "_high"))
    return f"{share} [{low}–{high}]"
