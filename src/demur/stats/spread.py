"""The arithmetic underneath: values with their prompts and seeds, variances between them, and resampling."""

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
"""By the number of seeds (`AGREE_OR`: any other): the ratio to what single replies explain below which seeds count as alike,
and how much of what is missing to 1 is taken off. Found by simulation, so that coverage is near 95 % whatever seeds do."""
SHRINK = 0.2  # Clusters of the rarer outcome that the belief in wholly alike replies counts for

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
T = TypeVar("T")


class Sample(NamedTuple):
    """Scored values with the index of the cluster and of the seed of each."""

    values: Floats
    cluster: Ints
    clusters: int
    seed: Ints
    seeds: int

    @classmethod
    def of(cls, values: list[float], clusters: Sequence[Hashable] | None, seeds: Sequence[int | None] | None) -> Self:
        """Values with their clusters and seeds as names; default: each of its own cluster, all of one seed."""
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

        What differs between seeds beyond the noise of single replies is added to the variance between prompts, with seeds - 1
        degrees of freedom; where three or more add less than a fifth, with Satterthwaite's. Seeds that agree clearly
        better than replies do by chance take part of that chance off: the variance of two crossed factors without its truncation
        at zero. Otherwise intervals of few seeds would be too wide wherever seeds agree.
        """
        prompts = self.clusters - 1
        if self.seeds < 2:
            unclustered = self.clusters == len(self.values)
            return by_prompt, prompts, "Student's t" if unclustered else "clustered by prompt"
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
        """The same for tests, which must not take a few seeds that happen to agree for proof that seeds agree.

        The variance between seeds is an average of what was seen and of what is usual, the latter weighing as much as `PRIOR`
        degrees of freedom (a moderated t, Smyth 2004): a family of tests then stays at its level (`benchmarks/coverage.py`).
        """
        if self.seeds < 2:
            return self.variance(by_prompt)
        (by_seed, noise), own = self._by_seed(), self.seeds - 1.0
        seen = max(0.0, by_seed - noise) * self.seeds
        extra = (PRIOR * usual * usual + own * seen) / (PRIOR + own) / self.seeds
        variance = by_prompt + extra
        freedom = _satterthwaite(variance, (by_prompt, self.clusters - 1), (extra, PRIOR + own))
        how = f"clustered by prompt, {self.seeds} seeds by moderated t, {freedom:.0f} degrees of freedom"
        return variance, freedom, how

    def _by_seed(self) -> tuple[float, float]:
        """Variance of the mean from how seeds' means differ, and what of it the noise of single replies explains.

        The latter is the mean square of the interaction of prompts and seeds, over the prompts that every seed answered.
        """
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
        """One more cluster in which A won by `scale` and one in which B did, of the usual size and over all seeds."""
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


def weighed(
    values: list[float], stratum: Sequence[Hashable] | None, strata: Mapping[Any, float] | None
) -> tuple[Floats, list[float]]:
    """Values whose plain mean is the weighted mean of the strata's; and the same with only their spread within strata."""
    flat = np.asarray(values, dtype=float)
    if stratum is None or strata is None or not values:
        return flat, values
    places: dict[Hashable, list[int]] = {}
    for place, name in enumerate(stratum):
        places.setdefault(name, []).append(place)
    weight, middle = np.ones(len(flat)), np.zeros(len(flat))
    for name, those in places.items():
        weight[those] = strata[name] / sum(strata[name] for name in places) * len(flat) / len(those)
        middle[those] = flat[those].mean()
    whole = float((weight * flat).mean())
    return weight * flat, list(whole + weight * (flat - middle))


def _index(names: Sequence[object]) -> tuple[Ints, int]:
    places: dict[object, int] = {}
    index = np.fromiter((places.setdefault(name, len(places)) for name in names), dtype=np.intp, count=len(names))
    return index, len(places)


def correlation(yes: Floats, sizes: Floats, p: float) -> float:
    """The intraclass correlation by analysis of variance, shrunk towards 1 by `SHRINK` clusters of the rarer outcome."""
    count, n = len(sizes), float(sizes.sum())
    if n == count:
        return 1.0
    between = float((sizes * (yes / sizes - p) ** 2).sum()) / (count - 1)
    within = float((yes * (sizes - yes) / sizes).sum()) / (n - count)
    size = (n - float((sizes**2).sum()) / n) / (count - 1)
    total = between + (size - 1) * within
    raw = min(1.0, max(0.0, (between - within) / total)) if total > 0 else 1.0
    events = min(np.count_nonzero(yes > 0), np.count_nonzero(yes < sizes))
    return float((raw * events + SHRINK) / (events + SHRINK))


def flip_test(values: Floats, cluster: Ints) -> float:
    """The two-sided p of the hypothesis that A and B could be exchanged within every cluster.

    Exact where the clusters' summed differences are whole numbers, by convolution; else from random sign flips.
    """
    from scipy.special import gammaln

    sums = np.bincount(cluster, weights=values)
    sums = sums[np.abs(sums) > 1e-12]
    observed = abs(float(sums.sum()))
    if not len(sums):
        return 1.0
    whole = np.rint(sums)
    if np.allclose(sums, whole, atol=1e-9) and np.abs(whole).sum() <= 20_000:
        # For each size a binomial on a lattice of its own, then their sum.
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
    """The point below which so much of Student's distribution lies, of the normal one for infinitely many degrees of freedom.

    By default that of a two-sided 95 % interval.
    """
    from scipy.special import ndtri, stdtrit

    return float(ndtri(share) if math.isinf(freedom) else stdtrit(freedom, share))


def t_test(value: float, variance: float, freedom: float) -> float:
    """The two-sided p of a mean of zero."""
    from scipy.special import stdtr

    return float(2 * stdtr(min(freedom, 1e9), -abs(value) / math.sqrt(variance))) if variance > 0 else 1.0
