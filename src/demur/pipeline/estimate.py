"""What a study would ask and where its models would run, as plain data for `demur plan`. No model is asked.

The counts are upper bounds: every reply as long as its budget allows; an adaptive attack as if no goal were ever reached.
"""

from collections.abc import Sequence
from typing import Any

from demur.models.config import Local, Served
from demur.pipeline.dag import Planned
from demur.pipeline.placement import Phase, Place
from demur.pipeline.sizes import training
from demur.train.settings import TrainSettings


def outlook(planned: Sequence[Planned], phases: Sequence[Phase]) -> dict[str, Any]:
    """Upper bounds on requests, tokens and cost, by kind of stage and by part, and the schedule."""
    kinds: dict[str, dict[str, Any]] = {}
    parts: dict[str, dict[str, Any]] = {}
    for item in planned:
        counts = {"of": 0, "done": 0, "requests": 0, "tokens": 0, "cost": None}
        row = kinds.setdefault(item.stage.kind, {"kind": item.stage.kind} | counts)
        row["of"] += 1
        row["done"] += item.done
        for ask in () if item.done else item.stage.estimate():
            prices = getattr(item.stage.models.get(ask.part), "prices", None)
            cost = prices.cost(ask.tokens_in, ask.tokens_out) if prices else None
            row["requests"] += ask.requests
            row["tokens"] += ask.tokens_in + ask.tokens_out
            names = ("requests", "tokens_in_at_most", "tokens_out_at_most")
            part = parts.setdefault(ask.part, {"part": ask.part, **dict.fromkeys(names, 0), "cost": None})
            for name, value in zip(names, ask[1:], strict=True):
                part[name] += value
            for sums in (row, part):
                sums["cost"] = sums["cost"] if cost is None else (sums["cost"] or 0.0) + cost
    shown = [_shown(number, phase) for number, phase in enumerate(phases, 1)]
    minutes = [max((model["minutes"] or 0.0 for model in phase["models"]), default=0.0) for phase in shown]
    costs = [part["cost"] for part in parts.values() if part["cost"] is not None]
    total = {"hours": round(sum(minutes) / 60, 1) or None, "cost": sum(costs) if costs else None}
    by_name = [parts[name] for name in sorted(parts)]
    return {"stages": list(kinds.values()), "parts": by_name, "phases": shown, "total": total}


def _shown(number: int, phase: Phase) -> dict[str, Any]:
    """A phase as plain data."""
    asks = [ask for item in phase.stages for ask in item.stage.estimate()]
    models = [_placed(place) for place in phase.places]
    models += [row for item in phase.stages if phase.training for row in _training(item)]
    work = "train" if phase.training else "generate" if phase.generating else "models up" if models else "prepare"
    return {
        "phase": number, "work": work, "stages": [item.name for item in phase.stages], "models": models,
        "requests": sum(ask.requests for ask in asks), "tokens": sum(ask.tokens_in + ask.tokens_out for ask in asks),
        "problem": phase.problem,
    }  # fmt: skip


def _placed(place: Place) -> dict[str, Any]:
    """A model as a row of the schedule; its minutes are those at the least speed that is declared for a busy server."""
    need, model, minutes = place.need, place.need.model, None
    if isinstance(model, Served):
        minutes = round(need.tokens / model.least_speed / model.in_flight / place.copies / 60, 1)
    name = model.where.removesuffix("/model").rpartition("/stages/")[2]
    row = {"part": need.part, "model": name, "devices": list(place.devices), "gigabytes": round(need.gigabytes, 1)}
    return row | {"share": place.share, "max_model_len": need.length, "minutes": minutes}


def _training(item: Planned) -> list[dict[str, Any]]:
    """A training as a row of the schedule: how it is distributed, over which cards, and its memory on each."""
    base, settings = item.stage.models.get("base"), getattr(item.stage.settings, "train", None)
    if not isinstance(base, Local) or not isinstance(settings, TrainSettings):
        return []
    size = training(base.weights_at, settings, base.revision)
    if size is None:
        return []
    row: dict[str, Any] = {"part": f"train ({size.wrapper})", "model": base.where}
    row |= {"devices": [card.number for card in size.cards], "gigabytes": round(size.gigabytes, 1)}
    return [row | {"max_model_len": settings.max_length, "share": 1.0, "minutes": None}]
