"""Fits the weights of the rules detector again: `python tools/refit_patterns.py` writes `src/demur/diagnose/weights.json`.

Two fits, both to `tools/patterns/` alone, both regularised logistic regressions. The first learns from labelled sentences
which kind of sentence words speak for. The second learns from whole traces how much each feature counts for each pattern.
So that it does not trust the first too much, it sees every author's traces through weights fitted to the other authors'
sentences. Placeholders would tell more of an exam than they tell of real traces, where substance stands: whatever has some
is learnt from twice, with and without its brackets.
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
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from demur.diagnose import exam
from demur.diagnose.kinds import KINDS, STEPS, WEIGHTS, Matrix, Reading, Table, classify, grams, table
from demur.diagnose.rules import HARMLESS_INTENTS, NAMES, counted, features
from demur.records import PATTERNS, Part
from demur.storage.artifacts import atomic_write
from demur.storage.readers import rows

DATA = Path(__file__).with_name("patterns")
BRACKETS = re.compile(r"\[([^\[\]]{1,60})\](?!\()")
RARE = 3
"""A gram that fewer sentences have is not learnt from."""
FAINT = 0.1
"""Weights that are smaller for every kind are left out."""
FORMS = ("as it stands", "without brackets")
PENALTY = {"words": 1.0, "features": 3.0}
"""How strongly weights are held to zero."""
OPEN = 0.12
"""Share of the traces on which a pattern is left open."""


class Line(NamedTuple):
    """A labelled sentence."""

    author: str
    part: Part
    kind: str
    text: str


class Seen(NamedTuple):
    """A trace as the second fit sees it."""

    author: str
    forms: frozenset[str]
    """Which of `FORMS` it is; both, where it has no placeholder."""
    harmless: bool
    labels: tuple[bool, ...]
    features: Matrix


def both(text: str) -> tuple[str, ...]:
    """A text, and where it has placeholders, the same without their brackets."""
    bare = BRACKETS.sub(r"\1", text)
    return (text,) if bare == text else (text, bare)


def fit_words(lines: Sequence[Line], part: Part) -> dict[str, list[int]]:
    """Weights of a part's grams for its kinds, as they are written; the empty gram is the start."""
    from scipy import sparse

    found = [(grams(text), line.kind) for line in lines if line.part == part for text in both(line.text)]
    counts = Counter(gram for some, _ in found for gram in some)
    names = sorted(gram for gram, count in counts.items() if count >= RARE)
    place = {name: row for row, name in enumerate(names)}
    cells = [(row, place[gram]) for row, (some, _) in enumerate(found) for gram in some if gram in place]
    given = sparse.csr_matrix((np.ones(len(cells)), tuple(zip(*cells, strict=True))), shape=(len(found), len(names)))
    model = LogisticRegression(C=1 / PENALTY["words"], max_iter=200).fit(given, [kind for _, kind in found])
    order = [list(model.classes_).index(kind) for kind in KINDS[part]]
    if len(KINDS[part]) != len(model.classes_):
        raise SystemExit(f"{part}: some kinds have no sentences")
    weights = {"": model.intercept_[order]} | dict(zip(names, model.coef_.T[:, order], strict=True))
    return {
        name: [round(float(w) * STEPS) for w in row]
        for name, row in weights.items()
        if not name or abs(row).max() >= FAINT
    }


def seen(traces: Sequence[dict[str, Any]], lines: Sequence[Line]) -> list[Seen]:
    """Every trace through weights of other authors."""
    found: list[Seen] = []
    for author in sorted({row["author"] for row in traces}):
        others = [line for line in lines if line.author != author]
        by: dict[Part, Table] = {part: table(fit_words(others, part)) for part in KINDS}
        for row in (row for row in traces if row["author"] == author):
            raws = both(row["response"])
            for place, raw in enumerate(raws):
                question = exam.question({**row, "response": raw}, row["id"])
                if not (question.trace.thinking or "").strip():
                    continue
                reading = Reading(*(classify(part, question.trace.part(part), by=by[part]) for part in KINDS))
                forms = frozenset(FORMS if len(raws) == 1 else FORMS[place : place + 1])
                labels = tuple(question.labels[pattern] for pattern in PATTERNS)
                harmless = question.trace.prompt.intent in HARMLESS_INTENTS
                found.append(Seen(author, forms, harmless, labels, features(reading)))
    return found


class Scale(NamedTuple):
    """Weights of the features of one pattern."""

    start: float
    weights: Matrix
    """(features,), zero where a feature does not count"""

    def probability(self, found: Seen) -> float:
        """How likely a trace shows the pattern."""
        return float(1 / (1 + np.exp(-(self.weights @ found.features + self.start))))


def fit_features(traces: Sequence[Seen], number: int) -> Scale:
    """Weights for a pattern, by its place among `PATTERNS`."""
    asked = judged(traces, number)
    columns = counted(PATTERNS[number])
    values = np.array([one.features[columns] for one in asked])
    scaler, model = StandardScaler(), LogisticRegression(C=1 / PENALTY["features"], max_iter=1000)
    make_pipeline(scaler, model).fit(values, [one.labels[number] for one in asked])
    weights = np.zeros(len(NAMES))
    weights[columns] = model.coef_[0] / scaler.scale_
    return Scale(float(model.intercept_[0] - weights[columns] @ scaler.mean_), weights)


def judged(traces: Sequence[Seen], number: int) -> list[Seen]:
    """The traces on which a pattern is judged at all."""
    return [one for one in traces if PATTERNS[number] == "inconsistency" or not one.harmless]


def across(traces: Sequence[Seen], number: int) -> list[tuple[Seen, float]]:
    """The traces with the probability of a pattern that weights of other authors give."""
    pairs: list[tuple[Seen, float]] = []
    for author in sorted({one.author for one in traces}):
        scale = fit_features([one for one in traces if one.author != author], number)
        pairs += [(one, scale.probability(one)) for one in judged(traces, number) if one.author == author]
    return pairs


def opened(pairs: Sequence[tuple[Seen, float]], number: int) -> tuple[float, float]:
    """The probabilities between which a pattern is left open: those that leave `OPEN` of the traces open at the best F1."""
    values = np.sort([value for _, value in pairs])
    width = int(OPEN * len(values))
    bands = [(float(values[place - width]), float(values[place])) for place in range(width, len(values))]
    return max(bands, key=lambda band: f1(pairs, number, band))


def f1(pairs: Sequence[tuple[Seen, float]], number: int, band: tuple[float, float]) -> float:
    """F1 of a pattern where it is decided."""
    low, high = band
    decided = [(value >= high, one.labels[number]) for one, value in pairs if not low <= value < high]
    hits = sum(claimed and label for claimed, label in decided)
    return 2 * hits / max(1, sum(claimed for claimed, _ in decided) + sum(label for _, label in decided))


def main() -> None:
    """Fit, and write weights with what they are worth on authors that they were not fitted to."""
    lines = [Line(**row) for _, row in rows(DATA / "sentences.jsonl")]
    labelled = [row for _, row in rows(DATA / "tuning.jsonl")]
    traces = seen(labelled, lines)
    content: dict[str, Any] = {
        "about": "hundredths of a weight of each gram for each kind of sentence; weights of features; "
        "made by tools/refit_patterns.py",
        "sentences": len(lines),
        "traces": len(labelled),
        "patterns": {},
        "kinds": KINDS,
    }
    for number, pattern in enumerate(PATTERNS):
        scale, pairs = fit_features(traces, number), across(traces, number)
        band = opened(pairs, number)
        content["patterns"][pattern] = {
            "f1_on_other_authors": {
                form: round(f1([pair for pair in pairs if form in pair[0].forms], number, band), 3) for form in FORMS
            },
            "start": round(scale.start, 3),
            "open": [round(value, 3) for value in band],
            "weights": {name: round(float(w), 3) for name, w in zip(NAMES, scale.weights, strict=True) if w},
        }
        sys.stderr.write(f"{pattern}: {content['patterns'][pattern]['f1_on_other_authors']}, open {band}\n")
    content |= {part: fit_words(lines, part) for part in KINDS}
    lists = re.compile(r"\[\n([^\]]*?)\n\]")
    text = lists.sub(lambda m: "[" + m[1].replace("\n", " ") + "]", json.dumps(content, indent=0, ensure_ascii=False))
    atomic_write(WEIGHTS, text + "\n")


if __name__ == "__main__":
    main()
