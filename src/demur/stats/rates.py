"""One number with its interval: a rate, a mean, a ratio, a rate corrected for its judge's errors."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from msgspec.structs import replace

from demur.records import Estimate
from demur.stats.spread import Sample, Z, correlation, picked, t_quantile, weighted

USUAL = 0.5  # How much trainings differ when nothing is known: the standard deviation of their log odds
NONE = Estimate(value=None, low=None, high=None, n=0, unscored=0)
Better = Literal["lower", "higher", "neither"]


def rate(
    outcomes: Sequence[bool | None],
    *,
    clusters: Sequence[Hashable] | None = None,
    seeds: Sequence[int | None] | None = None,
    truncated: Sequence[bool] = (),
    better: Better = "neither",
    fixed: bool = False,
) -> Estimate:
    """A rate with Wilson's interval, on the effective number of replies.

    Replies to one prompt are correlated (the intraclass correlation, shrunk towards 1 where events are too rare for an
    estimate), so that n replies are worth fewer. With several seeds, their spread is added and t replaces the normal.

    Args:
        outcomes: one for each reply; `None`: could not be scored.
        clusters: the cluster of each outcome; replies of one cluster are not independent. Default: all are.
        seeds: the seed of the training behind each outcome.
        truncated: which outcomes are of texts that a budget cut.
        better: the direction in which `best` lies; for `neither` it is the lower bound.
        fixed: the clusters are all that exist (AIME's 30 problems), not a sample: only replies vary.
    """
    scored = [i for i, outcome in enumerate(outcomes) if outcome is not None]
    data = Sample.of([float(bool(outcomes[i])) for i in scored], picked(clusters, scored), picked(seeds, scored))
    cut = [bool(i < len(truncated) and truncated[i]) for i in range(len(outcomes))]
    certain = sum(outcome is True and not short for outcome, short in zip(outcomes, cut, strict=True))
    unknown = sum(outcome is None or short for outcome, short in zip(outcomes, cut, strict=True))
    bounds = (certain / len(cut), (certain + unknown) / len(cut)) if cut else (None, None)
    best, worst = bounds[::-1] if better == "higher" else bounds
    blank = _blank(scored, outcomes, data, best=best, worst=worst, truncated=sum(cut))
    if data.clusters < 2:
        why = "all is of one prompt: too few to say how far to trust it" if scored else "nothing was scored"
        return replace(blank, how=why)
    p = float(data.values.mean())
    n, quantile, how = _effective(data, p, fixed=fixed)
    low, high = wilson(p, n, quantile)
    return replace(blank, value=p, low=low, high=high, how=how)


def mean(
    values: Sequence[float | None],
    *,
    clusters: Sequence[Hashable] | None = None,
    seeds: Sequence[int | None] | None = None,
    truncated: int = 0,
    stratum: Sequence[Hashable] = (),
    strata: Mapping[Any, float] | None = None,
) -> Estimate:
    """A mean with Student's interval (Wilson's for rates over strata), clustered, with the spread between seeds.

    `stratum` names the stratum of each value, `strata` the weight of each stratum.
    """
    scored = [i for i, value in enumerate(values) if value is not None]
    names = picked(stratum, scored) if strata else None
    _, linear = weighted([float(value) for value in values if value is not None], names, strata)
    data = Sample.of(linear, picked(clusters, scored), picked(seeds, scored))
    blank = _blank(scored, values, data, truncated=truncated)
    if data.clusters < 2:
        why = "all is of one prompt: no spread to tell an interval from" if scored else "nothing was counted"
        return replace(blank, how=why)
    value = float(data.values.mean())
    variance, freedom, how = data.variance(data.cluster_variance())
    if variance <= (1e-12 * value) ** 2:  # zero but for float noise
        # Equal values show that others are rare, not that none exist: add one at zero and one at twice the value.
        scale, n = abs(value) or 1.0, data.clusters + 2
        variance, how = 2 * scale * scale / (n * (n - 1)), f"{how}; all values equal, two pseudo-observations"
    if strata and 0.0 < value < 1.0 and {*values} <= {0.0, 1.0, None}:  # a mean of rates: rare events are skewed
        low, high = wilson(value, value * (1.0 - value) / variance, t_quantile(freedom))
        return replace(blank, value=value, low=low, high=high, how=f"Wilson, {how}".removesuffix(", Student's t"))
    half = t_quantile(freedom) * math.sqrt(variance)
    return replace(blank, value=value, low=value - half, high=value + half, how=how)


def _blank(scored: Sequence[int], values: Sequence[object], data: Sample, **fields: Any) -> Estimate:
    """An estimate without its value."""
    clusters = data.clusters if data.clusters < len(scored) else 0
    return replace(NONE, n=len(scored), unscored=len(values) - len(scored), clusters=clusters, **fields)


def ratio(pairs: Sequence[tuple[float, float] | None], **options: Any) -> Estimate:
    """A ratio of two sums, its interval by linearisation; `options` are those of `mean`."""
    scored = [pair for pair in pairs if pair is not None]
    above, below = sum(a for a, _ in scored), sum(b for _, b in scored)
    value, share = (above / below, below / len(scored)) if below else (0.0, 1.0)
    linear = [None if pair is None else value + (pair[0] - value * pair[1]) / share for pair in pairs]
    estimate = mean(linear, **options)
    if not below:
        return replace(estimate, value=None, low=None, high=None, how="nothing to divide by")
    return replace(estimate, how=f"{estimate.how}, linearised ratio")


def at_least_one(n: int, hits: int, k: int) -> float | None:
    """The chance that k of n replies hold a hit: 1 - C(n - hits, k) / C(n, k); `None` for k > n."""
    return 1.0 - math.comb(n - hits, k) / math.comb(n, k) if 1 <= k <= n else None


def wilson(p: float, n: float, quantile: float = Z) -> tuple[float, float]:
    """Wilson's score interval of a rate over n observations; n need not be whole."""
    square = quantile * quantile
    centre = p + square / (2 * n)
    half = quantile * math.sqrt(p * (1 - p) / n + square / (4 * n * n))
    low, high = (centre - half) / (1 + square / n), (centre + half) / (1 + square / n)
    return (0.0 if p == 0 else max(0.0, low)), (1.0 if p == 1 else min(1.0, high))


def corrected(observed: Estimate, sensitivity: Estimate, specificity: Estimate) -> Estimate:
    """The rate under the labels that its judge was calibrated against, with the uncertainty of all three estimates."""
    blank = replace(observed, value=None, low=None, high=None, best=None, worst=None)
    parts = [_effective_of(estimate) for estimate in (observed, sensitivity, specificity)]
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
    known = f"sensitivity {sensitivity.value:.2f}, specificity {specificity.value:.2f}"
    how = f"judge's errors taken out ({known}), Lang and Reiczigel"
    return replace(blank, value=value, low=min(low, value), high=max(high, value), how=how)


def drawn(observations: Iterable[tuple[bool | None, float, float]]) -> Estimate:
    """A rate from a draw with unequal chances: Wilson's interval on Kish's effective sample size.

    Each observation has its outcome, how many it stands for, and as how many it counts (a second label of it: half).
    """
    observed = list(observations)
    rows = [row for row in observed if row[0] is not None and row[1] > 0]
    blank = replace(NONE, n=round(sum(count for *_, count in rows)), unscored=len(observed) - len(rows))
    if len(rows) < 2:
        return replace(blank, how="too few to say how far to trust it")
    total = sum(weight * count for _, weight, count in rows)
    value = sum(weight * count for outcome, weight, count in rows if outcome) / total
    n = total**2 / sum(weight**2 * count for _, weight, count in rows)
    low, high = wilson(value, n)
    return replace(blank, value=value, low=low, high=high, how=f"Wilson, worth {n:.0f} of a plain draw")


def stratified(parts: Sequence[tuple[int, Estimate]]) -> Estimate:
    """A rate over strata, from each one's size and its rate in a random draw (Zou and Donner 2008, MOVER)."""
    parts = [(size, rate) for size, rate in parts if size]
    n, labels = sum(size for size, _ in parts), sum(rate.n for _, rate in parts)
    blank = replace(NONE, n=labels, unscored=sum(rate.unscored for _, rate in parts))
    if not parts or any(rate.low is None or rate.high is None for _, rate in parts):
        return replace(blank, how="a stratum of which too little was looked at")
    shares = [size / n for size, _ in parts]
    rates = [(float(rate.value or 0), float(rate.low or 0), float(rate.high or 0)) for _, rate in parts]
    value = sum(share * rate for share, (rate, *_) in zip(shares, rates, strict=True))
    # Which stratum each trace falls into is random, too.
    between = Z * Z * sum(share * (rate - value) ** 2 for share, (rate, *_) in zip(shares, rates, strict=True)) / n
    below = between + sum((share * (rate - low)) ** 2 for share, (rate, low, _) in zip(shares, rates, strict=True))
    above = between + sum((share * (high - rate)) ** 2 for share, (rate, _, high) in zip(shares, rates, strict=True))
    low, high = max(0.0, value - math.sqrt(below)), min(1.0, value + math.sqrt(above))
    return replace(blank, value=value, low=low, high=high, how=f"from {labels} labels over {len(parts)} strata of {n}")


def _effective(data: Sample, p: float, *, fixed: bool) -> tuple[float, float, str]:
    """How many independent observations the replies are worth, the quantile to use with that number, and the method."""
    sizes = np.bincount(data.cluster).astype(float)
    hits = np.asarray(np.bincount(data.cluster, weights=data.values), dtype=np.float64)
    n, how = float(sizes.sum()), "Wilson"
    effective = n
    if fixed:  # these prompts are all that exist: what varies is a prompt's replies
        several = sizes > 1
        spread = (hits * (sizes - hits))[several] / (sizes - 1)[several]
        within = float(spread.sum()) * len(sizes) / max(1, several.sum())
        if within:
            effective = p * (1 - p) * n * n / within
            how += ", of these prompts alone: replies vary, prompts do not"
        else:
            how += ", over replies: one a prompt, or all alike"
    elif n > len(sizes):
        effective = n / (1 + (float((sizes**2).sum() / n) - 1) * correlation(hits, sizes, p))
        how += ", clustered by prompt"
    if data.seeds < 2:
        return effective, Z, how
    if p in (0.0, 1.0):
        # Without events nothing shows how trainings differ: the bound assumes their usual spread.
        how = f"{how}; {data.seeds} seeds assumed to differ by {USUAL} on the logit scale"
        return effective * (1 - (Z * USUAL) ** 2 / data.seeds), Z, how
    variance, freedom, between = data.variance(p * (1 - p) / effective)
    quantile = Z if freedom >= data.clusters - 1 else t_quantile(freedom)
    return p * (1 - p) / variance, quantile, f"{'these prompts alone, ' * fixed}Wilson, {between}"


def _effective_of(estimate: Estimate) -> tuple[float, float] | None:
    """A rate, and the number of independent observations that its Wilson interval stands for."""
    p, low, high = estimate.value, estimate.low, estimate.high
    if p is None or low is None or high is None:
        return None
    q, near, far = (p, low, high) if p >= 0.5 else (1 - p, 1 - high, 1 - low)
    share = q * q / (near * far) - 1 if near * far > 0 else 0.0
    return (p, Z * Z / share) if share > 0 else (p, float(estimate.n))
