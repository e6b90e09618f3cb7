"""The only place that compares: two arms paired by prompt, for `compare`, for a study's findings, and for the best of a column.

Every comparison is a `PairedTest`. A difference is paired by prompt, over attacks (each weighs the same unless the study
says otherwise), seeds and bases. There are two tests and two intervals: with trainings as what varies beside the prompts,
and with bases, of which there are few; the larger p and the wider interval count. Intervals are of one comparison alone; p
is Holm's over all tests of one family, and a difference is shown when both say so. A finding's test also says the smallest
difference that matters, `by`:

    lower, higher   supported: a difference is shown, and the estimate is at least `by`; refuted: `by` is ruled out
    same            supported: `by` is ruled out on both sides; refuted: a difference is shown, and it is at least `by`

All else is undecided, and so is whatever rests on an arm that does not speak coherently.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Literal, NamedTuple

from msgspec.structs import replace

from demur import stats
from demur.bench.metrics import SUCCESS
from demur.records import Estimate, Record
from demur.report.metrics import Cell, Cells, Column, Made, Value, estimate, levels
from demur.report.read import Run
from demur.report.training import Learnability

ALPHA = 0.05
GARBLED = 0.10  # Above this share of garbled replies an arm does not speak coherently, and its refusals mean little
LOSS = "loss"  # The metric of a finding that is no benchmark's
Outcome = Literal["supported", "refuted", "undecided"]
NOTHING = Estimate(value=None, low=None, high=None, n=0)
LEFT = stats.Difference(value=None, low=None, high=None, p=None, n=0, clusters=0)


class PairedTest(Record, frozen=True, kw_only=True):
    """Arm A against arm B, on what both were asked."""

    a: str
    b: str
    metric: str
    bench: str = ""  # Empty: every benchmark that has the metric
    attack: tuple[str, ...] = ()  # Empty: however the questions were put
    part: str = ""
    judge: str = ""  # Empty: of each benchmark the protocol's
    better: stats.Better = "neither"
    unit: str = "share"
    estimate_a: Estimate = NOTHING
    estimate_b: Estimate = NOTHING
    difference: stats.Difference = LEFT
    p_holm: float | None = None
    comparisons: int = 0  # How many tests Holm's method adjusted for
    bases: int = 1  # How many bases the pairs are of
    margin: float | None = None  # How much worse A may be, where the study declares it
    expect: str = ""  # lower, higher or same: what a finding expects of A; empty for a plain comparison
    by: float = 0.0  # The smallest difference that matters
    split: str = ""  # What speaks against the numbers: another judge that says the contrary, an arm that is garbled
    weights: dict[str, float] = {}  # How much each attack weighs, where there are several
    p_claim: float | None = None  # Of the claim's contrary; without a claim, of no difference
    p_against: float | None = None  # Of the claim; after Holm's method
    outcome: Outcome = "undecided"
    why: str = ""

    @property
    def shown(self) -> bool:
        """Whether p and interval both say that there is a difference."""
        low, high = self.difference.low, self.difference.high
        return self.p_holm is not None and self.p_holm < ALPHA and None not in (low, high) and not low <= 0 <= high  # type: ignore[operator]

    @property
    def winner(self) -> str | None:
        """The arm that the test shows to be better."""
        if not self.shown or self.better == "neither":
            return None
        return self.a if ((self.difference.value or 0) < 0) == (self.better == "lower") else self.b


class Finding(Record, frozen=True, kw_only=True):
    """A claim with its tests: supported when all say so, refuted when one does."""

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
    """Tests with Holm's p over all of them, for and against."""
    ps, against = (stats.holm([getattr(test, name) for test in tests]) for name in ("p_claim", "p_against"))
    count = sum(p is not None for p in ps)
    return [replace(t, p_holm=p, p_against=q, comparisons=count) for t, p, q in zip(tests, ps, against, strict=True)]


def declared(found: Cells, columns: Sequence[Column], wanted: Sequence[dict[str, Any]]) -> list[PairedTest]:
    """The comparisons that a study names, in every one of some columns that both arms have."""
    own = ((want, column) for want in wanted for column in columns if want.get("bench") in (None, "", column.bench))
    return adjusted([t for w, c in own for t in _in_column(found, c, (w["a"], w["b"]), w.get("margin"))])


def against_raw(found: Cells, columns: Sequence[Column], raw: str) -> list[PairedTest]:
    """What training changed: every arm against the untrained one, all columns of one metric together."""
    tests = []
    first = {(c.metric, c.bench, c.attack): c for c in reversed(columns)}
    for metric in dict.fromkeys(column.metric for column in columns):
        for arm in found if raw in found else ():
            own = [c for c in reversed(first.values()) if c.metric == metric and c in found[arm] and c in found[raw]]
            if arm != raw and own:
                where = own[0].bench if len({column.bench for column in own}) == 1 else ""
                tests.append(_over(PairedTest(a=arm, b=raw, metric=metric, bench=where), found, own, {}))
    return adjusted(tests)


def best(found: Cells, columns: Sequence[Column]) -> Iterator[Best]:
    """The arms that beat every other arm, column by column."""
    for column in columns:
        values = {arm: found[arm][column].estimate(column).value for arm in found if column in found[arm]}
        known = {arm: v if column.better == "lower" else -v for arm, v in values.items() if v is not None}
        if len(values) > 1 and known and column.better != "neither":
            first = min(known, key=known.__getitem__)
            rivals = [test for arm in values if arm != first for test in _in_column(found, column, (first, arm), None)]
            if rivals and all(test.winner == first for test in adjusted(rivals)):
                yield Best(bench=column.bench, attack=column.attack, metric=column.metric, arm=first)


def _in_column(found: Cells, column: Column, arms: tuple[str, str], margin: float | None) -> Iterator[PairedTest]:
    """One comparison, where both arms were measured."""
    a, b = (found.get(arm, {}).get(column) for arm in arms)
    if a is not None and b is not None:
        pairs = aligned(a, b)
        mine, its = a.part(sorted({pair.left for pair in pairs})), b.part(sorted({pair.right for pair in pairs}))
        test = PairedTest(
            a=arms[0], b=arms[1], bench=column.bench, attack=(column.attack,), metric=column.metric, part=column.part, judge=column.judge,
            better=column.better, unit=column.unit, estimate_a=mine.estimate(column), estimate_b=its.estimate(column),
            margin=margin if column.metric == "accuracy" else None,
        )  # fmt: skip
        yield _contrary(_over_pairs(test, pairs), found, [column])


def incoherent(found: Cells) -> dict[str, Estimate]:
    """Arms that are garbled too often, with the worst of their rates."""
    worst: dict[str, Estimate] = {}
    for arm, own in found.items():
        rates = [cell.estimate(c) for c, cell in own.items() if (c.part, c.metric) == ("answer", "garbled")]
        rate = max(rates, key=lambda e: e.value or 0, default=None)
        if rate is not None and (rate.value or 0) > GARBLED:
            worst[arm] = rate
    return worst


def doubted(tests: Iterable[PairedTest], broken: Mapping[str, Estimate]) -> list[PairedTest]:
    """Comparisons that say of an arm that it is garbled."""
    said = {arm: f"{arm} is garbled in {100 * (e.value or 0):.0f} % of replies" for arm, e in broken.items()}
    return [replace(t, split="; ".join(filter(None, (t.split, said.get(t.a), said.get(t.b))))) for t in tests]


def findings(run: Run, found: Cells, learnt: Sequence[Learnability], incoherent: Collection[str]) -> list[Finding]:
    """The claims that a run's study puts to the test, in its order; nothing is read of incoherent arms.

    A claim is refuted when one of its tests says so, and supported when all do.
    """
    wanted = [(claim["claim"], each) for claim in run.study.get("findings") or [] for each in claim["evidence"]]
    tests = [_test(each, run, found, learnt, incoherent) for _, each in wanted]
    grouped: dict[str, list[PairedTest]] = {}
    for (claim, _), test in zip(wanted, adjusted(tests), strict=True):
        grouped.setdefault(claim, []).append(_decided(test))
    every: tuple[Outcome, ...] = ("refuted", "undecided", "supported")  # the first that any test says
    outcomes = {claim: next(one for one in every if one in {t.outcome for t in own}) for claim, own in grouped.items()}
    return [Finding(claim=c, outcome=outcomes[c], evidence=tuple(own)) for c, own in grouped.items()]


def _test(
    want: dict[str, Any], run: Run, found: Cells, learnt: Sequence[Learnability], incoherent: Collection[str]
) -> PairedTest:
    """The numbers of a test; of none where an arm was not measured or is incoherent."""
    attack = want.get("attack") or ()
    test = PairedTest(
        a=want["a"], b=want["b"], metric=want.get("metric", SUCCESS[0]), bench=want.get("bench", ""),
        attack=(attack,) if isinstance(attack, str) else tuple(attack), part=want.get("part") or "",
        expect=want["expect"], by=want["by"],
    )  # fmt: skip
    if broken := [arm for arm in (test.a, test.b) if arm in incoherent]:
        return replace(test, why=f"{' and '.join(broken)}: garbled too often to be read")
    if test.metric == LOSS:
        return _of_loss(test, run, learnt)
    # What both arms were measured on: of each benchmark and attack the first judge, which is the protocol's.
    first: dict[tuple[str, str], Column] = {}
    for column in found.get(test.a, {}):
        wanted = column.metric == test.metric and test.part in ("", column.part) and test.bench in ("", column.bench)
        if wanted and (not test.attack or column.attack in test.attack):
            first.setdefault(column[:2], column)
    columns = [column for column in first.values() if column in found.get(test.b, {})]
    if not columns:
        return replace(test, why="not measured on both arms")
    return _over(test, found, columns, want.get("weights") or {})


def _over(test: PairedTest, found: Cells, columns: Sequence[Column], declared: Mapping[str, float]) -> PairedTest:
    """A test with its numbers, over columns that weigh the same unless declared otherwise, by attack."""
    weights = {column: declared.get(column.attack, 1.0) for column in columns}
    sides = [estimate({c: found[arm][c] for c in columns}, weights) for arm in (test.a, test.b)]
    pairs = [pair for c in columns for pair in aligned(found[test.a][c], found[test.b][c], c)]
    test = replace(
        test, unit=columns[0].unit, better=columns[0].better, estimate_a=sides[0], estimate_b=sides[1],
        weights={column.attack: weight for column, weight in weights.items()} if len(columns) > 1 else {},
    )  # fmt: skip
    return _contrary(_over_pairs(test, pairs, weights), found, columns)


def _over_pairs(test: PairedTest, pairs: Sequence["Aligned"], weights: dict[Column, float] | None = None) -> PairedTest:
    """A test with the numbers of its pairs, and of how many bases those are."""
    return replace(_with(test, _by_level(pairs, weights)), bases=len({pair.made[0] for pair in pairs}))


def _contrary(test: PairedTest, found: Cells, columns: Sequence[Column]) -> PairedTest:
    """A test that names the other judges of the same replies which find the contrary."""
    one, two = found[test.a], found[test.b]
    gaps: dict[str, list[float]] = {}
    for column in columns:
        for c in one:
            alike = c.metric == column.metric or {c.metric, column.metric} <= set(SUCCESS)
            if alike and c in two and c.judge != column.judge and c[:2] == column[:2] and c.part == column.part:
                other = difference(one[c], two[c]).value
                gaps.setdefault(c.judge, []).extend([] if other is None else [other])
    own = test.difference.value or 0
    means = {judge: sum(gap) / len(gap) for judge, gap in gaps.items() if len(gap) == len(columns)}
    told = [f"{judge} finds the contrary ({100 * mean:+.0f})" for judge, mean in means.items() if mean * own < 0]
    return replace(test, split="judges disagree: " + ", ".join(told)) if told else test


def _of_loss(test: PairedTest, run: Run, learnt: Sequence[Learnability]) -> PairedTest:
    """Loss on held-out rows at the end, paired by training: base and seed."""
    ends: dict[str, dict[Made, float]] = {}
    for one in learnt:
        arm, base = run.split(one.arm)
        if one.part == "whole":
            ends.setdefault(arm, {})[base, one.seed] = one.end
    a, b = ends.get(test.a, {}), ends.get(test.b, {})
    both = [made for made in a if made in b]
    if len(both) < 2:
        return replace(test, unit="nats", why="fewer than two trainings of both arms")
    bases = [base for base, _ in both]
    clusterings = [None, bases] if len(set(bases)) > 1 else [None]
    found = [stats.paired([a[m] for m in both], [b[m] for m in both], clusters=each) for each in clusterings]
    test = replace(
        test, unit="nats", estimate_a=stats.mean([a[m] for m in both]), estimate_b=stats.mean([b[m] for m in both]),
        bases=len(set(bases)),
    )  # fmt: skip
    return _with(test, [replace(one, p=stats.p_at(one, 0.0), seeds=len(both)) for one in found])


def _with(test: PairedTest, levels: Sequence[stats.Difference]) -> PairedTest:
    """A test with its numbers: of the levels the wider interval and the larger p, for the claim and against it."""
    none = max((one.p for one in levels if one.p is not None), default=None)
    widest = max(levels, key=lambda one: -1.0 if one.low is None or one.high is None else one.high - one.low)
    by_bases = len(levels) > 1 and widest is levels[-1]
    how = widest.how.replace(" seeds", " bases") if by_bases else widest.how
    test = replace(test, difference=replace(widest, p=none, how=how), p_claim=none)
    value = widest.value
    if not test.expect or value is None:
        return test
    sides = (-test.by, test.by) if test.expect == "same" else (test.by if test.expect == "higher" else -test.by,)
    ps = [stats.p_at(one, side) for one in levels for side in sides]
    ruled_out = max((p for p in ps if p is not None), default=None)
    if test.expect == "same":
        return replace(test, p_claim=ruled_out if abs(value) < test.by else 1.0, p_against=none)
    worth = value if test.expect == "higher" else -value
    return replace(test, p_claim=none if worth > 0 else 1.0, p_against=ruled_out if worth < test.by else 1.0)


def _decided(test: PairedTest) -> PairedTest:
    """What a test says of what its finding expects."""
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
    """Replies of two arms to the same."""

    first: Value
    second: Value
    cluster: str
    made: tuple[str, object]  # Base, with the two seeds
    column: Column | None
    left: int  # Where they stand in the two cells
    right: int


def difference(a: Cell, b: Cell) -> stats.Difference:
    """A minus B on what both were asked, by trainings and by bases: the larger p and the wider interval."""
    return _over_pairs(PairedTest(a="", b="", metric=""), aligned(a, b)).difference


def _by_level(pairs: Sequence[Aligned], weights: dict[Column, float] | None = None) -> list[stats.Difference]:
    """A minus B with its trainings as what varies beside the prompts; and with its bases, where there are several."""
    made = [pair.made for pair in pairs]
    first = [pair.first for pair in pairs if not isinstance(pair.first, tuple)]
    second = [pair.second for pair in pairs if not isinstance(pair.second, tuple)]
    strata = ([pair.column for pair in pairs], weights) if weights and len(weights) > 1 else None
    found = [
        stats.paired(first, second, clusters=[p.cluster for p in pairs], seeds=level, usual=usual, strata=strata)
        for level, usual in zip(levels(made), (stats.USUAL, stats.USUAL_BASES), strict=False)
    ]
    return [replace(one, seeds=len(set(made))) for one in found]


Key = tuple[str, str, int, int]  # Question, attack, sample, and how many of these came before


def aligned(a: Cell, b: Cell, column: Column | None = None) -> list[Aligned]:
    """What both were asked. An arm with one seed stands against every seed of the other, on the same base.

    An attack that adapts writes each arm another prompt about the same question: where both have one a question, the
    question pairs them.
    """
    asked = ([(made, row.question, row.sample) for made, row in zip(c.made, c.rows, strict=True)] for c in (a, b))
    whole = any(len(set(own)) < len(own) for own in asked)
    left, right = _by_training(a, whole=whole), _by_training(b, whole=whole)
    return [
        Aligned(a.values[at], b.values[to], a.rows[at].cluster, (x[0] or y[0], (x[1], y[1])), column, at, to)
        for x, y in _trainings(left, right)
        for key, at in left[x].items()
        if (to := right[y].get(key)) is not None
    ]


def _trainings(left: Iterable[Made], right: Iterable[Made]) -> Iterator[tuple[Made, Made]]:
    """Which training of A stands against which of B: of one base those of one seed."""
    sides = map(list, (left, right))
    ours, theirs = ({base: [seed for b, seed in side if b == base] for base, _ in side} for side in sides)
    for (base, own), (other, its) in product(ours.items(), theirs.items()):
        if base == other or "" in (base, other):
            same = [(seed, seed) for seed in own if seed in its] or list(zip(own, its, strict=False))
            for one, two in product(own, its) if 1 in (len(own), len(its)) else same:
                yield (base, one), (other, two)


def _by_training(cell: Cell, *, whole: bool) -> dict[Made, dict[Key, int]]:
    """Training -> key -> place; `whole` keys tell attacks of one question apart."""
    found: dict[Made, dict[Key, int]] = {}
    seen: dict[tuple[Made, str, str, int], int] = {}
    for place, (made, row) in enumerate(zip(cell.made, cell.rows, strict=True)):
        key = (row.question, row.attack if whole else "", row.sample)
        count = seen.get((made, *key), 0)
        seen[made, *key] = count + 1
        found.setdefault(made, {})[*key, count] = place
    return found
