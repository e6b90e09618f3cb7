"""An exam for detectors: short labelled traces, with placeholders or vague nouns in place of harmful substance.

The authors of `exam.jsonl` saw neither the rules nor the traces that they were fitted to (`tools/patterns/`). A table
works in its place that has `prompt`, `response`, and the five patterns as 0 or 1; `intent` is harmful by default.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from demur import thinking
from demur.errors import UserError
from demur.interfaces import Detector
from demur.records import PATTERNS, Finding, Pattern, Prompt, Trace
from demur.storage.readers import rows

EXAM = Path(__file__).with_name("exam.jsonl")


class Question(NamedTuple):
    """A trace and the patterns that it shows."""

    trace: Trace
    labels: dict[Pattern, bool]


Results = Sequence[tuple[Question, tuple[Finding, ...]]]


def load(path: Path = EXAM) -> list[Question]:
    """The questions of a labelled table, by default the shipped one. Raises UserError as `question`."""
    return [question(row, f"{path}:{number}", sample=number) for number, row in rows(path)]


def question(row: Mapping[str, Any], where: str, *, sample: int = 0) -> Question:
    """A labelled row as a question; errors name `where`, and `sample` distinguishes equal rows.

    Raises UserError: a row without prompt, response or a pattern's 0 or 1.
    """
    prompt, raw = row.get("prompt"), row.get("response")
    if not isinstance(prompt, str) or not isinstance(raw, str):
        raise UserError(f"{where}: a labelled row needs the texts 'prompt' and 'response'.")
    values = {pattern: str(row.get(pattern)).strip().lower() for pattern in PATTERNS}
    for pattern, value in values.items():
        if value not in ("0", "1", "true", "false"):
            raise UserError(f"{where}: '{pattern}' must be 0 or 1; it is {row.get(pattern)!r}.")
    labels = {pattern: value in ("1", "true") for pattern, value in values.items()}
    record = Prompt(text=prompt, intent=row.get("intent") or "harmful", source=str(row.get("id", where)))
    return Question(thinking.traced(record, raw, model="exam", sample=sample), labels)


async def calibrated(
    detector: Detector, data: Path | None = None, *, limit: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """How well a detector finds the patterns, over a draw of `limit` questions.

    `macro_f1` is the mean F1 of the patterns that occur, with abstentions as misses; `abstained` is the share of
    decisions, over traces and patterns, that were not made; `errors_by_length` has the rates of false alarms and misses
    by quarters of the traces, the shortest first: errors that depend on length look like differences between formats.
    """
    every = load(data or EXAM)
    drawn = random.Random(f"exam {seed}").sample(range(len(every)), min(limit or len(every), len(every)))
    questions = {every[at].trace.id: every[at] for at in sorted(drawn)}
    traces = [question.trace for question in questions.values()]
    results = [(questions[findings[0].trace], findings) async for findings in detector.findings(traces)]
    scores = {pattern: _score(pattern, results) for pattern in PATTERNS}
    f1s = [score["f1"] for score in scores.values() if score["f1"] is not None and score["positives"]]
    return {
        "detector": detector.name,
        "exam": str(data or EXAM.name),
        "n": len(results),
        "macro_f1": sum(f1s) / len(f1s) if f1s else None,
        "abstained": sum(score["abstained"] for score in scores.values()) / max(1, len(results) * len(PATTERNS)),
        "errors_by_length": _by_length(results),
        "patterns": scores,
    }


def _score(pattern: Pattern, results: Results) -> dict[str, Any]:
    """The scores of a detector on one pattern. An abstention counts as finding nothing."""
    pairs = [(findings[PATTERNS.index(pattern)].present, question.labels[pattern]) for question, findings in results]
    hits = sum(bool(present) and label for present, label in pairs)
    claimed = sum(bool(present) for present, _ in pairs)
    positives = sum(label for _, label in pairs)
    return {
        "precision": hits / claimed if claimed else None,
        "recall": hits / positives if positives else None,
        "f1": 2 * hits / (claimed + positives) if claimed + positives else None,
        "n": len(pairs),
        "positives": positives,
        "abstained": sum(present is None for present, _ in pairs),
    }


def _by_length(results: Results) -> dict[str, list[float | None]]:
    """By quarters of length: the share of absent patterns that are claimed, and of present ones that are missed."""
    ordered = sorted(results, key=lambda result: len(result[0].trace.raw))
    bounds = [len(ordered) * quarter // 4 for quarter in range(5)]
    rates: dict[str, list[float | None]] = {"alarms": [], "misses": []}
    for a, b in itertools.pairwise(bounds):
        pairs = [(bool(f.present), question.labels[f.pattern]) for question, findings in ordered[a:b] for f in findings]
        for name, label in (("alarms", False), ("misses", True)):
            claims = [present for present, truth in pairs if truth is label]
            rates[name].append(sum(present != label for present in claims) / len(claims) if claims else None)
    return rates
