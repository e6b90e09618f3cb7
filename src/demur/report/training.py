"""What became of the data, and how hard it was to learn: funnels, mixes, losses on held-out rows.

The distance of a data set from a model is the untrained model's loss on it. The target is the loss that the slowest arm
ended with, so that every arm gets there and the only question is when.
"""

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from demur.records import Record
from demur.report.read import Run, label

Part = Literal["thinking", "answer", "whole"]
PARTS: tuple[Part, ...] = ("whole", "thinking", "answer")
SHORTEST = 3  # Tokens a row on average below which there is nothing to learn: an empty thinking is its closing tag


class Learnability(Record, frozen=True, kw_only=True):
    """The losses of one arm, seed and part, in nats per token; `_sequence`: per sequence."""

    arm: str
    seed: int | None
    part: Part
    rows: int
    distance: float
    distance_sequence: float
    end: float
    end_sequence: float
    target: float  # Loss per token to reach: the largest end of all arms
    steps: int  # Updates until a measurement was at or below the target
    tokens: int  # Supervised tokens trained on until then


class Curve(Record, frozen=True, kw_only=True):
    """Loss per response token over training steps."""

    arm: str
    seed: int | None
    series: str
    steps: tuple[float, ...]
    loss: tuple[float, ...]


class _Loss(msgspec.Struct):
    """A line of a training's files: its loss while training, or on rows held out."""

    step: float
    loss: float
    part: str = "whole"
    loss_per_sequence: float = 0.0
    rows: int = 0
    trained_tokens: int = 0


def _trainings(run: Run) -> Iterator[tuple[str, int | None, list[_Loss], list[_Loss]]]:
    """Arm, seed, losses while training, losses on held-out rows."""
    for stage in run.of_kind("train"):
        settings = stage.manifest.settings
        if not settings.get("tampered"):
            files = ("metrics", "learnability")
            training, held_out = (list(stage.read(name, _Loss)) if stage.has(name) else [] for name in files)
            yield str(settings.get("arm", stage.manifest.name)), settings.get("seed"), training, held_out


def curves(run: Run) -> Iterator[Curve]:
    """Loss per response token while training: of the rows trained on, and of held-out rows, by part."""
    for arm, seed, training, held_out in _trainings(run):
        series = {"training rows": training} if training else {}
        for line in held_out:
            series.setdefault(f"held-out rows, {line.part}", []).append(line)
        for name, lines in sorted(series.items()):
            steps, loss = tuple(line.step for line in lines), tuple(line.loss for line in lines)
            yield Curve(arm=run.split(arm)[0], seed=seed, series=name, steps=steps, loss=loss)


def learnability(run: Run) -> Iterator[Learnability]:
    """The learnability table of a run, part by part, arms in the order of the run."""
    held_out = {(arm, seed): sorted(lines, key=lambda line: line.step) for arm, seed, _, lines in _trainings(run)}
    for part in PARTS:
        every = {key: [line for line in lines if line.part == part] for key, lines in held_out.items()}
        long = {k: rows for k, rows in every.items() if rows and rows[0].loss_per_sequence >= SHORTEST * rows[0].loss}
        target = max((lines[-1].loss for lines in long.values()), default=0.0)
        for (arm, seed), lines in long.items():
            first, last = lines[0], lines[-1]
            reached = next(line for line in lines if line.loss <= target)
            yield Learnability(
                arm=arm, seed=seed, part=part, rows=first.rows, distance=first.loss,
                distance_sequence=first.loss_per_sequence, end=last.loss, end_sequence=last.loss_per_sequence,
                target=target, steps=int(reached.step), tokens=reached.trained_tokens,
            )  # fmt: skip


def accounts(run: Run, kind: str, key: str) -> dict[str, Any]:
    """What stages of a kind counted in their summaries: distillations' funnels, repairs' counts, mixes' tables."""
    counts = {label(stage, kind): stage.manifest.summary.get(key) for stage in run.of_kind(kind)}
    return {name: count for name, count in counts.items() if count}


def in_order(row: dict[str, Any], *first: str) -> dict[str, Any]:
    """A row with some keys first and its outcome, what is kept or taken, last."""
    last = [key for key in ("kept", "taken") if key in row]
    middle = [key for key in row if key not in first and key not in last]
    return {key: row[key] for key in (*first, *middle, *last) if key in row}
