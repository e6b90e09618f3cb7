"""What demur's intervals and tests promise, measured by simulation: coverage of 95 %, and false claims of a family of tests.

    python benchmarks/coverage.py                twelve minutes on two hyperthreads of a CPU of 2017
    python benchmarks/coverage.py --draws 300    a look: the draws themselves then scatter by 1.3 points a cell

Replies are drawn from a probit model: every prompt has its own difficulty (standard deviation 1), every training and every
base its own shift. The truth is the rate over all prompts, trainings and bases. Cells have at least two expected events.
The rate of a cell is drawn anew each time, its log odds within a quarter of the cell's: counts are whole, and coverage at one
rate jumps by points between neighbouring ones (Brown, Cai and DasGupta 2001); `--exact` leaves it where it is.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom, norm

from demur import stats
from demur.records import Estimate

SIZES, RATES = (50, 100, 200), (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
SPREADS = (0.0, 0.2, 0.4, 0.6)
"""How much trainings, or bases, differ: standard deviations on the probit scale."""


class Cell:
    """So many prompts and a rate, with a stream of random numbers."""

    def __init__(self, prompts: int, rate: float, within: float, seed: list[int]) -> None:
        self.prompts, self.rate, self.within = prompts, rate, within
        self.rng = np.random.default_rng(seed)

    def truth(self) -> float:
        """A rate of this cell."""
        odds = math.log(self.rate / (1 - self.rate)) + self.within * self.rng.uniform(-1, 1)
        return 1 / (1 + math.exp(-odds))


def cells() -> Iterator[tuple[int, float]]:
    """Prompts and rate."""
    return ((n, p) for n in SIZES for p in RATES if n * p >= 2)


def level(rate: float, *spreads: float) -> float:
    """Where the probit begins, so that the rate over everything is this."""
    return float(norm.ppf(rate)) * math.sqrt(2 + sum(s * s for s in spreads))


def covered(found: Estimate, truth: float) -> bool:
    """Whether an interval holds the truth."""
    return found.low is not None and found.high is not None and found.low - 1e-12 <= truth <= found.high + 1e-12


def over_seeds(cell: Cell, seeds: int, spread: float) -> bool:
    """One draw of a rate over several trainings."""
    n, rng, truth = cell.prompts, cell.rng, cell.truth()
    shift = spread * rng.standard_normal((1, seeds))
    values = level(truth, spread) + rng.standard_normal((n, 1)) + shift + rng.standard_normal((n, seeds)) > 0
    names, trained = np.repeat(np.arange(n), seeds).tolist(), list(range(seeds)) * n
    return covered(stats.rate(values.ravel().tolist(), clusters=names, seeds=trained), truth)


def over_bases(cell: Cell, spread: float) -> bool:
    """One draw of a rate over three bases with three trainings each: the bases are what varies."""
    n, rng, truth = cell.prompts, cell.rng, cell.truth()
    shift = spread * rng.standard_normal((1, 3, 1)) + 0.3 * rng.standard_normal((1, 3, 3))
    values = level(truth, spread, 0.3) + rng.standard_normal((n, 1, 1)) + shift + rng.standard_normal((n, 3, 3)) > 0
    names, bases = np.repeat(np.arange(n), 9).tolist(), [0, 0, 0, 1, 1, 1, 2, 2, 2] * n
    return covered(stats.rate(values.ravel().tolist(), clusters=names, seeds=bases), truth)


def of_one_seed(cell: Cell, samples: int, tie: float) -> bool:
    """One draw of a rate over samples whose likeness within a prompt is `tie`."""
    n, rng, truth = cell.prompts, cell.rng, cell.truth()
    k = 1 / tie - 1 if tie else 0.0
    chances = rng.beta(truth * k, (1 - truth) * k, n) if tie else np.full(n, truth)
    values = (rng.random((n, samples)) < chances[:, None]).ravel()
    return covered(stats.rate(values.tolist(), clusters=np.repeat(np.arange(n), samples).tolist()), truth)


def of_a_judge(cell: Cell, labels: int, quality: tuple[float, float]) -> bool:
    """One draw of a rate whose judge errs, corrected by labels of other traces."""
    n, rng, truth = cell.prompts, cell.rng, cell.truth()
    seen = rng.binomial(n, truth * quality[0] + (1 - truth) * (1 - quality[1]))
    right = [stats.rate(_flips(rng.binomial(labels, chance), labels)) for chance in quality]
    found = stats.corrected(stats.rate(_flips(seen, n)), *right)
    return found.value is None or covered(found, truth)


def of_columns(cell: Cell, columns: int) -> bool:
    """One draw of a mean of rates over columns that weigh alike, all but two of them with the same prompts."""
    n, rng, truth = cell.prompts, cell.rng, cell.truth()
    values = (rng.random((columns, n)) < truth).astype(float).ravel().tolist()
    prompts = [f"{max(0, column - columns + 3)} {prompt}" for column in range(columns) for prompt in range(n)]
    weights = dict.fromkeys(range(columns), 1.0)
    stratum = np.repeat(np.arange(columns), n).tolist()
    return covered(stats.mean(values, clusters=prompts, stratum=stratum, strata=weights), truth)


def _flips(hits: int, n: int) -> list[bool | None]:
    return [i < hits for i in range(n)]


def designs() -> Iterator[tuple[str, str, Callable[..., bool], tuple[Any, ...]]]:
    """Family, what a cell is besides its prompts and rate, and how one draw of it is made."""
    for samples, tie in ((1, 0.0), (4, 0.1), (4, 0.6)):
        yield "one seed", f"samples={samples} likeness={tie}", of_one_seed, (samples, tie)
    for seeds in (2, 3, 5):
        for spread in SPREADS:
            yield f"{seeds} seeds", f"spread={spread}", over_seeds, (seeds, spread)
    for spread in SPREADS:
        yield "three bases of three seeds", f"spread={spread}", over_bases, (spread,)
    for quality in ((0.95, 0.95), (0.8, 0.95), (0.9, 0.85)):
        for labels in (100, 200):
            yield "corrected for a judge's errors", f"labels={labels} {quality}", of_a_judge, (labels, quality)
    for columns in (3, 6):
        yield "mean over columns", f"columns={columns}", of_columns, (columns,)


def held(draws: int, within: float, number: int) -> dict[str, float]:
    """The coverage of each cell of a design."""
    _, what, draw, given = list(designs())[number]
    found = {}
    for n, p in cells():
        cell = Cell(n, p, within, [number, n, round(100 * p)])
        found[f"n={n} p={p} {what}"] = sum(draw(cell, *given) for _ in range(draws)) / draws
    return found


def false_claims(times: int, spread: float) -> float:
    """The share of families of true nulls that give a claim."""
    rng = np.random.default_rng([1, round(10 * spread)])
    return sum(family(rng, spread) for _ in range(times)) / times


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
    parser.add_argument("--draws", type=int, default=3000)
    parser.add_argument("--exact", action="store_true", help="keep the rate of a cell where it is")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    draws = arguments.draws
    names, found = [name for name, *_ in designs()], dict[str, dict[str, float]]()
    times, spreads = max(20, draws // 50), (0.0, 0.3, 0.6, 1.0)
    with ProcessPoolExecutor(arguments.processes) as pool:
        claims = pool.map(partial(false_claims, times), spreads)
        every = pool.map(partial(held, draws, 0.0 if arguments.exact else 0.25), range(len(names)))
        for name, own in zip(names, every, strict=True):
            found.setdefault(name, {}).update(own)
        families = {f"bases differ by {spread}": share for spread, share in zip(spreads, claims, strict=True)}
    print("| intervals | cells | mean | lowest | highest | 93-97 % |\n|---|---|---|---|---|---|")
    for name, own in found.items():
        values = np.array(list(own.values()))
        row = (values.mean(), values.min(), values.max(), ((values >= 0.93) & (values <= 0.97)).mean())
        print(f"| {name} | {len(values)} | " + " | ".join(f"{100 * v:.1f} %" for v in row) + " |")
    by_chance = binom.cdf(0.97 * draws, draws, 0.95) - binom.cdf(0.93 * draws - 1e-9, draws, 0.95)
    print(f"of cells that cover 95 % exactly, {draws} draws would put {100 * by_chance:.0f} % within 93-97 %")
    for name, value in families.items():
        print(f"20 true nulls, {name}: a false claim in {100 * value:.1f} % of {times} families")
    if arguments.json:
        arguments.json.write_text(json.dumps({"coverage": found, "families": families}, indent=1))


if __name__ == "__main__":
    main()
