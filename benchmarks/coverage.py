"""What demur's intervals and tests promise, measured by simulation: coverage of 95 %, and false claims of a family of tests.

    python benchmarks/coverage.py                five minutes on one core
    python benchmarks/coverage.py --draws 100    a look

Replies are drawn from a probit model: every prompt has its own difficulty (standard deviation 1), every training and every
base its own shift. The truth is the rate over all prompts, trainings and bases. Cells have at least two expected events.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from demur import stats
from demur.records import Estimate

SIZES, RATES = (50, 100, 200), (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
SPREADS = (0.0, 0.2, 0.4, 0.6)
"""How much trainings, or bases, differ: standard deviations on the probit scale."""


def cells() -> Iterator[tuple[int, float]]:
    """Prompts and rate."""
    return ((n, p) for n in SIZES for p in RATES if n * p >= 2)


def level(rate: float, *spreads: float) -> float:
    """Where the probit begins, so that the rate over everything is this."""
    return float(norm.ppf(rate)) * math.sqrt(2 + sum(s * s for s in spreads))


def covered(found: Estimate, truth: float) -> bool:
    """Whether an interval holds the truth."""
    return found.low is not None and found.high is not None and found.low - 1e-12 <= truth <= found.high + 1e-12


def over_seeds(rng: np.random.Generator, prompts: int, rate: float, seeds: int, spread: float) -> bool:
    """One draw of a rate over several trainings."""
    shift = spread * rng.standard_normal((1, seeds))
    values = level(rate, spread) + rng.standard_normal((prompts, 1)) + shift + rng.standard_normal((prompts, seeds)) > 0
    names, trained = np.repeat(np.arange(prompts), seeds), np.tile(np.arange(seeds), prompts)
    return covered(stats.rate([bool(v) for v in values.ravel()], clusters=list(names), seeds=list(trained)), rate)


def over_bases(rng: np.random.Generator, prompts: int, rate: float, spread: float) -> bool:
    """One draw of a rate over three bases with three trainings each: the wider of the two intervals."""
    shift = spread * rng.standard_normal((1, 3, 1)) + 0.3 * rng.standard_normal((1, 3, 3))
    values = (
        level(rate, spread, 0.3) + rng.standard_normal((prompts, 1, 1)) + shift + rng.standard_normal((prompts, 3, 3))
        > 0
    )
    names, flat = list(np.repeat(np.arange(prompts), 9)), [bool(v) for v in values.ravel()]
    levels = (np.tile(np.arange(9), prompts), np.tile(np.repeat(np.arange(3), 3), prompts))
    found = [stats.rate(flat, clusters=names, seeds=list(at)) for at in levels]
    return covered(max(found, key=lambda one: (one.high or 0) - (one.low or 0)), rate)


def of_one_seed(rng: np.random.Generator, prompts: int, rate: float, samples: int, tie: float) -> bool:
    """One draw of a rate over samples whose likeness within a prompt is `tie`."""
    k = 1 / tie - 1 if tie else 0.0
    chances = rng.beta(rate * k, (1 - rate) * k, prompts) if tie else np.full(prompts, rate)
    values = (rng.random((prompts, samples)) < chances[:, None]).ravel()
    return covered(stats.rate([bool(v) for v in values], clusters=list(np.repeat(np.arange(prompts), samples))), rate)


def of_a_judge(rng: np.random.Generator, prompts: int, rate: float, labels: int, quality: tuple[float, float]) -> bool:
    """One draw of a rate whose judge errs, corrected by labels of other traces."""
    seen = rng.binomial(prompts, rate * quality[0] + (1 - rate) * (1 - quality[1]))
    right = [stats.rate(_flips(rng.binomial(labels, chance), labels)) for chance in quality]
    found = stats.corrected(stats.rate(_flips(seen, prompts)), *right)
    return found.value is None or covered(found, rate)


def _flips(hits: int, n: int) -> list[bool | None]:
    return [i < hits for i in range(n)]


def share(rng: np.random.Generator, draws: int, draw: Callable[..., bool], *what: Any) -> float:
    """How often a draw holds."""
    return sum(draw(rng, *what) for _ in range(draws)) / draws


def coverage(rng: np.random.Generator, draws: int) -> dict[str, dict[str, float]]:
    """Family of cells -> cell -> coverage."""
    found: dict[str, dict[str, float]] = {}
    for n, p in cells():
        for samples, tie in ((1, 0.0), (4, 0.1), (4, 0.6)):
            at = found.setdefault("one seed", {})
            at[f"n={n} p={p} samples={samples} likeness={tie}"] = share(rng, draws, of_one_seed, n, p, samples, tie)
        for seeds in (2, 3, 5):
            for spread in SPREADS:
                at = found.setdefault(f"{seeds} seeds", {})
                at[f"n={n} p={p} spread={spread}"] = share(rng, draws, over_seeds, n, p, seeds, spread)
        for spread in SPREADS:
            at = found.setdefault("three bases of three seeds", {})
            at[f"n={n} p={p} spread={spread}"] = share(rng, draws, over_bases, n, p, spread)
        for quality in ((0.95, 0.95), (0.8, 0.95), (0.9, 0.85)):
            for labels in (100, 200):
                at = found.setdefault("corrected for a judge's errors", {})
                at[f"n={n} p={p} labels={labels} {quality}"] = share(rng, draws, of_a_judge, n, p, labels, quality)
    return found


def family(rng: np.random.Generator, spread: float, tests: int = 20) -> bool:
    """Whether 20 true nulls, 3 bases x 3 trainings x 100 prompts each, give a single claim that is called supported."""
    ps, apart = [], []
    for _ in range(tests):
        own = rng.standard_normal((100, 1, 1))
        sides = [
            level(0.3, spread, 0.3) + own + spread * rng.standard_normal((1, 3, 1)) + 0.3 * rng.standard_normal((1, 3, 3))
            + rng.standard_normal((100, 3, 3)) > 0
            for _ in range(2)
        ]  # fmt: skip
        a, b = ([bool(v) for v in side.ravel()] for side in sides)
        names = [str(i) for i in np.repeat(np.arange(100), 9)]
        bases, trained = list(np.tile(np.repeat(np.arange(3), 3), 100)), list(np.tile(np.arange(9), 100))
        two = [
            stats.paired(a, b, clusters=names, seeds=at, usual=usual)
            for at, usual in ((trained, stats.USUAL), (bases, stats.USUAL_BASES))
        ]
        wide = max(two, key=lambda one: (one.high or 0) - (one.low or 0))
        ps.append(max(one.p or 0.0 for one in two))
        apart.append(not (wide.low or 0) <= 0 <= (wide.high or 0))
    return any(p is not None and p < 0.05 and out for p, out in zip(stats.holm(ps), apart, strict=True))


def main() -> None:
    """Measure, and print a row a family."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rng, draws = np.random.default_rng(1), arguments.draws
    found = coverage(rng, draws)
    print("| intervals | cells | mean | lowest | below 93 % | 93-97 % | above 97 % |\n|---|---|---|---|---|---|---|")
    for name, own in found.items():
        values = np.array(list(own.values()))
        inside = ((values >= 0.93) & (values <= 0.97)).mean()
        row = (values.mean(), values.min(), (values < 0.93).mean(), inside, (values > 0.97).mean())
        print(f"| {name} | {len(values)} | " + " | ".join(f"{100 * v:.1f} %" for v in row) + " |")
    families = {f"bases differ by {s}": share(rng, max(20, draws // 8), family, s) for s in (0.0, 0.3, 0.6, 1.0)}
    for name, value in families.items():
        print(f"20 true nulls, {name}: a false claim in {100 * value:.1f} % of families")
    if arguments.json:
        arguments.json.write_text(json.dumps({"coverage": found, "families": families}, indent=1))


if __name__ == "__main__":
    main()
