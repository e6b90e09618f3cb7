"""What is settled before the first step: rows, rendered and checked; their order; the content of each micro-batch."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from demur.errors import UserError
from demur.records import Example, Pair, digest, read_jsonl
from demur.settings import identity_of
from demur.train import batches, distributed, model
from demur.train.loss import MAX_LOGITS
from demur.train.render import Rendered, Renderer, Row
from demur.train.settings import TrainSettings


class Job(NamedTuple):
    """A training as plain data, which is sent to other processes."""

    examples: str  # File of training rows
    held_out: str  # File of rows to measure the loss on; empty: none
    base: str  # Folder or hub id
    name: str  # The base's name on the model card
    out: str
    settings: TrainSettings


class Prepared(NamedTuple):
    """A training that is ready for its first step."""

    rendered: Rendered
    held_out: Rendered
    units: list[list[int]]  # Indices of the rows of each unit: one row, or a chosen and a rejected one
    plan: batches.Plan  # The order of units
    fingerprint: str  # Of rows, order and settings: a checkpoint of another one is not resumed
    template: str
    notes: list[str]  # What is unusual about the chat template, though no obstacle

    def rows(self, units: Iterable[int]) -> list[Row]:
        """The rows of some units."""
        return [self.rendered.rows[i] for unit in units for i in self.units[unit]]


def prepare(job: Job) -> Prepared:
    """Read, render, check and plan. Raises UserError: there are no rows; CheckFailed: a check does not hold."""
    settings, config = job.settings, model.config_of(job.base)
    pairs = settings.method != "sft"
    kind: type[Example] | type[Pair] = Pair if pairs else Example
    examples: list[Example | Pair] = list(read_jsonl(Path(job.examples), kind))
    if not examples:
        raise UserError("nothing to train on: no examples were given.")
    # A model has not learned to use positions beyond those of its configuration.
    max_length = min(settings.max_length, getattr(config, "max_position_embeddings", None) or settings.max_length)
    renderer = Renderer.of(job.base, template=settings.template, loss=settings.loss)
    renderer.mask, renderer.primer = settings.mask, settings.primer
    rendered, held_out = renderer.rows(examples, max_length=max_length), Rendered([], [])
    held_out_examples = list(read_jsonl(Path(job.held_out), Example)) if job.held_out else []
    if held_out_examples:
        held_out = Renderer.of(job.base, template=settings.template).rows(held_out_examples, max_length=max_length)
    place, micro_tokens = model.place_of(settings, config), settings.micro_tokens
    if pairs and not place.packed:
        raise UserError(f"train.method={settings.method} needs packed rows; this model or train.packing forbids it.")
    if place.device.type == "cpu":
        # On a CPU shorter lines are as fast and take a third less memory (docs/training.md).
        micro_tokens = min(micro_tokens, MAX_LOGITS["cpu"] // config.get_text_config().vocab_size)
    limits = batches.Limits(micro_tokens, settings.micro_batch if place.packed else 1)
    size = 2 if pairs else 1
    units = [list(range(at, at + size)) for at in range(0, len(rendered.rows), size)]
    lengths = [sum(len(rendered.rows[i].ids) for i in unit) for unit in units]
    total = settings.steps * settings.batch if settings.steps else max(1, int(settings.epochs * len(units) + 0.5))
    order = batches.order(len(units), total=total, seed=settings.seed)
    plan = batches.plan(lengths, rows=order, batch=settings.batch, limits=limits, world=distributed.world_size())
    fingerprint = digest([identity_of(settings), order, [[row.ids, row.labels] for row in rendered.rows]])
    return Prepared(rendered, held_out, units, plan, fingerprint, renderer.family, renderer.chat.notes())
