"""Two of something: paired differences with their p, Holm's method, what so many prompts and trainings can show, agreement."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from demur.records import Record
from demur.stats.rates import USUAL, Better
from demur.stats.spread import PRIOR, Sample, flip_test, picked, t_quantile, t_test, weighed

USUAL_BASES = 0.7  # How much bases differ where nothing is known: the standard deviation of their log odds
POWER = 0.8
TYPICAL, ALIKE = 0.3, 0.3  # Before anything is measured: a rate, and the correlation of two arms' replies to one prompt


class Difference(Record, frozen=True, kw_only=True):
    """A minus B on the same prompts. `value` is `None` when too little was scored on both sides; `how` says why."""

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
    by_seeds: float = 0.0  # The share of the variance that is between seeds, which no number of prompts takes away
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

    The test flips the sign of whole clusters: McNemar's exact test where a prompt has one yes-or-no reply. The interval is
    Bonett and Price's for shares (two pseudo-pairs become two pseudo-clusters), Student's for other values. With several
    seeds both widen by the spread between seeds, and p is the larger of the two tests'.

    Args:
        a: what A's replies count as; `None`: could not be scored.
        b: the same of B.
        clusters: of each pair; default: all are independent.
        seeds: of each pair's trainings.
        strata: of each pair, such as its attack, and how much each stratum weighs; default: each pair the same.
        usual: how much trainings usually differ, as the standard deviation of their log odds.
    """
    assert len(a) == len(b), "pairs must be aligned"
    known = [i for i in range(len(a)) if a[i] is not None and b[i] is not None]
    sides = [[float(side[i] or 0) for i in known] for side in (a, b)]
    stratum, weights = strata or (None, None)
    flat, linear = weighed([x - y for x, y in zip(*sides, strict=True)], picked(stratum, known), weights)
    data = Sample.of(linear, picked(clusters, known), picked(seeds, known))
    blank = Difference(
        value=None, low=None, high=None, p=None, n=len(known), clusters=data.clusters, seeds=data.seeds,
        unscored=len(a) - len(known),
    )  # fmt: skip
    if data.clusters < 2:
        return replace(blank, how="fewer than two prompts were scored on both sides")
    value = float(data.values.mean())
    share = all(isinstance(x[i], bool) for x in (a, b) for i in known)
    scale = 1.0 if share else 0.0 if data.values.std() else abs(value) or 1.0
    smooth = data.with_pseudo_clusters(scale) if scale else data
    centre = float(smooth.values.mean()) if share else value
    by_prompt, middle = smooth.cluster_variance(), float(np.mean(sides))
    each = middle * (1 - middle) if share else float(np.std(sides)) / 2
    variance, freedom, how = smooth.moderated(by_prompt, math.sqrt(2) * usual * each)
    half = t_quantile(freedom) * math.sqrt(variance)
    low, high = (max(-1.0, centre - half), min(1.0, centre + half)) if share else (centre - half, centre + half)
    p = flip_test(flat, data.cluster)
    test = "McNemar, exact" if share and data.clusters == len(known) else "sign flips by prompt"
    if data.seeds > 1:
        p, test = max(p, t_test(value, variance, freedom)), f"{test}, and t over seeds"
    return replace(
        blank, value=value, low=low, high=high, p=p, freedom=freedom, spread=math.sqrt(variance * smooth.clusters),
        by_seeds=1 - by_prompt / variance if variance > 0 else 0.0, how=f"{test}; {'Bonett and Price, ' if share else ''}{how}",
    )  # fmt: skip


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """P values adjusted by Holm's step-down method; `None` stays and does not count as a comparison."""
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    running = 0.0
    for rank, (p, i) in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p))
        adjusted[i] = running
    return adjusted


def p_at(difference: Difference, margin: float) -> float | None:
    """The two-sided p of the hypothesis that the true difference is `margin`: below 0.05 where the interval leaves it out."""
    if difference.low is None or difference.high is None:
        return None
    centre, half = (difference.low + difference.high) / 2, (difference.high - difference.low) / 2
    return t_test(centre - margin, (half / t_quantile(difference.freedom)) ** 2, difference.freedom)


def non_inferior(difference: Difference, margin: float, *, better: Better = "higher") -> bool | None:
    """Whether A is not worse than B by more than `margin`, at the one-sided level of 2.5 %; `None` without an interval."""
    assert margin >= 0, "a margin is a distance"
    if difference.low is None or difference.high is None:
        return None
    return difference.high < margin if better == "lower" else difference.low > -margin


def minimum_detectable(spread: float, clusters: int, *, comparisons: int = 1, share: bool = True, fixed: float = 0) -> float:  # fmt: skip
    """The smallest true difference that so many prompts show with 80 % power at 5 %, divided among so many comparisons.

    A difference of shares makes more pairs differ than were seen to, and an exact test gives nothing away: both count.
    `fixed` is the variance that no number of prompts takes away: that between trainings.
    """
    spread = math.sqrt(spread**2 + fixed * clusters)
    critical, wanted = t_quantile(share=1 - 0.025 / comparisons), t_quantile(share=POWER)
    low, high = 0.0, 1.0 if share else 100 * spread
    for _ in range(40):
        middle = (low + high) / 2
        more = middle if share else 0.0
        reach = critical * math.sqrt(spread**2 + more) + wanted * math.sqrt(spread**2 + more - more * more)
        shown = reach / math.sqrt(clusters) + (1 / clusters if share else 0.0)
        low, high = (middle, high) if shown > middle else (low, middle)
    return high


def prompts_needed(difference: float, spread: float, **ways: Any) -> int | None:
    """How many prompts would show a true difference of this size, in the same sense; `None` where a million would not."""
    low, high = 1, 2
    while high < 1 << 20 and minimum_detectable(spread, high, **ways) > abs(difference):
        low, high = high, 2 * high
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if minimum_detectable(spread, middle, **ways) <= abs(difference) else (middle, high)
    return high if high < 1 << 20 else None


def settles(*, prompts: int, seeds: int, bases: int = 1, tests: int = 1) -> float:
    """The smallest difference of two rates that a design shows with 80 % power, before anything is measured; over 1: none.

    `seeds` are trainings of each arm on each base, `tests` those of the family that Holm's method adjusts for.
    """
    each = TYPICAL * (1 - TYPICAL)
    trained = USUAL**2 / (seeds * bases) if seeds > 1 else 0.0
    extra = 2 * each**2 * (trained + (USUAL_BASES**2 / bases if bases > 1 else 0.0))
    error = math.sqrt(2 * each * (1 - ALIKE) / prompts + extra)
    freedom = PRIOR + bases - 1 if bases > 1 else PRIOR + seeds - 1 if seeds > 1 else math.inf
    return (t_quantile(freedom, 1 - 0.025 / tests) + t_quantile(freedom, POWER)) * error + 1 / prompts  # an exact test


def kappa(a: Sequence[str | None], b: Sequence[str | None]) -> float | None:
    """Cohen's kappa of two labellers over what both labelled; `None` when either used one label only."""
    both = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if not both:
        return None
    agree = sum(x == y for x, y in both) / len(both)
    labels = {label for pair in both for label in pair}
    chance = sum(sum(x == k for x, _ in both) * sum(y == k for _, y in both) for k in labels) / len(both) ** 2
    return None if chance == 1 else (agree - chance) / (1 - chance)
