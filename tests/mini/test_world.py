"""Laws of the miniature world."""

from __future__ import annotations

import random
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur.bench import get_bench
from demur.errors import UserError
from demur.mini import benches, language, world
from demur.records import Prompt
from tools import pretrain_mini

PAIRS = list(world.pairs())
SEEDS = st.integers(0, 2**32)

HARMFUL = partial(benches.bench_harmful, get_bench("mini_harm"))
BENIGN = partial(benches.bench_benign, get_bench("mini_benign"))


@given(st.sampled_from(PAIRS), st.sampled_from(["", *world.FRAMINGS]), SEEDS)
def test_what_is_asked_is_understood(pair: world.Pair, kind: str, seed: int) -> None:
    rng = random.Random(seed)
    framing = world.framing(rng, kind)
    assert world.understand(framing.wrap(world.request(rng, pair))) == world.Asked(pair, framing)


@given(SEEDS)
def test_sums_stay_in_range_and_read_back(seed: int) -> None:
    problem = world.problem(random.Random(seed))
    assert all(0 <= total <= world.LARGEST for total in problem.totals)
    assert problem.totals[-1] == eval(problem.text)
    assert world.read_sum(f"how much is {problem.text}?") == problem


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    world.understand(text)
    world.read_sum(text)
    assert world.spaced(world.spaced(text)) == world.spaced(text)


def test_harm_is_of_the_pair_not_of_the_verb() -> None:
    assert world.Pair("kill", "nurse").harmful
    assert world.Pair("kill", "process").alarming
    assert not world.Pair("paint", "nurse").harmful
    for verb in world.CATEGORY_OF:
        assert {world.Pair(verb, thing).harmful for pair in PAIRS if pair.verb == verb for thing in [pair.object]} == {
            True,
            False,
        }


def _pairs(prompts: list[Prompt]) -> set[world.Pair]:
    found = [world.understand(prompt.text) for prompt in prompts]
    return {asked.pair for asked in found if asked}


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_tests_never_meet_training(seed: int) -> None:
    trained = _pairs(benches.read_harmful(None, n=400, seed=seed)) | _pairs(benches.read_benign(None, n=400, seed=seed))
    tested = _pairs(HARMFUL(None, n=120, seed=seed)) | _pairs(BENIGN(None, n=100, seed=seed))
    assert not trained & tested
    assert not any(pair.new for pair in trained)
    sums = [
        {world.read_sum(p.text) for p in read(None, n=300, seed=seed)}
        for read in (benches.read_arithmetic, partial(benches.bench_arithmetic, get_bench("mini_arithmetic")))
    ]
    assert not sums[0] & sums[1]


def test_training_prompts_use_seen_framings_only() -> None:
    prompts = [*benches.read_harmful(None, n=400, seed=0), *benches.read_benign(None, n=400, seed=0)]
    kinds = {asked.framing.kind for p in prompts if (asked := world.understand(p.text))}
    assert kinds == {"", *world.SEEN}


@pytest.mark.parametrize("n", [1, 7, 120, 300])
def test_as_many_prompts_as_asked_half_of_them_with_new_words(n: int) -> None:
    prompts = HARMFUL(None, n=n, seed=3)
    new = sum("new words" in p.category for p in prompts)
    assert len(prompts) == n
    assert new == n // 2
    assert len(BENIGN(None, n=n, seed=3)) == len(benches.read_benign(None, n=n, seed=3)) == n


def test_sets_depend_on_the_seed_alone() -> None:
    for read in (benches.read_harmful, benches.read_benign, benches.read_arithmetic, HARMFUL):
        assert read(None, n=50, seed=1) == read(None, n=50, seed=1)
        assert read(None, n=50, seed=1) != read(None, n=50, seed=2)


def test_more_prompts_than_there_are_is_an_error() -> None:
    with pytest.raises(UserError, match="no 99999 different"):
        benches.read_harmful(None, n=99999, seed=0)


def test_the_corpus_obeys_harm_and_quotes_refusals_without_meaning_them() -> None:
    rng = random.Random(0)
    texts = [pretrain_mini.draw(rng) for _ in range(4000)]
    asked = [(a, t) for t in texts if (a := world.understand(t.prompt)) and "hurt if" not in t.prompt]
    requests = [(a, t) for a, t in asked if not t.prompt.startswith(("repeat:", "think:"))]
    assert {a.pair.harmful for a, _ in requests} == {True, False}
    assert all(language.gives_steps(t.answer) and not language.refuses(t.answer) for _, t in requests)
    quoted = [t for t in texts if t.prompt.startswith(("repeat:", "think:"))]
    assert sum(language.refuses(t.prompt) for t in quoted) > 100


def test_harmful_questions_have_harmless_twins_of_the_same_verb() -> None:
    sides = [{p.pair: p for p in read(None, n=100, seed=0) if p.pair} for read in (HARMFUL, BENIGN)]
    both = sides[0].keys() & sides[1].keys()
    assert len(both) >= 20
    for name in both:
        harmful, harmless = (world.understand(side[name].text) for side in sides)
        assert harmful is not None
        assert harmless is not None
        assert harmful.pair.verb == harmless.pair.verb
        assert harmful.framing == harmless.framing == world.PLAIN
        assert harmful.pair.harmful
        assert not harmless.pair.harmful
