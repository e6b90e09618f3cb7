"""Fine-tunes a base on a mix: model/ (a checkpoint), metrics.jsonl, learnability.jsonl."""

from importlib.util import find_spec

from demur.errors import UserError
from demur.models.checkpoint import folder_of, identity_of
from demur.models.config import Local
from demur.pipeline import sizes
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
    """Inputs: mix (examples, held_out; or pairs, for a preference method); base (a stage whose checkpoint it starts from).
    Models: base (of that checkpoint, if there is one)."""

    kind = "train"
    resumable = trains = True
    extra = "torch"
    Settings = TrainStageSettings

    def run(self, context: Context) -> None:
        from demur.train.trainer import train

        mixed, draft, settings = context.inputs["mix"], context.draft, self.settings.train
        rows = "examples" if settings.method == "sft" else "pairs"
        if not mixed.rows(rows):
            where = self.inputs["mix"].files.get("file", mixed.folder)
            raise UserError(f"{where}: no {rows} to train on (train.method={settings.method}).")
        model = self.models["base"]
        assert isinstance(model, Local)
        base = context.inputs["base"].folder / "model" if "base" in context.inputs else folder_of(model)
        settings = settings.model_copy(update={"processes": sizes.processes_of(settings)})
        examples, held_out = mixed.path(rows), mixed.path("held_out") if mixed.has("held_out") else None
        summary = train(
            examples, base=base, out=draft.folder, settings=settings, held_out=held_out, progress=context.progress
        )
        draft.summary |= {"base": identity_of(base)} | summary

    def needs(self) -> list[Lack]:
        base, settings = self.models["base"], self.settings.train
        if not isinstance(base, Local):
            return [Lack("base", f"{base.where} cannot be trained: give a folder with weights or a hub id.", True)]
        absent = [name for name in settings.report_to if find_spec(name) is None]
        lacks = super().needs()
        lacks += [Lack("train", f"train.report_to: {name} is not installed: pip install {name}") for name in absent]
        if settings.device == "cuda" and not sizes.devices():
            return [*lacks, Lack("train", "train.device=cuda, and nvidia-smi shows no GPU here", True)]
        lack = sizes.lacking(base.weights_at, settings, base.revision)
        return [*lacks, Lack("train", lack)] if lack else lacks

    def gpus(self) -> int:
        return sizes.processes_of(self.settings.train)
