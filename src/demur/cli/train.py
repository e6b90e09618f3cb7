"""`demur train`: fine-tune a model on rows that are checked one by one."""

from pathlib import Path
from typing import Annotated

from demur.cli import common
from demur.cli.runner import run_stage
from demur.errors import UserError
from demur.pipeline.stages.importing import Import, ImportSettings
from demur.pipeline.stages.train import Train, TrainStageSettings
from demur.settings import validate
from demur.train.settings import TrainSettings


@common.verb("limit seed out sets json")
def train(
    base: str, examples: Path, flags: common.Flags, held_out: Annotated[int, common.flag("held-out", min=0)] = 0
) -> None:
    """Fine-tune a model on reasoning traces or preference pairs. Every row is checked before the first step.

    A stopped training goes on from its last checkpoint with the same command. The model is OUT/stages/train-…/model.
    """
    from demur.train import distributed

    if distributed.rank() > 0:
        from demur.train.trainer import follow

        follow()
        return
    for item in flags.sets or []:
        if not item.startswith("train."):
            raise UserError(f"--set {item}: settings of the training are called train.NAME, as in a study file.")
    plain = common.apply_sets({"train": {"seed": flags.seed}}, flags.sets)["train"]
    settings = validate(TrainSettings, plain, where="demur train")
    rows = ImportSettings(limit=flags.limit, held_out=held_out if settings.method == "sft" else None)
    inputs = {"mix": Import("examples", rows, files={"file": examples})}
    stage = Train("train", TrainStageSettings(train=settings), inputs=inputs, models={"base": common.base(base)})
    summary = run_stage(stage, flags, workers=1).manifest.summary
    distributed.leave(dismiss=True)
    if not flags.json:
        dropped = ", ".join(f"{count} {reason}" for reason, count in summary["dropped"].items()) or "none"
        common.stdout.print(
            f"{summary['rows']:,} rows (dropped: {dropped}), {summary['steps']:,} steps of {summary['batch']}, "
            f"{summary['trained_tokens']:,} trained tokens; loss {summary['loss_first']:.3f} -> {summary['loss_last']:.3f}"
        )
