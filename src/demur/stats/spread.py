"""The arithmetic underneath: values with their prompts and seeds, variances between them, and resampling."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
"""Random sign flips where the exact distribution is out of reach: p is then known to about 0.002 near 0.05."""

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


class Sample(NamedTuple):
    """Scored values with the index of the cluster and of the seed of each."""

    values: Floats
    cluster: Ints
    clusters: int
    seed: Ints
    seeds: int


def sample(values: list[float], clusters: Sequence[Hashable] | None, seeds: Sequence[int | None] | None) -> Sample:
    """Values with their clusters and seeds as indices."""
    cluster, count = _index(clusters if clusters is not None else range(len(values)))
    seed, trained = _index(seeds if seeds is not None else [0] * len(values))
    return Sample(np.asarray(values, dtype=float), cluster, count, seed, trained)


def _index(names: Sequence[object]) -> tuple[Ints, int]:
    places: dict[object, int] = {}
    index = np.fromiter((places.setdefault(name, len(places)) for name in names), dtype=np.intp, count=len(names))
    return index, len(places)


def cluster_variance(data: Sample) -> float:
    """The variance of the mean when clusters are the independent units."""
    sizes = np.bincount(data.cluster).astype(float)
    sums = np.bincount(data.cluster, weights=data.values)
    centre = float(data.values.mean())
    count = len(sizes)
    return float(((sums - centre * sizes) ** 2).sum()) * count / (count - 1) / len(data.values) ** 2


def variance_of(data: Sample, by_prompt: float, *, cautious: bool = False) -> tuple[float, float, str]:
    """Variance of the mean, degrees of freedom and method: prompts alone, or prompts crossed with seeds.

    What differs between seeds beyond the noise of single replies is added to the variance between prompts; the degrees
    of freedom are Satterthwaite's, which fall to seeds - 1 when the seeds are what differs. `cautious`, for tests: with
    three seeds that happen to agree one must not conclude that seeds agree, so the degrees of freedom stay at 4 (seeds - 1)
    at most, and are seeds - 1 from a third of the variance on (simulated: false alarms then stay below 6 %).
    """
    prompts = data.clusters - 1
    if data.seeds < 2:
        unclustered = data.clusters == len(data.values)
        return by_prompt, prompts, "Student's t" if unclustered else "clustered by prompt"
    means = np.array([data.values[data.seed == s].mean() for s in range(data.seeds)])
    by_seed, noise, least = float(means.var(ddof=1)) / data.seeds, _noise(data), data.seeds - 1.0
    if by_seed <= noise and not cautious:
        return by_prompt, prompts, f"clustered by prompt; {data.seeds} seeds differ no more than single replies do"
    extra = max(0.0, by_seed - noise)
    variance = by_prompt + extra
    weight = by_prompt**2 / prompts + by_seed**2 / least
    freedom = variance**2 / weight if weight > 0 else least
    if cautious:
        freedom = least if extra > by_prompt / 2 else min(freedom, 4 * least)
    freedom = max(least, min(freedom, float(prompts)))
    how = f"clustered by prompt, {data.seeds} seeds as their own level (t, {freedom:.0f} degrees of freedom)"
    return variance, freedom, how


def _noise(data: Sample) -> float:
    """The part of the variance of seeds' means that the noise of single replies explains: the interaction's mean square."""
    cells = data.cluster * data.seeds + data.seed
    shape = (data.clusters, data.seeds)
    counts = np.bincount(cells, minlength=data.clusters * data.seeds).reshape(shape)
    sums = np.bincount(cells, weights=data.values, minlength=data.clusters * data.seeds).reshape(shape)
    full = (counts > 0).all(axis=1)
    rows = int(full.sum())
    if rows < 2:
        return 0.0
    table = sums[full] / counts[full]
    rest = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    return float((rest**2).sum()) / ((rows - 1) * (data.seeds - 1)) / (rows * data.seeds)


def correlation(yes: Floats, sizes: Floats, p: float) -> float:
    """The intraclass correlation by analysis of variance, shrunk towards 1 by one cluster's worth of the rarer outcome."""
    count, n = len(sizes), float(sizes.sum())
    if n == count:
        return 1.0
    between = float((sizes * (yes / sizes - p) ** 2).sum()) / (count - 1)
    within = float((yes * (sizes - yes) / sizes).sum()) / (n - count)
    size = (n - float((sizes**2).sum()) / n) / (count - 1)
    total = between + (size - 1) * within
    raw = min(1.0, max(0.0, (between - within) / total)) if total > 0 else 1.0
    events = min(np.count_nonzero(yes > 0), np.count_nonzero(yes < sizes))
    return float((raw * events + 1) / (events + 1))


def with_pseudo_clusters(data: Sample) -> Sample:
    """One more cluster in which A always won and one in which B did, of the usual size and over all seeds."""
    size = max(data.seeds, round(len(data.values) / data.clusters))
    values = np.concatenate([data.values, np.ones(size), -np.ones(size)])
    cluster = np.concatenate([data.cluster, np.repeat([data.clusters, data.clusters + 1], size)])
    seed = np.concatenate([data.seed, np.tile(np.arange(size) % data.seeds, 2)])
    return Sample(values, cluster, data.clusters + 2, seed, data.seeds)


def flip_test(values: Floats, cluster: Ints) -> float:
    """The two-sided p of the hypothesis that A and B could be exchanged within every cluster.

    Exact where the clusters' summed differences are whole numbers, by convolution; else from random sign flips.
    """
    sums = np.bincount(cluster, weights=values)
    sums = sums[np.abs(sums) > 1e-12]
    observed = abs(float(sums.sum()))
    if not len(sums):
        return 1.0
    whole = np.rint(sums)
    if np.allclose(sums, whole, atol=1e-9) and np.abs(whole).sum() <= 20_000:
        return _exact_flip(np.abs(whole).astype(int), observed)
    generator, extreme = np.random.default_rng(0), 0
    for _ in range(DRAWS // 500):
        draws = generator.integers(0, 2, size=(500, len(sums)), dtype=np.int8) * 2 - 1
        extreme += int(np.count_nonzero(np.abs(draws @ sums) >= observed - 1e-9))
    return float((extreme + 1) / (DRAWS + 1))


def _exact_flip(sizes: Ints, observed: float) -> float:
    """P(|sum of randomly signed sizes| >= observed): for each size a binomial on its own lattice, then their sum."""
    from scipy.special import gammaln

    total, chance = int(sizes.sum()), np.ones(1)
    for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
        k = np.arange(count + 1)
        lattice = np.zeros(2 * size * count + 1)
        lattice[:: 2 * size] = np.exp(
            gammaln(count + 1) - gammaln(k + 1) - gammaln(count - k + 1) - count * math.log(2)
        )
        chance = np.convolve(chance, lattice)
    sums = np.abs(np.arange(-total, total + 1))
    return float(min(1.0, chance[sums >= observed - 1e-9].sum()))


def bootstrap(values: Floats, cluster: Ints, *, draws: int = 2_000) -> tuple[float, float]:
    """The studentised bootstrap interval of a mean, clusters drawn with replacement; the seed is fixed."""
    sums, sizes = np.bincount(cluster, weights=values), np.bincount(cluster).astype(float)
    count, centre = len(sums), float(values.mean())
    picked = np.random.default_rng(0).integers(0, count, size=(draws, count))
    s, n = sums[picked], sizes[picked]
    means = s.sum(1) / n.sum(1)
    errors = np.sqrt(((s - means[:, None] * n) ** 2).sum(1) * count / (count - 1)) / n.sum(1)
    real = math.sqrt(float(((sums - centre * sizes) ** 2).sum()) * count / (count - 1)) / float(sizes.sum())
    usable = errors > 1e-12
    if real == 0 or not usable.any():
        return centre, centre
    upper, lower = np.quantile((means[usable] - centre) / errors[usable], [0.975, 0.025])
    return centre - float(upper) * real, centre - float(lower) * real


def t_quantile(freedom: float) -> float:
    """Student's quantile of a two-sided 95 % interval."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def t_test(value: float, variance: float, freedom: float) -> float:
    """The two-sided p of a mean of zero."""
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(value) / math.sqrt(variance))) if variance > 0 else 1.0
