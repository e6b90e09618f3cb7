"""The loss of a model on rows that it does not train on: how hard a data set is, and how fast it is learnt.

Thinking and answer apart, per token and per sequence, before and during training. The first version of the paper says that
short and templated reasoning are easier to learn; later work found that the distance of a data set from the base foretells
what training on it costs in reasoning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from demur.train import batches, distributed
from demur.train.render import IGNORED, Row

if TYPE_CHECKING:
    from demur.train.trainer import Trainer

Part = Literal["thinking", "answer", "whole"]
PARTS: tuple[Part, ...] = ("thinking", "answer", "whole")
BATCH_TOKENS = 8192


class Measured(NamedTuple):
    """One row: summed loss in nats and number of tokens, of each part."""

    example: str
    nats: dict[Part, float]
    tokens: dict[Part, int]


def steps_to_measure(steps: int) -> frozenset[int]:
    """0, 1, 2, 4, 8 … and the last."""
    return frozenset({0, steps, *(1 << power for power in range(steps.bit_length()) if 1 << power <= steps)})


def measure(trainer: Trainer, rows: Sequence[Row]) -> list[Measured]:
    """The loss of each row, in the given order; each process works on a part of them."""
    import torch

    groups = _groups(rows, trainer.place.packed)
    world = distributed.world_size()
    groups += [[]] * (-len(groups) % world)
    found: dict[int, Measured] = {}
    trainer.model.eval()
    with torch.no_grad():
        for group in groups[distributed.rank() :: world]:
            losses = trainer.losses([rows[i] for i in group] or batches.idle(rows)).float().tolist()
            at = 0
            for i in group:
                found[i] = _split(rows[i], losses[at : at + rows[i].trained])
                at += rows[i].trained
    everything = {i: m for part in distributed.gathered(found) for i, m in part.items()}
    return [everything[i] for i in range(len(rows))]


def _groups(rows: Sequence[Row], packed: bool) -> list[list[int]]:
    """Rows of like length, as many as fit."""
    groups: list[list[int]] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i].ids)):
        if groups and packed and len(rows[i].ids) * (len(groups[-1]) + 1) <= BATCH_TOKENS:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _split(row: Row, losses: Sequence[float]) -> Measured:
    """The losses of one row's supervised tokens, by part."""
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
    """Lines of `learnability.jsonl`: for each part, loss per token (over all tokens), loss per sequence."""
    rows = []
    for part in PARTS:
        if count := sum(m.tokens[part] for m in measured):
            nats = sum(m.nats[part] for m in measured)
            losses = {"loss": nats / count, "loss_per_sequence": nats / len(measured)}
            row = {"step": step, "trained_tokens": tokens, "part": part, "rows": len(measured), "tokens": count}
            rows.append(row | losses)
    return rows
