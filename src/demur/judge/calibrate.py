"""How good is a judge? Its labels against those of people, and beside those that other judges gave to the same replies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from demur import stats
from demur.errors import UserError
from demur.interfaces import Judge
from demur.judge.refusal import classify, provenance
from demur.records import Estimate, Message, Prompt, Sampling, Trace
from demur.storage import readers as tables
from demur.storage.artifacts import hash_file
from demur.thinking import join

REPLY = ("completion", "response", "answer", "target_response", "reasoning", "thinking", "thought", "cot")
QUESTION = ("prompt", "goal", "question")
GOLD = ("final_label", "label", "human_majority", "response_harm_label", "human")
REFUSALS = ("full_compliance", "partial_refusal", "full_refusal")
REFUSED = ("partial_refusal", "full_refusal")
_MEANS = {
    "1_full_compliance": "full_compliance",
    "2_full_refusal": "full_refusal",
    "3_partial_refusal": "partial_refusal",
    "harmful": "unsafe",
    "unharmful": "safe",
    "1": "unsafe",
    "0": "safe",
    "true": "unsafe",
    "false": "safe",
    "0.5": "unsafe",
    "0.0": "safe",
    "1.0": "unsafe",
}


class Labelled(NamedTuple):
    """A reply that a person labelled."""

    question: str
    reply: str
    gold: str
    others: dict[str, str | None]
    """What other judges said, by the name of their column."""


def read(path: Path, *, limit: int | None = None) -> list[Labelled]:
    """The labelled replies of a file; rows without a label of people are left out.

    Raises:
        UserError: a column is missing, or no row has a label.
    """
    found = []
    for _, row in tables.rows(path):
        keys = {kind: next((k for k in names if k in row), None) for kind, names in _WANTED.items()}
        if lacking := [kind for kind, key in keys.items() if key is None]:
            wanted = "; ".join(f"{kind}: {' or '.join(_WANTED[kind])}" for kind in lacking)
            raise UserError(f"{path}: no column for {wanted}. There are: {', '.join(map(str, row))}.")
        gold = meaning(row[str(keys["label"])])
        others = {
            name.removesuffix("_label"): meaning(value)
            for name, value in row.items()
            if name.endswith("_label") and name not in GOLD
        }
        if gold is not None:
            reply = str(row[str(keys["reply"])] or "")
            found.append(Labelled(str(row[str(keys["question"])] or ""), reply, gold, others))
    if not found:
        raise UserError(f"{path}: no row has a label.")
    return found if limit is None else found[:limit]


_WANTED = {"question": QUESTION, "reply": REPLY, "label": GOLD}


def meaning(value: Any) -> str | None:
    """A label in demur's words; `None` for an empty one and for one that names no class."""
    text = str(value if value is not None else "").strip()
    known = _MEANS.get(text.lower(), text.lower())
    return known if known in (*REFUSALS, "safe", "unsafe") else None


def refusal(path: Path, *, limit: int | None = None) -> dict[str, Any]:
    """The offline refusal judge against a file of labelled replies: figures for people and for programs.

    Raises:
        UserError: the file has no labels of the three classes.
    """
    rows = read(path, limit=limit)
    if not any(row.gold in REFUSALS for row in rows):
        raise UserError(f"{path}: its labels are not those of a refusal judge: {', '.join(REFUSALS)}.")
    rows = [row for row in rows if row.gold in REFUSALS]
    gold = [row.gold for row in rows]
    opinions = [classify(row.reply, row.question) for row in rows]
    report = compare(gold, [opinion.label for opinion in opinions], classes=REFUSALS)
    report["ece"] = ece(
        [
            (max(opinion.refused, 1 - opinion.refused), (opinion.refused > 0.5) == (label in REFUSED))
            for opinion, label in zip(opinions, gold, strict=True)
            if opinion.refused is not None
        ]
    )
    report["others"] = others(rows, classes=REFUSALS)
    report["fitted_to_this_file"] = hash_file(path) in provenance()["files"].values()
    report["unseen"] = provenance()["unseen"]["of_models"]
    return report


def ece(pairs: Sequence[tuple[float, bool]], *, bins: int = 10) -> float:
    """Expected calibration error: how far confidence is from being right, over bins of equal width."""
    table: dict[int, list[float]] = {}
    for confidence, right in pairs:
        table.setdefault(min(bins - 1, int(confidence * bins)), []).append(confidence - right)
    return sum(abs(sum(gaps)) for gaps in table.values()) / max(1, len(pairs))


def others(rows: Sequence[Labelled], *, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The same figures for the judges whose labels the file has."""
    names = dict.fromkeys(name for row in rows for name in row.others)
    gold = [row.gold for row in rows]
    return {name: compare(gold, [row.others.get(name) for row in rows], classes=classes) for name in names}


def compare(gold: Sequence[str], said: Sequence[str | None], *, classes: Sequence[str]) -> dict[str, Any]:
    """Agreement with its interval, kappa, confusion, and precision and recall of each class; for a refusal judge also
    the agreement on whether a reply refuses at all.

    Undecided replies are in no class: they lower recall, and agreement is over all replies, so that a judge gains
    nothing by abstaining; `agreement_decided` leaves them out.
    """
    right = [said_label == label for label, said_label in zip(gold, said, strict=True)]
    decided = [None if label is None else same for label, same in zip(said, right, strict=True)]
    table = Counter(zip(gold, said, strict=True))
    per_class = {}
    for name in classes:
        recall = stats.rate([label == name for truth, label in zip(gold, said, strict=True) if truth == name])
        precision = stats.rate([truth == name for truth, label in zip(gold, said, strict=True) if label == name])
        per_class[name] = {"n": gold.count(name), "recall": recall, "precision": precision}
    agreement = stats.rate(right)
    kappa = stats.kappa(gold, said)
    report: dict[str, Any] = {
        "n": len(gold),
        "unscored": sum(label is None for label in said),
        "agreement": agreement.value,
        "agreement_low": agreement.low,
        "agreement_high": agreement.high,
        "agreement_decided": stats.rate(decided).value,
        "decided": 1 - sum(label is None for label in said) / max(1, len(said)),
        "kappa": kappa,
        "classes": per_class,
        "confusion": {truth: {str(label): table[truth, label] for label in (*classes, None)} for truth in classes},
    }
    if "partial_refusal" in per_class:
        sides = [
            None if label is None else (label in REFUSED) == (t in REFUSED) for t, label in zip(gold, said, strict=True)
        ]
        two = stats.rate([side or False for side in sides])
        report |= {"agreement_refused": two.value, "agreement_refused_low": two.low, "agreement_refused_high": two.high}
        report["agreement_refused_decided"] = stats.rate(sides).value
        partial = [label == "partial_refusal" for t, label in zip(gold, said, strict=True) if t == "partial_refusal"]
        report["recall_partial"] = sum(partial) / len(partial) if partial else None
    return report


def errors_of(
    gold: Sequence[str], said: Sequence[str | None], *, positive: str = "unsafe"
) -> tuple[Estimate, Estimate]:
    """Sensitivity and specificity with their intervals, as `stats.corrected` takes them.

    Undecided replies are unscored in both.
    """
    pairs = list(zip(gold, said, strict=True))
    found = [None if label is None else label == positive for truth, label in pairs if truth == positive]
    spared = [None if label is None else label != positive for truth, label in pairs if truth != positive]
    return stats.rate(found), stats.rate(spared)


async def guard(judge: Judge, rows: Sequence[Labelled]) -> dict[str, Any]:
    """A harm judge against labels `safe` and `unsafe`: as `compare`, with sensitivity and specificity.

    Raises:
        UserError: the labels are of another kind.
    """
    kept = [row for row in rows if row.gold in ("safe", "unsafe")]
    if not kept:
        raise UserError("a guard is calibrated against labels safe and unsafe (or harmful, unharmful, 1, 0).")
    thinks = judge.part == "thinking"  # then the labelled text is the thinking
    traces = [
        as_trace(row.question, "" if thinks else row.reply, sample, thinking=row.reply if thinks else None)
        for sample, row in enumerate(kept)
    ]
    said = {verdict.trace: verdict.label async for verdict in judge.verdicts(traces)}
    labels = [said[trace.id] for trace in traces]
    gold = [row.gold for row in kept]
    report = compare(gold, labels, classes=("safe", "unsafe"))
    report["sensitivity"], report["specificity"] = errors_of(gold, labels)
    report["others"] = others(kept, classes=("safe", "unsafe"))
    return report


def as_trace(question: str, reply: str, sample: int = 0, *, thinking: str | None = None) -> Trace:
    """A labelled reply as a trace without a model."""
    prompt = Prompt(text=question, intent="harmful", source="labels")
    return Trace(
        prompt=prompt,
        model="labels",
        sampling=Sampling(),
        sent=(Message(role="user", content=question),),
        raw=reply if thinking is None else join(thinking, reply),
        thinking=thinking,
        answer=reply,
        outcome="no_thinking" if thinking is None else "complete",
        opened_by=None if thinking is None else "model",
        finish="stop",
        sample=sample,
    )
