"""Supervised fine-tuning: transformers' Trainer on tokens that were checked and an order that was fixed before.

    examples -> rows (render) -> plan (pack) -> Trainer -> model/ metrics.jsonl learnability.jsonl dropped.jsonl

The Trainer keeps what it is good at: the loop, precision, accumulation, schedules, trackers, adapters, processes. What
decides the result is ours: rows, labels, order, loss, and when a checkpoint counts. On one CPU thread a training that
was killed and goes on ends in the same bits as one that was not.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from demur.errors import UserError
from demur.interfaces import Progress, quiet
from demur.records import Example, write_jsonl
from demur.train import checkpoints, pack
from demur.train.render import IGNORED, Rendered, Renderer, load_tokenizer, stops_of
from demur.train.settings import TrainSettings


class Prepared(NamedTuple):
    """Everything that is known before the first step."""

    rendered: Rendered
    held_out: Rendered
    plan: pack.Plan
    mark: str
    template: str
    pad: int


def train(
    examples: Sequence[Example],
    *,
    base: Path | str,
    out: Path,
    settings: TrainSettings,
    held_out: Sequence[Example] = (),
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Fine-tune `base` and write `out/model`; goes on from the last whole checkpoint in `out`.

    Args:
        examples: what to learn, flags per part.
        base: a model folder or hub id.
        out: folder of the result.
        settings: how.
        held_out: rows to measure learnability on; empty: none.
        progress: told of every step.

    Returns:
        What a reader wants at a glance: rows, drops, tokens, first and last loss, and a `line`.

    Raises:
        UserError: the base cannot be trained as the settings say.
        CheckFailed: a row would train something else than what was meant.
        WorkError: the loss became infinite, or processes disagree.
        SystemExit: 143, after a checkpoint, when SIGTERM came.
    """
    from demur.train import parallel

    if not examples:
        raise UserError("nothing to train on: no examples were given.")
    if settings.processes > 1 and not parallel.launched():
        return parallel.launch(examples, base=base, out=out, settings=settings, held_out=held_out, progress=progress)
    return train_here(examples, base=base, out=out, settings=settings, held_out=held_out, progress=progress)


def prepare(
    examples: Sequence[Example], *, base: Path | str, settings: TrainSettings, held_out: Sequence[Example], packed: bool
) -> Prepared:
    """Render, check and plan.

    Raises:
        CheckFailed: a check does not hold.
    """
    from demur.train import parallel, students

    tokenizer = load_tokenizer(base)
    renderer = Renderer(tokenizer, template=settings.template, stops=stops_of(base), loss=settings.loss)
    # Beyond its positions a model has learnt nothing to build on.
    longest = min(
        settings.max_length, getattr(students.config_of(base), "max_position_embeddings", settings.max_length)
    )
    rendered = renderer.rows(examples, max_length=longest)
    measured = Renderer(tokenizer, template=settings.template, stops=stops_of(base))
    held = measured.rows(held_out, max_length=longest) if held_out else Rendered([], [])
    lengths = [len(row.ids) for row in rendered.rows]
    total = settings.steps * settings.batch if settings.steps else max(1, int(settings.epochs * len(lengths) + 0.5))
    plan = pack.plan(
        lengths,
        rows=pack.order(len(lengths), total=total, seed=settings.seed),
        batch=settings.batch,
        limits=pack.Limits(settings.micro_tokens, settings.micro_batch),
        world=parallel.world_size(),
        packed=packed,
    )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return Prepared(rendered, held, plan, plan.mark(rendered.rows), renderer.family.name, pad)


def train_here(
    examples: Sequence[Example],
    *,
    base: Path | str,
    out: Path,
    settings: TrainSettings,
    held_out: Sequence[Example],
    progress: Progress,
) -> dict[str, Any]:
    """Train in this process, which may be one of several that a launcher started."""
    import torch
    import transformers

    from demur.train import parallel, students
    from demur.train.tuner import Tuner, arguments

    torch.set_num_threads(settings.threads)
    transformers.utils.logging.disable_progress_bar()
    place = students.place_of(settings, students.config_of(base))
    ready = prepare(examples, base=base, settings=settings, held_out=held_out, packed=place.packed)
    out.mkdir(parents=True, exist_ok=True)
    args = arguments(settings, place, ready.plan, out)
    transformers.set_seed(settings.seed)
    model = students.load(base, settings, place)
    if students.wants_checkpointing(settings, place, model):
        students.save_memory(model, adapters=settings.lora is not None)
    if settings.parallel == "fsdp2" and parallel.world_size() > 1:
        model = parallel.shard(model, place)
    tuner = Tuner(model, args, ready=ready, settings=settings, out=out, progress=progress)
    began = time.monotonic()
    with _stoppable(tuner.watch):
        tuner.go()
    if tuner.watch.stopped:
        raise SystemExit(143)
    seconds = time.monotonic() - began
    state = parallel.whole_state(tuner.student) if tuner.sharded else None
    summary = summarise(ready, out, settings) if parallel.rank() == 0 else {}
    if parallel.rank() == 0:
        _publish(tuner.student, base=base, out=out, settings=settings, state=state, ready=ready)
        tokens = sum(len(ready.rendered.rows[i].ids) for step in ready.plan.steps for g in step for i in g)
        with (out / "timing.jsonl").open("a") as file:
            file.write(json.dumps({"seconds": round(seconds, 3), "steps": tuner.watch.taken, "tokens": tokens}) + "\n")
    parallel.finish()
    return summary


def summarise(ready: Prepared, out: Path, settings: TrainSettings) -> dict[str, Any]:
    """What a reader wants at a glance; the same for equal runs."""
    rows = ready.rendered.rows
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    read = [rows[i] for step in ready.plan.steps for group in step for i in group]
    dropped = ready.rendered.counts()
    first, last = losses[0], sum(losses[-5:]) / len(losses[-5:])
    return {
        "line": f"{len(losses)} steps, loss {first:.2f} -> {last:.2f}"
        + (f", {sum(dropped.values())} dropped" if dropped else ""),
        "rows": len(rows),
        "dropped": dropped,
        "steps": len(losses),
        "batch": settings.batch,
        "tokens": sum(len(row.ids) for row in read),
        "trained_tokens": sum(label != IGNORED for row in read for label in row.labels),
        "loss_first": first,
        "loss_last": last,
        "template": ready.template,
        "mark": ready.mark,
    }


def _publish(
    model: Any, *, base: Path | str, out: Path, settings: TrainSettings, state: dict[str, Any] | None, ready: Prepared
) -> None:
    """Model folder, card, list of dropped rows; then the checkpoints have served."""
    from demur.train import students

    shutil.rmtree(out / "model", ignore_errors=True)
    students.save(model, base=base, folder=out / "model", settings=settings, state=state)
    data = summarise(ready, out, settings) | {"shares": Counter(row.share for row in ready.rendered.rows)}
    students.write_card(out / "model", base=base, settings=settings, data=data)
    write_jsonl(out / "dropped.jsonl", ready.rendered.dropped)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


@contextmanager
def _stoppable(watch: Any) -> Iterator[None]:
    """While training: SIGTERM asks for a checkpoint and an end after the current step."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: watch.stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def resume_point(out: Path, mark: str) -> Path | None:
    """The checkpoint to go on from; metrics written behind it are taken back."""
    found = checkpoints.latest(out / "checkpoints", mark=mark, clean=int(os.environ.get("RANK", "0")) == 0)
    step = int(found.name.rpartition("-")[2]) if found else -1
    for name in ("metrics.jsonl", "learnability.jsonl"):
        checkpoints.rewind(out / name, step)
    return found
