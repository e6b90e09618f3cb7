"""Rows to the exact sequence of micro-batches, known before the first step.

The rows of an update follow from the seed alone: shuffled epochs, one behind the other, `batch` at a time. How they are
cut into micro-batches follows from lengths, memory and the number of processes, and changes neither the rows of the update
nor its loss (which is a mean over its tokens). Since nothing is drawn while training runs, a resumed run reads on
where the killed one stopped, also with other memory or another number of processes.
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from demur.records import digest
from demur.train.render import IGNORED, Row

Group = list[int]  # Indices of the rows of one micro-batch; none: a micro-batch that only keeps processes in step


class Limits(NamedTuple):
    """What one micro-batch may hold."""

    tokens: int
    rows: int | None = None


class Plan(NamedTuple):
    """What every step reads."""

    steps: list[list[Group]]  # Step -> micro-batches, a multiple of `world`
    world: int = 1

    def of_rank(self, step: int, rank: int) -> list[Group]:
        """The micro-batches of one process in one step, counted from 0."""
        return self.steps[step][rank :: self.world]

    def rows(self) -> list[int]:
        """Indices of all rows that are read, with repetitions."""
        return [i for step in self.steps for group in step for i in group]


def order(count: int, *, total: int, seed: int) -> list[int]:
    """Row indices in the order of training: each epoch a shuffle of its own."""
    rows: list[int] = []
    while len(rows) < total:
        indices = list(range(count))
        random.Random(digest([seed, len(rows) // count])).shuffle(indices)
        rows += indices
    return rows[:total]


def plan(lengths: Sequence[int], *, rows: Sequence[int], batch: int, limits: Limits, world: int) -> Plan:
    """Cut the sequence of rows into steps of `batch` rows (the last may have fewer), and these into micro-batches within
    `limits`, as many for each of `world` processes. One row always fits."""
    steps = [list(rows[at : at + batch]) for at in range(0, len(rows), batch)]
    return Plan([_bins(step, lengths, limits, world) for step in steps], world)


def _bins(step: Sequence[int], lengths: Sequence[int], limits: Limits, world: int) -> list[Group]:
    """Rows in bins of like sums, as few as the limits allow: the longest row first, into the emptiest bin."""
    ranked = sorted(step, key=lambda i: (-lengths[i], i))
    for count in range(world, len(step) + world + 1, world):
        groups: list[Group] = [[] for _ in range(count)]
        sums = [0] * count
        for row in ranked:
            least = sums.index(min(sums))
            groups[least].append(row)
            sums[least] += lengths[row]
        if all(
            len(group) < 2 or (size <= limits.tokens and len(group) <= (limits.rows or len(step)))
            for group, size in zip(groups, sums, strict=True)
        ):
            break
    return groups


def collate(rows: Sequence[Row], *, packed: bool) -> dict[str, Any]:
    """Rows behind each other as the tensors of one micro-batch; without `packed`, one row alone.

    `input_ids` [1, tokens]; `supervised`, the positions whose hidden state predicts, and `targets` [targets]; packed also
    `position_ids` [1, tokens] and the rows' bounds for attention. The first token of a row is never a target.
    """
    import torch

    ids = torch.tensor([[token for row in rows for token in row.ids]])
    labels = torch.tensor([label for row in rows for label in (IGNORED, *row.labels[1:])])
    at = (labels != IGNORED).nonzero().flatten()
    batch: dict[str, Any] = {"input_ids": ids, "supervised": at - 1, "targets": labels[at]}
    if packed:
        lengths = [len(row.ids) for row in rows]
        edges = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        batch["position_ids"] = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
        batch |= {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges}
        batch |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    else:
        assert len(rows) == 1, "rows that cannot be packed come one at a time"
    return batch


def idle(rows: Sequence[Row]) -> list[Row]:
    """A micro-batch on which no loss falls: the shortest row without labels."""
    shortest = min(rows, key=lambda row: len(row.ids))
    return [shortest._replace(labels=[IGNORED] * len(shortest.ids))]
