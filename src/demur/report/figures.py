"""Drawings of the report, as SVG that takes its ink from the page, each with the table of its values.

Every mark tells its values on hover and on focus. A curve per arm is drawn by `lines`; where the numbers are results that
are named `NAME/X` (or `NAME/best_of_X`), with X a number, `along` finds and draws them:

    yield from along(report, "declined_at", x="share of the thinking given")

What draws stands in `DRAWN` of sections.py under an id of sections.json, and is a section of the page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from demur.bench.metrics import SUCCESS
from demur.records import Estimate
from demur.report import format
from demur.report.data import Report
from demur.report.first import columns
from demur.report.metrics import ALL, Column
from demur.report.tables import Cell, Table, estimate, table

COLOURS = ("#4477aa", "#cc6677", "#228833", "#aa8800", "#2299bb", "#aa3377", "#777777", "#ee7733")
"""A palette that colour-blind readers can tell apart, on light and dark ground (after Paul Tol): an arm has one everywhere."""
WIDTH, HEIGHT, LEFT, BELOW = 480, 300, 46, 42
POINTS = 24
"""Up to so many points each tells its value; a longer curve tells its end, and its table has every so many."""


class Figure(NamedTuple):
    """A drawing, and the table behind it."""

    svg: str
    table: Table


class Line(NamedTuple):
    """A curve of an arm: estimates along an axis. Without bounds no interval is drawn."""

    arm: str
    points: Sequence[tuple[float, Estimate]]
    name: str = ""
    """Where it is not the arm's."""


class Axis(NamedTuple):
    """From values to places."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value stands, from 0 to 1."""
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return min(1.0, max(0.0, (value - low) / (high - low or 1.0)))


PERCENT = Axis(0, 100, (0, 25, 50, 75, 100))
SHARE = Axis(0, 1, ())


def colour(report: Report, arm: str) -> str:
    """An arm's."""
    return COLOURS[report.arms.index(arm) % len(COLOURS)] if arm in report.arms else "#777777"


def _from_zero(high: float) -> Axis:
    ticks = (high * k / 4 for k in range(5))
    return Axis(0, high, tuple(round(t, 0 if high >= 8 else 3) for t in ticks))


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.at(value) * (WIDTH - LEFT - 12)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BELOW - axis.at(value) * (HEIGHT - BELOW - 12)


def _frame(x: Axis, y: Axis, labels: tuple[str, str], marks: Sequence[str]) -> str:
    """A drawing: grid, ticks, names of the axes, marks."""
    grid = [f'<line x1="{_x(x, t):.1f}" x2="{_x(x, t):.1f}" y1="12" y2="{HEIGHT - BELOW}"/>' for t in x.ticks]
    grid += [f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{_y(y, t):.1f}" y2="{_y(y, t):.1f}"/>' for t in y.ticks]
    text = [f'<text x="{_x(x, t):.1f}" y="{HEIGHT - BELOW + 16}" text-anchor="middle">{t:g}</text>' for t in x.ticks]
    text += [f'<text x="{LEFT - 6}" y="{_y(y, t) + 4:.1f}" text-anchor="end">{t:g}</text>' for t in y.ticks]
    text.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(labels[0])}</text>')
    text.append(
        f'<text transform="translate(11 {HEIGHT / 2 - 15}) rotate(-90)" text-anchor="middle">{escape(labels[1])}</text>'
    )
    name = escape(f"{labels[1]} by {labels[0]}")
    body = f'<g class="grid">{"".join(grid)}</g><g class="ticks">{"".join(text)}</g>{"".join(marks)}'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="{name}">{body}</svg>'


def _mark(shape: str, told: str, ink: str, at: tuple[float, float], name: str = "") -> str:
    """Something that tells its values when it is pointed at or reached by the keyboard."""
    side = "end" if at[0] > WIDTH * 0.6 else "start"
    tip = (
        f'<text class="tip" x="{at[0]:.1f}" y="{max(24.0, at[1] - 10):.1f}" text-anchor="{side}">{escape(told)}</text>'
    )
    beside = at[0] + (7 if side == "start" else -7)
    label = (
        f'<text class="name" x="{beside:.1f}" y="{at[1] - 6:.1f}" text-anchor="{side}">{escape(name)}</text>'
        if name
        else ""
    )
    return f'<g class="mark" tabindex="0" role="img" aria-label="{escape(told)}" style="--ink:{ink}">{shape}{label}{tip}</g>'


def pareto(report: Report) -> Iterator[Figure]:
    """Each arm by attack success and by what safety costs: over-refusal, reasoning."""
    table, shown = report.table(), columns(report)
    harm = _whole(shown, SUCCESS)
    for metric in ("over_refusal", "accuracy"):
        cost = _whole(shown, (metric,))
        points = (
            {arm: (table.get((arm, *cost[:5])), table.get((arm, *harm[:5]))) for arm in report.arms}
            if harm and cost
            else {}
        )
        known = {
            arm: (x, y) for arm, (x, y) in points.items() if x and y and x.value is not None and y.value is not None
        }
        if len(known) > 1 and harm and cost:
            labels = (
                f"{format.metric(metric)}, %",
                f"{format.metric(harm.metric)}, % ({'mean' if harm.bench == ALL else harm.bench})",
            )
            yield _scatter(report, known, labels, less=cost.better == "lower")


def _whole(shown: Sequence[Column], metrics: Sequence[str]) -> Column | None:
    """The column that stands for a metric: its mean, or its only one."""
    found = [column for column in shown if column.metric in metrics]
    return next((column for column in found if column.bench == ALL), found[0] if found else None)


def _scatter(
    report: Report, points: dict[str, tuple[Estimate, Estimate]], labels: tuple[str, str], *, less: bool
) -> Figure:
    values = {arm: (x.value or 0.0, y.value or 0.0) for arm, (x, y) in points.items()}
    best = [arm for arm, (x, y) in values.items() if not any(
        (u <= x if less else u >= x) and v <= y and (u, v) != (x, y) for u, v in values.values())]  # fmt: skip
    line = " ".join(
        f"{_x(SHARE, values[a][0]):.1f},{_y(SHARE, values[a][1]):.1f}" for a in sorted(best, key=lambda a: values[a])
    )
    marks, named = [f'<polyline class="front" points="{line}"/>'], list[tuple[float, float]]()
    for arm, (x, y) in points.items():
        at = (_x(SHARE, values[arm][0]), _y(SHARE, values[arm][1]))
        cross = f'<path d="M{_x(SHARE, x.low or 0):.1f} {at[1]:.1f}H{_x(SHARE, x.high or 0):.1f}M{at[0]:.1f} {_y(SHARE, y.low or 0):.1f}V{_y(SHARE, y.high or 0):.1f}"/>'
        told = f"{arm}: {labels[0]} {format.interval(x)}; {labels[1]} {format.interval(y)}"
        free = all(abs(at[0] - u) > 60 or abs(at[1] - v) > 13 for u, v in named)
        named += [at] if free else []
        shape = f'{cross}<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="5"/>'
        marks.append(_mark(shape, told, colour(report, arm), at, arm if free else ""))
    rows = [(arm, estimate(x), estimate(y)) for arm, (x, y) in points.items()]
    return Figure(_frame(PERCENT, PERCENT, labels, marks), table(("arm", *(f"#{label}" for label in labels)), rows))


def losses(report: Report) -> Iterator[Figure]:
    """Loss a token while training, on the rows trained on and on rows held out."""
    for series in list(dict.fromkeys(curve.series for curve in report.learnability))[:4]:
        own = [
            Line(
                c.arm,
                [
                    (x, Estimate(value=y, low=None, high=None, n=0))
                    for x, y in zip(c.steps, c.loss, strict=True)
                    if y > 0
                ],
                c.arm if c.seed is None else f"{c.arm}/{c.seed}",
            )
            for c in report.learnability
            if c.series == series and len(c.steps) > 1
        ]
        yield from lines(report, own, x="step", y=f"nats a token, {series}", unit="nats")


def attempts(report: Report) -> Iterator[Figure]:
    """The share of questions that at least one of k attempts got through to."""
    for name in SUCCESS:
        yield from along(report, name, x="attempts a question", sign="/best_of_", first=1)


def depth(report: Report) -> Iterator[Figure]:
    """Where in a thinking an arm decides, and attack success behind so many steps of training on other rows."""
    yield from along(report, "declined_at", x="share of the thinking given")
    tampered = dict.fromkeys(r.metric.rpartition("/")[0] for r in report.results if "/after/" in r.metric)
    for name in tampered:
        yield from along(report, name, x=f"steps on {name.rpartition('/')[2]} rows")


def along(report: Report, name: str, *, x: str, sign: str = "/", first: float | None = None) -> Iterator[Figure]:
    """Of results named `NAME` + `sign` + X, one figure a benchmark and attack, one curve an arm; `first` is the X of `NAME` alone."""
    found: dict[Column, dict[str, list[tuple[float, Estimate]]]] = {}
    for r in report.results:
        at = re.fullmatch(rf"{re.escape(name)}(?:{re.escape(sign)}([\d.]+))?", r.metric)
        place = first if at and at[1] is None else float(at[1]) if at else None
        if place is not None and r.seed is None and r.arm in report.arms and r.bench != ALL:
            column = Column(r.bench, r.attack, name, r.judge, r.part, r.better, r.unit)
            found.setdefault(column, {}).setdefault(r.arm, []).append((place, r.estimate))
    for column, own in found.items():
        y = f"{format.place(*column[:3])}{', %' if column.unit == 'share' else ''}"
        curves = [
            Line(arm, sorted(points, key=lambda point: point[0])) for arm, points in own.items() if len(points) > 1
        ]
        yield from lines(report, curves, x=x, y=y, unit=column.unit)


def lines(report: Report, curves: Sequence[Line], *, x: str, y: str, unit: str = "share") -> Iterator[Figure]:
    """A drawing of curves and its table, none of nothing; losses in nats have a logarithmic axis."""
    scale = 100 if unit == "share" else 1
    bounds = [b * scale for c in curves for _, e in c.points for b in (e.value, e.low, e.high) if b is not None]
    if not bounds:
        return
    places = [place for curve in curves for place, _ in curve.points]
    across = _from_zero(max(places))
    up = PERCENT if unit == "share" else _from_zero(max(bounds))
    if unit == "nats":
        ticks = tuple(t for t in (0.01, 0.03, 0.1, 0.3, 1, 3, 10) if min(bounds) <= t <= max(bounds))
        up = Axis(min(bounds), max(bounds), ticks, True)
    marks = [mark for curve in curves for mark in _curve(report, curve, across, up, unit)]
    yield Figure(_frame(across, up, (x, y), marks), _values(curves, x, unit))


def _curve(report: Report, curve: Line, x: Axis, y: Axis, unit: str) -> Iterator[str]:
    """A curve's marks: its line, and its points where they are few."""
    scale, ink, name = 100 if unit == "share" else 1, colour(report, curve.arm), curve.name or curve.arm
    known = [(place, e, e.value) for place, e in curve.points if e.value is not None]
    at = [(_x(x, place), _y(y, value * scale)) for place, _, value in known]
    if not known:
        return
    path = f'<polyline points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in at)}"/>'
    ends = f"{name}: {_told(known[-1][1], unit)} at {known[-1][0]:g}"
    yield _mark(path, ends, ink, at[-1])
    for (place, e, _), (a, b) in zip(known, at, strict=True) if len(known) <= POINTS else ():
        bar = (
            ""
            if e.low is None or e.high is None
            else f"M{a:.1f} {_y(y, e.low * scale):.1f}V{_y(y, e.high * scale):.1f}"
        )
        shape = f'<path d="{bar}"/><circle cx="{a:.1f}" cy="{b:.1f}" r="3.5"/>'
        yield _mark(shape, f"{name} at {place:g}: {_told(e, unit)}", ink, (a, b))


def _told(e: Estimate, unit: str) -> str:
    return format.number(e.value, unit) if e.low is None else format.interval(e, unit)


def _values(curves: Sequence[Line], x: str, unit: str) -> Table:
    """The table behind curves."""
    every = sorted({place for curve in curves for place, _ in curve.points})
    step = -(-len(every) // POINTS)
    found = [dict(curve.points) for curve in curves]
    kept = [*every[:-1:step], every[-1]]
    rows: list[tuple[Cell | str, ...]] = [
        (f"{place:g}", *(_told(own[place], unit) if place in own else "" for own in found)) for place in kept
    ]
    return table((x, *(f"#{curve.name or curve.arm}" for curve in curves)), rows)
