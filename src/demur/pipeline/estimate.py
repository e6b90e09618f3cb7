"""What stages would ask, without asking anyone: requests and tokens at most by part, money at most, what is there already.

Bounds: every reply as long as its budget lets it; an adaptive attack as if no goal were ever reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demur.interfaces import Ask
from demur.models.config import Remote
from demur.pipeline.dag import Planned
from demur.pipeline.hardware import SMALL, parameters, to_train, together
from demur.pipeline.run import CACHE
from demur.pipeline.stage import Stage
from demur.storage.reply_cache import ReplyCache


def outlook(planned: Sequence[Planned]) -> dict[str, Any]:
    """Stages by kind, requests by part of the stages that are not done, and what memory the models take, as plain data."""
    kinds: dict[str, dict[str, Any]] = {}
    parts: dict[str, list[int]] = {}
    for item in planned:
        blank = {"kind": item.stage.kind, "of": 0, "done": 0, "requests": 0, "tokens": 0, "cost": None}
        row = kinds.setdefault(item.stage.kind, blank)
        row["of"] += 1
        row["done"] += item.done
        for ask in () if item.done else item.stage.estimate():
            row["requests"] += ask.requests
            row["tokens"] += ask.tokens_in + ask.tokens_out
            cost = _cost(item.stage, ask)
            row["cost"] = row["cost"] if cost is None else (row["cost"] or 0.0) + cost
            sums = parts.setdefault(ask.part, [0, 0, 0])
            for index, value in enumerate(ask[1:]):
                sums[index] += value
    asked = [
        {"part": name, "requests": a, "tokens_in_at_most": b, "tokens_out_at_most": c}
        for name, (a, b, c) in sorted(parts.items())
    ]
    return {"stages": list(kinds.values()), "parts": asked, "notes": _memory([item.stage for item in planned])}


def _cost(stage: Stage[Any], ask: Ask) -> float | None:
    """The price at most, where prices were declared."""
    model = stage.models.get(ask.part)
    return model.prices.cost(ask.tokens_in, ask.tokens_out) if isinstance(model, Remote) and model.prices else None


def _memory(stages: Sequence[Stage[Any]]) -> list[str]:
    """What answering needs and whether it fits together, and what training needs."""
    models = {part: m.weights_at for stage in stages for part, m in stage.models.items() if part != "base"}
    lines = together({part: model for part, model in models.items() if (parameters(model) or 0) > SMALL})
    for stage in stages:
        if stage.kind == "train":
            name = stage.models["base"].weights_at
            need = to_train(name, lora=stage.settings.train.lora is not None)
            if need is not None and (parameters(name) or 0) > SMALL:
                lines.append(f"training {name}: about {need:.0f} GB")
    return list(dict.fromkeys(lines))


def cached(out: Path) -> list[str]:
    """What this folder's reply cache holds already."""
    if not (out / CACHE).is_dir():
        return []
    with ReplyCache(out / CACHE) as cache:
        count = cache.count()
    return [f"{count:,} replies are stored already; what is stored is not asked again"] if count else []
