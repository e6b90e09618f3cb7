"""Drawings of the report, as SVG that takes its ink from the page, each with the table of its values.

Every mark tells its values on hover and on focus. A curve per arm is drawn by `lines`; where the numbers are results that
are named `NAME/X` (or `NAME/best_of_X`), with X a number, `along` finds and draws them:

    yield from along(report, "declined_at", x="share of the thinking given")

What draws stands in `DRAWN` of sections.py under an id of sections.json, and is a section of the page.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from demur.bench.metrics import SUCCESS
from demur.records import Estimate
from demur.report import format
from demur.report.data import Report
from demur.report.first import columns
from demur.report.metrics import ALL, Column
from demur.report.tables import Cell, Table, estimate, table, templates

COLOURS = ("#4477aa", "#cc6677", "#228833", "#aa8800", "#2299bb", "#aa3377", "#777777", "#ee7733")
"""A palette that colour-blind readers can tell apart, on light and dark ground (after Paul Tol): an arm has one everywhere."""
WIDTH, HEIGHT = 480, 300
POINTS = 24  # Up to so many points each tells its value; a longer curve tells its end, and its table has every so many


class Figure(NamedTuple):
    """A drawing, and the table behind it."""

    svg: str
    table: Table


class Line(NamedTuple):
    """A curve of an arm: estimates along an axis. Without bounds no interval is drawn."""

    arm: str
    points: Sequence[tuple[float, Estimate]]
    name: str = ""  # Where it is not the arm's


class Axis(NamedTuple):
    """From values to places of the drawing; it begins at zero."""

    name: str
    high: float
    start: float
    end: float

    @property
    def ticks(self) -> list[float]:
        """Quarters."""
        return [round(self.high * k / 4, 0 if self.high >= 8 else 3) for k in range(5)]

    def px(self, value: float) -> float:
        """Where a value stands."""
        share = value / self.high if self.high else 0.0
        return round(self.start + min(1.0, max(0.0, share)) * (self.end - self.start), 1)


Range = tuple[float, float]


class Mark(NamedTuple):
    """Something at a place that tells its values when it is pointed at or reached by the keyboard."""

    told: str
    ink: str
    x: float
    y: float
    radius: float = 0
    wide: Range | None = None  # An interval of x
    tall: Range | None = None  # An interval of y
    line: Sequence[Range] = ()  # A curve
    name: str = ""


ACROSS, UP = Axis("", 100, 58, WIDTH - 12), Axis("", 100, HEIGHT - 42, 12)


def colour(report: Report, arm: str) -> str:
    """An arm's."""
    return COLOURS[report.arms.index(arm) % len(COLOURS)] if arm in report.arms else "#777777"


def _drawn(across: Axis, up: Axis, marks: Sequence[Mark], front: Sequence[Range] = ()) -> str:
    """The drawing; `front` is a line behind the marks."""
    template, sizes = templates().get_template("figure.svg"), {"width": WIDTH, "height": HEIGHT}
    return str(template.render(across=across, up=up, marks=marks, front=front, **sizes))


def pareto(report: Report) -> Iterator[Figure]:
    """Each arm by attack success and by what safety costs: over-refusal, reasoning."""
    numbers, shown = report.table(), columns(report)
    stands: dict[str, Column] = {}  # For a metric: its mean, or its only column
    for column in sorted(shown, key=lambda column: column.bench != ALL):
        stands.setdefault("harm" if column.metric in SUCCESS else column.metric, column)
    for metric in ("over_refusal", "accuracy"):
        if "harm" not in stands or metric not in stands:
            continue
        cost, harm = stands[metric], stands["harm"]
        both = {arm: (numbers.get((arm, *cost[:5])), numbers.get((arm, *harm[:5]))) for arm in report.arms}
        known = {arm: (x, y) for arm, (x, y) in both.items() if x and y and None not in (x.value, y.value)}
        if len(known) > 1:
            place = "mean" if harm.bench == ALL else harm.bench
            labels = f"{format.metric(metric)}, %", f"{format.metric(harm.metric)}, % ({place})"
            yield _scatter(report, known, labels, less=cost.better == "lower")


def _scatter(
    report: Report, points: dict[str, tuple[Estimate, Estimate]], labels: tuple[str, str], *, less: bool
) -> Figure:
    at = {arm: (100 * (x.value or 0), 100 * (y.value or 0)) for arm, (x, y) in points.items()}
    front = sorted(
        (x, y) for x, y in at.values()
        if not any((u <= x if less else u >= x) and v <= y and (u, v) != (x, y) for u, v in at.values())
    )  # fmt: skip
    marks = list[Mark]()
    for arm, (x, y) in points.items():
        (a, b), (wide, tall) = at[arm], ((100 * (e.low or 0), 100 * (e.high or 0)) for e in (x, y))
        told = f"{arm}: {labels[0]} {format.interval(x)}; {labels[1]} {format.interval(y)}"
        free = all(abs(a - m.x) > 15 or abs(b - m.y) > 5 for m in marks if m.name)  # no name on another
        marks.append(Mark(told, colour(report, arm), a, b, 5, wide, tall, name=arm if free else ""))
    rows = [(arm, estimate(x), estimate(y)) for arm, (x, y) in points.items()]
    drawing = _drawn(ACROSS._replace(name=labels[0]), UP._replace(name=labels[1]), marks, front)
    return Figure(drawing, table(("arm", *(f"#{label}" for label in labels)), rows))


def losses(report: Report) -> Iterator[Figure]:
    """Loss a token while training, on the rows trained on and on rows held out."""
    for series in list(dict.fromkeys(curve.series for curve in report.learnability))[:4]:
        own = []
        for c in report.learnability:
            if c.series == series and len(c.steps) > 1:
                found = [Estimate(value=y, low=None, high=None, n=0) for y in c.loss]
                name = c.arm if c.seed is None else f"{c.arm}/{c.seed}"
                own.append(Line(c.arm, list(zip(c.steps, found, strict=True)), name))
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
        curves = [Line(arm, sorted(points, key=lambda p: p[0])) for arm, points in own.items() if len(points) > 1]
        yield from lines(report, curves, x=x, y=y, unit=column.unit)


def lines(report: Report, curves: Sequence[Line], *, x: str, y: str, unit: str = "share") -> Iterator[Figure]:
    """A drawing of curves and its table, none of nothing."""
    scale = 100 if unit == "share" else 1
    bounds = [b * scale for c in curves for _, e in c.points for b in (e.value, e.low, e.high) if b is not None]
    if not bounds:
        return
    across = ACROSS._replace(name=x, high=max(place for c in curves for place, _ in c.points))
    up = UP._replace(name=y, high=100 if unit == "share" else max(bounds))
    marks = [mark for curve in curves for mark in _curve(curve, colour(report, curve.arm), scale, unit)]
    every = sorted({place for curve in curves for place, _ in curve.points})
    kept = [*every[: -1 : -(-len(every) // POINTS)], every[-1]]
    found = [dict(curve.points) for curve in curves]
    rows: list[tuple[Cell | str, ...]] = [
        (f"{place:g}", *(_told(own[place], unit) if place in own else "" for own in found)) for place in kept
    ]
    values = table((x, *(f"#{curve.name or curve.arm}" for curve in curves)), rows)
    yield Figure(_drawn(across, up, marks), values)


def _curve(curve: Line, ink: str, scale: float, unit: str) -> Iterator[Mark]:
    """A curve's marks: its line, and its points where they are few."""
    points = [(place, e.value * scale, e) for place, e in curve.points if e.value is not None]
    name = curve.name or curve.arm
    if points:
        a, b, e = points[-1]
        yield Mark(f"{name}: {_told(e, unit)} at {a:g}", ink, a, b, line=[point[:2] for point in points])
    for a, b, e in points if len(points) <= POINTS else ():
        tall = None if e.low is None or e.high is None else (e.low * scale, e.high * scale)
        yield Mark(f"{name} at {a:g}: {_told(e, unit)}", ink, a, b, 3.5, tall=tall)


def _told(e: Estimate, unit: str) -> str:
    return format.number(e.value, unit) if e.low is None else format.interval(e, unit)
