"""From rows to the cells of a table: outcomes by arm and column, which give estimates and paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from msgspec.structs import replace

from demur import stats
from demur.bench import get_bench
from demur.bench.spec import Bench, Metric
from demur.bench.summary import FAMILIES
from demur.errors import UserError
from demur.records import Estimate, Part, Result
from demur.report.read import Evaluation, Row, Said

Unit = Literal["share", "tokens", "count"]
Key = tuple[str, str, int]


class Column(NamedTuple):
    """What a number is of, apart from the arm."""

    bench: str
    attack: str
    metric: str
    judge: str
    part: Part
    better: stats.Better = "neither"
    unit: Unit = "share"


class Cell:
    """All that one arm did in one column, over its seeds."""

    def __init__(self) -> None:
        self.values: list[bool | float | None] = []
        self.rows: list[Row] = []
        self.seeds: list[int | None] = []

    def add(self, row: Row, seed: int | None, value: bool | float | None) -> None:
        """Take a reply in."""
        self.values.append(value)
        self.rows.append(row)
        self.seeds.append(seed)

    def estimate(self, column: Column) -> Estimate:
        """The number over all seeds."""
        clusters, cut = [row.prompt.cluster for row in self.rows], [row.cut for row in self.rows]
        if column.unit == "share" and column.metric != "score":
            outcomes = [None if value is None else bool(value) for value in self.values]
            return stats.rate(outcomes, clusters=clusters, seeds=self.seeds, truncated=cut, better=column.better)
        return stats.mean(self.values, clusters=clusters, seeds=self.seeds, truncated=sum(cut))

    def only(self, seed: int) -> Cell:
        """The part of one seed."""
        part = Cell()
        for row, own, value in zip(self.rows, self.seeds, self.values, strict=True):
            if own == seed:
                part.add(row, own, value)
        return part


Cells = dict[str, dict[Column, Cell]]
"""Arm -> column -> cell, both in the order of the run."""


def cells(evaluations: Iterable[Evaluation], *, by_category: bool = False) -> Cells:
    """All cells of some evaluations; with `by_category`, those of each category of prompts instead."""
    found: Cells = {}
    for evaluation in evaluations:
        arm = found.setdefault(evaluation.arm, {})
        for column, row, value in _values(evaluation, by_category):
            arm.setdefault(column, Cell()).add(row, evaluation.seed, value)
    return found


def _values(evaluation: Evaluation, by_category: bool) -> Iterator[tuple[Column, Row, bool | float | None]]:
    """What each row counts as in each column."""
    for judge, part in evaluation.judges:
        said = [(row, row.verdicts.get((judge, part))) for row in evaluation.rows]
        blank = Column(evaluation.bench, evaluation.attack, "", judge, part)
        yield from _rates(blank, said, by_category)
        if not by_category and any(verdict and verdict.score is not None for _, verdict in said):
            for row, verdict in said:
                yield blank._replace(metric="score"), row, verdict.score if verdict else None
    if not by_category:
        yield from _about(evaluation)


def _rates(
    blank: Column, said: list[tuple[Row, Said | None]], by_category: bool
) -> Iterator[tuple[Column, Row, bool | None]]:
    """Outcomes by the benchmark's metrics that this judge's labels can answer."""
    bench = bench_of(blank.bench)
    seen = {verdict.label for _, verdict in said if verdict and verdict.label is not None}
    family = next((f for f in FAMILIES if seen & f), frozenset().union(*FAMILIES))
    for metric in bench.metrics if bench else ():
        if family.intersection(metric.labels):
            column = blank._replace(metric=metric.name, better=metric.better)
            for row, verdict in said:
                if not metric.intents or row.prompt.intent in metric.intents:
                    at = column._replace(metric=f"{metric.name}/{row.prompt.category}") if by_category else column
                    yield at, row, _outcome(metric, verdict.label if verdict else None)


def _about(evaluation: Evaluation) -> Iterator[tuple[Column, Row, bool | float | None]]:
    """How long was thought, and what the budget cut."""
    long = Column(evaluation.bench, evaluation.attack, "thinking_tokens", "", "thinking", unit="tokens")
    cut = long._replace(metric="cut", part="whole", better="lower", unit="share")
    for row in evaluation.rows:
        if row.outcome is not None:
            yield long, row, row.tokens_thinking
            yield cut, row, row.cut


def _outcome(metric: Metric, label: str | None) -> bool | None:
    return None if label is None else label in metric.labels


def bench_of(name: str) -> Bench | None:
    """The protocol of a benchmark; `None` when it is not known here any more."""
    try:
        return get_bench(name)
    except UserError:
        return None


def results(found: Cells) -> Iterator[Result]:
    """Every number: over all seeds, and of each seed where there are several."""
    for arm, columns in found.items():
        for column, cell in columns.items():
            blank = Result(
                arm=arm, bench=column.bench, metric=column.metric, attack=column.attack, judge=column.judge,
                part=column.part, better=column.better, unit=column.unit, estimate=cell.estimate(column),
            )  # fmt: skip
            yield blank
            seeds = list(dict.fromkeys(seed for seed in cell.seeds if seed is not None))
            for seed in seeds if len(seeds) > 1 else ():
                yield replace(blank, seed=seed, estimate=cell.only(seed).estimate(column))


def difference(a: Cell, b: Cell) -> stats.Difference:
    """A minus B on what both were asked. An arm with one seed stands against every seed of the other.

    An attack that adapts writes each arm another prompt about the same question: where both have one a question, the
    question pairs them.
    """
    seeds = _paired_seeds(a, b)
    whole = not (_one_a_question(a) and _one_a_question(b))
    left, right = _by_seed(a, whole=whole), _by_seed(b, whole=whole)
    first: list[bool | float | None] = []
    second: list[bool | float | None] = []
    clusters: list[str] = []
    at: list[int | None] = []
    for number, (own, other) in enumerate(seeds):
        for key, place in left[own].items():
            partner = right[other].get(key)
            if partner is not None:
                first.append(a.values[place])
                second.append(b.values[partner])
                clusters.append(a.rows[place].prompt.cluster)
                at.append(number)
    return stats.paired(first, second, clusters=clusters, seeds=at)


def _paired_seeds(a: Cell, b: Cell) -> list[tuple[int | None, int | None]]:
    left, right = list(dict.fromkeys(a.seeds)), list(dict.fromkeys(b.seeds))
    if len(left) == 1 or len(right) == 1:
        return [(own, other) for own in left for other in right]
    common = [(seed, seed) for seed in left if seed in right]
    return common or list(zip(left, right, strict=False))


def _one_a_question(cell: Cell) -> bool:
    """Whether every question has one prompt for each seed and sample."""
    asked = [(seed, row.key[0], row.sample) for seed, row in zip(cell.seeds, cell.rows, strict=True)]
    return len(set(asked)) == len(asked)


def _by_seed(cell: Cell, *, whole: bool) -> dict[int | None, dict[tuple[Key, int], int]]:
    """Seed -> (key, how many of that key came before) -> place; `whole` keys tell attacks of one question apart."""
    found: dict[int | None, dict[tuple[Key, int], int]] = {}
    seen: dict[tuple[int | None, Key], int] = {}
    for place, (seed, row) in enumerate(zip(cell.seeds, cell.rows, strict=True)):
        question, attack, sample = row.key
        key = (question, attack if whole else "", sample)
        count = seen.get((seed, key), 0)
        seen[seed, key] = count + 1
        found.setdefault(seed, {})[key, count] = place
    return found
