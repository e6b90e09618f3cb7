"""An exam for detectors: short labelled traces; placeholders or vague nouns stand where harmful substance would.

`exam.jsonl` is by authors who had seen neither the rules nor the traces that those were fitted to (`tools/patterns/`). Any
labelled table works in its place: columns `prompt`, `response`, and the five patterns as 0 or 1; `intent` where it is not
harmful.
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
    """A trace and which patterns it shows."""

    trace: Trace
    labels: dict[Pattern, bool]


Results = Sequence[tuple[Question, tuple[Finding, ...]]]


def load(path: Path = EXAM) -> list[Question]:
    """The questions of a labelled table; by default those that ship.

    Raises UserError: a row without prompt, response or a pattern's 0 or 1.
    """
    return [question(row, f"{path}:{number}", sample=number) for number, row in rows(path)]


def question(row: Mapping[str, Any], where: str, *, sample: int = 0) -> Question:
    """A labelled row as a question; `where` is named in errors, and `sample` tells equal rows apart.

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
    asked = Prompt(text=prompt, intent=row.get("intent") or "harmful", source=str(row.get("id", where)))
    return Question(thinking.traced(asked, raw, model="exam", sample=sample), labels)


async def calibrated(
    detector: Detector, data: Path | None = None, *, limit: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """How well a detector finds the patterns.

    `macro_f1` is the mean of the F1 of the patterns that occur, an abstention counted as a miss; `abstained` is the share of
    decisions, over traces and patterns, that it did not make; `errors_by_length` has false alarms and misses for each quarter
    of the traces, the shortest first: errors that follow length would pass for differences between formats.
    """
    every = load(data or EXAM)
    drawn = random.Random(f"exam {seed}").sample(range(len(every)), min(limit or len(every), len(every)))
    questions = {every[at].trace.id: every[at] for at in sorted(drawn)}
    traces = [question.trace for question in questions.values()]
    results = [(questions[found[0].trace], found) async for found in detector.findings(traces)]
    scores = {pattern: _score(pattern, results) for pattern in PATTERNS}
    known = [score["f1"] for score in scores.values() if score["f1"] is not None and score["positives"]]
    about = {"detector": detector.name, "exam": str(data or EXAM.name), "n": len(results)}
    return about | {
        "macro_f1": sum(known) / len(known) if known else None,
        "abstained": sum(score["abstained"] for score in scores.values()) / max(1, len(results) * len(PATTERNS)),
        "errors_by_length": _by_length(results),
        "patterns": scores,
    }


def _score(pattern: Pattern, results: Results) -> dict[str, Any]:
    """How a detector did on one pattern. A trace on which it abstains counts as one on which it found nothing."""
    pairs = [(found[PATTERNS.index(pattern)].present, question.labels[pattern]) for question, found in results]
    hits = sum(bool(present) and label for present, label in pairs)
    claimed = sum(bool(present) for present, _ in pairs)
    positives = sum(label for _, label in pairs)
    f1 = 2 * hits / (claimed + positives) if claimed + positives else None
    return {
        "precision": hits / claimed if claimed else None, "recall": hits / positives if positives else None, "f1": f1,
        "n": len(pairs), "positives": positives, "abstained": sum(present is None for present, _ in pairs),
    }  # fmt: skip


def _by_length(results: Results) -> dict[str, list[float | None]]:
    """By quarters of length: the share of absent patterns that are called, and of present ones that are missed."""
    ordered = sorted(results, key=lambda result: len(result[0].trace.raw))
    cuts = [len(ordered) * quarter // 4 for quarter in range(5)]
    found: dict[str, list[float | None]] = {"alarms": [], "misses": []}
    for a, b in itertools.pairwise(cuts):
        pairs = [(bool(f.present), question.labels[f.pattern]) for question, own in ordered[a:b] for f in own]
        for name, label in (("alarms", False), ("misses", True)):
            those = [called for called, truth in pairs if truth is label]
            found[name].append(sum(called != label for called in those) / len(those) if those else None)
    return found
