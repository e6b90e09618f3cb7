"""One number with its interval: a share, a mean, a ratio, a rate without its judge's errors."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from msgspec.structs import replace

from demur.records import Estimate
from demur.stats.spread import Sample, Z, correlation, picked, t_quantile, weighed

USUAL = 0.5  # How much trainings differ where nothing is known: the standard deviation of their log odds
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
    """A share with its interval: Wilson's, on as many observations as the replies are worth.

    Replies to one prompt agree to a degree (the intraclass correlation, shrunk towards 1 where events are too rare to
    tell), which makes n replies worth fewer. With several seeds, their spread is added and t replaces the normal.

    Args:
        outcomes: one for each reply; `None`: could not be scored.
        clusters: of each outcome; replies of one cluster are not independent. Default: all are.
        seeds: of the training behind each outcome.
        truncated: which outcomes are of texts that a budget cut.
        better: the direction in which `best` lies; for `neither` it is the lower bound.
        fixed: the clusters are all that there are (AIME's 30 problems), not a sample: only replies vary.
    """
    known = [i for i, outcome in enumerate(outcomes) if outcome is not None]
    data = Sample.of([float(bool(outcomes[i])) for i in known], picked(clusters, known), picked(seeds, known))
    cut = [bool(at < len(truncated) and truncated[at]) for at in range(len(outcomes))]
    sure = sum(outcome is True and not unsure for outcome, unsure in zip(outcomes, cut, strict=True))
    unsure = sum(outcome is None or own for outcome, own in zip(outcomes, cut, strict=True))
    ends = ((sure / len(cut), (sure + unsure) / len(cut)) if cut else (None, None))[:: -1 if better == "higher" else 1]
    blank = _blank(known, outcomes, data, best=ends[0], worst=ends[1], truncated=sum(cut))
    if data.clusters < 2:
        why = "all is of one prompt: too few to say how far to trust it" if known else "nothing was scored"
        return replace(blank, how=why)
    p = float(data.values.mean())
    worth, quantile, how = _worth(data, p, fixed=fixed)
    low, high = wilson(p, worth, quantile)
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
    """A mean with Student's interval, of shares over strata with Wilson's; clustered, with the spread between seeds if several.

    `stratum` says to which stratum each value belongs, and `strata` how much each of them weighs.
    """
    known = [i for i, value in enumerate(values) if value is not None]
    _, linear = weighed([float(v) for v in values if v is not None], picked(stratum, known) if strata else None, strata)
    data = Sample.of(linear, picked(clusters, known), picked(seeds, known))
    blank = _blank(known, values, data, truncated=truncated)
    if data.clusters < 2:
        why = "all is of one prompt: no spread to tell an interval from" if known else "nothing was counted"
        return replace(blank, how=why)
    value = float(data.values.mean())
    variance, freedom, how = data.variance(data.cluster_variance())
    if variance <= (1e-12 * value) ** 2:  # float noise apart, none
        # All alike says that others are rare, not that there are none: two more observations, at zero and at twice the value.
        scale, n = abs(value) or 1.0, data.clusters + 2
        variance, how = 2 * scale * scale / (n * (n - 1)), f"{how}; all values equal, two pseudo-observations"
    if strata and 0.0 < value < 1.0 and {*values} <= {0.0, 1.0, None}:  # a mean of shares: rare events are skewed
        low, high = wilson(value, value * (1.0 - value) / variance, t_quantile(freedom))
        return replace(blank, value=value, low=low, high=high, how=f"Wilson, {how}".removesuffix(", Student's t"))
    half = t_quantile(freedom) * math.sqrt(variance)
    return replace(blank, value=value, low=value - half, high=value + half, how=how)


def _blank(known: Sequence[int], values: Sequence[object], data: Sample, **more: Any) -> Estimate:
    """An estimate without its value."""
    clusters = data.clusters if data.clusters < len(known) else 0
    return replace(NONE, n=len(known), unscored=len(values) - len(known), clusters=clusters, **more)


def ratio(pairs: Sequence[tuple[float, float] | None], **ways: Any) -> Estimate:
    """A ratio of two sums, its interval by linearisation; `ways` are those of `mean`."""
    known = [pair for pair in pairs if pair is not None]
    above, below = sum(a for a, _ in known), sum(b for _, b in known)
    value, share = (above / below, below / len(known)) if below else (0.0, 1.0)
    found = mean([None if pair is None else value + (pair[0] - value * pair[1]) / share for pair in pairs], **ways)
    if not below:
        return replace(found, value=None, low=None, high=None, how="nothing to divide by")
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


def corrected(observed: Estimate, sensitivity: Estimate, specificity: Estimate) -> Estimate:
    """What a rate would be under the labels against which its judge was calibrated, with all three uncertainties."""
    blank = replace(observed, value=None, low=None, high=None, best=None, worst=None)
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


def drawn(observations: Iterable[tuple[bool | None, float, float]]) -> Estimate:
    """A share of what was drawn with unequal chances: Wilson's interval on Kish's effective number.

    Of each observation: what it is, how many it stands for, and as how many it counts (a second label of it: half).
    """
    every = list(observations)
    rows = [row for row in every if row[0] is not None and row[1] > 0]
    blank = replace(NONE, n=round(sum(count for *_, count in rows)), unscored=len(every) - len(rows))
    if len(rows) < 2:
        return replace(blank, how="too few to say how far to trust it")
    total = sum(weight * count for _, weight, count in rows)
    value = sum(weight * count for yes, weight, count in rows if yes) / total
    worth = total**2 / sum(weight**2 * count for _, weight, count in rows)
    low, high = wilson(value, worth)
    return replace(blank, value=value, low=low, high=high, how=f"Wilson, worth {worth:.0f} of a plain draw")


def stratified(parts: Sequence[tuple[int, Estimate]]) -> Estimate:
    """A rate over strata, from the size of each and the rate of a random draw of it (Zou and Donner 2008, MOVER)."""
    parts = [(size, rate) for size, rate in parts if size]
    n, looked = sum(size for size, _ in parts), sum(rate.n for _, rate in parts)
    blank = replace(NONE, n=looked, unscored=sum(rate.unscored for _, rate in parts))
    if not parts or any(rate.low is None or rate.high is None for _, rate in parts):
        return replace(blank, how="a stratum of which too little was looked at")
    shares, values = [size / n for size, _ in parts], [float(rate.value or 0) for _, rate in parts]
    value = sum(share * own for share, own in zip(shares, values, strict=True))
    # How the traces themselves fell into strata is a draw, too.
    drawn = Z * Z * sum(share * (own - value) ** 2 for share, own in zip(shares, values, strict=True)) / n
    ends = [(share * (own - float(rate.low or 0)), share * (float(rate.high or 0) - own))
            for share, own, (_, rate) in zip(shares, values, parts, strict=True)]  # fmt: skip
    below, above = (math.sqrt(drawn + sum(end[side] ** 2 for end in ends)) for side in (0, 1))
    return replace(
        blank, value=value, low=max(0.0, value - below), high=min(1.0, value + above),
        how=f"from {looked} labels over {len(parts)} strata of {n}",
    )  # fmt: skip


def _worth(data: Sample, p: float, *, fixed: bool) -> tuple[float, float, str]:
    """Of how many independent observations the replies are worth, with which quantile, and how that was found."""
    sizes = np.bincount(data.cluster).astype(float)
    yes = np.asarray(np.bincount(data.cluster, weights=data.values), dtype=np.float64)
    n, how = float(sizes.sum()), "Wilson"
    effective = n
    if fixed:  # these prompts are all that there are: what varies is a prompt's replies
        several = sizes > 1
        spread = (yes * (sizes - yes))[several] / (sizes - 1)[several]
        within = float(spread.sum()) * len(sizes) / max(1, several.sum())
        effective = p * (1 - p) * n * n / within if within else n
        how += (
            ", of these prompts alone: replies vary, prompts do not"
            if within
            else ", over replies: one a prompt, or all alike"
        )
    elif n > len(sizes):
        effective = n / (1 + (float((sizes**2).sum() / n) - 1) * correlation(yes, sizes, p))
        how += ", clustered by prompt"
    if data.seeds < 2:
        return effective, Z, how
    if p in (0.0, 1.0):
        # No event says nothing of how trainings differ: the bound is that of a usual spread.
        how = f"{how}; {data.seeds} seeds assumed to differ by {USUAL} on the logit scale"
        return effective * (1 - (Z * USUAL) ** 2 / data.seeds), Z, how
    variance, freedom, between = data.variance(p * (1 - p) / effective)
    quantile = Z if freedom >= data.clusters - 1 else t_quantile(freedom)
    return p * (1 - p) / variance, quantile, f"{'these prompts alone, ' * fixed}Wilson, {between}"


def _worth_of(estimate: Estimate) -> tuple[float, float] | None:
    """A rate, and the number of independent observations that its Wilson interval stands for."""
    p, low, high = estimate.value, estimate.low, estimate.high
    if p is None or low is None or high is None:
        return None
    q, near, far = (p, low, high) if p >= 0.5 else (1 - p, 1 - high, 1 - low)
    share = q * q / (near * far) - 1 if near * far > 0 else 0.0
    return (p, Z * Z / share) if share > 0 else (p, float(estimate.n))
