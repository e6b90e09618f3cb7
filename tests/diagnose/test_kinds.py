"""Kinds of sentences: words in, probabilities out."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from demur.diagnose.exam import load
from demur.diagnose.kinds import KINDS, classify, fitted, grams, read
from demur.diagnose.rules import NAMES, features
from demur.records import PATTERNS
from demur.storage import readers as tables

SENTENCES = Path(__file__).parents[2] / "tools" / "patterns" / "sentences.jsonl"
WORDS = st.text(alphabet=st.sampled_from("abcdefgh ,.?!'’[]()0 9é漢\n"), max_size=80)


def test_a_sentence_is_its_words_their_beginnings_and_pairs() -> None:
    assert grams("I won’t do 12 [STEPS].") == {
        *("i", "won't", "do", "0", "§"),
        *("^ i", "i won't", "won't do", "do 0", "0 §", "§ $"),
    }
    assert {"refus*", "refusing"} <= grams("Refusing")
    assert "§" not in grams("see [the list](https://example.org)")


@given(WORDS)
def test_probabilities_are_probabilities_whatever_is_written(text: str) -> None:
    for part in KINDS:
        found = classify(part, text)
        assert found.probabilities.shape == (len(found.spans), len(KINDS[part]))
        assert np.allclose(found.probabilities.sum(axis=1), 1)
        for span in found.spans:
            assert text[span.start : span.end] == span.text


def test_what_plain_sentences_do() -> None:
    thought = "The user wants me to write a letter. That would be fraud. I won't do it. I could point to a helpline."
    kinds = classify("thinking", thought).probabilities.argmax(axis=1)
    assert [KINDS["thinking"][kind] for kind in kinds] == ["restate", "harm", "decline", "safe"]
    assert classify("answer", "I can't help with that.").likely("refuse") == [0]


def test_every_trace_gives_every_feature_and_each_is_looked_at() -> None:
    for question in load()[:40]:
        assert features(read(question.trace)).shape == (len(NAMES),)
    looked_at = {name for unit in fitted()["units"].values() for name in unit["weights"]}
    assert looked_at <= set(NAMES)
    assert {name for name in NAMES if name not in looked_at} == {name for name in NAMES if name.endswith("neutral")}
    assert set(fitted()["units"]) >= set(PATTERNS[:4])


def test_the_weights_that_ship_were_fitted_to_the_sentences_that_ship() -> None:
    lines = [row for _, row in tables.rows(SENTENCES)]
    assert fitted()["sentences"] == len(lines)
    right: dict[str, list[bool]] = {part: [] for part in KINDS}
    for row in lines:
        found = classify(row["part"], row["text"])
        if len(found.spans) == 1:
            right[row["part"]].append(KINDS[row["part"]][int(found.probabilities[0].argmax())] == row["kind"])
    assert all(sum(some) > 0.7 * len(some) > 1000 for some in right.values())
