"""The only place that compares: two arms paired by prompt, for `compare`, for a study's findings and for the best arms.

Every comparison is a `PairedTest`. A difference is paired by prompt, over attacks (of equal weight unless the study
declares others), seeds and bases. It is tested twice: with trainings as what varies besides the prompts, and with
bases, of which there are few; the larger p and the wider interval count. Intervals are of one comparison alone, p is
Holm's over a family, and a difference is shown when both agree. `by` is the smallest difference that matters:

    lower, higher   supported: a difference is shown, and the estimate is at least `by`; refuted: `by` is ruled out
    same            supported: `by` is ruled out on both sides; refuted: a difference is shown, and it is at least `by`

Anything else is undecided, and so is a test of an arm that does not speak coherently.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Literal, NamedTuple

from msgspec.structs import replace

from demur import stats
from demur.bench.metrics import SUCCESS
from demur.records import Estimate, Record
from demur.report.metrics import Cell, Cells, Column, Training, Value, estimate, levels
from demur.report.read import Run
from demur.report.training import Learnability

ALPHA = 0.05
GARBLED = 0.10  # Above this share of garbled replies an arm does not speak coherently, and its refusals mean little
LOSS = "loss"  # The metric of findings on the loss of held-out rows, which no benchmark has
Outcome = Literal["supported", "refuted", "undecided"]
NO_ESTIMATE = Estimate(value=None, low=None, high=None, n=0)
NO_DIFFERENCE = stats.Difference(value=None, low=None, high=None, p=None, n=0, clusters=0)


class PairedTest(Record, frozen=True, kw_only=True):
    """Arm A against arm B, on the prompts that both were asked."""

    a: str
    b: str
    metric: str
    bench: str = ""  # Empty: every benchmark that has the metric
    attack: tuple[str, ...] = ()  # Empty: with and without attacks
    part: str = ""
    judge: str = ""  # Empty: the judge of each benchmark's protocol
    better: stats.Better = "neither"
    unit: str = "share"
    estimate_a: Estimate = NO_ESTIMATE
    estimate_b: Estimate = NO_ESTIMATE
    difference: stats.Difference = NO_DIFFERENCE
    p_holm: float | None = None
    comparisons: int = 0  # How many tests Holm's method adjusted for
    bases: int = 1  # How many bases the pairs are of
    margin: float | None = None  # How much worse A may be, where the study declares it
    expect: str = ""  # lower, higher or same: what a finding expects of A; empty for a plain comparison
    by: float = 0.0  # The smallest difference that matters
    split: str = ""  # Doubts about the numbers: another judge finds the contrary, an arm is garbled
    weights: dict[str, float] = {}  # The weight of each attack, where there are several
    p_claim: float | None = None  # p of the claim's contrary; without a claim, of no difference
    p_against: float | None = None  # p of the claim, after Holm's method
    outcome: Outcome = "undecided"
    why: str = ""

    @property
    def shown(self) -> bool:
        """Whether p and interval agree that there is a difference."""
        p, low, high = self.p_holm, self.difference.low, self.difference.high
        return None not in (p, low, high) and p < ALPHA and not low <= 0 <= high  # type: ignore[operator]

    @property
    def winner(self) -> str | None:
        """The arm that the test shows to be better."""
        if not self.shown or self.better == "neither":
            return None
        return self.a if ((self.difference.value or 0) < 0) == (self.better == "lower") else self.b


class Finding(Record, frozen=True, kw_only=True):
    """A claim with its tests: supported when all of them are, refuted when one is."""

    claim: str
    outcome: Outcome
    evidence: tuple[PairedTest, ...]


class Best(Record, frozen=True, kw_only=True):
    """An arm that is better than every other in a column, by paired tests after Holm."""

    bench: str
    attack: str
    metric: str
    arm: str


def adjusted(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """Tests with their p values adjusted by Holm's method over all of them, for and against."""
    ps, against = (stats.holm([getattr(test, name) for test in tests]) for name in ("p_claim", "p_against"))
    count = sum(p is not None for p in ps)
    return [replace(t, p_holm=p, p_against=q, comparisons=count) for t, p, q in zip(tests, ps, against, strict=True)]


def declared(table: Cells, columns: Sequence[Column], wanted: Sequence[dict[str, Any]]) -> list[PairedTest]:
    """The comparisons that a study declares, in each of some columns that both arms have."""
    pairs = ((want, column) for want in wanted for column in columns if want.get("bench") in (None, "", column.bench))
    return adjusted([t for w, c in pairs for t in _in_column(table, c, (w["a"], w["b"]), w.get("margin"))])


def against_raw(table: Cells, columns: Sequence[Column], raw: str) -> list[PairedTest]:
    """What training changed: every arm against the untrained one, all columns of a metric together."""
    tests = []
    first = {(c.metric, c.bench, c.attack): c for c in reversed(columns)}
    for metric in dict.fromkeys(column.metric for column in columns):
        for arm in table if raw in table else ():
            shared = [c for c in reversed(first.values()) if c.metric == metric and c in table[arm] and c in table[raw]]
            if arm != raw and shared:
                bench = shared[0].bench if len({column.bench for column in shared}) == 1 else ""
                tests.append(_over(PairedTest(a=arm, b=raw, metric=metric, bench=bench), table, shared, {}))
    return adjusted(tests)


def best(table: Cells, columns: Sequence[Column]) -> Iterator[Best]:
    """The arms that beat every other arm, column by column."""
    for column in columns:
        values = {arm: table[arm][column].estimate(column).value for arm in table if column in table[arm]}
        known = {arm: v if column.better == "lower" else -v for arm, v in values.items() if v is not None}
        if len(values) > 1 and known and column.better != "neither":
            first = min(known, key=known.__getitem__)
            rivals = [test for arm in values if arm != first for test in _in_column(table, column, (first, arm), None)]
            if rivals and all(test.winner == first for test in adjusted(rivals)):
                yield Best(bench=column.bench, attack=column.attack, metric=column.metric, arm=first)


def _in_column(table: Cells, column: Column, arms: tuple[str, str], margin: float | None) -> Iterator[PairedTest]:
    """One comparison, where both arms were measured."""
    a, b = (table.get(arm, {}).get(column) for arm in arms)
    if a is not None and b is not None:
        pairs = aligned(a, b)
        test = PairedTest(
            a=arms[0], b=arms[1], bench=column.bench, attack=(column.attack,), metric=column.metric, part=column.part,
            judge=column.judge, better=column.better, unit=column.unit,
            estimate_a=a.part(sorted({pair.left for pair in pairs})).estimate(column),
            estimate_b=b.part(sorted({pair.right for pair in pairs})).estimate(column),
            margin=margin if column.metric == "accuracy" else None,
        )  # fmt: skip
        yield _with_contrary_judges(_of_pairs(test, pairs), table, [column])


def incoherent(table: Cells) -> dict[str, Estimate]:
    """Arms that are garbled too often, with the worst of their rates."""
    worst: dict[str, Estimate] = {}
    for arm, cells in table.items():
        rates = [cell.estimate(c) for c, cell in cells.items() if (c.part, c.metric) == ("answer", "garbled")]
        rate = max(rates, key=lambda e: e.value or 0, default=None)
        if rate is not None and (rate.value or 0) > GARBLED:
            worst[arm] = rate
    return worst


def doubted(tests: Iterable[PairedTest], broken: Mapping[str, Estimate]) -> list[PairedTest]:
    """Comparisons that mention an arm that is garbled."""
    doubts = {arm: f"{arm} is garbled in {100 * (e.value or 0):.0f} % of replies" for arm, e in broken.items()}
    return [replace(t, split="; ".join(filter(None, (t.split, doubts.get(t.a), doubts.get(t.b))))) for t in tests]


def findings(run: Run, table: Cells, losses: Sequence[Learnability], incoherent: Collection[str]) -> list[Finding]:
    """The claims that a study tests, in its order. Tests of incoherent arms have no numbers."""
    wanted = [(claim["claim"], want) for claim in run.study.get("findings") or [] for want in claim["evidence"]]
    tests = adjusted([_test(want, run, table, losses, incoherent) for _, want in wanted])
    evidence: dict[str, list[PairedTest]] = {}
    for (claim, _), test in zip(wanted, tests, strict=True):
        evidence.setdefault(claim, []).append(_decided(test))
    order: tuple[Outcome, ...] = ("refuted", "undecided", "supported")  # The first that any test has is the claim's
    outcomes = {claim: min((test.outcome for test in tests), key=order.index) for claim, tests in evidence.items()}
    return [Finding(claim=c, outcome=outcomes[c], evidence=tuple(tests)) for c, tests in evidence.items()]


def _test(
    want: dict[str, Any], run: Run, table: Cells, losses: Sequence[Learnability], incoherent: Collection[str]
) -> PairedTest:
    """A declared test with its numbers, or with the reason why it has none."""
    attack = want.get("attack") or ()
    test = PairedTest(
        a=want["a"], b=want["b"], metric=want.get("metric", SUCCESS[0]), bench=want.get("bench", ""),
        attack=(attack,) if isinstance(attack, str) else tuple(attack), part=want.get("part") or "",
        expect=want["expect"], by=want["by"],
    )  # fmt: skip
    if broken := [arm for arm in (test.a, test.b) if arm in incoherent]:
        return replace(test, why=f"{' and '.join(broken)}: garbled too often to be read")
    if test.metric == LOSS:
        return _of_loss(test, run, losses)
    # What both arms were measured on: of each benchmark and attack the first judge, which is the protocol's.
    first: dict[tuple[str, str], Column] = {}
    for column in table.get(test.a, {}):
        wanted = column.metric == test.metric and test.part in ("", column.part) and test.bench in ("", column.bench)
        if wanted and (not test.attack or column.attack in test.attack):
            first.setdefault(column[:2], column)
    columns = [column for column in first.values() if column in table.get(test.b, {})]
    if not columns:
        return replace(test, why="not measured on both arms")
    return _over(test, table, columns, want.get("weights") or {})


def _over(test: PairedTest, table: Cells, columns: Sequence[Column], declared: Mapping[str, float]) -> PairedTest:
    """A test with its numbers over several columns, with the weights declared for their attacks, or equal ones."""
    weights = {column: declared.get(column.attack, 1.0) for column in columns}
    sides = [estimate({c: table[arm][c] for c in columns}, weights) for arm in (test.a, test.b)]
    pairs = [pair for c in columns for pair in aligned(table[test.a][c], table[test.b][c], c)]
    test = replace(
        test, unit=columns[0].unit, better=columns[0].better, estimate_a=sides[0], estimate_b=sides[1],
        weights={column.attack: weight for column, weight in weights.items()} if len(columns) > 1 else {},
    )  # fmt: skip
    return _with_contrary_judges(_of_pairs(test, pairs, weights), table, columns)


def _of_pairs(test: PairedTest, pairs: Sequence["Aligned"], weights: dict[Column, float] | None = None) -> PairedTest:
    """A test with the numbers of its pairs, and of how many bases those are."""
    return replace(_with(test, _by_level(pairs, weights)), bases=len({pair.training[0] for pair in pairs}))


def _with_contrary_judges(test: PairedTest, table: Cells, columns: Sequence[Column]) -> PairedTest:
    """A test that names the other judges of the same replies whose difference has the opposite sign."""
    a, b = table[test.a], table[test.b]
    gaps: dict[str, list[float]] = {}
    for column in columns:
        for c in a:
            alike = c.metric == column.metric or {c.metric, column.metric} <= set(SUCCESS)
            if alike and c in b and c.judge != column.judge and c[:2] == column[:2] and c.part == column.part:
                gap = difference(a[c], b[c]).value
                gaps.setdefault(c.judge, []).extend([] if gap is None else [gap])
    means = {judge: sum(values) / len(values) for judge, values in gaps.items() if len(values) == len(columns)}
    contrary = {judge: mean for judge, mean in means.items() if mean * (test.difference.value or 0) < 0}
    notes = [f"{judge} finds the contrary ({100 * mean:+.0f})" for judge, mean in contrary.items()]
    return replace(test, split="judges disagree: " + ", ".join(notes)) if notes else test


def _of_loss(test: PairedTest, run: Run, losses: Sequence[Learnability]) -> PairedTest:
    """Loss on held-out rows at the end, paired by training: base and seed."""
    ends: dict[str, dict[Training, float]] = {}
    for row in losses:
        arm, base = run.split(row.arm)
        if row.part == "whole":
            ends.setdefault(arm, {})[base, row.seed] = row.end
    a, b = ends.get(test.a, {}), ends.get(test.b, {})
    both = [training for training in a if training in b]
    if len(both) < 2:
        return replace(test, unit="nats", why="fewer than two trainings of both arms")
    bases, sides = [base for base, _ in both], ([a[key] for key in both], [b[key] for key in both])
    test = replace(
        test, unit="nats", estimate_a=stats.mean(sides[0]), estimate_b=stats.mean(sides[1]), bases=len(set(bases))
    )
    gaps = [stats.paired(*sides, clusters=clusters) for clusters in ([None, bases] if test.bases > 1 else [None])]
    return _with(test, [replace(gap, p=stats.p_at(gap, 0.0), seeds=len(both)) for gap in gaps])


def _with(test: PairedTest, levels: Sequence[stats.Difference]) -> PairedTest:
    """A test with its numbers: of the levels the wider interval and the larger p, for the claim and against it."""
    none = max((level.p for level in levels if level.p is not None), default=None)
    widest = max(levels, key=lambda level: -1.0 if level.low is None or level.high is None else level.high - level.low)
    by_bases = len(levels) > 1 and widest is levels[-1]
    how = widest.how.replace(" seeds", " bases") if by_bases else widest.how
    test = replace(test, difference=replace(widest, p=none, how=how), p_claim=none)
    value = widest.value
    if not test.expect or value is None:
        return test
    sides = (-test.by, test.by) if test.expect == "same" else (test.by if test.expect == "higher" else -test.by,)
    ps = [stats.p_at(level, side) for level in levels for side in sides]
    ruled_out = max((p for p in ps if p is not None), default=None)
    if test.expect == "same":
        return replace(test, p_claim=ruled_out if abs(value) < test.by else 1.0, p_against=none)
    worth = value if test.expect == "higher" else -value
    return replace(test, p_claim=none if worth > 0 else 1.0, p_against=ruled_out if worth < test.by else 1.0)


def _decided(test: PairedTest) -> PairedTest:
    """A test with its outcome, by what its finding expects."""
    d, p, against = test.difference, test.p_holm, test.p_against
    if d.value is None or d.low is None or d.high is None or p is None or against is None:
        return test if test.why else replace(test, why=d.how or "nothing to compare")
    apart = not d.low <= 0 <= d.high
    if test.expect == "same":
        within = max(-d.low, d.high) < test.by
        supported, refuted = p < ALPHA and within, against < ALPHA and apart and abs(d.value) >= test.by
    else:
        worth, most = (d.value, d.high) if test.expect == "higher" else (-d.value, -d.low)
        supported, refuted = p < ALPHA and apart and worth >= test.by, against < ALPHA and most < test.by
    return replace(test, outcome="supported" if supported else "refuted" if refuted else "undecided")


class Aligned(NamedTuple):
    """The values of two arms' replies to the same prompt."""

    first: Value
    second: Value
    cluster: str
    training: tuple[str, object]  # Base, with the two seeds
    column: Column | None
    left: int  # Place in the first cell
    right: int  # Place in the second cell


def difference(a: Cell, b: Cell) -> stats.Difference:
    """A minus B on what both were asked, by trainings and by bases: the larger p and the wider interval."""
    return _with(PairedTest(a="", b="", metric=""), _by_level(aligned(a, b))).difference


def _by_level(pairs: Sequence[Aligned], weights: dict[Column, float] | None = None) -> list[stats.Difference]:
    """A minus B with trainings as what varies besides the prompts; and with bases, where there are several."""
    trainings = [pair.training for pair in pairs]
    first = [pair.first for pair in pairs if not isinstance(pair.first, tuple)]
    second = [pair.second for pair in pairs if not isinstance(pair.second, tuple)]
    strata = ([pair.column for pair in pairs], weights) if weights and len(weights) > 1 else None
    gaps = [
        stats.paired(first, second, clusters=[p.cluster for p in pairs], seeds=level, usual=usual, strata=strata)
        for level, usual in zip(levels(trainings), (stats.USUAL, stats.USUAL_BASES), strict=False)
    ]
    return [replace(gap, seeds=len(set(trainings))) for gap in gaps]


Key = tuple[str, str, int, int]  # Question, attack, sample, and a number that tells equal ones of these apart


def aligned(a: Cell, b: Cell, column: Column | None = None) -> list[Aligned]:
    """The pairs of replies to what both were asked. An arm with one seed is paired with every seed of the other.

    An attack that adapts writes each arm another prompt: where both arms have one a question, the question pairs them.
    """
    asked = ([(t, row.question, row.sample) for t, row in zip(c.trainings, c.rows, strict=True)] for c in (a, b))
    by_attack = any(len(set(keys)) < len(keys) for keys in asked)
    left, right = _by_training(a, by_attack=by_attack), _by_training(b, by_attack=by_attack)
    return [
        Aligned(a.values[at], b.values[to], a.rows[at].cluster, (x[0] or y[0], (x[1], y[1])), column, at, to)
        for x, y in _trainings(left, right)
        for key, at in left[x].items()
        if (to := right[y].get(key)) is not None
    ]


def _trainings(left: Iterable[Training], right: Iterable[Training]) -> Iterator[tuple[Training, Training]]:
    """Which training of A is paired with which of B: on the same base those of the same seed."""
    sides = map(list, (left, right))
    ours, theirs = ({base: [seed for b, seed in side if b == base] for base, _ in side} for side in sides)
    for (base, seeds), (other, others) in product(ours.items(), theirs.items()):
        if base == other or "" in (base, other):
            same = [(seed, seed) for seed in seeds if seed in others] or list(zip(seeds, others, strict=False))
            for a, b in product(seeds, others) if 1 in (len(seeds), len(others)) else same:
                yield (base, a), (other, b)


def _by_training(cell: Cell, *, by_attack: bool) -> dict[Training, dict[Key, int]]:
    """Training -> key -> place in the cell; `by_attack`: keys have the attack."""
    places: dict[Training, dict[Key, int]] = {}
    seen: Counter[tuple[Training, str, str, int]] = Counter()
    for place, (training, row) in enumerate(zip(cell.trainings, cell.rows, strict=True)):
        key = (row.question, row.attack if by_attack else "", row.sample)
        places.setdefault(training, {})[*key, seen[training, *key]] = place
        seen[training, *key] += 1
    return places
