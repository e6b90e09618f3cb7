"""From outcomes to numbers that may be printed: intervals, paired tests, and what a judge's errors do to a rate.

Prompts are what a benchmark samples; replies to one prompt are not independent, and trained seeds are few. So every
interval is clustered by prompt, and a number over several seeds carries the spread between them too. All intervals are
for 95 %. Where nothing can be said the value is `None` and `how` gives the reason; 0 of 50 never reads as certainty.

Sources: Wilson 1927; Bonett and Price 2012 (paired differences); Satterthwaite 1946; Holm 1979; Lang and Reiczigel 2014
(rates corrected for an imperfect judge). `tests/test_stats.py` checks the formulas and, by simulation, what they promise.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from msgspec.structs import replace

from demur.records import Estimate, Record
from demur.stats.spread import (
    Floats,
    Sample,
    cluster_variance,
    correlation,
    flip_test,
    moderated,
    normal_quantile,
    sample,
    t_quantile,
    t_test,
    variance_of,
    with_pseudo_clusters,
)

Z = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""
POWER_Z = 0.8416212335729143
"""The normal quantile of 80 % power."""

USUAL = 0.5
"""How much trainings differ where nothing is known: the standard deviation of their log odds."""
USUAL_BASES = 0.7
"""The same of bases."""

Better = Literal["lower", "higher", "neither"]
T = TypeVar("T")


class Difference(Record, frozen=True, kw_only=True):
    """A minus B on the same prompts. `value` is `None` when too little was scored on both sides; `how` says why."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None
    """Two-sided, of no difference."""
    n: int
    """Pairs of replies that were scored on both sides."""
    clusters: int
    """Independent prompts among them."""
    seeds: int = 1
    unscored: int = 0
    """Pairs with a side that could not be scored."""
    spread: float | None = None
    """Standard error times the root of `clusters`; what sample sizes follow from."""
    freedom: float = math.inf
    """Degrees of freedom of the interval."""
    by_seeds: float = 0.0
    """The share of the variance that is between seeds, which no number of prompts takes away."""
    how: str = ""


def rate(
    outcomes: Sequence[bool | None],
    *,
    clusters: Sequence[Hashable] | None = None,
    seeds: Sequence[int | None] | None = None,
    truncated: int | Sequence[bool] = 0,
    unscored: int = 0,
    better: Better = "neither",
) -> Estimate:
    """A share with its interval: Wilson's, on as many observations as the replies are worth.

    Replies to one prompt agree to a degree (the intraclass correlation, shrunk towards 1 where events are too rare to
    tell), which makes n replies worth fewer. With several seeds, their spread is added and t replaces the normal.

    Args:
        outcomes: one for each reply; `None`: could not be scored.
        clusters: of each outcome; replies of one cluster are not independent. Default: all are.
        seeds: of the training behind each outcome.
        truncated: which outcomes are of texts that a budget cut, or how many.
        unscored: requests beyond `outcomes` that have nothing to score.
        better: the direction in which `best` lies; for `neither` it is the lower bound.
    """
    known = [i for i, outcome in enumerate(outcomes) if outcome is not None]
    data = sample([float(bool(outcomes[i])) for i in known], _pick(clusters, known), _pick(seeds, known))
    missing = len(outcomes) - len(known) + unscored
    cut = truncated if isinstance(truncated, int) else sum(truncated)
    best, worst = _bounds(outcomes, truncated, unscored)
    counts = {"n": len(known), "unscored": missing, "truncated": cut}
    if better == "higher":
        best, worst = worst, best
    if data.clusters < 2:
        how = (
            "nothing was scored"
            if not known
            else "all is of one prompt: too few to say how far the number can be trusted"
        )
        return Estimate(value=None, low=None, high=None, how=how, best=best, worst=worst, **counts)
    p = float(data.values.mean())
    worth, quantile, how = _worth(data, p)
    low, high = wilson(p, worth, quantile)
    return Estimate(value=p, low=low, high=high, how=how, best=best, worst=worst, **counts)


def mean(
    values: Sequence[float | None],
    *,
    clusters: Sequence[Hashable] | None = None,
    seeds: Sequence[int | None] | None = None,
    truncated: int = 0,
    stratum: Sequence[Hashable] = (),
    strata: Mapping[Any, float] | None = None,
) -> Estimate:
    """A mean with Student's interval, clustered, with the spread between seeds where there are several.

    `stratum` says to which stratum each value belongs, and `strata` how much each of them weighs.
    """
    known = [i for i, value in enumerate(values) if value is not None]
    _, linear = _weighed([float(v) for v in values if v is not None], _pick(stratum, known) if strata else None, strata)
    data = sample(linear, _pick(clusters, known), _pick(seeds, known))
    counts = {"n": len(known), "unscored": len(values) - len(known), "truncated": truncated}
    if data.clusters < 2:
        how = "nothing was counted" if not known else "all is of one prompt: no spread to tell an interval from"
        return Estimate(value=None, low=None, high=None, how=how, **counts)
    value = float(data.values.mean())
    variance, freedom, how = variance_of(data, cluster_variance(data))
    if not variance:
        # All alike says that others are rare, not that there are none: two more observations, at zero and at twice the value.
        scale, n = abs(value) or 1.0, data.clusters + 2
        variance, how = 2 * scale * scale / (n * (n - 1)), f"{how}; all values equal, two pseudo-observations"
    half = t_quantile(freedom) * math.sqrt(variance)
    return Estimate(value=value, low=value - half, high=value + half, how=how, **counts)


def ratio(
    pairs: Sequence[tuple[float, float] | None],
    *,
    clusters: Sequence[Hashable] | None = None,
    seeds: Sequence[int | None] | None = None,
    truncated: int = 0,
) -> Estimate:
    """A ratio of two sums, its interval by linearisation."""
    known = [pair for pair in pairs if pair is not None]
    above, below = sum(a for a, _ in known), sum(b for _, b in known)
    if not below:
        n, lost = len(known), len(pairs) - len(known)
        how = "nothing to divide by" if known else "nothing was counted"
        return Estimate(value=None, low=None, high=None, n=n, unscored=lost, truncated=truncated, how=how)
    value, share = above / below, below / len(known)
    lines = [None if pair is None else value + (pair[0] - value * pair[1]) / share for pair in pairs]
    found = mean(lines, clusters=clusters, seeds=seeds, truncated=truncated)
    return replace(found, how=f"{found.how}, linearised ratio")


def at_least_one(n: int, hits: int, k: int) -> float | None:
    """The chance that k replies, drawn from n of which so many hit, hold a hit: 1 - C(n-hits, k) / C(n, k); `None` for k > n."""
    return 1.0 - math.comb(n - hits, k) / math.comb(n, k) if 1 <= k <= n else None


def wilson(p: float, n: float, quantile: float = Z) -> tuple[float, float]:
    """Wilson's score interval of a share of n observations; n need not be whole."""
    square = quantile * quantile
    centre = p + square / (2 * n)
    half = quantile * math.sqrt(p * (1 - p) / n + square / (4 * n * n))
    low, high = (centre - half) / (1 + square / n), (centre + half) / (1 + square / n)
    return (0.0 if p == 0 else max(0.0, low)), (1.0 if p == 1 else min(1.0, high))


def paired(
    a: Sequence[bool | float | None],
    b: Sequence[bool | float | None],
    *,
    clusters: Sequence[str] | None = None,
    seeds: Sequence[int | None] | None = None,
    strata: Mapping[Any, float] | None = None,
    stratum: Sequence[Hashable] = (),
    usual: float = USUAL,
) -> Difference:
    """A minus B over aligned replies to the same prompts.

    The test flips the sign of whole clusters: for one yes-or-no reply a prompt that is McNemar's exact test, for several
    the exact permutation test of the averages, and 10,000 random flips where values are not whole. The interval is Bonett
    and Price's for shares (their two pseudo-pairs become two pseudo-clusters) and Student's for other values. With several seeds both widen by the spread between seeds, and p is the larger of the two tests'.

    Args:
        a: what A's replies count as; `None`: could not be scored.
        b: the same of B.
        clusters: of each pair; default: all are independent.
        seeds: of the trainings behind each pair.
        stratum: of each pair, such as its attack.
        strata: how much each stratum weighs; default: each pair the same.
        usual: how much trainings usually differ, as the standard deviation of their log odds.
    """
    assert len(a) == len(b), "pairs must be aligned"
    known = [i for i in range(len(a)) if a[i] is not None and b[i] is not None]
    differences = [float(a[i] or 0) - float(b[i] or 0) for i in known]
    flat, linear = _weighed(differences, _pick(stratum, known) if strata else None, strata)
    data = sample(linear, _pick(clusters, known), _pick(seeds, known))
    blank = Difference(
        value=None, low=None, high=None, p=None, n=len(known), clusters=data.clusters, seeds=data.seeds,
        unscored=len(a) - len(known),
    )  # fmt: skip
    if data.clusters < 2:
        return replace(blank, how="fewer than two prompts were scored on both sides")
    value = float(data.values.mean())
    share = all(isinstance(x[i], bool) for x in (a, b) for i in known)
    smooth = with_pseudo_clusters(data, 1.0 if share else abs(value) or 1.0) if share or not data.values.std() else data
    centre, by_prompt = float(smooth.values.mean()) if share else value, cluster_variance(smooth)
    middle = float(np.mean([float(x[i] or 0) for x in (a, b) for i in known]))
    scale = middle * (1 - middle) if share else float(np.std([float(x[i] or 0) for x in (a, b) for i in known])) / 2
    variance, freedom, how = moderated(smooth, by_prompt, math.sqrt(2) * usual * scale)
    half = t_quantile(freedom) * math.sqrt(variance)
    low, high = centre - half, centre + half
    p = flip_test(flat, data.cluster)
    test = "McNemar, exact" if share and data.clusters == len(known) else "sign flips by prompt"
    if share:
        how = f"Bonett and Price, {how}"
        low, high = max(-1.0, low), min(1.0, high)
    if data.seeds > 1:
        p, test = max(p, t_test(value, variance, freedom)), f"{test}, and t over seeds"
    spread = math.sqrt(variance * smooth.clusters)
    by_seeds = 1 - by_prompt / variance if variance > 0 else 0.0
    return replace(
        blank,
        value=value,
        low=low,
        high=high,
        p=p,
        freedom=freedom,
        spread=spread,
        by_seeds=by_seeds,
        how=f"{test}; {how}",
    )


def _weighed(
    values: list[float], stratum: Sequence[Hashable] | None, strata: Mapping[Any, float] | None
) -> tuple[Floats, list[float]]:
    """Values whose plain mean is the weighted mean of the strata's; and the same with only their spread within strata."""
    flat = np.asarray(values, dtype=float)
    if stratum is None or strata is None:
        return flat, values
    places: dict[Hashable, list[int]] = {}
    for place, name in enumerate(stratum):
        places.setdefault(name, []).append(place)
    total = sum(strata[name] for name in places)
    weight, middle = np.ones(len(flat)), np.zeros(len(flat))
    for name, those in places.items():
        weight[those] = strata[name] / total * len(flat) / len(those)
        middle[those] = flat[those].mean()
    flat = weight * flat
    return flat, list(flat.mean() + weight * (np.asarray(values) - middle)) if len(flat) else []


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


def minimum_detectable(spread: float, clusters: int, *, comparisons: int = 1, share: bool = True) -> float:
    """The smallest true difference that so many prompts show with 80 % power at 5 %, divided among so many comparisons.

    A difference of shares makes more pairs differ than were seen to, and an exact test gives nothing away: both count.
    """
    critical = normal_quantile(1 - 0.025 / comparisons)
    low, high = 0.0, 1.0 if share else 100 * spread
    for _ in range(40):
        middle = (low + high) / 2
        more = middle if share else 0.0
        reach = critical * math.sqrt(spread**2 + more) + POWER_Z * math.sqrt(spread**2 + more - more * more)
        shown = reach / math.sqrt(clusters) + (1 / clusters if share else 0.0)
        low, high = (middle, high) if shown > middle else (low, middle)
    return high


def prompts_needed(difference: float, spread: float, *, comparisons: int = 1, share: bool = True) -> int | None:
    """How many prompts would show a true difference of this size, in the same sense; `None` for no difference at all."""
    if not difference:
        return None
    low, high = 1, 2
    while minimum_detectable(spread, high, comparisons=comparisons, share=share) > abs(difference):
        low, high = high, 2 * high
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        enough = minimum_detectable(spread, middle, comparisons=comparisons, share=share) <= abs(difference)
        low, high = (low, middle) if enough else (middle, high)
    return high


def corrected(observed: Estimate, sensitivity: Estimate, specificity: Estimate) -> Estimate:
    """What a rate would be under the labels against which its judge was calibrated, with all three uncertainties.

    Args:
        observed: the judge's rate.
        sensitivity: the share of true positives that the judge finds.
        specificity: the share of true negatives that it leaves alone.
    """
    blank = Estimate(
        value=None, low=None, high=None, n=observed.n, unscored=observed.unscored, truncated=observed.truncated
    )
    parts = [_worth_of(estimate) for estimate in (observed, sensitivity, specificity)]
    if any(part is None for part in parts):
        return replace(blank, how="the judge's rate or its calibration has no interval")
    (p, n), (se, n_se), (sp, n_sp) = (part for part in parts if part is not None)
    if sensitivity.low + specificity.low <= 1:  # type: ignore[operator]
        return replace(blank, how="the calibration does not show the judge to be better than chance")
    value = min(1.0, max(0.0, (p + sp - 1) / (se + sp - 1)))
    p, n = (n * p + Z * Z / 2) / (n + Z * Z), n + Z * Z
    se, n_se = (n_se * se + 1) / (n_se + 2), n_se + 2
    sp, n_sp = (n_sp * sp + 1) / (n_sp + 2), n_sp + 2
    centre = (p + sp - 1) / (se + sp - 1)
    var_se, var_sp = se * (1 - se) / n_se, sp * (1 - sp) / n_sp
    shift = 2 * Z * Z * (centre * var_se - (1 - centre) * var_sp)
    error = math.sqrt(p * (1 - p) / n + centre**2 * var_se + (1 - centre) ** 2 * var_sp) / (se + sp - 1)
    low, high = (min(1.0, max(0.0, centre + shift + side * Z * error)) for side in (-1, 1))
    how = f"judge's errors taken out (sensitivity {sensitivity.value:.2f}, specificity {specificity.value:.2f}), Lang and Reiczigel"
    return replace(blank, value=value, low=min(low, value), high=max(high, value), how=how)


def kappa(a: Sequence[str | None], b: Sequence[str | None]) -> float | None:
    """Cohen's kappa of two labellers over what both labelled; `None` when either used one label only."""
    both = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if not both:
        return None
    agree = sum(x == y for x, y in both) / len(both)
    labels = {label for pair in both for label in pair}
    chance = sum(sum(x == k for x, _ in both) * sum(y == k for _, y in both) for k in labels) / len(both) ** 2
    return None if chance == 1 else (agree - chance) / (1 - chance)


def _pick(items: Sequence[T] | None, places: Sequence[int]) -> list[T] | None:
    return None if items is None else [items[i] for i in places]


def _worth(data: Sample, p: float) -> tuple[float, float, str]:
    """Of how many independent observations the replies are worth, with which quantile, and how that was found."""
    n = len(data.values)
    if data.clusters == n:
        return n, Z, "Wilson"
    sizes = np.bincount(data.cluster).astype(float)
    yes = np.asarray(np.bincount(data.cluster, weights=data.values), dtype=np.float64)
    per_cluster = float((sizes**2).sum() / n)
    effective = n / (1 + (per_cluster - 1) * correlation(yes, sizes, p))
    if data.seeds < 2:
        return effective, Z, "Wilson, clustered by prompt"
    if p in (0.0, 1.0):
        # No event says nothing of how trainings differ: the bound is that of a usual spread.
        how = f"Wilson, clustered by prompt; {data.seeds} seeds assumed to differ by {USUAL} on the logit scale"
        return effective * (1 - (Z * USUAL) ** 2 / data.seeds), Z, how
    variance, freedom, how = variance_of(data, p * (1 - p) / effective)
    quantile = Z if freedom >= data.clusters - 1 else t_quantile(freedom)
    return p * (1 - p) / variance, quantile, f"Wilson, {how}"


def _bounds(
    outcomes: Sequence[bool | None], truncated: int | Sequence[bool], unscored: int
) -> tuple[float | None, float | None]:
    """The lowest and the highest share if what was cut or unscored had gone one way; cut counts make them cautious."""
    total = len(outcomes) + unscored
    if not total:
        return None, None
    if isinstance(truncated, int):
        sure, unsure = sum(o is True for o in outcomes), truncated
        low = max(0, sure - unsure)
        return low / total, min(total, sure + unsure + sum(o is None for o in outcomes) + unscored) / total
    pairs = list(zip(outcomes, truncated, strict=True))
    sure = sum(outcome is True and not cut for outcome, cut in pairs)
    unsure = sum(outcome is None or cut for outcome, cut in pairs) + unscored
    return sure / total, (sure + unsure) / total


def _worth_of(estimate: Estimate) -> tuple[float, float] | None:
    """A rate, and the number of independent observations that its Wilson interval stands for."""
    p, low, high = estimate.value, estimate.low, estimate.high
    if p is None or low is None or high is None:
        return None
    q, near, far = (p, low, high) if p >= 0.5 else (1 - p, 1 - high, 1 - low)
    ratio = q * q / (near * far) - 1 if near * far > 0 else 0.0
    return (p, Z * Z / ratio) if ratio > 0 else (p, float(estimate.n))
