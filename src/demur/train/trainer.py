"""Fine-tuning: a plain loop over rows that were checked and an order that was fixed before the first step.

    examples -> rows (render) -> plan (batches) -> Trainer -> model/ metrics.jsonl learnability.jsonl dropped.jsonl

On one CPU thread, a training that was killed and resumed ends in the same bits as one that ran through.
"""

import json
import math
import shutil
import threading
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers

from demur.errors import WorkError
from demur.interfaces import Progress, quiet
from demur.models.checkpoint import converted
from demur.records import read_jsonl, write_jsonl
from demur.storage.artifacts import atomic_write
from demur.train import batches, checkpoints, distributed, heldout_loss
from demur.train import model as models
from demur.train.curves import Curves
from demur.train.loss import preferences
from demur.train.prepare import Job, Prepared, prepare
from demur.train.render import IGNORED, Row
from demur.train.settings import TrainSettings


def train(
    examples: Path,
    *,
    base: Path | str,
    out: Path,
    settings: TrainSettings,
    held_out: Path | None = None,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Fine-tune `base` (a folder, a GGUF file or a hub id) on a file of examples or pairs, and write `out/model`.

    Resumes from the last complete checkpoint in `out`. This is the one entry for all ways to run: in this process, in
    processes that it starts, or as the first of those that torchrun started (the others call `follow`). `held_out` is a
    file of rows to measure the loss on. Returns a summary.

    Raises:
        UserError: the base cannot be trained as the settings say.
        CheckFailed: a row would train something else than intended.
        WorkError: the loss became infinite, or the processes are not one training.
        SystemExit: 143, after SIGTERM, once a checkpoint is saved.
    """
    folder = converted(Path(base)) if str(base).endswith(".gguf") else base
    job = Job(str(examples), str(held_out or ""), str(folder), _name(Path(base)), str(out), settings)
    if settings.processes > 1 and not distributed.launched():
        plain = job._asdict() | {"settings": settings.model_dump(mode="json")}
        return distributed.launch(plain, folder=out / ".job", settings=settings, progress=progress)
    return train_here(distributed.broadcast(job), progress)


def _name(base: Path) -> str:
    """A base's name: that of the stage that trained it, of the model in the hub's cache, or else of its folder."""
    if base.name == "model" and base.parent.parent.name == "stages":
        return base.parent.name.rpartition("-")[0]
    cached = [part for part in base.parts if part.startswith("models--")]
    return cached[-1].rpartition("--")[2] if cached else base.name


def follow() -> None:
    """Join each training of torchrun's first process, until that process dismisses the others."""
    while (job := distributed.broadcast(None)) is not None:
        train_here(job, quiet)
    distributed.leave()


def train_here(job: Job, progress: Progress) -> dict[str, Any]:
    """Train in this process, which may be one of several; returns the summary, in the first process."""
    settings, out = job.settings, Path(job.out)
    torch.set_num_threads(settings.threads)
    transformers.utils.logging.disable_progress_bar()
    config = models.config_of(job.base)
    # Measured once for all processes, and part of the fingerprint: a checkpoint of other arithmetic is not resumed.
    dtype = distributed.broadcast(models.precision_of(settings, config))
    settings = settings.model_copy(update={"dtype": dtype})
    place = models.place_of(settings, config)
    settings = settings.model_copy(update={"parallel": models.parallel_of(job.base, settings, place)})
    prepared = prepare(job._replace(settings=settings))
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    trainer = Trainer(models.load(job.base, settings, place), prepared, settings=settings, place=place, out=out)
    began = time.monotonic()
    steps = trainer.run(progress)
    seconds = round(time.monotonic() - began, 3)
    if distributed.rank() == 0:
        shutil.rmtree(out / "model", ignore_errors=True)
    models.save(trainer.model, base=job.base, folder=out / "model", settings=settings)
    if distributed.rank() > 0:
        return {}
    summary = summarise(prepared, out, settings) | {"arithmetic": "float32" if dtype == "float32" else "bfloat16"}
    if job.name.endswith(".gguf"):
        summary["notes"] = [*prepared.notes, "the base was quantised: its weights are those of the file, in float32"]
    shares = Counter(row.share for row in prepared.rendered.rows)
    models.write_card(out / "model", name=job.name, settings=job.settings, data=summary | {"shares": shares})
    write_jsonl(out / "dropped.jsonl", prepared.rendered.dropped)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    with (out / "timing.jsonl").open("a") as file:
        file.write(json.dumps({"seconds": seconds, "steps": steps, "tokens": summary["tokens"]}) + "\n")
    return summary


def summarise(prepared: Prepared, out: Path, settings: TrainSettings) -> dict[str, Any]:
    """The figures of a finished training; the same for equal runs."""
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows, dropped = prepared.rows(prepared.plan.rows()), prepared.rendered.counts()
    first, last = losses[0], sum(losses[-5:]) / len(losses[-5:])
    line = f"{len(losses)} steps, loss {first:.2f} -> {last:.2f}"
    return {
        "line": f"{line}, {sum(dropped.values())} dropped" if dropped else line,
        "rows": len(prepared.units),
        "dropped": dropped,
        "steps": len(losses),
        "batch": settings.batch,
        "tokens": sum(len(row.ids) for row in rows),
        "trained_tokens": sum(row.trained for row in rows),
        "loss_first": first,
        "loss_last": last,
        "template": prepared.template,
        "fingerprint": prepared.fingerprint,
        "notes": prepared.notes,
    }


def learning_rate(settings: TrainSettings, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0."""
    warmup = round(settings.warmup if settings.warmup >= 1 else settings.warmup * steps)
    if step < warmup:
        return settings.lr * (step / warmup)
    done = (step - warmup) / max(1, steps - warmup)
    decay = {"cosine": 0.5 * (1.0 + math.cos(math.pi * done)), "linear": 1.0 - done, "constant": 1.0}
    return settings.lr * max(0.0, decay[settings.schedule])


class Trainer:
    """Takes the steps of a plan, measures held-out losses, saves checkpoints, and stops when asked."""

    def __init__(
        self, model: Any, prepared: Prepared, *, settings: TrainSettings, place: models.Place, out: Path
    ) -> None:
        self.model, self.prepared, self.settings, self.place, self.out = model, prepared, settings, place, out
        self.wrapped = distributed.wrap(model, place)  # Replicated where there are several processes
        trained = [p for p in model.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.lr, fused=True)
        self._stop = threading.Event()
        self._reference: list[float] = []
        self._curves = Curves(settings.report_to if distributed.rank() == 0 else (), out)

    def run(self, progress: Progress) -> int:
        """Train to the end, from the last complete checkpoint if there is one; returns the number of steps taken.

        Raises:
            WorkError: the loss became infinite, or the processes are not one training.
            SystemExit: 143, after SIGTERM, once a checkpoint is saved.
        """
        distributed.check_group(self.wrapped, self.prepared.fingerprint)
        steps, every = len(self.prepared.plan.steps), self.settings.checkpoint_every
        first = self._resume()
        self._load_reference(measure=first == 0)
        if first == 0:
            self._measure(0)
        with distributed.on_sigterm(self._stop.set):
            for step in range(first, steps):
                metrics = self._step(step)
                done = step + 1
                if distributed.rank() == 0:
                    self._log("metrics.jsonl", metrics)
                    progress(done, steps, f"loss {metrics['loss']:.3f}")
                self._measure(done)
                stop = any(distributed.all_gather(self._stop.is_set()))  # all processes stop at the same step
                if done < steps and (stop or (every and done % every == 0)):
                    folder = self.out / "checkpoints" / f"checkpoint-{done}"
                    checkpoints.save(folder, self.wrapped, self.optimizer, fingerprint=self.prepared.fingerprint)
                    if stop:
                        raise SystemExit(143)
        self._curves.finish()
        return steps - first

    def _step(self, step: int) -> dict[str, Any]:
        """One update; returns its line of metrics."""
        plan = self.prepared.plan
        rate = learning_rate(self.settings, step, len(plan.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # The loss is a mean over the whole update: cutting it into micro-batches and processes does not change it.
        weight = sum(self._weight(unit) for units in plan.steps[step] for unit in units)
        micro_batches = plan.of_rank(step, distributed.rank())
        total = torch.zeros((), device=self.place.device)
        self.wrapped.train()
        for number, units in enumerate(micro_batches, 1):
            with distributed.gradient_sync(self.wrapped, last=number == len(micro_batches)):
                # Wrappers average gradients over the processes.
                loss = self._loss(units) / weight * distributed.world_size()
                loss.backward()
            total += loss.detach()
        limit = self.settings.clip or math.inf
        norm = distributed.full_tensor(torch.nn.utils.clip_grad_norm_(self.wrapped.parameters(), limit))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        mean = distributed.mean(total).item()
        if not math.isfinite(mean):
            raise WorkError(
                f"the loss became {mean} at step {step + 1}. Lower train.lr, set train.clip, or use train.dtype=mixed; "
                "the same command starts from the last checkpoint."
            )
        row = {"step": step + 1, "loss": mean, "lr": rate, "grad_norm": norm.item()}
        return row | {"trained_tokens": self._trained_tokens(step)}

    def _weight(self, unit: int) -> float:
        """The weight of a unit in the mean of an update: its trained tokens, each weighted; a pair counts as one."""
        if self.settings.method != "sft":
            return 1
        (row,) = self.prepared.rows([unit])
        return sum(self._token_weights(row)) if self.settings.weights else row.trained

    def _token_weights(self, row: Row) -> list[float]:
        """The weight of each trained token of a row, by `train.weights`."""
        weights = self.settings.weights
        share = weights.get(row.share, 1.0)
        thinking, answer = weights.get("thinking", 1.0) * share, weights.get("answer", 1.0) * share
        places = [at for at, label in enumerate(row.labels) if at and label != IGNORED]
        return [thinking if at < row.answer else answer for at in places]

    def _loss(self, units: list[int]) -> Any:
        """The summed loss of a micro-batch, which `_step` divides by the weight of the whole update."""
        rows = self.prepared.rows(units) or batches.idle(self.prepared.rendered.rows)
        losses = self.losses(rows)
        if self.settings.method == "sft" or not units:
            if self.settings.weights and units:
                losses = losses * losses.new_tensor([weight for row in rows for weight in self._token_weights(row)])
            return losses.sum() + (self._divergence(rows) if self.settings.kl else 0.0)
        counts = [row.trained for row in rows]
        # In float64: of thousands of nats float32 loses the small differences that Adam's first step amplifies.
        nats = torch.stack([part.double().sum() for part in losses.split(counts)])
        reference = None
        if self._reference:
            reference = nats.new_tensor([self._reference[i] for unit in units for i in self.prepared.units[unit]])
        return preferences(nats, nats.new_tensor(counts), reference, settings=self.settings).sum()

    def losses(self, rows: list[Row]) -> Any:
        """The loss of every supervised token of some rows, one row after the other [targets]."""
        return self._forward(self.wrapped, rows)["losses"]

    def _divergence(self, rows: list[Row]) -> Any:
        """The Kullback-Leibler divergence KL(base || model) at each token, weighted by component and summed."""
        # Processes that shard a model must run it equally often: the idle row has no tokens.
        rows = [row for row in rows if self.settings.kl.get(row.share)] or batches.idle(rows)
        with torch.no_grad(), self.model.disable_adapter():
            base = self._forward(self.model, rows, full=True)["log_probs"]
        model = self._forward(self.model, rows, full=True)["log_probs"]
        weights = [self.settings.kl.get(row.share, 0.0) for row in rows for _ in range(row.trained)]
        return ((base.exp() * (base - model)).sum(-1) * model.new_tensor(weights)).sum()

    def _forward(self, model: Any, rows: list[Row], **options: Any) -> Any:
        """The fused forward (`loss.fuse`) of a model over rows as one micro-batch."""
        batch = batches.collate(rows, packed=self.place.packed) | options
        batch = {k: v.to(self.place.device) if hasattr(v, "to") else v for k, v in batch.items()}
        with torch.autocast(self.place.device.type, torch.bfloat16) if self.place.mixed else nullcontext():
            return model(**batch)

    def _load_reference(self, *, measure: bool) -> None:
        """Read the base's loss on each reply of the pairs from a file, measured there before the first step."""
        if self.settings.method not in ("dpo", "ipo") or self.settings.reference == "none":
            return
        path, first = self.out / "reference.jsonl", distributed.rank() == 0
        if measure:
            nats = [measured.nats["whole"] for measured in heldout_loss.measure(self, self.prepared.rendered.rows)]
            if first:
                atomic_write(path, "".join(json.dumps({"nats": value}) + "\n" for value in nats))
        self._reference = distributed.broadcast([row["nats"] for row in read_jsonl(path, dict)] if first else None)

    def _measure(self, step: int) -> None:
        """Log the losses of the held-out rows, at the planned steps."""
        rows, steps = self.prepared.held_out.rows, len(self.prepared.plan.steps)
        if not rows or step not in heldout_loss.steps_to_measure(steps):
            return
        measured = heldout_loss.measure(self, rows)
        if distributed.rank() == 0:
            tokens = sum(self._trained_tokens(before) for before in range(step))
            for line in heldout_loss.lines(measured, step=step, tokens=tokens):
                self._log("learnability.jsonl", line)

    def _trained_tokens(self, step: int) -> int:
        """Trained tokens of one step, over all processes."""
        return sum(row.trained for units in self.prepared.plan.steps[step] for row in self.prepared.rows(units))

    def _log(self, name: str, row: dict[str, Any]) -> None:
        """Append a line to a file of the result, and send it to the live curves."""
        with (self.out / name).open("a") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")
        self._curves.log(row)

    def _resume(self) -> int:
        """Load the last complete checkpoint, and remove later metrics; returns the number of steps already taken."""
        path = None
        if distributed.rank() == 0:
            path = checkpoints.latest(self.out / "checkpoints", fingerprint=self.prepared.fingerprint)
            for name in ("metrics.jsonl", "learnability.jsonl"):
                checkpoints.rewind(self.out / name, checkpoints.step_of(path) if path else -1)
        path = distributed.broadcast(path)
        if path is None:
            return 0
        checkpoints.load(path, self.wrapped, self.optimizer)
        return checkpoints.step_of(path)
