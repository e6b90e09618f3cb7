"""The loss of a model on rows that it does not train on: how hard a data set is, and how fast it is learned.

It is measured before and during training, for thinking and answer separately, per token and per sequence. The paper's
first version says that short and templated reasoning are easier to learn; later work found that the distance of a data
set from the base predicts what training on it costs in reasoning.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from demur.train import batches, distributed
from demur.train.render import IGNORED, Row

if TYPE_CHECKING:
    from demur.train.trainer import Trainer

Part = Literal["thinking", "answer", "whole"]
PARTS: tuple[Part, ...] = ("thinking", "answer", "whole")
BATCH_TOKENS = 8192


class Measured(NamedTuple):
    """The loss of one row, by part: its sum in nats, and the number of tokens."""

    example: str
    nats: dict[Part, float]
    tokens: dict[Part, int]


def steps_to_measure(steps: int) -> frozenset[int]:
    """0, 1, 2, 4, 8 … and the last."""
    return frozenset({0, steps, *(1 << power for power in range(steps.bit_length()) if 1 << power <= steps)})


def measure(trainer: "Trainer", rows: Sequence[Row]) -> list[Measured]:
    """The loss of each row, in the given order; each process measures some of the rows."""
    groups = _groups(rows, trainer.place.packed)
    world = distributed.world_size()
    groups += [[]] * (-len(groups) % world)
    measured: dict[int, Measured] = {}
    trainer.wrapped.eval()
    with torch.no_grad():
        for group in groups[distributed.rank() :: world]:
            losses = iter(trainer.losses([rows[i] for i in group] or batches.idle(rows)).float().tolist())
            measured |= {i: _split(rows[i], islice(losses, rows[i].trained)) for i in group}
    by_row = {i: row for part in distributed.all_gather(measured) for i, row in part.items()}
    return [by_row[i] for i in range(len(rows))]


def _groups(rows: Sequence[Row], packed: bool) -> list[list[int]]:
    """Indices of rows of similar length, as many together as fit in `BATCH_TOKENS`."""
    groups: list[list[int]] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i].ids)):
        if groups and packed and len(rows[i].ids) * (len(groups[-1]) + 1) <= BATCH_TOKENS:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _split(row: Row, losses: Iterable[float]) -> Measured:
    """The losses of a row's supervised tokens, summed by part."""
    places = [at for at, label in enumerate(row.labels) if label != IGNORED and at]
    nats: dict[Part, float] = dict.fromkeys(PARTS, 0.0)
    tokens: dict[Part, int] = dict.fromkeys(PARTS, 0)
    for at, loss in zip(places, losses, strict=True):
        parts: tuple[Part, Part] = ("thinking" if at < row.answer else "answer", "whole")
        for part in parts:
            nats[part] += loss
            tokens[part] += 1
    return Measured(row.example, nats, tokens)


def lines(measured: Sequence[Measured], *, step: int, tokens: int) -> list[dict[str, Any]]:
    """The lines of `learnability.jsonl` at a step: of each part, the loss per token and per sequence over all rows."""
    rows = []
    for part in PARTS:
        if count := sum(m.tokens[part] for m in measured):
            nats = sum(m.nats[part] for m in measured)
            losses = {"loss": nats / count, "loss_per_sequence": nats / len(measured)}
            row = {"step": step, "trained_tokens": tokens, "part": part, "rows": len(measured), "tokens": count}
            rows.append(row | losses)
    return rows
