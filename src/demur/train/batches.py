"""Rows to the exact sequence of micro-batches, planned before the first step.

The rows of an update follow from the seed alone: shuffled epochs, one after the other, `batch` rows at a time. How they
are cut into micro-batches follows from their lengths, memory and the number of processes, and changes neither the rows
of an update nor its loss (a mean over its tokens). Nothing is drawn during training, so that a resumed run continues
where the killed one stopped, even with other memory or another number of processes.
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from demur.records import digest
from demur.train.render import IGNORED, Row

Group = list[int]  # Indices of the units of one micro-batch; empty: it only keeps processes in step


class Limits(NamedTuple):
    """How many tokens and rows one micro-batch may hold."""

    tokens: int
    rows: int | None = None


class Plan(NamedTuple):
    """The micro-batches of every step."""

    steps: list[list[Group]]  # Step -> micro-batches, a multiple of `world`
    world: int = 1  # Number of processes

    def of_rank(self, step: int, rank: int) -> list[Group]:
        """The micro-batches of one process in one step; steps count from 0."""
        return self.steps[step][rank :: self.world]

    def rows(self) -> list[int]:
        """Indices of all units of the plan, with repetitions."""
        return [i for step in self.steps for group in step for i in group]


def order(count: int, *, total: int, seed: int) -> list[int]:
    """Row indices in the order of training; each epoch is shuffled anew."""
    rows: list[int] = []
    while len(rows) < total:
        indices = list(range(count))
        random.Random(digest([seed, len(rows) // count])).shuffle(indices)
        rows += indices
    return rows[:total]


def plan(lengths: Sequence[int], *, rows: Sequence[int], batch: int, limits: Limits, world: int) -> Plan:
    """Cut the rows in this order into steps of `batch` rows (the last may have fewer), and each step into micro-batches
    within `limits`, equally many for each of `world` processes. A single row always fits."""
    steps = [list(rows[at : at + batch]) for at in range(0, len(rows), batch)]
    return Plan([_bins(step, lengths, limits, world) for step in steps], world)


def _bins(step: Sequence[int], lengths: Sequence[int], limits: Limits, world: int) -> list[Group]:
    """Bins of similar sums, as few as the limits allow: the longest row goes first, each into the emptiest bin."""
    longest_first = sorted(step, key=lambda i: (-lengths[i], i))
    most_rows = limits.rows or len(step)
    for count in range(world, len(step) + world + 1, world):
        bins: list[Group] = [[] for _ in range(count)]
        sums = [0] * count
        for row in longest_first:
            emptiest = sums.index(min(sums))
            bins[emptiest].append(row)
            sums[emptiest] += lengths[row]
        shared = [(rows, total) for rows, total in zip(bins, sums, strict=True) if len(rows) > 1]
        if all(len(rows) <= most_rows and total <= limits.tokens for rows, total in shared):
            break
    return bins


def collate(rows: Sequence[Row], *, packed: bool) -> dict[str, Any]:
    """The tensors of one micro-batch: rows one after the other in one line; without `packed`, a single row.

    They are `input_ids` [1, tokens], the `supervised` positions whose hidden state predicts a target [targets], and
    the `targets` [targets]; packed also `position_ids` [1, tokens] and the rows' bounds for attention. A row's first
    token is never a target.
    """
    ids = torch.tensor([[token for row in rows for token in row.ids]])
    labels = torch.tensor([label for row in rows for label in (IGNORED, *row.labels[1:])])
    at = (labels != IGNORED).nonzero().flatten()
    batch: dict[str, Any] = {"input_ids": ids, "supervised": at - 1, "targets": labels[at]}
    if packed:
        lengths = [len(row.ids) for row in rows]
        bounds, longest = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), max(lengths)
        batch["position_ids"] = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
        batch |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
    else:
        assert len(rows) == 1, "rows that cannot be packed come one at a time"
    return batch


def idle(rows: Sequence[Row]) -> list[Row]:
    """A micro-batch without loss: the shortest row without labels."""
    shortest = min(rows, key=lambda row: len(row.ids))
    return [shortest._replace(labels=[IGNORED] * len(shortest.ids))]
