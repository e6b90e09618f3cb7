"""Statistics against closed forms, against scipy and statsmodels, and by simulation against what they promise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from demur import stats
from demur.records import Estimate
from demur.stats.spread import flip_test

OUTCOMES = st.lists(st.sampled_from([True, False, None]), max_size=40)


def flips(count: int, of: int) -> list[bool]:
    return [True] * count + [False] * (of - count)


@pytest.mark.parametrize(("count", "of"), [(0, 50), (1, 7), (5, 50), (25, 250), (50, 50), (2, 2)])
def test_a_plain_rate_is_wilsons(count: int, of: int) -> None:
    estimate = stats.rate(flips(count, of))
    low, high = proportion_confint(count, of, method="wilson")
    assert estimate.value == count / of
    assert estimate.low == pytest.approx(low, abs=1e-12)
    assert estimate.high == pytest.approx(high, abs=1e-12)


def test_none_of_fifty_is_not_certainty() -> None:
    estimate = stats.rate(flips(0, 50), better="lower")
    assert estimate.low == 0
    assert estimate.high == pytest.approx(0.0713, abs=1e-4)


@pytest.mark.parametrize("outcomes", [[], [None, None], [True]])
def test_too_little_gives_none_with_the_reason(outcomes: list[bool | None]) -> None:
    estimate = stats.rate(outcomes)
    assert (estimate.value, estimate.low, estimate.high) == (None, None, None)
    assert estimate.how
    assert stats.mean([1.0]).value is None
    assert stats.rate([True] * 9, clusters=["a"] * 9).value is None
    assert stats.paired([True], [False]).value is None


def test_cut_and_unscored_bound_the_rate() -> None:
    outcomes = [True, True, False, None, False, None]
    cut = [True, False, True, False, False, False]
    estimate = stats.rate(outcomes, truncated=cut, better="lower")
    assert (estimate.n, estimate.unscored, estimate.truncated) == (4, 2, 2)
    assert estimate.best == pytest.approx(1 / 6)
    assert estimate.worst == pytest.approx(5 / 6)
    flipped = stats.rate(outcomes, truncated=cut, better="higher")
    assert (flipped.best, flipped.worst) == (estimate.worst, estimate.best)


@given(OUTCOMES, st.data())
def test_a_rate_lies_in_its_interval_and_its_bounds(outcomes: list[bool | None], data: st.DataObject) -> None:
    clusters = data.draw(st.lists(st.sampled_from("abcdef"), min_size=len(outcomes), max_size=len(outcomes)))
    cut = data.draw(st.lists(st.booleans(), min_size=len(outcomes), max_size=len(outcomes)))
    estimate = stats.rate(outcomes, clusters=clusters, truncated=cut, better="lower")
    assert estimate.n + estimate.unscored == len(outcomes)
    if estimate.value is not None:
        assert estimate.low is not None
        assert estimate.high is not None
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.low < estimate.high
    if estimate.best is not None:
        assert estimate.worst is not None
        assert estimate.best <= estimate.worst


def test_repeating_every_reply_teaches_nothing() -> None:
    once = stats.rate(flips(12, 40))
    names = [str(i % 40) for i in range(200)]
    copied = stats.rate([value for _ in range(5) for value in flips(12, 40)], clusters=names)
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))


def test_replies_that_are_independent_count_for_nearly_all() -> None:
    rng = np.random.default_rng(3)
    values = [bool(v) for v in rng.random(900) < 0.4]
    clustered = stats.rate(values, clusters=[str(i // 3) for i in range(900)])
    plain = stats.rate(values)
    assert width(clustered) < 1.12 * width(plain)


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def test_a_mean_has_students_interval() -> None:
    values = [3.0, 4.5, 1.0, 9.0, 2.0, 2.5]
    low, high = scipy_stats.t.interval(0.95, 5, loc=np.mean(values), scale=scipy_stats.sem(values))
    estimate = stats.mean(values)
    assert (estimate.low, estimate.high) == pytest.approx((low, high))


def test_seeds_are_their_own_level() -> None:
    """With seeds that differ much, three of them give the t interval with two degrees of freedom of their means."""
    rng = np.random.default_rng(0)
    values, seeds, clusters = [], [], []
    for seed, rate in enumerate((0.2, 0.5, 0.8)):
        values += [bool(v) for v in rng.random(4000) < rate]
        seeds += [seed] * 4000
        clusters += [str(i) for i in range(4000)]
    estimate = stats.rate(values, clusters=clusters, seeds=seeds)
    assert "2 degrees of freedom" in estimate.how
    assert estimate.low is not None
    assert estimate.low < 0.1
    alone = stats.rate(values, clusters=clusters)
    assert width(alone) < 0.1 * width(estimate)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (5, 0), (9, 2), (6, 6), (30, 12)])
def test_one_reply_a_prompt_is_mcnemars_exact_test(only_a: int, only_b: int) -> None:
    a = [True] * only_a + [False] * only_b + [True] * 20 + [False] * 15
    b = [False] * only_a + [True] * only_b + [True] * 20 + [False] * 15
    expected = mcnemar([[20, only_a], [only_b, 15]], exact=True).pvalue
    difference = stats.paired(a, b)
    assert difference.p == pytest.approx(expected)
    assert "McNemar" in difference.how
    assert difference.value == pytest.approx((only_a - only_b) / len(a))
    assert difference.low is not None
    assert difference.high is not None
    assert difference.value is not None
    assert difference.low < difference.value < difference.high


def test_the_interval_of_a_paired_difference_is_bonett_and_prices() -> None:
    """Their formula, with the two pseudo-pairs, n - 1 in place of n in the variance and t in place of the normal."""
    a = [True] * 12 + [False] * 4 + [True] * 30
    b = [False] * 12 + [True] * 4 + [True] * 30
    n = len(a) + 2
    one, two = 13 / n, 5 / n
    half = scipy_stats.t.ppf(0.975, n - 1) * math.sqrt((one + two - (one - two) ** 2) / (n - 1))
    difference = stats.paired(a, b)
    assert (difference.low, difference.high) == pytest.approx((one - two - half, one - two + half))


def test_flips_of_averages_are_enumerated_exactly() -> None:
    sums = np.array([3, -1, 2, 2, 1, -3, 4])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 7)).reshape(7, -1)
    expected = np.mean(np.abs(sums @ signs) >= abs(sums.sum()))
    values = np.concatenate([np.sign(s) * np.ones(abs(s)) for s in sums])
    cluster = np.repeat(np.arange(7), np.abs(sums))
    assert flip_test(values, cluster) == pytest.approx(expected)
    assert flip_test(values * 1.0001, cluster) == pytest.approx(expected, abs=0.02)


def test_swapping_the_arms_turns_the_sign_alone() -> None:
    rng = np.random.default_rng(5)
    a, b = ([bool(v) for v in rng.random(60) < p] for p in (0.3, 0.5))
    clusters = [str(i // 2) for i in range(60)]
    one, two = stats.paired(a, b, clusters=clusters), stats.paired(b, a, clusters=clusters)
    assert one.p == two.p
    assert one.value == pytest.approx(-(two.value or 0))
    assert one.low == pytest.approx(-(two.high or 0))


@pytest.mark.slow
@settings(max_examples=30)
@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=8))
def test_holm_is_statsmodels(ps: list[float | None]) -> None:
    adjusted = stats.holm(ps)
    known = [p for p in ps if p is not None]
    assert [p is None for p in adjusted] == [p is None for p in ps]
    if known:
        expected = multipletests(known, method="holm")[1]
        assert [p for p in adjusted if p is not None] == pytest.approx(list(expected))


def test_not_worse_than_a_margin() -> None:
    rng = np.random.default_rng(1)
    base = rng.random(2000) < 0.9
    near = base ^ (rng.random(2000) < 0.01)
    difference = stats.paired([bool(v) for v in near], [bool(v) for v in base])
    assert stats.non_inferior(difference, 0.03) is True
    assert stats.non_inferior(difference, 0.0) is False
    assert stats.non_inferior(stats.paired([], []), 0.02) is None


@pytest.mark.parametrize("comparisons", [1, 12])
@pytest.mark.parametrize(("base", "prompts"), [(0.05, 50), (0.05, 200), (0.2, 100), (0.5, 50), (0.5, 200)])
def test_the_detectable_difference_is_detected_in_four_of_five(base: float, prompts: int, comparisons: int) -> None:
    """True power at the minimum detectable difference, at Holm's first level, by simulation: 80 %, or a little more."""
    rng = np.random.default_rng(2)
    spread = math.sqrt(1.4 * base * (1 - base))
    shown = stats.minimum_detectable(spread, prompts, comparisons=comparisons)
    hits = 0
    for _ in range(400):
        kind = rng.choice(3, size=prompts, p=[spread**2 / 2 + shown, spread**2 / 2, 1 - spread**2 - shown])
        found = stats.paired([bool(v == 0) for v in kind], [bool(v == 1) for v in kind])
        hits += (found.p or 1) * comparisons < 0.05
    assert 0.75 < hits / 400 < 0.93
    needed = stats.prompts_needed(shown, spread, comparisons=comparisons) or 0
    assert needed == pytest.approx(prompts, rel=0.03)
    assert stats.prompts_needed(0.0, spread) is None


def test_no_number_of_prompts_takes_away_what_trainings_differ_by() -> None:
    half = 0.25 / 100 / 2  # of the variance that a spread of 0.5 gives to 100 prompts
    shown = stats.minimum_detectable(0.5, 100)
    assert stats.minimum_detectable(0.5 / math.sqrt(2), 100, fixed=half) == pytest.approx(shown)
    alone, both = (stats.prompts_needed(0.12, 0.5 / math.sqrt(1 + bool(f)), fixed=f) or 0 for f in (0.0, half))
    assert 100 < alone < both / 1.5
    assert stats.prompts_needed(0.05, 0.5 / math.sqrt(2), fixed=half) is None, "more trainings would show it"


def test_what_a_design_can_show_is_known_before_the_run() -> None:
    one = stats.detectable(prompts=100, seeds=1)
    assert stats.detectable(prompts=400, seeds=1) < one < 0.25
    three = stats.detectable(prompts=100, seeds=3, bases=3)
    assert 0.3 < three < 0.5, "three bases are few whatever the prompts"
    assert stats.detectable(prompts=100_000, seeds=3, bases=3) > 0.3
    assert stats.detectable(prompts=100, seeds=3, bases=3, tests=20) > three
    assert stats.detectable(prompts=100, seeds=3, bases=3, tests=20) < 1


@pytest.mark.parametrize(("prompts", "tests"), [(50, 1), (100, 1), (100, 20), (200, 1)])
def test_a_design_shows_in_four_runs_of_five_what_it_promises(prompts: int, tests: int) -> None:
    """Prompts differ in difficulty and each arm has one training: true power, at Holm's first level, by simulation."""
    rng, hits = np.random.default_rng(6), 0
    gap = stats.detectable(prompts=prompts, seeds=1, tests=tests)
    for _ in range(400):
        difficulty = rng.standard_normal(prompts)
        a, b = (
            difficulty + rng.standard_normal(prompts) + math.sqrt(2) * scipy_stats.norm.ppf(rate) > 0
            for rate in (0.3 + gap / 2, 0.3 - gap / 2)
        )
        hits += (stats.paired(flat(a), flat(b)).p or 1) * tests < 0.05
    assert 0.74 < hits / 400 < 0.9


def test_seeds_that_saw_nothing_promise_less_than_prompts_do() -> None:
    alone = stats.rate([False] * 300, clusters=[str(i % 100) for i in range(300)])
    names, seeds = [str(i % 100) for i in range(300)], [i // 100 for i in range(300)]
    none = stats.rate([False] * 300, clusters=names, seeds=seeds)
    assert (none.high or 0) > (alone.high or 1)
    every = stats.rate([True] * 300, clusters=names, seeds=seeds)
    assert every.low == pytest.approx(1 - (none.high or 0))
    two = stats.rate([False] * 200, clusters=names[:200], seeds=seeds[:200])
    assert (two.high or 0) > (none.high or 1)


@pytest.mark.parametrize("value", [0.0, 1.0, 21.0])
def test_equal_values_are_not_certainty(value: float) -> None:
    estimate, more = stats.mean([value] * 30), stats.mean([value] * 300)
    assert None not in (estimate.low, estimate.high, more.low, more.high)
    assert estimate.low < value < estimate.high  # type: ignore[operator]
    assert more.high - more.low < estimate.high - estimate.low  # type: ignore[operator]
    delta = stats.paired([value] * 30, [value] * 30)
    assert delta.low < 0 < delta.high  # type: ignore[operator]


def test_a_few_trainings_that_agree_prove_little() -> None:
    """Two arms apart by ten points in each of two trainings: the prompts show it, two trainings cannot."""
    rng = np.random.default_rng(8)
    a, b = ([bool(v) for v in rng.random(400) < p] for p in (0.35, 0.2))
    names, seeds = [str(i % 200) for i in range(400)], [i // 200 for i in range(400)]
    alone, both = stats.paired(a, b, clusters=names), stats.paired(a, b, clusters=names, seeds=seeds)
    assert (alone.p or 1) < 0.001
    assert (both.p or 0) > 10 * (alone.p or 1)
    assert (both.high or 0) - (both.low or 0) > 1.5 * ((alone.high or 0) - (alone.low or 0))


def test_strata_weigh_as_given() -> None:
    """A hundred prompts of no difference and ten of a large one: equal strata differ from equal prompts."""
    a, b = [True] * 50 + [False] * 50 + [True] * 10, [True] * 50 + [False] * 50 + [False] * 10
    kinds = ["plain"] * 100 + ["adaptive"] * 10
    assert stats.paired(a, b).value == pytest.approx(10 / 110)
    equal = stats.paired(a, b, strata=(kinds, {"plain": 1.0, "adaptive": 1.0}))
    assert equal.value == pytest.approx(0.5)
    assert equal.low is not None
    assert 0 < equal.low < 0.5
    leaning = stats.paired(a, b, strata=(kinds, {"plain": 3.0, "adaptive": 1.0}))
    assert leaning.value == pytest.approx(0.25)
    mean = stats.mean([float(v) for v in a], stratum=kinds, strata={"plain": 1.0, "adaptive": 1.0})
    assert mean.value == pytest.approx(0.75)


def test_a_difference_at_a_margin_has_the_p_of_its_interval() -> None:
    rng = np.random.default_rng(6)
    difference = stats.paired([bool(v) for v in rng.random(80) < 0.5], [bool(v) for v in rng.random(80) < 0.3])
    assert difference.low is not None
    assert difference.high is not None
    for bound in (difference.low, difference.high):
        assert stats.p_at(difference, bound) == pytest.approx(0.05)
    assert (
        (stats.p_at(difference, difference.high + 0.05) or 1)
        < 0.05
        < (stats.p_at(difference, (difference.low + difference.high) / 2) or 0)
    )


def test_a_fixed_set_of_items_is_not_a_sample() -> None:
    """Thirty problems, four replies each: their own mean is known better than that of problems like them."""
    rng = np.random.default_rng(7)
    chances = rng.beta(0.5, 0.5, 30)
    hits = 0
    for _ in range(300):
        values = [bool(v) for v in (rng.random((30, 4)) < chances[:, None]).ravel()]
        names = [str(i // 4) for i in range(120)]
        fixed, like = stats.rate(values, clusters=names, fixed=True), stats.rate(values, clusters=names)
        assert width(fixed) < width(like)
        hits += covers(fixed, float(chances.mean()))
    assert 0.91 < hits / 300 < 0.99


def test_a_fixed_set_over_trainings_knows_of_trainings() -> None:
    """Thirty problems and three trainings that differ much: what varies is the training."""
    rng = np.random.default_rng(9)
    chances = rng.uniform(0.2, 0.8, (30, 1, 1)) + np.array([-0.15, 0.0, 0.15])[:, None]
    values = [bool(v) for v in (rng.random((30, 3, 4)) < chances).ravel()]
    names, seeds = [str(i // 12) for i in range(360)], [i // 4 % 3 for i in range(360)]
    alone, over = (
        stats.rate(values, clusters=names, fixed=True),
        stats.rate(values, clusters=names, seeds=seeds, fixed=True),
    )
    assert width(over) > 3 * width(alone)
    assert "2 degrees of freedom" in over.how


def test_a_rate_over_strata_covers() -> None:
    """A screen that finds six of ten and errs on one of twenty, with thirty labels of each side: the truth is covered."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(400):
        present = rng.random(300) < 0.1
        flagged = np.where(present, rng.random(300) < 0.6, rng.random(300) < 0.05)
        sides = [present[flagged == side] for side in (True, False)]
        held += covers(stats.stratified([(len(side), stats.rate(side[:30].tolist())) for side in sides]), 0.1)
    assert 0.92 < held / 400 < 0.98
    assert stats.stratified([(5, stats.rate([True] * 5)), (9, stats.rate([]))]).value is None


@pytest.mark.parametrize("spread", [0.0, 0.5])
@pytest.mark.parametrize("seeds", [2, 3])
def test_few_trainings_cover_whether_they_differ_or_not(seeds: int, spread: float) -> None:
    """93 to 97 % as `benchmarks/coverage.py` has it, by 1,500 draws: neither too narrow nor too wide."""
    rng, held, n = np.random.default_rng(4), 0, 100
    start = float(scipy_stats.norm.ppf(0.3)) * math.sqrt(2 + spread**2)
    names, trained = np.repeat(np.arange(n), seeds).tolist(), list(range(seeds)) * n
    for _ in range(1500):
        shift = spread * rng.standard_normal((1, seeds))
        values = start + rng.standard_normal((n, 1)) + shift + rng.standard_normal((n, seeds)) > 0
        held += covers(stats.rate(values.ravel().tolist(), clusters=names, seeds=trained), 0.3)
    assert 0.925 < held / 1500 < 0.978


def test_kappa() -> None:
    a = ["x"] * 20 + ["y"] * 5 + ["x"] * 10 + ["y"] * 15
    b = ["x"] * 20 + ["x"] * 5 + ["y"] * 10 + ["y"] * 15
    assert stats.kappa(a, b) == pytest.approx(0.4)
    assert stats.kappa(["x"], ["x"]) is None
    assert stats.kappa([None], ["x"]) is None


def test_a_judge_without_errors_changes_nothing_much() -> None:
    perfect = stats.rate(flips(10_000, 10_000))
    observed = stats.rate(flips(60, 200))
    estimate = stats.corrected(observed, perfect, perfect)
    assert estimate.value == pytest.approx(0.3)
    assert (estimate.low, estimate.high) == pytest.approx((observed.low, observed.high), abs=0.01)


def test_a_judge_no_better_than_chance_corrects_nothing() -> None:
    estimate = stats.corrected(stats.rate(flips(60, 200)), stats.rate(flips(6, 10)), stats.rate(flips(5, 10)))
    assert estimate.value is None
    assert "chance" in estimate.how


def drawn(rng: np.random.Generator, rate: float, prompts: int, samples: int, tie: float) -> NDArray[np.bool_]:
    """Replies of prompts that differ: a beta-binomial whose intraclass correlation is `tie`."""
    k = 1 / tie - 1 if tie else 0
    chances = rng.beta(rate * k, (1 - rate) * k, prompts) if tie else np.full(prompts, rate)
    return rng.random((prompts, samples)) < chances[:, None]


def covers(estimate: Estimate, truth: float) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low - 1e-12 <= truth <= estimate.high + 1e-12


def flat(values: NDArray[np.bool_]) -> list[bool | None]:
    return [bool(v) for v in values.ravel()]


@pytest.mark.slow
def test_intervals_cover_what_they_promise() -> None:
    """95 % intervals over a grid of rate, prompts, samples and likeness of replies: >= 94 % on average, >= 90 % everywhere."""
    rng = np.random.default_rng(11)
    coverage = {}
    for rate in (0.02, 0.1, 0.3, 0.5, 0.9):
        for prompts in (10, 30, 100):
            hits = [covers(stats.rate(flips(k, prompts)), rate) for k in range(prompts + 1)]
            chances = scipy_stats.binom.pmf(np.arange(prompts + 1), prompts, rate)
            coverage[rate, prompts, 1, 0.0] = float(np.dot(hits, chances))
            for samples in (3, 8):
                names = [str(i // samples) for i in range(prompts * samples)]
                for tie in (0.0, 0.4, 0.9):
                    draws = [flat(drawn(rng, rate, prompts, samples, tie)) for _ in range(300)]
                    hits = [covers(stats.rate(values, clusters=names), rate) for values in draws]
                    coverage[rate, prompts, samples, tie] = float(np.mean(hits))
    assert np.mean(list(coverage.values())) >= 0.94
    assert min(coverage.values()) >= 0.90, min(coverage.items(), key=lambda item: item[1])


def test_intervals_over_seeds_cover_what_they_promise() -> None:
    """Prompts and seeds both drawn: the interval is for the recipe, not for three checkpoints."""
    rng = np.random.default_rng(12)
    coverage = []
    for rate in (0.1, 0.4):
        for between in (0.0, 0.15, 0.4):
            for prompts in (40, 120):
                total = math.sqrt(1 + 1 + between**2)
                level = scipy_stats.norm.ppf(rate) * total
                names = [str(i // 3) for i in range(prompts * 3)]
                hits = []
                for _ in range(250):
                    difficulty, seed = rng.standard_normal((prompts, 1)), between * rng.standard_normal((1, 3))
                    values = level + difficulty + seed + rng.standard_normal((prompts, 3)) > 0
                    estimate = stats.rate(flat(values), clusters=names, seeds=[0, 1, 2] * prompts)
                    hits.append(covers(estimate, rate))
                coverage.append(float(np.mean(hits)))
    assert np.mean(coverage) >= 0.94
    assert min(coverage) >= 0.88


def test_paired_tests_raise_few_false_alarms() -> None:
    """Two arms of equal strength that share their prompts' difficulty: p < 0.05 in at most 6 % of trials."""
    rng = np.random.default_rng(13)
    alarms = []
    for rate in (0.05, 0.3, 0.7):
        for prompts in (20, 100):
            for samples in (1, 4):
                names = [str(i // samples) for i in range(prompts * samples)]
                count = 0
                for _ in range(250):
                    chances = rng.beta(rate, 1 - rate, prompts)[:, None]
                    a, b = (rng.random((prompts, samples)) < chances for _ in range(2))
                    count += (stats.paired(flat(a), flat(b), clusters=names).p or 1) < 0.05
                alarms.append(count / 250)
    assert np.mean(alarms) <= 0.06
    assert max(alarms) <= 0.09, "beyond what 250 trials at 5 % can show"


@pytest.mark.parametrize("between", [0.0, 0.5])
def test_seeds_that_differ_raise_no_alarms(between: float) -> None:
    """Two equal recipes whose trainings differ by luck."""
    rng = np.random.default_rng(14)
    prompts, count = 60, 0
    names = [str(i // 3) for i in range(prompts * 3)]
    for _ in range(600):
        difficulty = rng.standard_normal((prompts, 1))
        a, b = (
            difficulty + between * rng.standard_normal((1, 3)) + rng.standard_normal((prompts, 3)) > 0.5
            for _ in range(2)
        )
        count += (stats.paired(flat(a), flat(b), clusters=names, seeds=[0, 1, 2] * prompts).p or 1) < 0.05
    assert count / 600 <= 0.06


def test_averages_of_any_value_are_tested_and_bounded() -> None:
    rng = np.random.default_rng(15)
    alarms, covered = 0, 0
    for _ in range(150):
        difficulty = rng.exponential(5, 30)
        a, b = (difficulty + rng.exponential(2, 30) for _ in range(2))
        difference = stats.paired(list(a + 1.0), list(b))
        assert difference.low is not None
        assert difference.high is not None
        covered += difference.low <= 1.0 <= difference.high
        alarms += (stats.paired(list(a), list(b)).p or 1) < 0.05
    assert covered / 150 >= 0.90
    assert alarms / 150 <= 0.09


def test_corrected_rates_cover_the_truth() -> None:
    """Sensitivity and specificity known from 80 labels each, the rate from 150 prompts."""
    rng = np.random.default_rng(16)
    coverage = []
    for truth in (0.05, 0.3, 0.7):
        for se, sp in ((0.9, 0.95), (0.75, 0.85)):
            hits = 0
            for _ in range(300):
                seen = rng.binomial(150, truth * se + (1 - truth) * (1 - sp))
                labels = [flips(rng.binomial(80, chance), 80) for chance in (se, sp)]
                estimate = stats.corrected(stats.rate(flips(seen, 150)), *(stats.rate(rows) for rows in labels))
                hits += covers(estimate, truth)
            coverage.append(hits / 300)
    assert np.mean(coverage) >= 0.94
    assert min(coverage) >= 0.90


@settings(max_examples=40)
@given(st.integers(0, 30), st.integers(1, 30), st.integers(5, 30), st.integers(5, 30))
def test_a_corrected_rate_is_a_rate(count: int, more: int, se: int, sp: int) -> None:
    observed = stats.rate(flips(count, count + more))
    estimate = stats.corrected(observed, stats.rate(flips(se, 30)), stats.rate(flips(sp, 30)))
    if estimate.value is not None:
        assert estimate.low is not None
        assert estimate.high is not None
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_the_same_data_give_the_same_numbers() -> None:
    values: Sequence[float] = list(np.random.default_rng(4).random(80))
    other = list(reversed(values))
    assert stats.paired(values, other) == stats.paired(values, other)


@pytest.mark.parametrize("value", [0.9993, 0.1, 7.0, 0.0])
@pytest.mark.parametrize("n", [3, 7, 60])
def test_equal_values_are_equal_whatever_floats_make_of_their_mean(value: float, n: int) -> None:
    estimate = stats.mean([value] * n)
    assert "all values equal" in estimate.how
    assert estimate.high is not None
    assert estimate.high - value > 0.02 * value


def test_a_mean_of_rare_shares_covers_what_it_promises() -> None:
    """Six columns that weigh alike, four of them with the same prompts. Student's t covers 82 and 89 % here, not 95."""
    names = [(column, i) for column in "abcdef" for i in range(30 if column == "d" else 100)]
    where: dict[str, Any] = {
        "clusters": ["harm" + str(i) if column in "abcd" else column + str(i) for column, i in names],
        "stratum": [column for column, _ in names],
        "strata": dict.fromkeys("abcdef", 1.0),
    }
    rng = np.random.default_rng(0)
    for p in (0.005, 0.01):
        estimates = [stats.mean([float(one) for one in rng.random(len(names)) < p], **where) for _ in range(300)]
        assert sum((e.low or 0) <= p <= (e.high or 0) for e in estimates) >= 0.92 * len(estimates)
    none, one = (stats.mean([float(at < events) for at in range(len(names))], **where) for events in (0, 1))
    assert (one.high or 0) > (none.high or 1)
    assert 0.0 < (one.low or 0) < (one.value or 0)
