"""RecordFile to the exact sequence of micro-batches, known before the first step.

The rows of an update follow from the seed alone: shuffled epochs, one behind the other, `batch` at a time. How they are
cut into micro-batches follows from lengths, memory and the number of processes, and changes neither the rows of the update
nor its loss (which is a mean over its tokens). Since nothing is drawn while training runs, a resumed run reads on
where the killed one stopped; sorting by length inside an update saves padding without the bias of length-grouped
sampling, and without its defect (a resumed run that groups differently).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from demur.records import digest
from demur.train.render import IGNORED, Row

if TYPE_CHECKING:
    import torch

Group = list[int]
"""Indices of the rows of one micro-batch; none: a micro-batch that only keeps processes in step."""


class Plan(NamedTuple):
    """What every step reads."""

    steps: list[list[Group]]
    """Step -> micro-batches, equally many in each step and a multiple of `world`."""
    world: int
    packed: bool

    @property
    def rounds(self) -> int:
        """Micro-batches that each process works on in one step."""
        return len(self.steps[0]) // self.world

    def of_rank(self, rank: int) -> list[Group]:
        """The micro-batches of one process, in order."""
        return [group for step in self.steps for group in step[rank :: self.world]]

    def mark(self, rows: Sequence[Row]) -> str:
        """A hash of everything that will be read."""
        return digest([self.steps, self.world, self.packed, [[row.ids, row.labels] for row in rows]])


class Limits(NamedTuple):
    """What one micro-batch may hold."""

    tokens: int
    rows: int | None = None


def order(count: int, *, total: int, seed: int) -> list[int]:
    """Row indices in the order of training: each epoch a shuffle of its own."""
    rows: list[int] = []
    epoch = 0
    while len(rows) < total:
        indices = list(range(count))
        random.Random(digest([seed, epoch])).shuffle(indices)
        rows += indices
        epoch += 1
    return rows[:total]


def plan(lengths: Sequence[int], *, rows: Sequence[int], batch: int, limits: Limits, world: int, packed: bool) -> Plan:
    """Cut the sequence of rows into steps and micro-batches.

    Args:
        lengths: tokens of each row.
        rows: indices in the order of training.
        batch: rows of one step; the last step may have fewer.
        limits: tokens (padding included) and rows of one micro-batch.
        world: number of processes.
        packed: rows stand behind each other instead of being padded.
    """
    steps = [list(rows[at : at + batch]) for at in range(0, len(rows), batch)]
    cut = _bins if packed else _bands
    count = max(len(cut(step, lengths, limits, 0)) for step in steps)
    count = -(-count // world) * world
    return Plan([cut(step, lengths, limits, count) for step in steps], world, packed)


def _bins(step: Sequence[int], lengths: Sequence[int], limits: Limits, count: int) -> list[Group]:
    """RecordFile into bins of like sums, the longest first into the emptiest; `count` 0: as few as the limits allow."""
    ranked = sorted(step, key=lambda i: (-lengths[i], i))
    if not count:
        need = 1
        while not _fit(_bins(step, lengths, limits, need), lengths, limits) and need < len(step):
            need += 1
        return _bins(step, lengths, limits, need)
    groups: list[Group] = [[] for _ in range(count)]
    sums = [0] * count
    for row in ranked:
        least = min(range(count), key=lambda g: (sums[g], g))
        groups[least].append(row)
        sums[least] += lengths[row]
    return groups


def _fit(groups: list[Group], lengths: Sequence[int], limits: Limits) -> bool:
    """Whether packed groups keep within the limits."""
    return all(
        sum(lengths[i] for i in group) <= limits.tokens and (limits.rows is None or len(group) <= limits.rows)
        for group in groups
    )


def _bands(step: Sequence[int], lengths: Sequence[int], limits: Limits, count: int) -> list[Group]:
    """RecordFile sorted by length and cut into `count` bands of like padded size; 0: as few as the limits allow."""
    ranked = sorted(step, key=lambda i: (-lengths[i], i))
    if not count:
        return _cut(ranked, lengths, limits)
    low, high = lengths[ranked[0]], lengths[ranked[0]] * len(ranked)
    while low < high:
        middle = (low + high) // 2
        if len(_cut(ranked, lengths, Limits(middle))) <= count:
            high = middle
        else:
            low = middle + 1
    groups = _cut(ranked, lengths, Limits(low))
    while len(groups) < count and any(len(group) > 1 for group in groups):
        widest = max(range(len(groups)), key=lambda g: (len(groups[g]) > 1, lengths[groups[g][0]] * len(groups[g])))
        half = len(groups[widest]) // 2
        groups[widest : widest + 1] = [groups[widest][:half], groups[widest][half:]]
    return groups + [[] for _ in range(count - len(groups))]


def _cut(ranked: Sequence[int], lengths: Sequence[int], limits: Limits) -> list[Group]:
    """Bands of rows, longest first, each as wide as the limits allow; one row always fits."""
    groups: list[Group] = []
    for row in ranked:
        last = groups[-1] if groups else None
        room = last and (limits.rows is None or len(last) < limits.rows)
        if last and room and lengths[last[0]] * (len(last) + 1) <= limits.tokens:
            last.append(row)
        else:
            groups.append([row])
    return groups


def collate(rows: Sequence[Row], *, pad: int, packed: bool) -> dict[str, Any]:
    """RecordFile as the tensors of one micro-batch.

    Padded: `input_ids`, `labels`, `attention_mask`, each [rows, longest]. Packed: `input_ids`, `labels`, `position_ids`,
    each [1, tokens], and the bounds of the rows for attention. The first token of a row is never a target. Both
    also hold `supervised` [targets], the flat positions whose hidden state predicts, and `targets` [targets].
    """
    import torch

    heads = [[IGNORED, *row.labels[1:]] for row in rows]
    if packed:
        ids = [[token for row in rows for token in row.ids]]
        labels = [[label for head in heads for label in head]]
        bounds = [0]
        for row in rows:
            bounds.append(bounds[-1] + len(row.ids))
        edges = torch.tensor(bounds, dtype=torch.int32)
        longest = max(len(row.ids) for row in rows)
        extra: dict[str, Any] = {
            "position_ids": torch.tensor([[at for row in rows for at in range(len(row.ids))]]),
            "cu_seq_lens_q": edges,
            "cu_seq_lens_k": edges,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    else:
        longest = max(len(row.ids) for row in rows)
        ids = [row.ids + [pad] * (longest - len(row.ids)) for row in rows]
        labels = [head + [IGNORED] * (longest - len(head)) for head in heads]
        extra = {"attention_mask": torch.tensor([[1] * len(r.ids) + [0] * (longest - len(r.ids)) for r in rows])}
    wanted = torch.tensor(labels)
    return {"input_ids": torch.tensor(ids), "labels": wanted, **extra, **_targets(wanted)}


def _targets(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Where the loss looks: position t predicts the label at t + 1."""
    flat = labels.flatten()
    at = (flat != IGNORED).nonzero().flatten()
    return {"supervised": at - 1, "targets": flat[at]}


def idle(rows: Sequence[Row]) -> list[Row]:
    """A micro-batch on which no loss falls: the shortest row without labels."""
    shortest = min(rows, key=lambda row: len(row.ids))
    return [shortest._replace(labels=[IGNORED] * len(shortest.ids))]
