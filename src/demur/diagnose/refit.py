"""Fits the weights of the rules detector again: `python -m demur.diagnose.refit` writes `weights.json`.

Two fits, both to the tuning half of the exam alone, both logistic regressions held to zero. The first learns from labelled
sentences what role words play. The second learns from whole traces how much each sign counts for each pattern; so that it does not
trust the first too much, it sees every author's traces through weights fitted to the others' sentences. Placeholders would tell more of
an exam than they tell of real traces, where substance stands: whatever has some is learnt from twice, with and without its brackets.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from demur.diagnose import exam
from demur.diagnose.roles import ROLES, STEPS, WEIGHTS, Matrix, Table, grams, read, table
from demur.diagnose.rules import HARMLESS_INTENTS, NAMES, counted, signs
from demur.records import PATTERNS, Part, Trace
from demur.storage import readers as tables
from demur.storage.artifacts import atomic_write

SENTENCES = Path(exam.__file__).with_name("sentences.jsonl")
BRACKETS = re.compile(r"\[([^\[\]]{1,60})\](?!\()")
RARE = 3
"""A gram that fewer sentences have is not learnt from."""
FAINT = 0.1
"""Weights that are smaller for every role are left out."""
FORMS = ("as it stands", "without brackets")
HELD = (1.0, 3.0)
"""How strongly weights are held to zero: of words, of signs."""
OPEN = 0.12
"""Share of the tuning traces on which a pattern is left open."""


class Line(NamedTuple):
    """A labelled sentence."""

    voice: str
    part: Part
    role: str
    text: str


class Seen(NamedTuple):
    """A trace as the second fit sees it."""

    voice: str
    forms: frozenset[str]
    """Which of `FORMS` it is; both, where it has no placeholder."""
    harmless: bool
    labels: tuple[bool, ...]
    signs: Matrix


def fit_words(lines: Sequence[Line], part: Part) -> dict[str, list[int]]:
    """Weights of a part's grams for its roles, as they are written."""
    from scipy import sparse

    found = [(grams(text), line.role) for line in lines if line.part == part for text in both(line.text)]
    counts = Counter(gram for some, _ in found for gram in some)
    names = ["", *sorted(gram for gram, count in counts.items() if count >= RARE)]
    place = {name: row for row, name in enumerate(names)}
    cells = [(row, place[gram]) for row, (some, _) in enumerate(found) for gram in ("", *some) if gram in place]
    rows, columns = zip(*cells, strict=True)
    given = sparse.csr_matrix((np.ones(len(cells)), (rows, columns)), shape=(len(found), len(names)))
    wanted = np.eye(len(ROLES[part]))[[ROLES[part].index(role) for _, role in found]]
    weights = _fitted(given, wanted, held=HELD[0])
    return {
        name: [round(float(w) * STEPS) for w in row]
        for name, row in zip(names, weights, strict=True)
        if not name or abs(row).max() >= FAINT
    }


def _fitted(given: Any, wanted: Matrix, *, held: float) -> Matrix:
    """Multinomial logistic regression, (columns, classes); the first column, the start, is free."""
    from scipy.optimize import minimize

    shape = given.shape[1], wanted.shape[1]
    pull = np.full((shape[0], 1), held)
    pull[0] = 0.0

    def loss(flat: Matrix) -> tuple[float, Matrix]:
        weights = flat.reshape(shape)
        scores = given @ weights
        scores -= scores.max(axis=1, keepdims=True)
        chances = np.exp(scores)
        chances /= chances.sum(axis=1, keepdims=True)
        value = -(wanted * np.log(chances + 1e-12)).sum() + (pull / 2 * weights**2).sum()
        return float(value), (given.T @ (chances - wanted) + pull * weights).ravel()

    best = minimize(loss, np.zeros(shape[0] * shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return np.asarray(best.x).reshape(shape)


def both(text: str) -> tuple[str, ...]:
    """A text, and where it has placeholders, the same without their brackets."""
    bare = BRACKETS.sub(r"\1", text)
    return (text,) if bare == text else (text, bare)


def seen(rows: Sequence[dict[str, Any]], lines: Sequence[Line]) -> list[Seen]:
    """Every tuning trace through weights of other voices."""
    found: list[Seen] = []
    for voice in sorted({row["voice"] for row in rows}):
        others = [line for line in lines if line.voice != voice]
        by: dict[Part, Table] = {part: table(fit_words(others, part)) for part in ROLES}
        for row in (row for row in rows if row["voice"] == voice):
            raws = both(row["response"])
            for place, raw in enumerate(raws):
                question = exam.question({**row, "response": raw}, row["id"])
                if (question.trace.thinking or "").strip():
                    found.append(
                        _seen(question, voice, frozenset(FORMS[place:] if place else FORMS[: 3 - len(raws)]), by)
                    )
    return found


def _seen(question: exam.Question, voice: str, forms: frozenset[str], by: dict[Part, Table]) -> Seen:
    trace: Trace = question.trace
    labels = tuple(question.labels[pattern] for pattern in PATTERNS)
    return Seen(voice, forms, trace.prompt.intent in HARMLESS_INTENTS, labels, signs(read(trace, by=by)))


class Scale(NamedTuple):
    """Weights of the signs of one pattern."""

    start: float
    weights: Matrix
    """(signs,), zero where a sign does not count"""

    def chance(self, found: Seen) -> float:
        """How likely a trace shows the pattern."""
        return float(1 / (1 + np.exp(-(self.weights @ found.signs + self.start))))


def fit_signs(traces: Sequence[Seen], number: int) -> Scale:
    """Weights for a pattern, by its place among `PATTERNS`."""
    asked = _asked(traces, number)
    columns = counted(PATTERNS[number])
    values = np.array([one.signs[columns] for one in asked])
    middle, spread = values.mean(axis=0), values.std(axis=0) + 1e-6
    given = np.hstack([np.ones((len(asked), 1)), (values - middle) / spread])
    wanted = np.array([[not one.labels[number], one.labels[number]] for one in asked], dtype=np.float64)
    # Two classes with weights of their own: their difference is held half as strongly as one weight would be.
    fitted = _fitted(given, wanted, held=2 * HELD[1])
    moved = (fitted[1:, 1] - fitted[1:, 0]) / spread
    weights = np.zeros(len(NAMES))
    weights[columns] = moved
    return Scale(float(fitted[0, 1] - fitted[0, 0] - moved @ middle), weights)


def _asked(traces: Sequence[Seen], number: int) -> list[Seen]:
    """The traces on which a pattern is judged at all."""
    return [one for one in traces if PATTERNS[number] == "inconsistency" or not one.harmless]


def across(traces: Sequence[Seen]) -> list[list[tuple[Seen, float]]]:
    """For each pattern, traces with the chance that weights of other voices give."""
    voices = sorted({one.voice for one in traces})
    found: list[list[tuple[Seen, float]]] = []
    for number in range(len(PATTERNS)):
        asked = _asked(traces, number)
        pairs = []
        for voice in voices:
            scale = fit_signs([one for one in traces if one.voice != voice], number)
            pairs += [(one, scale.chance(one)) for one in asked if one.voice == voice]
        found.append(pairs)
    return found


def opened(pairs: Sequence[tuple[Seen, float]], number: int) -> tuple[float, float]:
    """The chances between which a pattern is left open: those that leave `OPEN` of the traces open and give the best F1."""
    chances = np.sort([chance for _, chance in pairs])
    places = range(int(OPEN * len(chances)), len(chances))
    bands = [(float(chances[place - int(OPEN * len(chances))]), float(chances[place])) for place in places]
    return max(bands, key=lambda band: f1(pairs, number, band))


def f1(pairs: Sequence[tuple[Seen, float]], number: int, band: tuple[float, float]) -> float:
    """F1 of a pattern where it is decided."""
    low, high = band
    decided = [(chance >= high, one.labels[number]) for one, chance in pairs if not low <= chance < high]
    hits = sum(said and label for said, label in decided)
    return 2 * hits / max(1, sum(said for said, _ in decided) + sum(label for _, label in decided))


def main() -> None:
    """Fit to the tuning half, and write weights with what they are worth on voices that they were not fitted to."""
    lines = [Line(row["voice"], row["part"], row["role"], row["text"]) for _, row in tables.rows(SENTENCES)]
    rows = [row for _, row in tables.rows(SENTENCES.with_name("tuning.jsonl"))]
    traces = seen(rows, lines)
    pairs = across(traces)
    content: dict[str, Any] = {
        "about": "hundredths of a weight of each word for each role; weights of signs; made by python -m demur.diagnose.refit",
        "sentences": len(lines),
        "traces": len(rows),
        "patterns": {},
        "roles": ROLES,
    }
    for number, pattern in enumerate(PATTERNS):
        scale = fit_signs(traces, number)
        band = opened(pairs[number], number)
        content["patterns"][pattern] = {
            "f1_on_other_voices": {
                kind: round(f1([pair for pair in pairs[number] if kind in pair[0].forms], number, band), 3)
                for kind in FORMS
            },
            "start": round(scale.start, 3),
            "open": [round(chance, 3) for chance in band],
            "weights": {name: round(float(w), 3) for name, w in zip(NAMES, scale.weights, strict=True) if w},
        }
    content |= {part: fit_words(lines, part) for part in ROLES}
    atomic_write(WEIGHTS, _compact(json.dumps(content, indent=0, ensure_ascii=False)) + "\n")
    for pattern, row in content["patterns"].items():
        sys.stderr.write(f"{pattern}: {row['f1_on_other_voices']}, open {row['open']}\n")


def _compact(text: str) -> str:
    """One line for each list of numbers."""
    return re.sub(r"\[\n([^\]]*?)\n\]", lambda m: "[" + m.group(1).replace("\n", " ") + "]", text)


if __name__ == "__main__":
    main()
