"""What is known before the first step: rows, checked; their order; what each micro-batch holds."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from demur.errors import UserError
from demur.records import Example, Pair, digest, read_jsonl
from demur.settings import identity_of
from demur.train import batches, distributed
from demur.train.render import Rendered, Renderer, Row
from demur.train.settings import TrainSettings


class Job(NamedTuple):
    """What is to be trained, in plain data: what other processes are told."""

    examples: str  # File of training rows
    held_out: str  # File of rows to measure the loss on; empty: none
    base: str
    name: str  # What the base is called
    out: str
    settings: TrainSettings


class Prepared(NamedTuple):
    """Everything that is known before the first step."""

    rendered: Rendered
    held_out: Rendered
    units: list[list[int]]  # What an update consists of: indices of rows, one by one or chosen and rejected together
    plan: batches.Plan
    fingerprint: str  # Of rows, their order and the settings: a checkpoint of another one is not used
    template: str
    notes: list[str]  # What is unusual about the chat template and no obstacle

    def rows(self, units: Iterable[int]) -> list[Row]:
        """The rows of some units."""
        return [self.rendered.rows[i] for unit in units for i in self.units[unit]]

    def read(self) -> list[Row]:
        """All rows that are read, with repetitions."""
        return self.rows(self.plan.rows())


def prepare(job: Job) -> Prepared:
    """Read, render, check and plan. Raises UserError: there are no rows; CheckFailed: a check does not hold."""
    from demur.train import model
    from demur.train.loss import LARGE

    settings = job.settings
    pairs = settings.method != "sft"
    kind: type[Example] | type[Pair] = Pair if pairs else Example
    examples: list[Example | Pair] = list(read_jsonl(Path(job.examples), kind))
    if not examples:
        raise UserError("nothing to train on: no examples were given.")
    # Beyond its positions a model has learnt nothing to build on.
    config = model.config_of(job.base)
    longest = min(settings.max_length, getattr(config, "max_position_embeddings", None) or settings.max_length)
    renderer = Renderer.of(job.base, template=settings.template, loss=settings.loss)
    renderer.mask, renderer.primer = settings.mask, settings.primer
    rendered = renderer.rows(examples, max_length=longest)
    held = list(read_jsonl(Path(job.held_out), Example)) if job.held_out else []
    measured = Renderer.of(job.base, template=settings.template)
    held_out = measured.rows(held, max_length=longest) if held else Rendered([], [])
    size = 1 + pairs
    units = [list(range(at, at + size)) for at in range(0, len(rendered.rows), size)]
    lengths = [sum(len(rendered.rows[i].ids) for i in unit) for unit in units]
    total = settings.steps * settings.batch if settings.steps else max(1, int(settings.epochs * len(lengths) + 0.5))
    rows = batches.order(len(lengths), total=total, seed=settings.seed)
    place = model.place_of(settings, config)
    packed, room = place.packed, settings.micro_tokens
    if place.device.type == "cpu":
        # Long lines gain nothing there, and weigh: a third less memory at the same speed (docs/training.md).
        room = min(room, LARGE["cpu"] // config.get_text_config().vocab_size)
    limits = batches.Limits(room, settings.micro_batch if packed else 1)
    if pairs and not packed:
        raise UserError(f"train.method={settings.method} needs packed rows; this model or train.packing forbids it.")
    plan = batches.plan(lengths, rows=rows, batch=settings.batch, limits=limits, world=distributed.world_size())
    read = digest([identity_of(settings), rows, [[row.ids, row.labels] for row in rendered.rows]])
    return Prepared(rendered, held_out, units, plan, read, renderer.family, renderer.chat.notes())
