"""The fits behind the rules detector: words from labelled sentences, features from labelled traces, tried on other authors."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is in the extra 'dev'")

from tools.refit_patterns import FORMS, Line, Seen, across, both, f1, fit_features, fit_words, opened

from demur.diagnose.kinds import KINDS, table
from demur.diagnose.rules import NAMES
from demur.records import PATTERNS


def test_words_are_learnt_from_labelled_sentences() -> None:
    words = {
        "refuse": "no sir never",
        "give": "first take it",
        "safe": "a helpline",
        "framed": "arr matey",
        "other": "so",
    }
    lines = [Line("1", "answer", kind, f"{text} {number}") for kind, text in words.items() for number in range(10)]
    weights = fit_words(lines, "answer")
    likely = table(weights).probabilities(["never, sir", "take it"])
    assert [KINDS["answer"][place] for place in likely.argmax(axis=1)] == ["refuse", "give"]
    assert weights["never"][KINDS["answer"].index("refuse")] > 0 > weights["never"][KINDS["answer"].index("give")]


def test_placeholders_are_learnt_with_and_without_brackets() -> None:
    assert both("mix [A] and [B]") == ("mix [A] and [B]", "mix A and B")
    assert both("mix both") == ("mix both",)


def test_features_are_learnt_from_whole_traces_and_tried_on_other_authors() -> None:
    rng = np.random.default_rng(0)
    number = PATTERNS.index("harmful_additions")
    place = NAMES.index("best detail")
    traces = []
    for count in range(120):
        shown = count % 3 == 0
        values = rng.normal(size=len(NAMES))
        values[place] += 4 * shown
        labels = tuple(shown and pattern == "harmful_additions" for pattern in PATTERNS)
        traces.append(Seen(str(count % 2), frozenset(FORMS), False, labels, values))
    scale = fit_features(traces, number)
    assert scale.weights[place] > 0
    assert scale.weights[NAMES.index("best framing")] == 0
    pairs = across(traces, number)
    low, high = opened(pairs, number)
    assert low < high
    assert f1(pairs, number, (low, high)) > 0.9
