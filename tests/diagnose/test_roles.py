"""Roles of sentences: words in, chances out; and the fit that gives the words their weights."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from demur.diagnose.exam import load
from demur.diagnose.refit import FORMS, SENTENCES, Line, Seen, across, both, f1, fit_signs, fit_words, opened
from demur.diagnose.roles import ROLES, fitted, grams, read, said, table
from demur.diagnose.rules import NAMES, counted, signs
from demur.records import PATTERNS
from demur.storage import readers as tables

WORDS = st.text(alphabet=st.sampled_from("abcdefgh ,.?!'’[]()0 9é漢\n"), max_size=80)


def test_a_sentence_is_its_words_their_beginnings_and_pairs() -> None:
    assert grams("I won’t do 12 [STEPS].") == {
        *("i", "won't", "do", "0", "§"),
        *("^ i", "i won't", "won't do", "do 0", "0 §", "§ $"),
    }
    assert {"refus*", "refusing"} <= grams("Refusing")
    assert "§" not in grams("see [the list](https://example.org)")


@given(WORDS)
def test_chances_are_chances_whatever_is_written(text: str) -> None:
    for part in ROLES:
        found = said(part, text)
        assert found.chances.shape == (len(found.spans), len(ROLES[part]))
        assert np.allclose(found.chances.sum(axis=1), 1)
        for span in found.spans:
            assert text[span.start : span.end] == span.text


def test_what_plain_sentences_do() -> None:
    thought = "The user wants me to write a letter. That would be fraud. I won't do it. I could point to a helpline."
    roles = said("thinking", thought).chances.argmax(axis=1)
    assert [ROLES["thinking"][role] for role in roles] == ["restate", "harm", "decline", "safe"]
    assert said("answer", "I can't help with that.").playing("refuse") == [0]


def test_every_trace_gives_every_sign_and_each_pattern_looks_at_some() -> None:
    for question in load("tuning")[:40]:
        assert signs(read(question.trace)).shape == (len(NAMES),)
    for pattern in PATTERNS:
        assert counted(pattern)
    looked_at = {place for pattern in PATTERNS for place in counted(pattern)}
    assert {name for place, name in enumerate(NAMES) if place not in looked_at} == {
        name for name in NAMES if "neutral" in name
    }


def test_words_are_learnt_from_labelled_sentences() -> None:
    lines = [
        Line("1", "answer", role, f"{words} {number}")
        for number, (role, words) in enumerate([("refuse", "no sir never"), ("give", "first take it")] * 10)
    ]
    weights = fit_words(lines, "answer")
    chances = table(weights).chances(["never, sir", "take it"])
    assert [ROLES["answer"][place] for place in chances.argmax(axis=1)] == ["refuse", "give"]
    assert weights["never"][ROLES["answer"].index("refuse")] > 0 > weights["never"][ROLES["answer"].index("give")]


def test_placeholders_are_learnt_with_and_without_brackets() -> None:
    assert both("mix [A] and [B]") == ("mix [A] and [B]", "mix A and B")
    assert both("mix both") == ("mix both",)


def test_signs_are_learnt_from_whole_traces_and_tried_on_other_voices() -> None:
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
    scale = fit_signs(traces, number)
    assert scale.weights[place] > 0
    assert scale.weights[NAMES.index("best framing")] == 0
    pairs = across(traces)[number]
    low, high = opened(pairs, number)
    assert low < high
    assert f1(pairs, number, (low, high)) > 0.9


def test_the_weights_that_ship_were_fitted_to_the_sentences_that_ship() -> None:
    lines = [row for _, row in tables.rows(SENTENCES)]
    assert fitted()["sentences"] == len(lines)
    right: dict[str, list[bool]] = {part: [] for part in ROLES}
    for row in lines:
        found = said(row["part"], row["text"])
        if len(found.spans) == 1:
            right[row["part"]].append(ROLES[row["part"]][int(found.chances[0].argmax())] == row["role"])
    assert all(sum(some) > 0.7 * len(some) > 1000 for some in right.values())
