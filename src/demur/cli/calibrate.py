"""`demur calibrate …`: a judge or a detector against labels that people gave."""

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
from demur.judge.calibrate import FOLDER, keep, read
from demur.judge.calibrate import guard as guarded
from demur.judge.calibrate import refusal as against
from demur.models.config import ModelConfig, as_model, parse_model
from demur.models.open import open_model
from demur.report.format import counted, number
from demur.report.tables import estimate
from demur.storage.reply_cache import ReplyCache

Kept = Annotated[Path, common.flag("out", "kept")]
KEPT, DRAWN = Path("runs") / FOLDER, ", at most {0.limit} rows drawn at random by seed {0.seed}"
XSTEST = replace(get_bench("xstest"), name="replies with labels of people", hub="", files=(
    "xstest_annotated_gpt4.csv", "xstest_annotated_mistralguard.csv",
))  # fmt: skip


@common.verb("data data_dir limit seed json")
def refusal(flags: common.Flags, out: Kept = KEPT) -> None:
    """The offline refusal judge against people's labels, beside other judges whose labels the file has.

    Columns: prompt, completion, label (XSTest's final_label: full_compliance, partial_refusal, full_refusal). XSTest's own
    annotations are found in --data-dir; the judge was fitted to them.
    """
    data = find(XSTEST, data=flags.data, data_dir=flags.data_dir)
    report = against(data, limit=flags.limit, seed=flags.seed)
    title = f"rules against {data.name}{DRAWN.format(flags) * bool(flags.limit)}"
    _show(report, keep(open_judge("rules"), report, data, out), json=flags.json, title=title)


@common.verb("data data_dir part limit seed cache sets json")
def guard(detector: str, flags: common.Flags, text: Path | None = None, out: Kept = KEPT) -> None:
    """A harm judge against labels: sensitivity and specificity with intervals, false alarms by the guard's categories.

    Columns: prompt, response, label (safe or unsafe). WildGuardTest is found in --data-dir. The reports of runs beside --out show them wherever the same judge reads: the same text, part and model.
    """
    name, model = common.judge_of(detector)
    if not name or (not model and name not in JUDGES):
        name, model = "llama_guard3", detector
    labels = find(get_bench("wildguardtest"), data=flags.data, data_dir=flags.data_dir)
    models = common.apply_sets({"models": {"judge": common.model(model)} if model else {}}, flags.sets)["models"]

    async def work() -> tuple[dict[str, Any], Path]:
        asked = [as_model(models["judge"])] if requires_model(name) and models else []
        async with _models(asked, flags.cache) as played:
            judge = open_judge(name, model=played[0] if played else None, part=flags.part, text=text)  # type: ignore[arg-type]
            report = await guarded(judge, read(labels, limit=flags.limit, seed=flags.seed))
            return report, keep(judge, report, labels, out)

    report, path = asyncio.run(work())
    _show(report, path, json=flags.json, title=f"{detector}{DRAWN.format(flags) * bool(flags.limit)}")


@common.verb("limit seed cache json")
def patterns(flags: common.Flags, data: Path | None = None, detector: str = "rules") -> None:
    """A detector of failure patterns against labels."""

    async def work() -> dict[str, Any]:
        if detector in DETECTORS:
            return await calibrated(open_detector(detector), data, limit=flags.limit, seed=flags.seed)
        async with _models([parse_model(one) for one in detector.split("+")], flags.cache) as played:
            return await calibrated(open_detector("llm", models=played), data, limit=flags.limit, seed=flags.seed)

    report = asyncio.run(work())
    if flags.json:
        common.print_json(report)
        return
    rows = [
        (name.replace("_", " "), *(number(score[key], "count", digits=2) for key in ("precision", "recall", "f1")),
         *(score[key] for key in ("positives", "n", "abstained")))
        for name, score in report["patterns"].items()
    ]  # fmt: skip
    titles = ("pattern", "#precision", "#recall", "#F1", "#with it", "#n", "#abstained")
    exam = f"{report['exam']}{DRAWN.format(flags) * bool(flags.limit)}"
    common.show(titles, rows, f"{report['detector']} on {exam}, n={report['n']}")
    macro = number(report["macro_f1"], "count", digits=3)
    common.stdout.print(f"macro-F1 {macro}, abstentions as misses; abstained on {report['abstained']:.1%} of decisions")
    for kind, shares in report["errors_by_length"].items():
        said = ", ".join(number(share, "share") for share in shares)
        common.stdout.print(f"{kind} by quarter of length, the shortest traces first: {said} %")


@asynccontextmanager
async def _models(configs: list[ModelConfig], cache: Path | None) -> AsyncIterator[list[Model]]:
    """Models whose replies are kept."""
    async with AsyncExitStack() as stack:
        kept = stack.enter_context(ReplyCache(cache or Path("runs/calibrate/replies"))) if configs else None
        opened = (open_model(config, cache=kept, label="calibrate") for config in configs)
        yield [await stack.enter_async_context(one) for one in opened]


def _show(report: dict[str, Any], path: Path, *, json: bool, title: str) -> None:
    """The figures of a judge against labels."""
    if json:
        common.print_json(report | {"calibration": str(path)})
        return
    shares = {"agreement_refused": "#served or refused, %"} if "unseen" in report else {}
    shares |= {"agreement": "#three classes, %" if shares else "#agreement, %"}
    rows = [
        (name, *(estimate(row[key]) for key in shares), number(row["kappa"], "count", digits=2), row["unscored"])
        for name, row in {"this judge": report, **report["others"]}.items()
    ]
    about = f"{title}: {report['n']} replies; unscored ones count as wrong, kappa leaves them out"
    common.show(("judge", *shares.values(), "#kappa", "#unscored"), rows, about)
    if "unseen" in report:
        fitted = "The judge was fitted to this very file. " if report["fitted_to_this_file"] else ""
        common.stdout.print(f"{fitted}{note('rules')}; expected calibration error here: {report['ece']:.3f}")
    rows = [
        (name, row["n"], estimate(row["recall"]), estimate(row["precision"]), *(report["confusion"][name][c] for c in report["classes"]))
        for name, row in report["classes"].items()
    ]  # fmt: skip
    titles = ("people say", "#n", "#recall, %", "#precision, %", *(f"#judged {name}" for name in report["classes"]))
    common.show(titles, rows, "this judge, class by class; unscored ones count as wrong in recall")
    for name in ("sensitivity", "specificity"):
        common.stdout.print(f"{name}, of those scored: {counted(report[name])}")
    if alarms := report.get("false_alarms"):
        told = ", ".join(f"{name or 'no category'} {count}" for name, count in alarms.most_common())
        common.stdout.print(f"false alarms by the guard's category: {told}")
    common.stdout.print(f"kept for the reports of runs beside it: {path}")
