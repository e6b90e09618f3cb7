"""The fits behind the rules detector: words from labelled sentences, features from labelled traces, tried on other authors."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is in the extra 'dev'")

from tools.refit_patterns import (
    Line,
    Seen,
    both,
    called,
    elsewhere,
    f1,
    fit_judgements,
    fit_pattern,
    fit_words,
    groups,
    threshold,
)

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


def seen(count: int, labels: np.ndarray, place: dict[str, np.ndarray]) -> Seen:
    """Traces of two authors whose features are noise, but for those named."""
    values = np.random.default_rng(0).normal(size=(count, len(NAMES)))
    for name, column in place.items():
        values[:, NAMES.index(name)] = column
    authors = np.array(["a", "b"] * (count // 2))
    return Seen(authors, values, labels, np.zeros(count, dtype=bool))


def test_features_are_learnt_from_whole_traces_and_tried_on_other_authors() -> None:
    shown = np.arange(240) % 3 == 0
    labels = np.stack(
        [shown if pattern == "harmful_additions" else np.arange(240) % 5 == 0 for pattern in PATTERNS], axis=1
    )
    noise = np.random.default_rng(1).normal(size=240)
    traces = seen(240, labels, {"best detail": noise + 6 * shown})
    unit = fit_pattern(traces, "harmful_additions")
    assert unit.weights[NAMES.index("best detail")] > 0
    assert unit.weights[NAMES.index("best framing")] == 0
    tried, number = elsewhere(traces)[:, PATTERNS.index("harmful_additions")], PATTERNS.index("harmful_additions")
    value = threshold(tried, labels[:, number], np.array([]))
    assert f1(tried >= value, labels[:, number]) > 0.9


def test_a_contradiction_teaches_what_reasoning_and_answer_do() -> None:
    rng = np.random.default_rng(2)
    declines, gives = rng.random(600) > 0.5, rng.random(600) > 0.5
    labels = np.zeros((600, len(PATTERNS)), dtype=bool)
    labels[:, PATTERNS.index("inconsistency")] = declines == gives
    place = {
        "best decline": 3.0 * declines,
        "best comply": 3.0 * ~declines,
        "answer best give": 3.0 * gives,
        "answer best refuse": 3.0 * ~gives,
    }
    traces = seen(600, labels, place)
    units = fit_judgements(traces)
    for name, truth in {"declines": declines, "accepts": ~declines, "gives": gives, "refuses": ~gives}.items():
        assert ((units[name](traces) > 0.5) == truth).mean() > 0.9


def test_false_alarms_on_real_traces_pull_the_threshold_up() -> None:
    likely, labels = np.linspace(0, 1, 100), np.linspace(0, 1, 100) > 0.5
    free = threshold(likely, labels, np.array([]))
    assert free == pytest.approx(0.505, abs=0.01)
    assert threshold(likely, labels, np.full(10, 0.6)) > 0.6


def test_small_authors_are_left_out_together() -> None:
    assert groups(["a"] * 60 + ["b"] * 70 + ["c", "d"] * 5) == [{"a"}, {"b"}, {"c", "d"}]
    assert groups(["a"] * 60) == [{"a"}]


def test_an_author_is_judged_by_the_threshold_of_the_others() -> None:
    """Author b is given higher probabilities throughout: its own threshold would be perfect, that of a is not."""
    authors = np.repeat(["a", "b"], 100)
    labels = np.tile(np.arange(100) >= 50, 2)
    tried = np.concatenate([np.linspace(0, 0.5, 100), np.linspace(0.5, 1, 100)])
    traces = Seen(authors, np.zeros((200, 1)), labels[:, None], np.zeros(200, dtype=bool))
    found = called(traces, tried[:, None], 0, np.ones(200, dtype=bool))
    assert found[authors == "b"].all(), "a's threshold is a quarter"
    assert not found[authors == "a"].any(), "b's is three"
