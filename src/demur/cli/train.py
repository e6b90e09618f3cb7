"""`demur train`: fine-tuning, checked row by row."""

from pathlib import Path
from typing import Annotated

import typer

from demur.cli import common
from demur.cli.runner import run_stage
from demur.errors import UserError
from demur.pipeline.stages.importing import Import, ImportSettings
from demur.pipeline.stages.train import Train, TrainStageSettings
from demur.settings import validate
from demur.train.settings import TrainSettings

app = common.app("Fine-tuning, checked row by row.")


@app.command()
def train(
    base: Annotated[str, typer.Option("--base", help="Model to train: local folder, hub id or mini-lrm-a.")],
    examples: Annotated[Path, typer.Option("--examples", help="Rows to train on: a run, a finished stage or a file.")],
    held_out: Annotated[int, typer.Option("--held-out", min=0, help="Last rows kept to measure learnability on.")] = 0,
    limit: common.Limit = None,
    seed: common.Seed = 0,
    out: common.Out = None,
    sets: common.Set = None,
    json: common.Json = False,
) -> None:
    """Fine-tune a model on reasoning traces. Every row is checked before the first step.

    Safe to stop: the same command goes on from the last checkpoint. The model is OUT/stages/train-…/model.

    Examples:
      demur train --base mini-lrm-a --examples runs/m --out runs/t --set train.lr=1e-3 --set train.epochs=3
      demur train --base ./R1-Distill-Qwen-7B --examples runs/m --set train.lora=true --set train.lr=1e-4
      demur train --base ./base --examples pairs.jsonl --set train.method=dpo --set train.lora=true
      demur train --base ./base --examples rows.jsonl --set train.processes=8 --set train.parallel=fsdp2
      torchrun --nproc-per-node 8 -m demur train --base ./base --examples runs/m
    """
    from demur.train import distributed

    if distributed.rank() > 0:
        from demur.train.trainer import follow

        follow()
        return
    stage = _stage(base, _settings(seed, sets), rows=(examples, limit, held_out))
    summary = run_stage(stage, out=out or Path("runs/train"), workers=1, json=json).manifest.summary
    distributed.leave(dismiss=True)
    if not json:
        dropped = ", ".join(f"{count} {reason}" for reason, count in summary["dropped"].items()) or "none"
        common.stdout.print(
            f"{summary['rows']:,} rows (dropped: {dropped}), {summary['steps']:,} steps of {summary['batch']}, "
            f"{summary['trained_tokens']:,} trained tokens; loss {summary['loss_first']:.3f} -> {summary['loss_last']:.3f}"
        )


def _settings(seed: int, sets: list[str] | None) -> TrainSettings:
    """The settings of training, which --set changes."""
    for item in sets or []:
        if not item.startswith("train."):
            raise UserError(f"--set {item}: settings of training are named train.NAME, as in a study file.")
    plain = common.apply_sets({"train": {"seed": seed}}, sets)["train"]
    return validate(TrainSettings, plain, where="demur train")


def _stage(base: str, settings: TrainSettings, *, rows: tuple[Path, int | None, int]) -> Train:
    """The training, on rows from outside: examples, or pairs for a preference method."""
    file, limit, held_out = rows
    kept = held_out if settings.method == "sft" else None
    given = Import("examples", ImportSettings(limit=limit, held_out=kept), files={"file": file})
    return Train("train", TrainStageSettings(train=settings), inputs={"mix": given}, models={"base": common.base(base)})
