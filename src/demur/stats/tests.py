"""Two arms or two labellers: paired differences and their p, Holm's method, power, agreement."""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from demur.records import Record
from demur.stats.rates import USUAL, Better
from demur.stats.spread import PRIOR, Sample, flip_test, picked, t_quantile, t_test, weighted

USUAL_BASES = 0.7  # How much bases differ when nothing is known: the standard deviation of their log odds
POWER = 0.8
TYPICAL, ALIKE = 0.3, 0.3  # Assumed before a run: a rate, and the correlation of two arms' replies to one prompt


class Difference(Record, frozen=True, kw_only=True):
    """A minus B on the same prompts. `value` is `None` when too little was scored on both sides, as `how` then says."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None  # Two-sided, of no difference
    n: int  # Pairs of replies that were scored on both sides
    clusters: int  # Independent prompts among them
    seeds: int = 1
    unscored: int = 0  # Pairs with a side that could not be scored
    spread: float | None = None  # Standard error times the root of `clusters`; what sample sizes follow from
    freedom: float = math.inf  # Degrees of freedom of the interval
    by_seeds: float = 0.0  # The share of the variance that is between seeds, which more prompts do not reduce
    how: str = ""


def paired(
    a: Sequence[bool | float | None],
    b: Sequence[bool | float | None],
    *,
    clusters: Sequence[Hashable] | None = None,
    seeds: Sequence[int | None] | None = None,
    strata: tuple[Sequence[Hashable], Mapping[Any, float]] | None = None,
    usual: float = USUAL,
) -> Difference:
    """A minus B over aligned replies to the same prompts.

    The test flips the sign of whole clusters; with one yes-or-no reply a prompt it is McNemar's exact test. The
    interval is Bonett and Price's for rates (two pseudo-pairs become two pseudo-clusters), Student's for other values.
    With several seeds both widen by the spread between seeds, and p is the larger of the two tests'.

    Args:
        a: the value of each of A's replies; `None`: could not be scored. `b` the same of B's.
        clusters: the cluster of each pair; default: all pairs are independent.
        seeds: the seed of each pair's trainings.
        strata: the stratum of each pair, such as its attack, and the weight of each stratum; default: equal pairs.
        usual: how much trainings usually differ, as the standard deviation of their log odds.
    """
    assert len(a) == len(b), "pairs must be aligned"
    scored = [i for i in range(len(a)) if a[i] is not None and b[i] is not None]
    sides = [[float(side[i] or 0) for i in scored] for side in (a, b)]
    stratum, weights = strata or (None, None)
    flat, linear = weighted([x - y for x, y in zip(*sides, strict=True)], picked(stratum, scored), weights)
    data = Sample.of(linear, picked(clusters, scored), picked(seeds, scored))
    n, unscored = len(scored), len(a) - len(scored)
    blank = Difference(
        value=None, low=None, high=None, p=None, n=n, clusters=data.clusters, seeds=data.seeds, unscored=unscored
    )
    if data.clusters < 2:
        return replace(blank, how="fewer than two prompts were scored on both sides")
    value = float(data.values.mean())
    is_rate = all(isinstance(side[i], bool) for side in (a, b) for i in scored)
    scale = 1.0 if is_rate else 0.0 if data.values.std() else abs(value) or 1.0
    smooth = data.with_pseudo_clusters(scale) if scale else data
    by_prompt, level = smooth.cluster_variance(), float(np.mean(sides))
    each = level * (1 - level) if is_rate else float(np.std(sides)) / 2
    variance, freedom, how = smooth.moderated(by_prompt, math.sqrt(2) * usual * each)
    centre = float(smooth.values.mean()) if is_rate else value
    half = t_quantile(freedom) * math.sqrt(variance)
    bound = 1.0 if is_rate else math.inf
    low, high = max(-bound, centre - half), min(bound, centre + half)
    p = flip_test(flat, data.cluster)
    test = "McNemar, exact" if is_rate and data.clusters == n else "sign flips by prompt"
    if data.seeds > 1:
        p, test = max(p, t_test(value, variance, freedom)), f"{test}, and t over seeds"
    spread, by_seeds = math.sqrt(variance * smooth.clusters), 1 - by_prompt / variance if variance > 0 else 0.0
    how = f"{test}; {'Bonett and Price, ' if is_rate else ''}{how}"
    return replace(
        blank, value=value, low=low, high=high, p=p, freedom=freedom, spread=spread, by_seeds=by_seeds, how=how
    )


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """P values adjusted by Holm's step-down method; `None` stays `None` and is not counted as a comparison."""
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    running = 0.0
    for rank, (p, i) in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p))
        adjusted[i] = running
    return adjusted


def p_at(difference: Difference, margin: float) -> float | None:
    """The two-sided p of a true difference of `margin`: below 0.05 where the interval excludes it."""
    if difference.low is None or difference.high is None:
        return None
    centre, half = (difference.low + difference.high) / 2, (difference.high - difference.low) / 2
    return t_test(centre - margin, (half / t_quantile(difference.freedom)) ** 2, difference.freedom)


def non_inferior(difference: Difference, margin: float, *, better: Better = "higher") -> bool | None:
    """Whether A is worse than B by at most `margin`, at the one-sided level of 2.5 %; `None` without an interval."""
    assert margin >= 0, "a margin is a distance"
    if difference.low is None or difference.high is None:
        return None
    return difference.high < margin if better == "lower" else difference.low > -margin


def minimum_detectable(
    spread: float, clusters: int, *, comparisons: int = 1, share: bool = True, fixed: float = 0
) -> float:
    """The smallest true difference that `clusters` prompts show with 80 % power at a level of 5 % over all comparisons.

    A difference of rates (`share`) adds to the pairs that differ, and an exact test is conservative: both are counted.
    `fixed` is the variance that more prompts do not reduce, which is that between trainings.
    """
    spread = math.sqrt(spread**2 + fixed * clusters)
    critical, power = t_quantile(share=1 - 0.025 / comparisons), t_quantile(share=POWER)
    low, high = 0.0, 1.0 if share else 100 * spread
    for _ in range(40):
        middle = (low + high) / 2
        more = middle if share else 0.0
        reach = critical * math.sqrt(spread**2 + more) + power * math.sqrt(spread**2 + more - more * more)
        detectable = reach / math.sqrt(clusters) + (1 / clusters if share else 0.0)
        low, high = (middle, high) if detectable > middle else (low, middle)
    return high


def prompts_needed(difference: float, spread: float, **options: Any) -> int | None:
    """How many prompts show a true difference of this size, by `minimum_detectable`; `None`: a million would not."""
    low, high = 1, 2
    while high < 1 << 20 and minimum_detectable(spread, high, **options) > abs(difference):
        low, high = high, 2 * high
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        enough = minimum_detectable(spread, middle, **options) <= abs(difference)
        low, high = (low, middle) if enough else (middle, high)
    return high if high < 1 << 20 else None


def detectable(*, prompts: int, seeds: int, bases: int = 1, tests: int = 1) -> float:
    """The smallest difference of two rates that a design shows with 80 % power, computed before the run; over 1: none.

    `seeds` are trainings of each arm on each base, `tests` the size of the family that Holm's method adjusts for.
    """
    each = TYPICAL * (1 - TYPICAL)
    by_seed = USUAL**2 / (seeds * bases) if seeds > 1 else 0.0
    by_base = USUAL_BASES**2 / bases if bases > 1 else 0.0
    error = math.sqrt(2 * each * (1 - ALIKE) / prompts + 2 * each**2 * (by_seed + by_base))
    freedom = PRIOR + bases - 1 if bases > 1 else PRIOR + seeds - 1 if seeds > 1 else math.inf
    return (t_quantile(freedom, 1 - 0.025 / tests) + t_quantile(freedom, POWER)) * error + 1 / prompts  # an exact test


def kappa(a: Sequence[str | None], b: Sequence[str | None]) -> float | None:
    """Cohen's kappa of two labellers over what both labelled; `None` if that is nothing, or one label throughout."""
    both = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if not both:
        return None
    agreement = sum(x == y for x, y in both) / len(both)
    counts_a, counts_b = (Counter(labels) for labels in zip(*both, strict=True))
    chance = sum(counts_a[label] * counts_b[label] for label in counts_a) / len(both) ** 2
    return None if chance == 1 else (agreement - chance) / (1 - chance)
