"""The claims that a study puts to the test, each seen, not seen, or open, by the tests that the study declares.

A difference is paired by prompt and pooled over attacks, seeds and bases. P has prompts and trainings as what varies, and is
Holm's over all tests of all claims. The interval is the wider of that and of one with the bases as what varies, of which
there are few; it is not adjusted. A difference is shown when p < 0.05 and the interval leaves zero out: beyond chance on
these bases, and no matter of one of them. With `by`, the smallest difference that matters:

    lower, higher   seen: shown, and the estimate is at least `by`; not seen: the interval rules a difference of `by` out
    same            seen: the interval lies within `by` of nothing; not seen: shown, and the estimate is at least `by`

All else is open, and so is whatever rests on an arm that does not speak coherently.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

from msgspec.structs import replace

from demur import stats
from demur.records import Estimate, Record
from demur.report.cells import Cell, Cells, Column, Pairs, aligned, by_level, widest
from demur.report.learnt import Learnt
from demur.report.read import Run
from demur.stats.spread import cluster_variance, sample, t_test

ALPHA = 0.05
Outcome = Literal["seen", "not seen", "cannot tell"]
NOTHING = Estimate(value=None, low=None, high=None, n=0)
LEFT = stats.Difference(value=None, low=None, high=None, p=None, n=0, clusters=0)


class Tested(Record, frozen=True, kw_only=True):
    """One test, and what it says of what the claim expects."""

    a: str
    b: str
    metric: str
    bench: str
    attack: tuple[str, ...]
    part: str
    expect: str
    by: float
    unit: str
    estimate_a: Estimate = NOTHING
    estimate_b: Estimate = NOTHING
    difference: stats.Difference = LEFT
    p_holm: float | None = None
    bases: int = 1
    outcome: Outcome = "cannot tell"
    why: str = ""


class Found(Record, frozen=True, kw_only=True):
    """A claim with its tests: seen when all say so, not seen when one does."""

    claim: str
    outcome: Outcome
    evidence: tuple[Tested, ...]


def findings(run: Run, found: Cells, learnt: Sequence[Learnt], incoherent: Collection[str]) -> list[Found]:
    """The claims of a run's study, in its order.

    Args:
        run: with the copies of each arm taken together.
        found: its cells.
        learnt: how hard the arms were to learn, copy by copy.
        incoherent: arms that are garbled too often to be read.
    """
    wanted = [(claim["claim"], each) for claim in run.study.get("findings") or [] for each in claim["evidence"]]
    tests = [_test(each, run, found, learnt, incoherent) for _, each in wanted]
    ps = stats.holm([test.difference.p for test in tests])
    tests = [_decided(replace(test, p_holm=p)) for test, p in zip(tests, ps, strict=True)]
    grouped: dict[str, list[Tested]] = {}
    for (claim, _), test in zip(wanted, tests, strict=True):
        grouped.setdefault(claim, []).append(test)
    return [Found(claim=c, outcome=_together(own), evidence=tuple(own)) for c, own in grouped.items()]


def _together(tests: Sequence[Tested]) -> Outcome:
    outcomes = {test.outcome for test in tests}
    return "not seen" if "not seen" in outcomes else "seen" if outcomes == {"seen"} else "cannot tell"


def _test(
    want: dict[str, Any], run: Run, found: Cells, learnt: Sequence[Learnt], incoherent: Collection[str]
) -> Tested:
    """The numbers of a test; of none where an arm was not measured or is incoherent."""
    attack = want.get("attack") or ()
    test = Tested(
        a=want["a"], b=want["b"], metric=want.get("metric", "attack_success"), bench=want.get("bench", ""),
        attack=(attack,) if isinstance(attack, str) else tuple(attack), part=want.get("part") or "",
        expect=want["expect"], by=want["by"], unit="share",
    )  # fmt: skip
    if broken := [arm for arm in (test.a, test.b) if arm in incoherent]:
        return replace(test, why=f"{' and '.join(broken)}: garbled too often to be read")
    if test.metric == "loss":
        return _of_loss(test, run, learnt)
    columns = list(_columns(test, found))
    if not columns:
        return replace(test, why="not measured on both arms")
    pairs = [aligned(found[test.a][column], found[test.b][column]) for column in columns]
    merged = Pairs(*([item for part in parts for item in part] for parts in zip(*pairs, strict=True)))
    estimates = [_merged(found[arm], columns).estimate(columns[0]) for arm in (test.a, test.b)]
    found_by = by_level(merged)
    return replace(
        test, unit=columns[0].unit, estimate_a=estimates[0], estimate_b=estimates[1],
        difference=replace(widest(found_by), p=found_by[0].p),
        bases=len({base for base, _ in merged.made}),
    )  # fmt: skip


def _columns(test: Tested, found: Cells) -> Iterator[Column]:
    """What both arms were measured on: of each benchmark and attack the first judge, which is the protocol's."""
    taken = set()
    for column in found.get(test.a, {}):
        wanted = column.metric == test.metric and test.part in ("", column.part) and test.bench in ("", column.bench)
        at = (column.bench, column.attack)
        if wanted and (not test.attack or column.attack in test.attack) and at not in taken:
            taken.add(at)
            if column in found.get(test.b, {}):
                yield column


def _merged(cells: dict[Column, Cell], columns: Sequence[Column]) -> Cell:
    """The cells of some columns as one."""
    merged = Cell()
    for cell in (cells[column] for column in columns):
        merged.rows += cell.rows
        merged.values += cell.values
        merged.made += cell.made
    return merged


def _of_loss(test: Tested, run: Run, learnt: Sequence[Learnt]) -> Tested:
    """Loss on held-out rows at the end, paired by training: base and seed."""
    ends: dict[str, dict[tuple[str, int | None], float]] = {}
    for one in learnt:
        arm, base = run.split(one.arm)
        if one.part == "whole":
            ends.setdefault(arm, {})[base, one.seed] = one.end
    a, b = ends.get(test.a, {}), ends.get(test.b, {})
    both = [made for made in a if made in b]
    if len(both) < 2:
        return replace(test, unit="nats", why="fewer than two trainings of both arms")
    gaps = [a[made] - b[made] for made in both]
    bases = [base for base, _ in both]
    levels = [stats.mean(gaps)] + ([stats.mean(gaps, clusters=bases)] if len(set(bases)) > 1 else [])
    wide = widest(levels)
    noise = cluster_variance(sample(gaps, None, None))
    difference = stats.Difference(
        value=wide.value, low=wide.low, high=wide.high, p=t_test(sum(gaps) / len(gaps), noise, len(gaps) - 1.0),
        n=len(gaps), clusters=len(gaps), seeds=len(gaps), how=wide.how,
    )  # fmt: skip
    means = [stats.mean([ends[arm][made] for made in both]) for arm in (test.a, test.b)]
    return replace(
        test, unit="nats", estimate_a=means[0], estimate_b=means[1], difference=difference, bases=len(set(bases))
    )


def _decided(test: Tested) -> Tested:
    """What a test says."""
    d, p = test.difference, test.p_holm
    if d.value is None or d.low is None or d.high is None or p is None:
        return test if test.why else replace(test, why=d.how or "nothing to compare")
    shown = p < ALPHA and not d.low <= 0 <= d.high
    if test.expect == "same":
        if max(-d.low, d.high) < test.by:
            return replace(test, outcome="seen", why="the interval is within what matters")
        if shown and abs(d.value) >= test.by:
            return replace(test, outcome="not seen", why=f"{test.a} is {'higher' if d.value > 0 else 'lower'}")
        return replace(test, why="the interval reaches beyond what matters")
    worth, most = (d.value, d.high) if test.expect == "higher" else (-d.value, -d.low)
    if most < test.by:
        other = shown and worth <= -test.by
        why = f"it is {'lower' if test.expect == 'higher' else 'higher'}" if other else "what matters is ruled out"
        return replace(test, outcome="not seen", why=why)
    if shown and worth >= test.by:
        return replace(test, outcome="seen", why=f"{test.a} is {test.expect}")
    return replace(
        test, why="shown, and too small for sure" if shown else "a difference is neither shown nor ruled out"
    )
