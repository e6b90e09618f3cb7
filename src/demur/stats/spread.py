"""The arithmetic underneath: values with their prompts and seeds, the variances between them, and resampling."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054  # The normal quantile of a two-sided 95 % interval
DRAWS = 10_000  # Random sign flips where the exact distribution is out of reach: p is known to about 0.002 near 0.05
PRIOR = 4.0  # Degrees of freedom that the usual spread of trainings counts for, beside the trainings of a test
AGREE = {2: (0.13, 0.7)}
AGREE_OR = (0.7, 0.5)
"""By the number of seeds (`AGREE_OR`: any other): the ratio to the noise of single replies below which seeds count as
alike, and the part of the difference to be subtracted. Found by simulation: coverage near 95 % however seeds differ."""
SHRINK = 0.2  # Weight of the prior that replies to one prompt are all alike, in clusters of the rarer outcome

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
T = TypeVar("T")


class Sample(NamedTuple):
    """Scored values, with the index of each one's cluster and seed."""

    values: Floats
    cluster: Ints
    clusters: int
    seed: Ints
    seeds: int

    @classmethod
    def of(cls, values: list[float], clusters: Sequence[Hashable] | None, seeds: Sequence[int | None] | None) -> Self:
        """Values with the names of their clusters and seeds; default: each a cluster of its own, all of one seed."""
        cluster, count = _index(clusters if clusters is not None else range(len(values)))
        seed, trained = _index(seeds if seeds is not None else [0] * len(values))
        return cls(np.asarray(values, dtype=float), cluster, count, seed, trained)

    def cluster_variance(self) -> float:
        """The variance of the mean when clusters are the independent units."""
        sizes = np.bincount(self.cluster).astype(float)
        sums = np.bincount(self.cluster, weights=self.values)
        centre = float(self.values.mean())
        count = len(sizes)
        return float(((sums - centre * sizes) ** 2).sum()) * count / (count - 1) / len(self.values) ** 2

    def variance(self, by_prompt: float) -> tuple[float, float, str]:
        """Variance of the mean, degrees of freedom and method: prompts alone, or prompts crossed with seeds.

        The variance between seeds beyond the noise of single replies is added to that between prompts, with seeds - 1
        degrees of freedom, or Satterthwaite's where three or more seeds add less than a fifth. Seeds that agree clearly
        better than chance subtract part of that noise (the variance of two crossed factors, not truncated at zero), or
        intervals of few seeds would be too wide.
        """
        prompts = self.clusters - 1
        if self.seeds < 2:
            return by_prompt, prompts, "Student's t" if self.clusters == len(self.values) else "clustered by prompt"
        (by_seed, noise), least = self._by_seed(), self.seeds - 1.0
        ratio, part = AGREE.get(self.seeds, AGREE_OR)
        if by_seed <= ratio * noise:
            variance = by_prompt - part * max(0.0, min(noise, by_prompt) - by_seed)
            return variance, prompts, f"clustered by prompt; {self.seeds} seeds differ less than single replies do"
        extra = max(0.0, by_seed - noise)
        variance, freedom = by_prompt + extra, least
        if self.seeds > 2 and extra <= by_prompt / 5:
            freedom = _satterthwaite(variance, (by_prompt, prompts), (by_seed, least))
        how = f"clustered by prompt, {self.seeds} seeds as their own level (t, {freedom:.0f} degrees of freedom)"
        return variance, freedom, how

    def moderated(self, by_prompt: float, usual: float) -> tuple[float, float, str]:
        """The same for tests, where a few seeds that happen to agree must not count as proof that all seeds do.

        The variance between seeds is an average of the observed and the usual one, the latter weighing `PRIOR` degrees
        of freedom (a moderated t, Smyth 2004): a family of tests then keeps its level (`benchmarks/coverage.py`).
        """
        if self.seeds < 2:
            return self.variance(by_prompt)
        (by_seed, noise), observed = self._by_seed(), self.seeds - 1.0
        between = max(0.0, by_seed - noise) * self.seeds
        extra = (PRIOR * usual * usual + observed * between) / (PRIOR + observed) / self.seeds
        variance = by_prompt + extra
        freedom = _satterthwaite(variance, (by_prompt, self.clusters - 1), (extra, PRIOR + observed))
        how = f"clustered by prompt, {self.seeds} seeds by moderated t, {freedom:.0f} degrees of freedom"
        return variance, freedom, how

    def _by_seed(self) -> tuple[float, float]:
        """The variance of the mean by the spread of the seeds' means, and the part that single replies' noise explains:
        the mean square of the interaction of prompts and seeds, over the prompts that every seed answered."""
        means = np.array([self.values[self.seed == s].mean() for s in range(self.seeds)])
        between, shape = float(means.var(ddof=1)) / self.seeds, (self.clusters, self.seeds)
        cells = self.cluster * self.seeds + self.seed
        counts = np.bincount(cells, minlength=self.clusters * self.seeds).reshape(shape)
        sums = np.bincount(cells, weights=self.values, minlength=self.clusters * self.seeds).reshape(shape)
        full = (counts > 0).all(axis=1)
        rows = int(full.sum())
        if rows < 2:
            return between, 0.0
        table = sums[full] / counts[full]
        rest = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
        return between, float((rest**2).sum()) / ((rows - 1) * (self.seeds - 1)) / (rows * self.seeds)

    def with_pseudo_clusters(self, scale: float = 1.0) -> Self:
        """Two more clusters of the usual size over all seeds: A wins by `scale` in one of them, B in the other."""
        size = max(self.seeds, round(len(self.values) / self.clusters))
        values = np.concatenate([self.values, np.full(size, scale), np.full(size, -scale)])
        cluster = np.concatenate([self.cluster, np.repeat([self.clusters, self.clusters + 1], size)])
        seed = np.concatenate([self.seed, np.tile(np.arange(size) % self.seeds, 2)])
        return self._replace(values=values, cluster=cluster, clusters=self.clusters + 2, seed=seed)


def _satterthwaite(variance: float, *parts: tuple[float, float]) -> float:
    """Degrees of freedom of a sum of variances, each with its own."""
    least, most = min(freedom for _, freedom in parts), max(freedom for _, freedom in parts)
    weight = sum(part**2 / freedom for part, freedom in parts)
    return max(least, min(variance**2 / weight if weight > 0 else least, most))


def picked(items: Sequence[T] | None, places: Sequence[int]) -> list[T] | None:
    """Items at some places."""
    return None if items is None else [items[i] for i in places]


def weighted(
    values: list[float], stratum: Sequence[Hashable] | None, strata: Mapping[Any, float] | None
) -> tuple[Floats, list[float]]:
    """Values scaled so that their mean is the strata's weighted mean, and these with the spread within strata only."""
    flat = np.asarray(values, dtype=float)
    if stratum is None or strata is None or not values:
        return flat, values
    places: dict[Hashable, list[int]] = {}
    for place, name in enumerate(stratum):
        places.setdefault(name, []).append(place)
    total = sum(strata[name] for name in places)
    weight, centre = np.ones(len(flat)), np.zeros(len(flat))
    for name, inside in places.items():
        weight[inside] = strata[name] / total * len(flat) / len(inside)
        centre[inside] = flat[inside].mean()
    mean = float((weight * flat).mean())
    return weight * flat, list(mean + weight * (flat - centre))


def _index(names: Sequence[object]) -> tuple[Ints, int]:
    """Each name as a number, in the order of first occurrence, and how many there are."""
    numbers: dict[object, int] = {}
    index = np.fromiter((numbers.setdefault(name, len(numbers)) for name in names), dtype=np.intp, count=len(names))
    return index, len(numbers)


def correlation(hits: Floats, sizes: Floats, p: float) -> float:
    """The intraclass correlation by analysis of variance, from each cluster's hits and size, shrunk towards 1."""
    count, n = len(sizes), float(sizes.sum())
    if n == count:
        return 1.0
    between = float((sizes * (hits / sizes - p) ** 2).sum()) / (count - 1)
    within = float((hits * (sizes - hits) / sizes).sum()) / (n - count)
    size = (n - float((sizes**2).sum()) / n) / (count - 1)
    total = between + (size - 1) * within
    raw = min(1.0, max(0.0, (between - within) / total)) if total > 0 else 1.0
    events = min(np.count_nonzero(hits > 0), np.count_nonzero(hits < sizes))
    return float((raw * events + SHRINK) / (events + SHRINK))


def flip_test(differences: Floats, cluster: Ints) -> float:
    """The two-sided p of the hypothesis that A and B are exchangeable within every cluster, from the differences A - B.

    Exact, by convolution, where these sum to a whole number in each cluster; else from random sign flips.
    """
    from scipy.special import gammaln

    sums = np.bincount(cluster, weights=differences)
    sums = sums[np.abs(sums) > 1e-12]
    observed = abs(float(sums.sum()))
    if not len(sums):
        return 1.0
    whole = np.rint(sums)
    if np.allclose(sums, whole, atol=1e-9) and np.abs(whole).sum() <= 20_000:
        # The clusters of one size give a binomial distribution on their own lattice; the sum of all is its convolution.
        chance = np.ones(1)
        for size, count in zip(*np.unique(np.abs(whole).astype(int), return_counts=True), strict=True):
            k, lattice = np.arange(count + 1), np.zeros(2 * size * count + 1)
            ways = gammaln(count + 1) - gammaln(k + 1) - gammaln(count - k + 1)
            lattice[:: 2 * size] = np.exp(ways - count * math.log(2))
            chance = np.convolve(chance, lattice)
        distance = np.abs(np.arange(len(chance)) - len(chance) // 2)
        return float(min(1.0, chance[distance >= observed - 1e-9].sum()))
    generator, extreme = np.random.default_rng(0), 0
    for _ in range(DRAWS // 500):
        draws = generator.integers(0, 2, size=(500, len(sums)), dtype=np.int8) * 2 - 1
        extreme += int(np.count_nonzero(np.abs(draws @ sums) >= observed - 1e-9))
    return float((extreme + 1) / (DRAWS + 1))


def t_quantile(freedom: float = math.inf, share: float = 0.975) -> float:
    """The quantile of Student's t (infinite `freedom`: the normal); by default that of a two-sided 95 % interval."""
    from scipy.special import ndtri, stdtrit

    return float(ndtri(share) if math.isinf(freedom) else stdtrit(freedom, share))


def t_test(value: float, variance: float, freedom: float) -> float:
    """The two-sided p of the hypothesis that a mean is zero."""
    from scipy.special import stdtr

    return float(2 * stdtr(min(freedom, 1e9), -abs(value) / math.sqrt(variance))) if variance > 0 else 1.0
