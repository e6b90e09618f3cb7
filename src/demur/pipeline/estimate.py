"""What a study would ask, without asking anyone: requests, tokens at most, money at most, memory, what is missing.

Token counts are upper bounds (every reply as long as its budget lets it); prompts count a token for four characters. An
adaptive attack is counted as if no goal were ever reached. Memory follows the rules of thumb of `memory.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from demur import attack as attacks
from demur import bench as benches
from demur import judge as judges
from demur.errors import UserError
from demur.models.config import ModelConfig
from demur.pipeline.graph import graph, missing
from demur.pipeline.hardware import SMALL, parameters, to_train, together
from demur.pipeline.run import Node, Planned, plan
from demur.pipeline.stages import KINDS
from demur.pipeline.study import BenchUse, Study

CHARACTERS_A_TOKEN = 4
DETECTOR_TOKENS = 4096
"""Bound on what a model that detects patterns writes, its own thinking included."""
UNKNOWN_TOKENS = 100
"""Length of a prompt where no local copy tells."""


class Ask(NamedTuple):
    """Requests to one role."""

    role: str
    requests: int
    tokens_in: int
    tokens_out: int


def foresee(study: Study, out: Path) -> dict[str, Any]:
    """Everything that `demur plan` says, as plain data: stages by kind, requests by role, notes, what is missing."""
    lacks = missing(study)
    try:
        items = plan(graph(study), KINDS, out)
    except UserError as error:
        return {"study": study.name, "stages": [], "roles": [], "notes": [], "missing": [*lacks, str(error)]}
    nodes = {item.node.name: item.node for item in items}
    counts: dict[str, tuple[int, int]] = {}
    kinds: dict[str, dict[str, Any]] = {}
    roles: dict[str, list[int]] = {}
    for item in items:
        asks = _asks(item.node, nodes, counts, lacks)
        row = kinds.setdefault(
            item.node.kind, {"kind": item.node.kind, "of": 0, "done": 0, "requests": 0, "tokens": 0, "cost": None}
        )
        row["of"] += 1
        row["done"] += item.done
        for ask in () if item.done else asks:
            row["requests"] += ask.requests
            row["tokens"] += ask.tokens_in + ask.tokens_out
            cost = _cost(study.roles.get(ask.role), ask)
            row["cost"] = row["cost"] if cost is None else (row["cost"] or 0.0) + cost
            sums = roles.setdefault(ask.role, [0, 0, 0])
            for index, value in enumerate((ask.requests, ask.tokens_in, ask.tokens_out)):
                sums[index] += value
    by_role = [
        {"role": name, "requests": a, "tokens_in": b, "tokens_out_at_most": c}
        for name, (a, b, c) in sorted(roles.items())
    ]
    return {
        "study": study.name,
        "stages": list(kinds.values()),
        "roles": by_role,
        "notes": [*_memory(study), *_journal(out, items)],
        "missing": list(dict.fromkeys(lacks)),
    }


def _asks(node: Node, nodes: Mapping[str, Node], counts: dict[str, tuple[int, int]], lacks: list[str]) -> list[Ask]:
    """Whom a stage would ask how much."""
    if node.kind == "distil":
        count, size = _prompts(node.inputs["prompts"], nodes, counts, lacks)
        return _distil_asks(node, count, size)
    if node.kind == "evaluate":
        return _evaluate_asks(node, lacks)
    if node.kind == "diagnose" and "detector" in node.settings:
        source = nodes[node.inputs["traces"]]
        count, size = _prompts(source.inputs["prompts"], nodes, counts, lacks)
        settings = source.settings["distil"]
        replies = count * settings["samples"]
        return [Ask("detector", replies, replies * (size + settings["max_tokens"]), replies * DETECTOR_TOKENS)]
    return []


def _prompts(
    name: str, nodes: Mapping[str, Node], counts: dict[str, tuple[int, int]], lacks: list[str]
) -> tuple[int, int]:
    """How many prompts a stage draws, and their mean length in tokens; read from local files only."""
    if name not in counts:
        from demur.prompts.load import load
        from demur.prompts.settings import PromptsSettings

        try:
            found = load(PromptsSettings(**{**nodes[name].settings, **_moved(nodes[name])}))
            size = sum(len(prompt.text) for prompt in found) // max(1, len(found)) // CHARACTERS_A_TOKEN
            counts[name] = (len(found), size)
        except UserError as error:
            lacks.append(f"prompts    {error}")
            counts[name] = (0, 0)
    return counts[name]


def _moved(node: Node) -> dict[str, str]:
    """The places at which a prompt stage's files were found."""
    return {key: path for key, path in node.files.items() if key in ("source", "data", "templates")}


def _distil_asks(node: Node, count: int, size: int) -> list[Ask]:
    from demur.distil.settings import DistilSettings
    from demur.distil.strategy import load

    settings = DistilSettings(**node.settings["distil"])
    if load(node.files.get("strategy", settings.strategy)).constant is not None:
        return []
    replies = count * (settings.bound if settings.until_safe else settings.samples)
    asks = [Ask("teacher", replies, replies * size, replies * settings.max_tokens)]
    if settings.parts and judges.requires_model(node.settings["filter"]):
        judged = replies * len(settings.parts)
        asks.append(Ask("judge", judged, judged * (size + settings.max_tokens), judged * 100))
    return asks


def _evaluate_asks(node: Node, lacks: list[str]) -> list[Ask]:
    from demur.bench.load import load_prompts
    from demur.pipeline.stages.measure import sampling_of

    use = BenchUse(**node.settings["bench"])
    bench = benches.get_bench(use.name)
    count, size = bench.count or 0, UNKNOWN_TOKENS
    if "data" in node.files or bench.generated:
        data = Path(node.files["data"]) if "data" in node.files else None
        try:
            found = load_prompts(bench, data=data, limit=use.limit, seed=use.seed)
        except UserError as error:
            lacks.append(f"bench      {error}")
            return []
        count = len(found)
        size = sum(len(prompt.text) for prompt in found) // max(1, count) // CHARACTERS_A_TOKEN
    elif not bench.hub:
        lacks.append(f"bench      {bench.name}: no local copy; give one of {', '.join(bench.files)} in --data-dir")
    count = min(count, use.limit or count)
    sampling = sampling_of(bench, use)
    files = {key.removeprefix("attack_"): Path(file) for key, file in node.files.items() if key.startswith("attack_")}
    replies = attacks.variants(use.attack, count, files) * sampling.n
    asks = [Ask("target", replies, replies * size, replies * sampling.max_tokens)]
    if judges.requires_model(use.judge or bench.judge):
        asks.append(Ask("judge", replies, replies * (size + sampling.max_tokens), replies * 100))
    asks += [Ask(*ask) for ask in attacks.estimate(use.attack, count, size, files)]
    return asks


def _cost(role: ModelConfig | None, ask: Ask) -> float | None:
    """The price at most, where prices were declared."""
    if role is None or role.prices is None:
        return None
    return role.prices.cost(ask.tokens_in, ask.tokens_out)


def _memory(study: Study) -> list[str]:
    """What answering needs and whether it fits together, and what training needs."""
    arms = [(copy.base, arm.trained) for name, arm in study.arms.items() for copy in study.copies(name)]
    models = {f"target {name}": name for name, _ in arms}
    models |= {role: spec.path or spec.hub or "" for role, spec in study.roles.items()}
    lines = together({role: model for role, model in models.items() if (parameters(model) or 0) > SMALL})
    for name in dict.fromkeys(name for name, trained in arms if trained):
        need = to_train(name, lora=study.train.lora is not None)
        if need is not None and (parameters(name) or 0) > SMALL:
            lines.append(f"training {name}: about {need:.0f} GB")
    return lines


def _journal(out: Path, items: list[Planned]) -> list[str]:
    """What this folder's journal holds already."""
    del items
    if not (out / "journal").is_dir():
        return []
    from demur.storage.reply_cache import ReplyCache

    with ReplyCache(out / "journal") as journal:
        count = journal.count()
    return [f"the journal holds {count:,} replies already; what it holds is not asked again"] if count else []
