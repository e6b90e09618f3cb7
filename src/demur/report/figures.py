"""Figures of the report: SVG that takes its colours from the page, each with the table of its values.

Every mark shows its values on hover and on focus. `lines` draws a curve per arm. Where results are named `NAME/X` (or
`NAME/best_of_X`), with X a number, `along` finds and draws them:

    yield from along(report, "declined_at", x="share of the thinking given")

A figure is a section of the page by an entry in `DRAWN` of sections.py and an id in sections.json.
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
"""A palette for colour-blind readers, on light and dark ground (after Paul Tol). An arm has one colour everywhere."""
WIDTH, HEIGHT = 480, 300
POINTS = 24  # A curve has marks on at most so many points, else only at its end; its table has about as many rows


class Figure(NamedTuple):
    """A drawing and the table of its values."""

    svg: str
    table: Table


class Line(NamedTuple):
    """A curve of an arm: estimates along an axis. Estimates without bounds have no interval drawn."""

    arm: str
    points: Sequence[tuple[float, Estimate]]
    name: str = ""  # Where it is not the arm's name


class Axis(NamedTuple):
    """Maps values, from zero on, to places of the drawing."""

    name: str
    high: float
    start: float
    end: float

    @property
    def ticks(self) -> list[float]:
        """The quarters of the range."""
        return [round(self.high * k / 4, 0 if self.high >= 8 else 3) for k in range(5)]

    def px(self, value: float) -> float:
        """The place of a value."""
        share = value / self.high if self.high else 0.0
        return round(self.start + min(1.0, max(0.0, share)) * (self.end - self.start), 1)


Range = tuple[float, float]


class Mark(NamedTuple):
    """A mark in a drawing, whose label is shown when it is pointed at or reached by the keyboard."""

    label: str
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
    """The colour of an arm."""
    return COLOURS[report.arms.index(arm) % len(COLOURS)] if arm in report.arms else "#777777"


def _svg(across: Axis, up: Axis, marks: Sequence[Mark], front: Sequence[Range] = ()) -> str:
    """A drawing; `front` is a line behind the marks."""
    template, sizes = templates().get_template("figure.svg"), {"width": WIDTH, "height": HEIGHT}
    return str(template.render(across=across, up=up, marks=marks, front=front, **sizes))


def pareto(report: Report) -> Iterator[Figure]:
    """Each arm by attack success and by the cost of safety: over-refusal, reasoning."""
    numbers, chosen = report.table(), dict[str, Column]()  # For a metric: its mean, or its only column
    for column in sorted(columns(report), key=lambda column: column.bench != ALL):
        chosen.setdefault("harm" if column.metric in SUCCESS else column.metric, column)
    for metric in ("over_refusal", "accuracy"):
        if "harm" not in chosen or metric not in chosen:
            continue
        cost, harm = chosen[metric], chosen["harm"]
        both = {arm: (numbers.get((arm, *cost[:5])), numbers.get((arm, *harm[:5]))) for arm in report.arms}
        known = {arm: (x, y) for arm, (x, y) in both.items() if x and y and None not in (x.value, y.value)}
        if len(known) > 1:
            place = "mean" if harm.bench == ALL else harm.bench
            labels = f"{format.metric(metric)}, %", f"{format.metric(harm.metric)}, % ({place})"
            yield _scatter(report, known, labels, less=cost.better == "lower")


def _scatter(report: Report, points: dict[str, tuple[Estimate, Estimate]], labels: Sequence[str], less: bool) -> Figure:
    """Arms as points, with a line through those that no other beats on both axes; `less`: less of x is better."""
    at = {arm: (100 * (x.value or 0), 100 * (y.value or 0)) for arm, (x, y) in points.items()}

    def beaten(x: float, y: float) -> bool:
        return any((u <= x if less else u >= x) and v <= y and (u, v) != (x, y) for u, v in at.values())

    front = sorted(place for place in at.values() if not beaten(*place))
    marks = list[Mark]()
    for arm, (x, y) in points.items():
        (a, b), (wide, tall) = at[arm], ((100 * (e.low or 0), 100 * (e.high or 0)) for e in (x, y))
        label = f"{arm}: {labels[0]} {format.interval(x)}; {labels[1]} {format.interval(y)}"
        free = all(abs(a - m.x) > 15 or abs(b - m.y) > 5 for m in marks if m.name)  # Names must not overlap
        marks.append(Mark(label, colour(report, arm), a, b, 5, wide, tall, name=arm if free else ""))
    rows = [(arm, estimate(x), estimate(y)) for arm, (x, y) in points.items()]
    drawing = _svg(ACROSS._replace(name=labels[0]), UP._replace(name=labels[1]), marks, front)
    return Figure(drawing, table(("arm", *(f"#{label}" for label in labels)), rows))


def losses(report: Report) -> Iterator[Figure]:
    """Loss per token while training, on the rows trained on and on held-out rows."""
    for series in list(dict.fromkeys(curve.series for curve in report.learnability))[:4]:
        curves = []
        for c in report.learnability:
            if c.series == series and len(c.steps) > 1:
                estimates = [Estimate(value=y, low=None, high=None, n=0) for y in c.loss]
                name = c.arm if c.seed is None else f"{c.arm}/{c.seed}"
                curves.append(Line(c.arm, list(zip(c.steps, estimates, strict=True)), name))
        yield from lines(report, curves, x="step", y=f"nats a token, {series}", unit="nats")


def attempts(report: Report) -> Iterator[Figure]:
    """The share of questions that at least one of k attempts got through to."""
    for name in SUCCESS:
        yield from along(report, name, x="attempts a question", infix="/best_of_", first=1)


def depth(report: Report) -> Iterator[Figure]:
    """Where in the thinking an arm decides, and attack success after steps of training on other rows."""
    yield from along(report, "declined_at", x="share of the thinking given")
    tampered = dict.fromkeys(r.metric.rpartition("/")[0] for r in report.results if "/after/" in r.metric)
    for name in tampered:
        yield from along(report, name, x=f"steps on {name.rpartition('/')[2]} rows")


def along(report: Report, name: str, *, x: str, infix: str = "/", first: float | None = None) -> Iterator[Figure]:
    """A figure for each benchmark and attack of results named `NAME` + `infix` + X; `first`: the X of `NAME` itself."""
    groups: dict[Column, dict[str, list[tuple[float, Estimate]]]] = {}
    for r in report.results:
        match = re.fullmatch(rf"{re.escape(name)}(?:{re.escape(infix)}([\d.]+))?", r.metric)
        place = first if match and match[1] is None else float(match[1]) if match else None
        if place is not None and r.seed is None and r.arm in report.arms and r.bench != ALL:
            column = Column(r.bench, r.attack, name, r.judge, r.part, r.better, r.unit)
            groups.setdefault(column, {}).setdefault(r.arm, []).append((place, r.estimate))
    for column, arms in groups.items():
        y = f"{format.place(*column[:3])}{', %' if column.unit == 'share' else ''}"
        curves = [Line(arm, sorted(points, key=lambda p: p[0])) for arm, points in arms.items() if len(points) > 1]
        yield from lines(report, curves, x=x, y=y, unit=column.unit)


def lines(report: Report, curves: Sequence[Line], *, x: str, y: str, unit: str = "share") -> Iterator[Figure]:
    """A figure of curves; none where there is no value."""
    scale = 100 if unit == "share" else 1
    bounds = [b * scale for c in curves for _, e in c.points for b in (e.value, e.low, e.high) if b is not None]
    if not bounds:
        return
    across = ACROSS._replace(name=x, high=max(place for c in curves for place, _ in c.points))
    up = UP._replace(name=y, high=100 if unit == "share" else max(bounds))
    marks = [mark for curve in curves for mark in _marks(curve, colour(report, curve.arm), scale, unit)]
    every = sorted({place for curve in curves for place, _ in curve.points})
    kept = [*every[: -1 : -(-len(every) // POINTS)], every[-1]]
    values = [{place: _value(e, unit) for place, e in curve.points} for curve in curves]
    rows: list[tuple[Cell | str, ...]] = [(f"{at:g}", *(column.get(at, "") for column in values)) for at in kept]
    yield Figure(_svg(across, up, marks), table((x, *(f"#{curve.name or curve.arm}" for curve in curves)), rows))


def _marks(curve: Line, ink: str, scale: float, unit: str) -> Iterator[Mark]:
    """A curve's marks: its line, and its points where they are few."""
    points = [(place, e.value * scale, e) for place, e in curve.points if e.value is not None]
    name = curve.name or curve.arm
    if points:
        a, b, e = points[-1]
        yield Mark(f"{name}: {_value(e, unit)} at {a:g}", ink, a, b, line=[point[:2] for point in points])
    for a, b, e in points if len(points) <= POINTS else ():
        tall = None if e.low is None or e.high is None else (e.low * scale, e.high * scale)
        yield Mark(f"{name} at {a:g}: {_value(e, unit)}", ink, a, b, 3.5, tall=tall)


def _value(e: Estimate, unit: str) -> str:
    return format.number(e.value, unit) if e.low is None else format.interval(e, unit)
