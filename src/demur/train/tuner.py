"""The Trainer, reading a plan in order, and the one who watches it: metrics, checkpoints, measurements, the wish to stop."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from demur.errors import WorkError
from demur.interfaces import Progress
from demur.train import checkpoints, learnability, pack, parallel
from demur.train.settings import TrainSettings
from demur.train.students import Place

if TYPE_CHECKING:
    from demur.train.sft import Prepared

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def arguments(settings: TrainSettings, place: Place, plan: pack.Plan, out: Path) -> TrainingArguments:
    """Our settings in the Trainer's words."""
    steps = len(plan.steps)
    warmup = settings.warmup if settings.warmup >= 1 else settings.warmup * steps
    cpu = place.device.type == "cpu"
    return TrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=plan.rounds,
        learning_rate=settings.lr,
        lr_scheduler_type=SCHEDULES[settings.schedule],
        warmup_steps=round(warmup),
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        max_grad_norm=settings.clip,
        bf16=place.mixed,
        seed=settings.seed,
        use_cpu=cpu,
        ddp_backend=("gloo" if cpu else "nccl") if plan.world > 1 else None,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=not cpu,
        remove_unused_columns=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        save_total_limit=2,
        disable_tqdm=True,
        report_to=list(settings.report_to) or "none",
    )


class Batches:
    """The micro-batches of one process, made when they are read."""

    def __init__(self, ready: Prepared, rank: int) -> None:
        self._rows, self._pad, self._packed = ready.rendered.rows, ready.pad, ready.plan.packed
        self._groups = ready.plan.of_rank(rank)

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, at: int) -> dict[str, Any]:
        rows = [self._rows[i] for i in self._groups[at]] or pack.idle(self._rows)
        return pack.collate(rows, pad=self._pad, packed=self._packed)


class _Trainer(Trainer):  # type: ignore[misc,unused-ignore]
    """Reads what is given in the order given, and checkpoints a sharded model in shards."""

    sharded = False

    def get_train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(
            self.train_dataset,
            batch_size=1,
            shuffle=False,
            collate_fn=_only,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.sharded:
            Path(str(output_dir)).mkdir(parents=True, exist_ok=True)
        else:
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.sharded:
            parallel.save_shards(self.model, self.optimizer.optimizer, Path(output_dir))
            if self.args.should_save:
                torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _defer_fsdp_gradient_reduction(self) -> Any:
        # Gradients are reduced after every micro-batch: kept whole until the last, they would undo the sharding.
        return contextlib.nullcontext()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.sharded and checkpoint:
            parallel.load_shards(self.model, self.optimizer.optimizer, Path(checkpoint))
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)


def _only(items: list[dict[str, Any]]) -> dict[str, Any]:
    """The micro-batch is the item."""
    return items[0]


class Watch(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Told of every step by the Trainer."""

    def __init__(self, tuner: Tuner, *, settings: TrainSettings, out: Path, progress: Progress) -> None:
        self.tuner = tuner
        self.settings = settings
        self.out = out
        self.progress = progress
        self.taken = 0
        self.stopped = False
        self._asked = False
        self._loss = math.nan

    def stop(self) -> None:
        """Ask for a checkpoint and an end after the current step."""
        self._asked = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Assert that the processes are what was asked for; measure the untrained student."""
        parallel.assert_together(self.tuner.trainer.model_wrapped, self.tuner.ready.mark, sharded=self.tuner.sharded)
        if state.global_step == 0:
            self._measure(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Decide on checkpoint and end; measure held-out rows where planned."""
        step, steps = state.global_step, state.max_steps
        self.taken += 1
        self._measure(step)
        every = self.settings.checkpoint_every
        if every and step % every == 0 and step < steps:
            control.should_save = True
        if parallel.any_of(self._asked) and step < steps:
            control.should_save = control.should_training_stop = self.stopped = True
        if parallel.rank() == 0:
            self.progress(step, steps, f"loss {self._loss:.3f}" if step > 1 else "")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write one line of metrics a step.

        Raises:
            WorkError: the loss is no finite number.
        """
        if not logs or "loss" not in logs:
            return
        self._loss = float(logs["loss"])
        if not math.isfinite(self._loss):
            raise WorkError(
                f"the loss became {self._loss} at step {state.global_step}. Lower train.lr, set train.clip, or use "
                "train.dtype=mixed; the same command starts from the last checkpoint."
            )
        norm: Any = logs.get("grad_norm")
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        row = {"step": state.global_step, "loss": self._loss, "lr": logs.get("learning_rate")}
        row["grad_norm"] = None if norm is None else float(norm)
        row["trained_tokens"] = self.tuner.tokens[state.global_step - 1]
        self._write("metrics.jsonl", row)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Every process has written its part: seal the checkpoint."""
        parallel.barrier()
        if parallel.rank() == 0:
            folder = self.out / "checkpoints" / f"checkpoint-{state.global_step}"
            checkpoints.seal(folder, mark=self.tuner.ready.mark)

    def _measure(self, step: int) -> None:
        """Losses of the held-out rows, at the planned steps."""
        ready = self.tuner.ready
        if not ready.held_out.rows or step not in self.tuner.measured_at:
            return
        measured = learnability.measure(
            self.tuner.student, ready.held_out.rows, pad=ready.pad, packed=ready.plan.packed
        )
        tokens = sum(self.tuner.tokens[:step])
        for row in learnability.lines(measured, step=step, tokens=tokens):
            self._write("learnability.jsonl", row)

    def _write(self, name: str, row: dict[str, Any]) -> None:
        if parallel.rank() == 0:
            with (self.out / name).open("a") as file:
                file.write(json.dumps(row, sort_keys=True) + "\n")


class Tuner:
    """A Trainer over a plan."""

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        ready: Prepared,
        settings: TrainSettings,
        out: Path,
        progress: Progress,
    ) -> None:
        self.ready = ready
        self.out = out
        self.sharded = parallel.is_sharded(model)
        rows = ready.rendered.rows
        self.tokens = [
            sum(label != -100 for group in step for i in group for label in rows[i].labels) for step in ready.plan.steps
        ]
        self.measured_at = learnability.steps_to_measure(settings.measure_at, len(ready.plan.steps))
        self.watch = Watch(self, settings=settings, out=out, progress=progress)
        self.trainer = _Trainer(
            model, args, train_dataset=Batches(ready, parallel.rank()), data_collator=_only, callbacks=[self.watch]
        )
        self.trainer.sharded = self.sharded
        self.trainer.remove_callback(PrinterCallback)
        # Our forward divides by the number of trained tokens of the whole step, over all processes.
        self.trainer.model_accepts_loss_kwargs = True

    @property
    def student(self) -> Any:
        """The model itself, unwrapped."""
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    def go(self) -> None:
        """Train to the end, from the last whole checkpoint where there is one."""
        from demur.train.sft import resume_point

        parallel.barrier()
        found = resume_point(self.out, self.ready.mark) if parallel.rank() == 0 else None
        where = parallel.shared(str(found) if found else None)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.trainer.train(resume_from_checkpoint=where)
