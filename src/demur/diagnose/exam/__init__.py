"""The exam of the detectors: short traces written for it, with labels; placeholders or vague nouns stand where harm would.

The tuning half is in seven voices, and beside it stand thousands of sentences with their roles (`sentences.jsonl`), which the rules
are fitted to. The held-out half is by three other authors, who had seen neither rules nor tuning half. Any labelled table works in its
place: columns `prompt`, `response`, and the five patterns as 0 or 1; `intent` where it is not harmful.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from demur import thinking
from demur.errors import UserError
from demur.interfaces import Detector
from demur.records import PATTERNS, Finding, Pattern, Prompt, Trace
from demur.storage.readers import rows

Half = Literal["held_out", "tuning"]


class Question(NamedTuple):
    """A trace and which patterns it shows."""

    trace: Trace
    labels: dict[Pattern, bool]


class Score(NamedTuple):
    """How a detector did on one pattern, over the traces on which it decided."""

    precision: float | None
    recall: float | None
    f1: float | None
    n: int
    positives: int
    abstained: int


def load(half: Half = "held_out") -> list[Question]:
    """A half of the exam that ships."""
    path = resources.files("demur.diagnose.exam") / f"{half}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    return [question(msgspec.json.decode(line), f"{half}.jsonl:{number}") for number, line in enumerate(lines, 1)]


def load_file(path: Path) -> list[Question]:
    """A labelled table of the user's.

    Raises:
        UserError: a row without prompt, response or a pattern's 0 or 1.
    """
    return [question(row, f"{path}:{number}") for number, row in rows(path)]


def question(row: Mapping[str, Any], where: str) -> Question:
    """A labelled row as a question; `where` is named in errors.

    Raises:
        UserError: a row without prompt, response or a pattern's 0 or 1.
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
    return Question(thinking.traced(asked, raw, model="exam"), labels)


async def graded(detector: Detector, questions: Iterable[Question]) -> list[tuple[Question, tuple[Finding, ...]]]:
    """Every question with the detector's findings."""
    listed = list(questions)
    by_id = {question.trace.id: question for question in listed}
    return [(by_id[found[0].trace], found) async for found in detector.findings([q.trace for q in listed])]


def calibrate(detector: Detector, data: Path | None = None, *, half: Half = "held_out") -> dict[str, Any]:
    """`calibrated`, where no event loop runs."""
    return asyncio.run(calibrated(detector, data, half=half))


async def calibrated(
    detector: Detector, data: Path | None = None, *, half: Half = "held_out", limit: int | None = None
) -> dict[str, Any]:
    """How well a detector finds the patterns.

    Precision and recall of a pattern count the traces on which the detector decided; `macro_f1` is the mean of the F1 of
    the patterns that occur, and `abstained` the share of decisions, over traces and patterns, that it did not make.
    """
    questions = (load_file(data) if data is not None else load(half))[:limit]
    results = await graded(detector, questions)
    scores = {pattern: _score(pattern, results) for pattern in PATTERNS}
    known = [score.f1 for score in scores.values() if score.f1 is not None and score.positives]
    return {
        "detector": detector.name,
        "half": half if data is None else str(data),
        "n": len(results),
        "macro_f1": sum(known) / len(known) if known else None,
        "abstained": sum(score.abstained for score in scores.values()) / max(1, len(results) * len(PATTERNS)),
        "patterns": {pattern: score._asdict() for pattern, score in scores.items()},
    }


def _score(pattern: Pattern, results: Iterable[tuple[Question, tuple[Finding, ...]]]) -> Score:
    said = [(found[PATTERNS.index(pattern)].present, question.labels[pattern]) for question, found in results]
    decided = [(present, label) for present, label in said if present is not None]
    hits = sum(present and label for present, label in decided)
    claimed = sum(bool(present) for present, _ in decided)
    positives = sum(label for _, label in decided)
    return Score(
        precision=hits / claimed if claimed else None,
        recall=hits / positives if positives else None,
        f1=2 * hits / (claimed + positives) if claimed + positives else None,
        n=len(decided),
        positives=positives,
        abstained=len(said) - len(decided),
    )
