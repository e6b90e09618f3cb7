"""`demur distil`: have a teacher write traces for prompts, and filter them by a judge."""

from pathlib import Path

from demur.cli import common
from demur.cli.runner import reading, run_stage
from demur.distil.settings import DistilSettings
from demur.distil.strategy import load
from demur.errors import UserError
from demur.models.config import ModelConfig, parse_model
from demur.pipeline.resolve import needs
from demur.pipeline.stages.distil import Distil, DistilStageSettings
from demur.pipeline.stages.importing import Import
from demur.pipeline.stages.prompts import Prompts
from demur.prompts import PromptsSettings
from demur.report.format import number
from demur.settings import Problems, validate


@common.verb("teacher judge intent limit seed out cache sets json")
def distil(flags: common.Flags, file: Path | None = None, data: Path | None = None, given: Path | None = None) -> None:
    """Make safety data: a teacher writes traces, a judge reads them, a rule decides which to keep. Every drop has a reason."""
    if (source := file or data) is None:
        raise UserError("no prompts: name a file of them, as in demur distil FILE --teacher MODEL.")
    if file and data and file != data:
        raise UserError(f"prompts are named twice, {file} and --data {data}: give one of the two.")
    settings = validate(DistilSettings, common.apply_sets({"seed": flags.seed}, flags.sets), where="demur distil")
    pool = {"source": str(source), "n": flags.limit, "intent": flags.intent}
    prompts = Prompts("prompts", validate(PromptsSettings, pool, where="demur distil"), files={"source": source})
    inputs: dict[str, Prompts | Import] = {"prompts": prompts}
    inputs |= {"given": reading(given, name="import-given")} if given else {}
    kind, models, problems = "rules", dict[str, ModelConfig](), Problems("demur distil")
    if settings.parts and load(settings.strategy).constant is None:  # a constant reply needs no filter
        if flags.judge is None:
            problems.add((), "the keep rule needs a judge: --judge NAME or NAME=MODEL, or --set keep=everything.")
        kind, player = common.judge_of(flags.judge or kind, unnamed="a filter needs a judge's name")
        models |= {"filter": parse_model(player)} if player else {}
    models |= {"teacher": parse_model(flags.teacher)} if flags.teacher else {}
    files = {"strategy": Path(settings.strategy)} if settings.strategy.endswith(".md") else {}
    files |= {"begin": Path(settings.begin.file)} if settings.begin.file else {}
    whole = DistilStageSettings(distil=settings, filter=kind)
    stage = Distil(f"distil-{Path(settings.strategy).stem}", whole, inputs=inputs, files=files, models=models)
    if problems:
        needs([stage], problems)  # raises, with everything else that is wrong
    done = run_stage(stage, flags)
    lengths = done.manifest.summary["tokens"].items()  # n is 0 for a constant reply
    rows = [(name, s["n"], number(s["mean"], "tokens"), number(s["p90"], "tokens")) for name, s in lengths if s["n"]]
    if rows and not flags.json:
        common.show(("tokens of", "#n", "#mean", "#90th percentile"), rows)
