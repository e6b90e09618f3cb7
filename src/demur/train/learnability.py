"""How hard a data set is for a student: what it costs before training, and how fast that falls.

The loss that a student has on rows it never trains on, thinking and answer apart, per token and per sequence, before and
during training. The first version of the paper says that short and templated reasoning are easier to learn; later work
found that the distance of a data set from the student foretells what training on it costs in reasoning.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from demur.records import Estimate, Example
from demur.stats import mean
from demur.train import pack
from demur.train.render import IGNORED, Renderer, Row, load_tokenizer, stops_of
from demur.train.settings import TrainSettings

Part = Literal["thinking", "answer", "whole"]
PARTS: tuple[Part, ...] = ("thinking", "answer", "whole")
BATCH_TOKENS = 8192


class Measured(NamedTuple):
    """One held-out row: summed loss in nats and number of tokens, of each part."""

    example: str
    cluster: str
    nats: dict[Part, float]
    tokens: dict[Part, int]


def steps_to_measure(wanted: Sequence[int] | None, steps: int) -> frozenset[int]:
    """0, 1, 2, 4, 8 … and the last, unless said."""
    if wanted is not None:
        return frozenset(wanted)
    return frozenset({0, steps, *(1 << power for power in range(steps.bit_length()) if 1 << power <= steps)})


def measure(model: Any, rows: Sequence[Row], *, pad: int, packed: bool = False) -> list[Measured]:
    """The loss of each row under a model, in the given order; its state is left as it was."""
    import torch

    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    found: dict[int, Measured] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for group in _groups(order, rows):
                batch = pack.collate([rows[i] for i in group], pad=pad, packed=packed)
                batch = {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}
                losses = model(**batch)["losses"].float().tolist()
                at = 0
                for i in group:
                    count = sum(label != IGNORED for label in rows[i].labels[1:])
                    found[i] = _split(rows[i], losses[at : at + count])
                    at += count
    finally:
        model.train(was_training)
    return [found[i] for i in range(len(rows))]


def _groups(order: Sequence[int], rows: Sequence[Row]) -> Iterable[list[int]]:
    """RecordFile of like length, as many as fit."""
    group: list[int] = []
    for i in order:
        if group and len(rows[i].ids) * (len(group) + 1) > BATCH_TOKENS:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


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
    return Measured(row.example, row.cluster or row.example, nats, tokens)


def per_token(measured: Sequence[Measured], part: Part) -> Estimate:
    """Mean over rows of a row's loss per token, in nats; rows without the part do not count."""
    rows = [m for m in measured if m.tokens[part]]
    return mean([m.nats[part] / m.tokens[part] for m in rows], clusters=[m.cluster for m in rows])


def per_sequence(measured: Sequence[Measured], part: Part) -> Estimate:
    """Mean over rows of a row's summed loss, in nats."""
    rows = [m for m in measured if m.tokens[part]]
    return mean([m.nats[part] for m in rows], clusters=[m.cluster for m in rows])


def lines(measured: Sequence[Measured], *, step: int, tokens: int) -> list[dict[str, Any]]:
    """Lines of `learnability.jsonl`: for each part, loss per token (over all tokens), perplexity, loss per sequence."""
    rows = []
    for part in PARTS:
        count = sum(m.tokens[part] for m in measured)
        if not count:
            continue
        nats = sum(m.nats[part] for m in measured)
        rows.append(
            {
                "step": step,
                "trained_tokens": tokens,
                "part": part,
                "rows": len(measured),
                "tokens": count,
                "loss": nats / count,
                "perplexity": math.exp(min(nats / count, 700.0)),
                "loss_per_sequence": nats / len(measured),
            }
        )
    return rows


def reached(curve: Sequence[dict[str, Any]], *, target: float, part: Part = "whole") -> tuple[int, int] | None:
    """Steps and trained tokens until the loss per token was at most `target`; `None` when it never was.

    Between two measurements nothing is assumed: the first one at or below the target counts.
    """
    for row in sorted((row for row in curve if row["part"] == part), key=lambda row: row["step"]):
        if row["loss"] <= target:
            return row["step"], row["trained_tokens"]
    return None


def distance(
    base: Path | str, examples: Sequence[Example], *, settings: TrainSettings | None = None
) -> dict[str, Estimate]:
    """How far examples are from a student: its untrained loss on them, per token and per sequence, by part.

    Returns:
        `thinking`, `answer`, `whole`: nats per token; `thinking_sequence` …: nats per sequence.
    """
    from demur.train import students

    settings = settings or TrainSettings()
    tokenizer = load_tokenizer(base)
    renderer = Renderer(tokenizer, template=settings.template, stops=stops_of(base))
    rows = renderer.rows(examples, max_length=settings.max_length).rows
    place = students.place_of(settings.model_copy(update={"packing": False}), students.config_of(base))
    model = students.load(base, settings.model_copy(update={"lora": None}), place).to(place.device)
    measured = measure(model, rows, pad=tokenizer.pad_token_id or tokenizer.eos_token_id)
    found: dict[str, Estimate] = {}
    for part in PARTS:
        found[part] = per_token(measured, part)
        found[f"{part}_sequence"] = per_sequence(measured, part)
    return found
