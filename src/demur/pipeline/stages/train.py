"""Fine-tunes a base on a mix: model/ (a checkpoint), metrics.jsonl, learnability.jsonl."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from demur.errors import UserError
from demur.pipeline.stage import Context, Lack, Stage, Tampered
from demur.settings import STRICT
from demur.train.settings import TrainSettings


class TrainStageSettings(BaseModel):
    """How an arm is trained."""

    model_config = STRICT

    train: TrainSettings = TrainSettings()
    arm: str = "target"
    seed: int | None = None
    tampered: Tampered | None = None


class Train(Stage[TrainStageSettings]):
    """Inputs: mix (examples, held_out; or pairs, for a preference method); base (a stage whose checkpoint it goes on from).
    Models: base, which that began from."""

    kind = "train"
    resumable = trains = True
    extra = "torch"
    Settings = TrainStageSettings

    def run(self, context: Context) -> None:
        from demur.train.trainer import train

        mixed, base = context.inputs["mix"], self.models["base"]
        weights: Path | str = Path(base.weights_at) if getattr(base, "path", None) else base.weights_at
        if "base" in context.inputs:
            weights = context.inputs["base"].folder / "model"
        rows = "examples" if self.settings.train.method == "sft" else "pairs"
        if not mixed.rows(rows):
            raise UserError(f"{mixed.folder}: no {rows} to train on (train.method={self.settings.train.method}).")
        context.draft.summary |= train(
            mixed.path(rows),
            base=weights,
            out=context.draft.folder,
            settings=self.settings.train,
            held_out=mixed.path("held_out") if mixed.has("held_out") else None,
            progress=context.progress,
        )

    def needs(self) -> list[Lack]:
        from demur.pipeline.placement import lacking

        base, settings = self.models["base"], self.settings.train
        if not base.weights_at:
            return [Lack("base", f"{base.where} cannot be trained: give a folder with weights or a hub id.", True)]
        lacks = super().needs()
        if settings.device != "cpu":
            lora = settings.lora is not None
            shards = settings.parallel != "ddp"
            lack = lacking(base.weights_at, lora=lora, processes=settings.processes, sharded=shards)
            lacks += [Lack("train", lack)] if lack else []
        return lacks

    def gpus(self) -> int:
        return self.settings.train.processes
