"""Fine-tunes a base on a mix: model/ (a checkpoint), metrics.jsonl, learnability.jsonl."""

from importlib.util import find_spec
from pathlib import Path

from demur.errors import UserError
from demur.models.checkpoint import folder_of, identity_of
from demur.models.config import Local
from demur.pipeline.stage import Context, Lack, Stage, Tampered
from demur.settings import Strict
from demur.train.settings import TrainSettings


class TrainStageSettings(Strict):
    """How an arm is trained."""

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
        from demur.pipeline.sizes import processes_of
        from demur.train.trainer import train

        mixed = context.inputs["mix"]
        rows = "examples" if self.settings.train.method == "sft" else "pairs"
        if not mixed.rows(rows):
            raise UserError(f"{mixed.folder}: no {rows} to train on (train.method={self.settings.train.method}).")
        context.draft.summary |= {"base": identity_of(base := self._from(context))} | train(
            mixed.path(rows),
            base=base,
            out=context.draft.folder,
            settings=self.settings.train.model_copy(update={"processes": processes_of(self.settings.train)}),
            held_out=mixed.path("held_out") if mixed.has("held_out") else None,
            progress=context.progress,
        )

    def _from(self, context: Context) -> Path:
        """The weights that it goes on from: a stage's, or the base's, fetched where they are not here."""
        base = self.models["base"]
        assert isinstance(base, Local)
        return context.inputs["base"].folder / "model" if "base" in context.inputs else folder_of(base)

    def needs(self) -> list[Lack]:
        from demur.pipeline.sizes import devices, lacking

        base = self.models["base"]
        if not isinstance(base, Local):
            return [Lack("base", f"{base.where} cannot be trained: give a folder with weights or a hub id.", True)]
        lacks = super().needs()
        lacks += [
            Lack("train", f"train.report_to: {name} is not installed: pip install {name}")
            for name in self.settings.train.report_to
            if find_spec(name) is None
        ]
        if self.settings.train.device == "cuda" and not devices():
            return [*lacks, Lack("train", "train.device=cuda, and nvidia-smi shows no GPU here", True)]
        lack = lacking(base.weights_at, self.settings.train, base.revision)
        return [*lacks, Lack("train", lack)] if lack else lacks

    def gpus(self) -> int:
        from demur.pipeline.sizes import processes_of

        return processes_of(self.settings.train)
