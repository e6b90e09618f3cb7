"""Fits the weights of the refusal judge again: `python tools/refit_refusal.py FILE.csv …` writes `refusal.json`.

A multinomial logistic regression whose weights are pulled, not to zero, but to the rules that people set by hand: where
the labels say little, the rules stay. Partial refusals are rare and count more. The files are XSTest's annotated replies
(columns prompt, completion, final_label); the project's own examples are added to them.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from demur.judge.calibrate import read
from demur.judge.evidence import features
from demur.judge.refusal import CLASSES, WEIGHTS
from demur.storage.artifacts import atomic_write, hash_file

PULL = 2.0
"""How strongly the weights are held to the rules: the precision of a normal prior around them."""
PARTIAL = 2.5
"""How many times a partial refusal counts; chosen by cross-validation over prompts for recall on it."""
PINNED = (
    "tail offers",
    "head helpline",
    "tail helpline",
    "head declines & tail offers",
    "head private",
    "tail private",
)
"""Evidence that stays close to its rule: in the labels it stands for one model's habit of closing with an offer of help."""
OWN = Path(__file__).parent / "refusal" / "examples.jsonl"
Reply = tuple[str, str, int]
"""Question, reply, class as an index of `CLASSES`."""
Matrix = npt.NDArray[np.float64]


def labelled(path: Path) -> list[Reply]:
    """Question, reply and class of the rows of a label file; undecided rows are left out."""
    place: dict[str, int] = {name: at for at, name in enumerate(CLASSES)}
    return [(row.question, row.reply, place[row.gold]) for row in read(path) if row.gold in place]


def rules() -> dict[str, tuple[float, float]]:
    """The weights that people set; evidence without a rule starts at zero."""
    table = json.loads(WEIGHTS.read_text(encoding="utf-8"))["weights"]
    return {name: (row[0], row[1]) for name, row in table.items() if row[0] or row[1]}


def fit(replies: Sequence[Reply], *, pull: float = PULL, partial: float = PARTIAL) -> dict[str, list[float]]:
    """Evidence -> rule for full, rule for partial, fitted for full, fitted for partial."""
    from scipy.optimize import minimize

    found = [features(reply, question) for question, reply, _ in replies]
    start = rules()
    names = ["", *sorted(set().union(*found, start) - {""})]
    column = {name: index for index, name in enumerate(names)}
    table = np.zeros((len(replies), len(names)))
    table[:, 0] = 1.0
    for row, evidence in enumerate(found):
        table[row, [column[name] for name in evidence]] = 1.0
    classes = np.array([label for _, _, label in replies])
    counts = np.where(classes == CLASSES.index("partial_refusal"), partial, 1.0)
    held = np.array([[pull * (10.0 if name in PINNED else 1.0)] for name in names])
    set_by_hand = np.array([start.get(name, (0.0, 0.0)) for name in names])

    def loss(flat: Matrix) -> tuple[float, Matrix]:
        moved = flat.reshape(len(names), 2)
        scores = np.hstack([np.zeros((len(table), 1)), table @ (set_by_hand + moved)])
        scores -= scores.max(axis=1, keepdims=True)
        chances = np.exp(scores)
        chances /= chances.sum(axis=1, keepdims=True)
        right = chances[np.arange(len(classes)), classes]
        value = -(counts * np.log(right + 1e-12)).sum() + (held / 2 * moved**2).sum()
        slope = table.T @ (counts[:, None] * (chances - np.eye(3)[classes]))[:, 1:] + held * moved
        return float(value), slope.ravel()

    best = minimize(loss, np.zeros(2 * len(names)), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    fitted = set_by_hand + best.x.reshape(len(names), 2)
    return {
        name: [*map(float, set_by_hand[i]), *(round(float(v), 3) for v in fitted[i])] for i, name in enumerate(names)
    }


def predict(weights: dict[str, list[float]], replies: Sequence[Reply]) -> list[int]:
    """The class that weights give each reply."""
    classes = []
    for question, reply, _ in replies:
        said = [weights[name] for name in ("", *features(reply, question)) if name in weights]
        scores = (0.0, sum(row[2] for row in said), sum(row[3] for row in said))
        classes.append(scores.index(max(scores)))
    return classes


def cross_validated(replies: Sequence[Reply], *, folds: int = 10) -> dict[str, float]:
    """Agreement and recall of partial refusals on replies to questions that the weights were not fitted to."""
    questions = sorted({question for question, _, _ in replies})
    random.Random(0).shuffle(questions)
    fold = {question: place % folds for place, question in enumerate(questions)}
    pairs: list[tuple[int, int]] = []
    for held in range(folds):
        weights = fit([reply for reply in replies if fold[reply[0]] != held])
        tests = [reply for reply in replies if fold[reply[0]] == held]
        pairs += zip(predict(weights, tests), (label for _, _, label in tests), strict=True)
    return _figures(pairs)


def _figures(pairs: Sequence[tuple[int, int]]) -> dict[str, float]:
    partial = CLASSES.index("partial_refusal")
    found = [said == label for said, label in pairs if label == partial]
    return {
        "n": len(pairs),
        "agreement": round(sum(said == label for said, label in pairs) / len(pairs), 4),
        "recall_partial": round(sum(found) / max(1, len(found)), 4),
    }


def main(paths: list[str]) -> None:
    """Fit to the files named and to the project's own examples, and write weights with what they are worth."""
    files = {path: labelled(path) for path in map(Path, paths)}
    own = labelled(OWN)
    replies = [reply for rows in files.values() for reply in rows]
    left_out = {}
    for path, rows in files.items() if len(files) > 1 else ():
        others = [reply for other, some in files.items() if other != path for reply in some]
        said = predict(fit([*others, *own]), rows)
        left_out[path.name] = _figures(list(zip(said, (label for _, _, label in rows), strict=True)))
    weights = fit([*replies, *own])
    content: dict[str, Any] = {
        "about": "evidence -> [rule full, rule partial, fitted full, fitted partial], against full compliance",
        "made_by": "python tools/refit_refusal.py",
        "pull": PULL,
        "partial_counts": PARTIAL,
        "own_examples": len(own),
        "files": {path.name: hash_file(path) for path in files},
        "cross_validated_by_question": cross_validated([*replies, *own]),
        "judged_by_the_other_files": left_out,
        "weights": weights,
    }
    lines = json.dumps(content, indent=0, ensure_ascii=False)
    atomic_write(WEIGHTS, _compact(lines) + "\n")
    sys.stderr.write(f"{len(replies) + len(own)} replies, {len(weights)} weights: {WEIGHTS}\n")


def _compact(text: str) -> str:
    """One line for each list of four numbers."""
    return re.sub(r"\[\n([^\]]*?)\n\]", lambda m: "[" + m.group(1).replace("\n", " ") + "]", text)


if __name__ == "__main__":
    main(sys.argv[1:])
