"""Fine-tuning: a plain loop over tokens that were checked and an order that was fixed before.

    examples -> rows (render) -> plan (batches) -> Trainer -> model/ metrics.jsonl learnability.jsonl dropped.jsonl

On one CPU thread a training that was killed and goes on ends in the same bits as one that was not.
"""

import importlib
import json
import math
import shutil
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from demur.errors import WorkError
from demur.interfaces import Progress, quiet
from demur.models.checkpoint import converted
from demur.records import read_jsonl, write_jsonl
from demur.storage.artifacts import atomic_write
from demur.train import batches, checkpoints, distributed
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
    """Fine-tune `base` (a folder, a GGUF file or a hub id) and write `out/model`; goes on from the last complete checkpoint there.

    One entry for all ways to run it: in this process, in processes that it starts, or as the first of those that torchrun
    started (the others call `follow`). `examples` is a file of what to learn, `held_out` one of rows to measure the loss on.
    Returns a summary: rows, drops, tokens, first and last loss, and a `line`.

    Raises:
        UserError: the base cannot be trained as the settings say.
        CheckFailed: a row would train something else than what was meant.
        WorkError: the loss became infinite, or processes disagree.
        SystemExit: 143, after a checkpoint, when SIGTERM came.
    """
    folder = converted(Path(base)) if str(base).endswith(".gguf") else base
    job = Job(str(examples), str(held_out or ""), str(folder), _name(Path(base)), str(out), settings)
    if settings.processes > 1 and not distributed.launched():
        plain = job._replace(settings=settings.model_dump(mode="json"))._asdict()  # type: ignore[arg-type]
        return distributed.launch(plain, folder=out / ".job", settings=settings, progress=progress)
    return train_here(distributed.shared(job), progress)


def _name(base: Path) -> str:
    """What a base is called: the name of its folder, but of the hub's cache the model's, and of a stage's the stage's."""
    if base.name == "model" and base.parent.parent.name == "stages":
        return base.parent.name.rpartition("-")[0]
    cached = [part for part in base.parts if part.startswith("models--")]
    return cached[-1].rpartition("--")[2] if cached else base.name


def follow() -> None:
    """What the other processes of a torchrun do: the trainings of the first one, until it says that there are no more."""
    while (job := distributed.shared(None)) is not None:
        train_here(job, quiet)
    distributed.leave()


def train_here(job: Job, progress: Progress) -> dict[str, Any]:
    """Train in this process, which may be one of several."""
    import torch
    import transformers

    from demur.train import model as models

    settings, out = job.settings, Path(job.out)
    torch.set_num_threads(settings.threads)
    transformers.utils.logging.disable_progress_bar()
    config = models.config_of(job.base)
    # Measured once, for all processes; a checkpoint of other arithmetic is not gone on from.
    dtype = distributed.shared(models.precision_of(settings, config))
    settings = settings.model_copy(update={"dtype": dtype})
    place = models.place_of(settings, config)
    settings = settings.model_copy(update={"parallel": models.wrapper(job.base, settings, place)})
    ready = prepare(job._replace(settings=settings))
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    trainer = Trainer(models.ready(job.base, settings, place), ready, settings=settings, place=place, out=out)
    began = time.monotonic()
    taken = trainer.run(progress)
    seconds = time.monotonic() - began
    if distributed.rank() == 0:
        shutil.rmtree(out / "model", ignore_errors=True)
    models.save(trainer.student, base=job.base, folder=out / "model", settings=settings)
    if distributed.rank() > 0:
        return {}
    summary = summarise(ready, out, settings) | {"arithmetic": "float32" if dtype == "float32" else "bfloat16"}
    if job.name.endswith(".gguf"):
        summary["notes"] = [*ready.notes, "the base was quantised: its weights are those of the file, in float32"]
    shares = Counter(row.share for row in ready.rendered.rows)
    models.write_card(out / "model", name=job.name, settings=job.settings, data=summary | {"shares": shares})
    write_jsonl(out / "dropped.jsonl", ready.rendered.dropped)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    tokens = sum(len(row.ids) for row in ready.read())
    with (out / "timing.jsonl").open("a") as file:
        file.write(json.dumps({"seconds": round(seconds, 3), "steps": taken, "tokens": tokens}) + "\n")
    return summary


def summarise(ready: Prepared, out: Path, settings: TrainSettings) -> dict[str, Any]:
    """What a reader wants at a glance; the same for equal runs."""
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    read = ready.read()
    dropped = ready.rendered.counts()
    first, last = losses[0], sum(losses[-5:]) / len(losses[-5:])
    more = f", {sum(dropped.values())} dropped" if dropped else ""
    line = f"{len(losses)} steps, loss {first:.2f} -> {last:.2f}{more}"
    tokens = {"tokens": sum(len(row.ids) for row in read), "trained_tokens": sum(row.trained for row in read)}
    found = {"line": line, "rows": len(ready.units), "dropped": dropped, "steps": len(losses), "batch": settings.batch}
    found |= {**tokens, "loss_first": first, "loss_last": last, "template": ready.template}
    return found | {"fingerprint": ready.fingerprint, "notes": ready.notes}


def learning_rate(settings: TrainSettings, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0."""
    warmup = round(settings.warmup if settings.warmup >= 1 else settings.warmup * steps)
    if step < warmup:
        return settings.lr * (step / warmup)
    done = (step - warmup) / max(1, steps - warmup)
    falls = {"cosine": 0.5 * (1.0 + math.cos(math.pi * done)), "linear": 1.0 - done, "constant": 1.0}
    return settings.lr * max(0.0, falls[settings.schedule])


class Curves:
    """Live curves: the lines of metrics.jsonl and learnability.jsonl, sent as they come to those of `train.report_to`."""

    def __init__(self, report_to: Sequence[str], out: Path) -> None:
        self._board: Any = None
        self._runs: list[Any] = []
        for name in report_to:
            if name == "tensorboard":
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(out.parent.parent / "curves" / out.name), flush_secs=5)
            else:  # the other two have the same three functions
                self._runs.append(importlib.import_module(name).init(project="demur", name=out.name))

    def log(self, row: dict[str, Any]) -> None:
        """Send the numbers of a line; those of held-out rows under their part's name."""
        under = f"held out, {row['part']}/" if "part" in row else ""
        values = {f"{under}{key}": value for key, value in row.items() if isinstance(value, float)}
        for run in self._runs:
            run.log(values, step=row["step"])
        for name, value in values.items() if self._board else ():
            self._board.add_scalar(name, value, row["step"])

    def finish(self) -> None:
        """Close what is open."""
        for run in self._runs:
            run.finish()
        if self._board:
            self._board.close()


class Trainer:
    """A model that learns a plan: takes steps, measures, saves itself, stops when asked."""

    def __init__(self, model: Any, ready: Prepared, *, settings: TrainSettings, place: Any, out: Path) -> None:
        import torch

        self.student, self.ready, self.settings, self.place, self.out = model, ready, settings, place, out
        self.model = distributed.wrapped(model, place)
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
        """Train to the end, from the last complete checkpoint where there is one; returns the number of steps taken.

        Raises WorkError: the loss is no finite number; SystemExit: 143, when SIGTERM came and a checkpoint was saved.
        """
        distributed.assert_together(self.model, self.ready.fingerprint)
        steps = len(self.ready.plan.steps)
        begin = self._resume()
        self._refer(begin)
        if begin == 0:
            self._measure(0)
        with distributed.on_sigterm(self._stop.set):  # asks for a checkpoint and an end after the current step
            for step in range(begin, steps):
                row = self._step(step)
                if distributed.rank() == 0:
                    self._write("metrics.jsonl", row)
                    progress(step + 1, steps, f"loss {row['loss']:.3f}")
                self._measure(step + 1)
                stop = distributed.any_of(self._stop.is_set())
                every = self.settings.checkpoint_every
                if step + 1 < steps and (stop or (every and (step + 1) % every == 0)):
                    self._save(step + 1)
                    if stop:
                        raise SystemExit(143)
        self._curves.finish()
        return steps - begin

    def _step(self, step: int) -> dict[str, Any]:
        """One update; returns its line of metrics."""
        import torch

        units = [unit for group in self.ready.plan.steps[step] for unit in group]
        amount = sum(self._amount(unit) for unit in units)
        rate = learning_rate(self.settings, step, len(self.ready.plan.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        groups = self.ready.plan.of_rank(step, distributed.rank())
        total = torch.zeros((), device=self.place.device)
        self.model.train()
        for number, group in enumerate(groups, 1):
            with distributed.synced(self.model, number == len(groups)):
                # Wrappers average gradients over the processes; the loss is a mean over the whole update.
                loss = self._loss(group) / amount * distributed.world_size()
                loss.backward()
            total += loss.detach()
        norm = distributed.whole(
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip or math.inf)
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        mean = distributed.mean(total).item()
        if not math.isfinite(mean):
            raise WorkError(
                f"the loss became {mean} at step {step + 1}. Lower train.lr, set train.clip, or use train.dtype=mixed; "
                "the same command starts from the last checkpoint."
            )
        row = {"step": step + 1, "loss": mean, "lr": rate, "grad_norm": norm.item()}
        return row | {"trained_tokens": self._trained(step)}

    def _trained(self, step: int) -> int:
        """Trained tokens of one step, over all processes."""
        return sum(row.trained for group in self.ready.plan.steps[step] for row in self.ready.rows(group))

    def _amount(self, unit: int) -> float:
        """What a unit counts in the mean that the loss is: its trained tokens, weighted; a pair counts as one."""
        if self.settings.method != "sft":
            return 1
        (row,) = self.ready.rows([unit])
        return sum(self._weights(row)) if self.settings.weights else row.trained

    def _weights(self, row: Row) -> list[float]:
        """The weight of each trained token of a row."""
        by, places = self.settings.weights, [at for at, label in enumerate(row.labels) if at and label != IGNORED]
        return [by.get("thinking" if at < row.answer else "answer", 1.0) * by.get(row.share, 1.0) for at in places]

    def _loss(self, units: list[int]) -> Any:
        """The loss of a micro-batch, summed over what it is the mean of."""
        import torch

        from demur.train.loss import preferences

        rows = self.ready.rows(units) or batches.idle(self.ready.rendered.rows)
        losses = self.losses(rows)
        if self.settings.method == "sft" or not units:
            if self.settings.weights and units:
                losses = losses * losses.new_tensor([weight for row in rows for weight in self._weights(row)])
            return losses.sum() + (self._divergence(rows) if self.settings.kl else 0.0)
        counts = [row.trained for row in rows]
        # In float64: of thousands of nats float32 loses what the first step of Adam makes much of.
        nats = torch.stack([part.double().sum() for part in losses.split(counts)])
        reference = [self._reference[i] for unit in units for i in self.ready.units[unit]] if self._reference else []
        known = nats.new_tensor(reference) if reference else None
        return preferences(nats, nats.new_tensor(counts), known, settings=self.settings).sum()

    def _refer(self, begin: int) -> None:
        """What the base makes of each reply of the pairs: measured before the first step, and kept in a file."""
        from demur.train import heldout_loss

        path = self.out / "reference.jsonl"
        if self.settings.method not in ("dpo", "ipo") or self.settings.reference == "none":
            return
        if begin == 0:
            found = [m.nats["whole"] for m in heldout_loss.measure(self, self.ready.rendered.rows)]
            if distributed.rank() == 0:
                atomic_write(path, "".join(json.dumps({"nats": nats}) + "\n" for nats in found))
        kept = [row["nats"] for row in read_jsonl(path, dict)] if distributed.rank() == 0 else None
        self._reference = distributed.shared(kept)

    def losses(self, rows: list[Row]) -> Any:
        """Loss of every supervised token of some rows, one row behind the other [targets]."""
        return self._forward(self.model, rows)["losses"]

    def _forward(self, model: Any, rows: list[Row], **options: Any) -> Any:
        import torch

        batch = batches.collate(rows, packed=self.place.packed) | options
        batch = {k: v.to(self.place.device) if hasattr(v, "to") else v for k, v in batch.items()}
        with torch.autocast(self.place.device.type, torch.bfloat16) if self.place.mixed else nullcontext():
            return model(**batch)

    def _divergence(self, rows: list[Row]) -> Any:
        """Kullback-Leibler divergence of the base's words from the model's, weighted by component, summed over tokens."""
        import torch

        # Processes that shard a model must run it equally often: the idle row has no tokens.
        rows = [row for row in rows if self.settings.kl.get(row.share)] or batches.idle(rows)
        with torch.no_grad(), self.student.disable_adapter():
            base = self._forward(self.student, rows, full=True)["words"]
        own = self._forward(self.student, rows, full=True)["words"]
        weights = [self.settings.kl.get(row.share, 0.0) for row in rows for _ in range(row.trained)]
        return ((base.exp() * (base - own)).sum(-1) * own.new_tensor(weights)).sum()

    def _measure(self, step: int) -> None:
        """Losses of the held-out rows, at the planned steps."""
        from demur.train import heldout_loss

        rows, steps = self.ready.held_out.rows, self.ready.plan.steps
        if not rows or step not in heldout_loss.steps_to_measure(len(steps)):
            return
        measured = heldout_loss.measure(self, rows)
        tokens = sum(self._trained(before) for before in range(step))
        for line in heldout_loss.lines(measured, step=step, tokens=tokens) if distributed.rank() == 0 else ():
            self._write("learnability.jsonl", line)

    def _write(self, name: str, row: dict[str, Any]) -> None:
        with (self.out / name).open("a") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")
        self._curves.log(row)

    def _save(self, step: int) -> None:
        folder = self.out / "checkpoints" / f"checkpoint-{step}"
        checkpoints.save(folder, self.model, self.optimizer, fingerprint=self.ready.fingerprint)

    def _resume(self) -> int:
        """Load the last complete checkpoint; returns the number of steps behind it. Later metrics are taken back."""
        found = None
        if distributed.rank() == 0:
            found = checkpoints.latest(self.out / "checkpoints", fingerprint=self.ready.fingerprint)
            for name in ("metrics.jsonl", "learnability.jsonl"):
                checkpoints.rewind(self.out / name, checkpoints.step_of(found) if found else -1)
        found = distributed.shared(found)
        if found is None:
            return 0
        checkpoints.load(found, self.model, self.optimizer)
        return checkpoints.step_of(found)
