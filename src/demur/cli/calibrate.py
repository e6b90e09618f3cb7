"""`demur calibrate …`: measure a judge or a detector against human labels."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from msgspec.structs import replace

from demur.bench import get_bench
from demur.bench.load import find
from demur.cli import common
from demur.diagnose import DETECTORS, open_detector
from demur.diagnose.exam import calibrated
from demur.interfaces import Model
from demur.judge import JUDGES, note, open_judge, requires_model
from demur.judge.calibrate import FOLDER, read, save
from demur.judge.calibrate import guard as guard_report
from demur.judge.calibrate import refusal as refusal_report
from demur.models.config import ModelConfig, as_model, parse_model
from demur.models.open import open_model
from demur.report.format import counted, number
from demur.report.tables import estimate
from demur.storage.reply_cache import ReplyCache

Kept = Annotated[Path, common.flag("out", "kept")]
KEPT = Path("runs") / FOLDER
SAMPLE = ", at most {0.limit} rows drawn at random by seed {0.seed}"
FILES = ("xstest_annotated_gpt4.csv", "xstest_annotated_mistralguard.csv")
XSTEST = replace(get_bench("xstest"), name="replies with human labels", hub="", files=FILES)


@common.verb("data data_dir limit seed json")
def refusal(flags: common.Flags, out: Kept = KEPT) -> None:
    """Measure the offline refusal judge (rules) against human labels, beside other judges whose labels the file holds.

    The file has the columns prompt, completion and label (XSTest's final_label: full_compliance, partial_refusal,
    full_refusal). The judge was fitted to XSTest's own annotations.
    """
    data = find(XSTEST, data=flags.data, data_dir=flags.data_dir)
    report = refusal_report(data, limit=flags.limit, seed=flags.seed)
    title = f"rules against {data.name}{SAMPLE.format(flags) * bool(flags.limit)}"
    _show(report, save(open_judge("rules"), report, data, out), json=flags.json, title=title)


@common.verb("data data_dir part limit seed cache sets json")
def guard(detector: str, flags: common.Flags, text: Path | None = None, out: Kept = KEPT) -> None:
    """Measure a harm judge against human labels: sensitivity and specificity with intervals, and false alarms by category.

    The file has the columns prompt, response and label (safe or unsafe). Reports of runs in the same parent folder as --out
    quote the figures wherever the same judge is used: with the same model, text and part.
    """
    name, model = common.judge_of(detector)
    if not name or (not model and name not in JUDGES):
        name, model = "llama_guard3", detector
    labels = find(get_bench("wildguardtest"), data=flags.data, data_dir=flags.data_dir)
    models = common.apply_sets({"models": {"judge": common.model(model)} if model else {}}, flags.sets)["models"]

    async def work() -> tuple[dict[str, Any], Path]:
        configs = [as_model(models["judge"])] if requires_model(name) and models else []
        async with _opened(configs, flags.cache) as players:
            player = players[0] if players else None
            judge = open_judge(name, model=player, part=flags.part, text=text)  # type: ignore[arg-type]
            report = await guard_report(judge, read(labels, limit=flags.limit, seed=flags.seed))
            return report, save(judge, report, labels, out)

    report, path = asyncio.run(work())
    _show(report, path, json=flags.json, title=f"{detector}{SAMPLE.format(flags) * bool(flags.limit)}")


@common.verb("limit seed cache json")
def patterns(flags: common.Flags, data: Path | None = None, detector: str = "rules") -> None:
    """Measure a detector of failure patterns against labelled traces: precision, recall and F1 for each pattern."""

    async def work() -> dict[str, Any]:
        if detector in DETECTORS:
            return await calibrated(open_detector(detector), data, limit=flags.limit, seed=flags.seed)
        async with _opened([parse_model(text) for text in detector.split("+")], flags.cache) as players:
            return await calibrated(open_detector("llm", models=players), data, limit=flags.limit, seed=flags.seed)

    report = asyncio.run(work())
    if flags.json:
        common.print_json(report)
        return
    rows = []
    for name, score in report["patterns"].items():
        scores = [number(score[key], "count", digits=2) for key in ("precision", "recall", "f1")]
        rows.append((name.replace("_", " "), *scores, *(score[key] for key in ("positives", "n", "abstained"))))
    titles = ("pattern", "#precision", "#recall", "#F1", "#with it", "#n", "#abstained")
    exam = f"{report['exam']}{SAMPLE.format(flags) * bool(flags.limit)}"
    common.show(titles, rows, f"{report['detector']} on {exam}, n={report['n']}")
    macro = number(report["macro_f1"], "count", digits=3)
    common.stdout.print(f"macro-F1 {macro}, abstentions as misses; abstained on {report['abstained']:.1%} of decisions")
    for kind, shares in report["errors_by_length"].items():
        quarters = ", ".join(number(share, "share") for share in shares)
        common.stdout.print(f"{kind} by quarter of length, the shortest traces first: {quarters} %")


@asynccontextmanager
async def _opened(configs: list[ModelConfig], cache: Path | None) -> AsyncIterator[list[Model]]:
    """Opened models whose replies go to a cache."""
    async with AsyncExitStack() as stack:
        replies = stack.enter_context(ReplyCache(cache or Path("runs/calibrate/replies"))) if configs else None
        models = (open_model(config, cache=replies, label="calibrate") for config in configs)
        yield [await stack.enter_async_context(model) for model in models]


def _show(report: dict[str, Any], path: Path, *, json: bool, title: str) -> None:
    """Print the figures of a judge against human labels."""
    if json:
        common.print_json(report | {"calibration": str(path)})
        return
    shares = {"agreement_refused": "#served or refused, %"} if "unseen" in report else {}
    shares |= {"agreement": "#three classes, %" if shares else "#agreement, %"}
    rows = [
        (name, *(estimate(row[key]) for key in shares), number(row["kappa"], "count", digits=2), row["unscored"])
        for name, row in {"this judge": report, **report["others"]}.items()
    ]
    about = f"{title}: {report['n']} replies; unscored replies count as wrong, kappa leaves them out"
    common.show(("judge", *shares.values(), "#kappa", "#unscored"), rows, about)
    if "unseen" in report:
        fitted = "The judge was fitted to this very file. " if report["fitted_to_this_file"] else ""
        common.stdout.print(f"{fitted}{note('rules')}; expected calibration error here: {report['ece']:.3f}")
    by_class = []
    for name, row in report["classes"].items():
        counts = [report["confusion"][name][judged] for judged in report["classes"]]
        by_class.append((name, row["n"], estimate(row["recall"]), estimate(row["precision"]), *counts))
    titles = ("human label", "#n", "#recall, %", "#precision, %", *(f"#judged {name}" for name in report["classes"]))
    common.show(titles, by_class, "this judge, class by class; unscored replies count as wrong in recall")
    for name in ("sensitivity", "specificity"):
        common.stdout.print(f"{name}, of those scored: {counted(report[name])}")
    if alarms := report.get("false_alarms"):
        listed = ", ".join(f"{name or 'no category'} {count}" for name, count in alarms.most_common())
        common.stdout.print(f"false alarms by the guard's category: {listed}")
    common.stdout.print(f"written, for reports of runs in the same parent folder: {path}")
