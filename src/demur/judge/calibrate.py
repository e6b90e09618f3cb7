"""How good is a judge? Compares its labels with labels from people, and with those of other judges."""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from demur import stats
from demur.errors import UserError
from demur.interfaces import Judge
from demur.judge.base import JudgeSetup, setup_of
from demur.judge.refusal import classify, provenance
from demur.records import Estimate, Prompt, Record, Trace, encode, read_jsonl
from demur.storage import readers as tables
from demur.storage.artifacts import atomic_write, hash_file
from demur.thinking import join, traced

COLUMNS = {
    "question": ("prompt", "goal", "question", "query", "instruction"),
    "reply": ("completion", "response", "answer", "target_response", "reasoning", "thinking", "thought", "cot"),
    "label": ("final_label", "label", "human_majority", "response_harm_label", "human"),
}
REFUSALS, HARMS = ("full_compliance", "partial_refusal", "full_refusal"), ("safe", "unsafe")
REFUSED = REFUSALS[1:]
FOLDER = "calibrations"  # Where calibrations are stored: beside a run's folder, or in it
Weights = Sequence[tuple[float, float]]  # See `weights`
_UNSAFE, _SAFE = ("harmful", "1", "1.0", "0.5", "true"), ("unharmful", "0", "0.0", "false")


class Labelled(NamedTuple):
    """A reply that a person labelled."""

    question: str
    reply: str
    gold: str
    others: dict[str, str | None]  # Labels from other judges, by the name of their column
    weight: tuple[float, float] = (1.0, 1.0)  # See `weights`


def read(path: Path, *, limit: int | None = None, seed: int = 0) -> list[Labelled]:
    """The labelled replies of a file; where there are more than `limit`, a random sample by `seed`, in file order.

    Rows without a label are left out. Raises UserError: a column is missing, or no row has a label.
    """
    rows = [row for _, row in tables.rows(path)]
    labelled = []
    for row, weight in zip(rows, weights(rows), strict=True):
        cells = {str(key).lower(): value for key, value in row.items()}
        keys = {kind: next((name for name in names if name in cells), "") for kind, names in COLUMNS.items()}
        if lacking := [f"{kind}: {' or '.join(COLUMNS[kind])}" for kind, key in keys.items() if not key]:
            raise UserError(f"{path}: no column for {'; '.join(lacking)}. There are: {', '.join(map(str, row))}.")
        question, reply, label = (cells[key] for key in keys.values())
        judged = [name for name in cells if name.endswith("_label") and name not in COLUMNS["label"]]
        others = {name.removesuffix("_label"): meaning(cells[name]) for name in judged}
        if weight[0] and (gold := meaning(label)) is not None:
            labelled.append(Labelled(str(question or ""), str(reply or ""), gold, others, weight))
    if not labelled:
        raise UserError(f"{path}: no row has a label.")
    count = min(limit or len(labelled), len(labelled))
    chosen = random.Random(f"labels {seed}").sample(range(len(labelled)), count)
    return [labelled[index] for index in sorted(chosen)]


def weights(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """For each label: how many replies it stands for, and its share, half where two people labelled a reply.

    In a stratified sample (columns `band`, the stratum, and `of`, its size) a label stands for its share of the
    stratum, and labels from outside the sample stand for none. Otherwise each stands for one reply.
    """
    people = Counter(row.get("id") for row in rows)
    counts = [1 / people[row["id"]] if row.get("id") else 1.0 for row in rows]
    if not any(row.get("band") for row in rows):
        return [(1.0, count) for count in counts]
    drawn = Counter((band, of) for _, band, of in {(row.get("id"), row.get("band"), row.get("of")) for row in rows})
    sizes = [int(row.get("of") or 0) / drawn[row.get("band"), row.get("of")] for row in rows]
    return list(zip(sizes, counts, strict=True))


def meaning(value: Any) -> str | None:
    """A label under demur's name for it; `None` for an empty or unknown one."""
    text = str(value if value is not None else "").strip().lower()
    if text in (*_UNSAFE, *_SAFE):
        return "unsafe" if text in _UNSAFE else "safe"
    known = re.sub("^[123]_", "", text)  # XSTest numbers its classes
    return known if known in (*REFUSALS, *HARMS) else None


def refusal(path: Path, *, limit: int | None = None, seed: int = 0) -> dict[str, Any]:
    """The offline refusal judge against the labels of a file. Raises UserError: none of them is one of its classes."""
    rows = [row for row in read(path, limit=limit, seed=seed) if row.gold in REFUSALS]
    if not rows:
        raise UserError(f"{path}: its labels are not those of a refusal judge: {', '.join(REFUSALS)}.")
    opinions = [classify(row.reply, row.question) for row in rows]
    pairs = zip(rows, opinions, strict=True)
    decided = [(row, opinion.refused) for row, opinion in pairs if opinion.refused is not None]
    confidences = [(max(refused, 1 - refused), (refused > 0.5) == (row.gold in REFUSED)) for row, refused in decided]
    return {
        **against(rows, [opinion.label for opinion in opinions], classes=REFUSALS),
        "ece": ece(confidences, [row.weight for row, _ in decided]),
        "unseen": provenance()["unseen"]["of_models"],
        "fitted_to_this_file": hash_file(path) in provenance()["files"].values(),
    }


async def guard(judge: Judge, rows: Sequence[Labelled]) -> dict[str, Any]:
    """A harm judge against labels `safe` and `unsafe`. Raises UserError: there are none."""
    labelled = [row for row in rows if row.gold in HARMS]
    if not labelled:
        raise UserError("a guard is calibrated against labels safe and unsafe (or harmful, unharmful, 1, 0).")
    if judge.part == "thinking":  # then people labelled the thinking
        traces = [as_trace(row.question, "", sample, thinking=row.reply) for sample, row in enumerate(labelled)]
    else:
        traces = [as_trace(row.question, row.reply, sample) for sample, row in enumerate(labelled)]
    by_trace = {verdict.trace: verdict async for verdict in judge.verdicts(traces)}
    verdicts = [by_trace[trace.id] for trace in traces]
    false_alarms = Counter[str]()
    for row, verdict in zip(labelled, verdicts, strict=True):
        if row.gold == "safe" and verdict.label == "unsafe":
            false_alarms.update(verdict.reason.partition(";")[0].split(","))
    report = against(labelled, [verdict.label for verdict in verdicts], classes=HARMS)
    return report | {"false_alarms": false_alarms}


def ece(pairs: Sequence[tuple[float, bool]], drawn: Weights = (), *, bins: int = 10) -> float:
    """Expected calibration error of (confidence, correct) pairs, over bins of equal width."""
    gaps: dict[int, list[float]] = {}
    sizes = [weight * count for weight, count in drawn] or [1.0] * len(pairs)
    for (confidence, right), size in zip(pairs, sizes, strict=True):
        gaps.setdefault(min(bins - 1, int(confidence * bins)), []).append(size * (confidence - right))
    return sum(abs(sum(of_bin)) for of_bin in gaps.values()) / (sum(sizes) or 1)


def against(rows: Sequence[Labelled], labels: Sequence[str | None], *, classes: Sequence[str]) -> dict[str, Any]:
    """Compare a judge's labels with people's; under `others` those of every judge whose labels the file holds."""
    gold, drawn = [row.gold for row in rows], [row.weight for row in rows]
    others = {}
    for name in dict.fromkeys(name for row in rows for name in row.others):
        others[name] = compare(gold, [row.others.get(name) for row in rows], classes=classes, drawn=drawn)
    return compare(gold, labels, classes=classes, drawn=drawn) | {"others": others}


def compare(
    gold: Sequence[str], labels: Sequence[str | None], *, classes: Sequence[str], drawn: Weights = ()
) -> dict[str, Any]:
    """Agreement, kappa, confusion, recall and precision by class; sensitivity and specificity for refusal, or for harm.

    An undecided reply is in no class: it lowers recall and agreement, so that a judge gains nothing by abstaining.
    Sensitivity and specificity leave it out, as a rate that is corrected by them does. Shares refer to the replies that
    the labels were drawn from (see `weights`); kappa and confusion count labels.
    """
    positive = REFUSED if "full_refusal" in classes else ("unsafe",)
    rows = list(zip(gold, labels, drawn or [(1.0, 1.0)] * len(gold), strict=True))
    sides = [(truth in positive, None if label is None else label in positive) for truth, label, _ in rows]
    sensitivity, specificity = errors_of(sides, [weight for *_, weight in rows])
    table = Counter(zip(gold, labels, strict=True))
    two = stats.drawn((a is b, *weight) for (a, b), (*_, weight) in zip(sides, rows, strict=True))
    return {
        "n": len(gold),
        "unscored": labels.count(None),
        "agreement": stats.drawn((truth == label, *weight) for truth, label, weight in rows),
        "decided": 1 - labels.count(None) / len(gold),
        **({"agreement_refused": two} if positive is REFUSED else {}),
        "kappa": stats.kappa(gold, labels),
        "classes": {
            name: {
                "n": gold.count(name),
                "recall": stats.drawn((label == name, *weight) for truth, label, weight in rows if truth == name),
                "precision": stats.drawn((truth == name, *weight) for truth, label, weight in rows if label == name),
            }
            for name in classes
        },
        "confusion": {truth: {str(label): table[truth, label] for label in (*classes, None)} for truth in classes},
        "sensitivity": sensitivity,
        "specificity": specificity,
    }


def errors_of(sides: Sequence[tuple[bool, bool | None]], drawn: Weights = ()) -> tuple[Estimate, Estimate]:
    """Sensitivity and specificity for `stats.corrected`, from the labels of people and of the judge for each reply."""
    outcomes: dict[bool, list[tuple[bool | None, float, float]]] = {True: [], False: []}
    for (gold, label), weight in zip(sides, drawn or [(1.0, 1.0)] * len(sides), strict=True):
        outcomes[gold].append((None if label is None else label is gold, *weight))
    return stats.drawn(outcomes[True]), stats.drawn(outcomes[False])


class Calibration(Record, frozen=True, kw_only=True):
    """How well a judge agrees with labels from people, stored for the reports of runs that use the same judge."""

    setup: JudgeSetup
    labels: str  # The file of labels
    n: int
    sensitivity: Estimate
    specificity: Estimate
    fitted: bool = False  # The judge was fitted to this file: its figures are better than on unseen replies


def save(judge: Judge, report: Mapping[str, Any], labels: Path, folder: Path) -> Path:
    """Write a calibration to `folder/KEY.json`; reports of the runs beside `folder` read it there. Returns the path."""
    setup, fitted = setup_of(judge), bool(report.get("fitted_to_this_file"))
    figures = {name: report[name] for name in ("n", "sensitivity", "specificity")}
    path = folder / f"{setup.key}.json"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(path, encode(Calibration(setup=setup, labels=labels.name, fitted=fitted, **figures)))
    return path


def saved(run: Path) -> dict[str, Calibration]:
    """Key of a judge -> its calibration, in a run's folder or beside it. Raises UserError: a file is malformed."""
    paths = [path for folder in (run.resolve().parent, run) for path in sorted((folder / FOLDER).glob("*.json"))]
    return {path.stem: calibration for path in paths for calibration in read_jsonl(path, Calibration)}


def as_trace(question: str, reply: str, sample: int = 0, *, thinking: str | None = None) -> Trace:
    """A labelled reply as a trace that no model wrote."""
    prompt = Prompt(text=question, intent="harmful", source="labels")
    raw = reply if thinking is None else join(thinking, reply)
    return traced(prompt, raw, family="none" if thinking is None else "", model="labels", sample=sample)
