"""From rows to the cells of a table: outcomes by arm and column, which give estimates and paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar

from msgspec.structs import replace

from demur import stats
from demur.bench import get_bench
from demur.bench.spec import Bench, Metric
from demur.bench.summary import FAMILIES
from demur.errors import UserError
from demur.records import Estimate, Part, Result
from demur.report.read import Evaluation, Row, Said

Unit = Literal["share", "tokens", "nats", "count"]
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
        self.made: list[Made] = []
        """The training behind each value."""

    def add(self, row: Row, value: bool | float | None, made: Made) -> None:
        """Take a reply in."""
        self.values.append(value)
        self.rows.append(row)
        self.made.append(made)

    def estimate(self, column: Column) -> Estimate:
        """The number over all seeds, and over all bases."""
        return widest([self._estimate(column, level) for level in levels(self.made)])

    def _estimate(self, column: Column, level: list[int]) -> Estimate:
        clusters, cut = [row.prompt.cluster for row in self.rows], [row.cut for row in self.rows]
        if column.unit == "share" and column.metric != "score":
            outcomes = [None if value is None else bool(value) for value in self.values]
            return stats.rate(outcomes, clusters=clusters, seeds=level, truncated=cut, better=column.better)
        return stats.mean(self.values, clusters=clusters, seeds=level, truncated=sum(cut))

    def only(self, seed: int) -> Cell:
        """The part of one seed."""
        part = Cell()
        for row, value, made in zip(self.rows, self.values, self.made, strict=True):
            if made[1] == seed:
                part.add(row, value, made)
        return part


Made = tuple[str, int | None]
"""Base and seed of a training."""
W = TypeVar("W", Estimate, stats.Difference)


def levels(made: Sequence[tuple[str, object]]) -> list[list[int]]:
    """What may vary beside the prompts, as indices: the trainings; and, where there are several, the bases."""
    runs = {one: number for number, one in enumerate(dict.fromkeys(made))}
    bases = {base: number for number, base in enumerate(dict.fromkeys(base for base, _ in made))}
    found = [[runs[one] for one in made]]
    return [*found, [bases[base] for base, _ in made]] if len(bases) > 1 else found


def widest(found: Sequence[W]) -> W:
    """Of one number with its trainings and with its bases as what varies, the one that promises less."""
    chosen = max(found, key=lambda one: -1.0 if one.low is None or one.high is None else one.high - one.low)
    if len(found) > 1 and chosen is found[-1]:
        chosen = replace(chosen, how=chosen.how.replace(" seeds", " bases"))
    return chosen


Cells = dict[str, dict[Column, Cell]]
"""Arm -> column -> cell, both in the order of the run."""


def cells(evaluations: Iterable[Evaluation], *, by_category: bool = False) -> Cells:
    """All cells of some evaluations; with `by_category`, those of each category of prompts instead."""
    found: Cells = {}
    for evaluation in evaluations:
        arm, made = found.setdefault(evaluation.arm, {}), (evaluation.base, evaluation.seed)
        for column, row, value in _values(evaluation, by_category):
            arm.setdefault(column, Cell()).add(row, value, made)
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
            seeds = list(dict.fromkeys(seed for _, seed in cell.made if seed is not None))
            for seed in seeds if len(seeds) > 1 and len({base for base, _ in cell.made}) == 1 else ():
                yield replace(blank, seed=seed, estimate=cell.only(seed).estimate(column))


class Pairs(NamedTuple):
    """Replies of two arms to the same."""

    first: list[bool | float | None]
    second: list[bool | float | None]
    clusters: list[str]
    made: list[tuple[str, object]]
    """Base, and the two seeds."""


def difference(a: Cell, b: Cell) -> stats.Difference:
    """A minus B on what both were asked."""
    return differing(aligned(a, b))


def aligned(a: Cell, b: Cell) -> Pairs:
    """What both were asked. An arm with one seed stands against every seed of the other, on the same base.

    An attack that adapts writes each arm another prompt about the same question: where both have one a question, the
    question pairs them.
    """
    whole = not (_one_a_question(a) and _one_a_question(b))
    left, right = _by_seed(a, whole=whole), _by_seed(b, whole=whole)
    pairs = Pairs([], [], [], [])
    for own, other in _paired(a, b):
        for key, place in left[own].items():
            partner = right[other].get(key)
            if partner is not None:
                pairs.first.append(a.values[place])
                pairs.second.append(b.values[partner])
                pairs.clusters.append(a.rows[place].prompt.cluster)
                pairs.made.append((own[0] or other[0], (own[1], other[1])))
    return pairs


def differing(pairs: Pairs) -> stats.Difference:
    """A minus B with its trainings, and its bases, as what varies: the larger p and the wider interval."""
    found = by_level(pairs)
    return replace(widest(found), p=max((one.p for one in found if one.p is not None), default=None))


def by_level(pairs: Pairs) -> list[stats.Difference]:
    """A minus B with its trainings as what varies beside the prompts; and with its bases, where there are several."""
    trainings = len(set(pairs.made))
    found = [stats.paired(pairs.first, pairs.second, clusters=pairs.clusters, seeds=at) for at in levels(pairs.made)]
    return [replace(one, seeds=trainings) for one in found]


def _paired(a: Cell, b: Cell) -> list[tuple[Made, Made]]:
    """Which training of A stands against which of B: of one base those of one seed."""
    left, right = (_seeds_by_base(cell) for cell in (a, b))
    together = [(x, y) for x in left for y in right if x == y or "" in (x, y)]
    return [((x, own), (y, other)) for x, y in together for own, other in _paired_seeds(left[x], right[y])]


def _seeds_by_base(cell: Cell) -> dict[str, list[int | None]]:
    found: dict[str, list[int | None]] = {}
    for base, seed in dict.fromkeys(cell.made):
        found.setdefault(base, []).append(seed)
    return found


def _paired_seeds(left: list[int | None], right: list[int | None]) -> list[tuple[int | None, int | None]]:
    if len(left) == 1 or len(right) == 1:
        return [(own, other) for own in left for other in right]
    common = [(seed, seed) for seed in left if seed in right]
    return common or list(zip(left, right, strict=False))


def _one_a_question(cell: Cell) -> bool:
    """Whether every question has one prompt for each seed and sample."""
    asked = [(seed, row.key[0], row.sample) for seed, row in zip(cell.made, cell.rows, strict=True)]
    return len(set(asked)) == len(asked)


def _by_seed(cell: Cell, *, whole: bool) -> dict[Made, dict[tuple[Key, int], int]]:
    """Seed -> (key, how many of that key came before) -> place; `whole` keys tell attacks of one question apart."""
    found: dict[Made, dict[tuple[Key, int], int]] = {}
    seen: dict[tuple[Made, Key], int] = {}
    for place, (seed, row) in enumerate(zip(cell.made, cell.rows, strict=True)):
        question, attack, sample = row.key
        key = (question, attack if whole else "", sample)
        count = seen.get((seed, key), 0)
        seen[seed, key] = count + 1
        found.setdefault(seed, {})[key, count] = place
    return found
