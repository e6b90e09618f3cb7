"""Drawings of the report, as SVG that takes its ink from the page: every mark tells its values on hover and on focus."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from demur.bench.metrics import SUCCESS
from demur.records import Estimate
from demur.report import format
from demur.report.data import Report
from demur.report.first import columns
from demur.report.metrics import ALL, Column

COLOURS = ("#4477aa", "#cc6677", "#228833", "#aa8800", "#2299bb", "#aa3377", "#777777", "#ee7733")
"""A palette that colour-blind readers can tell apart, on light and dark ground (after Paul Tol): an arm has one everywhere."""
WIDTH, HEIGHT, LEFT, BELOW = 480, 300, 46, 42


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
    label = f'<text class="name" x="{at[0] + 7:.1f}" y="{at[1] - 6:.1f}">{escape(name)}</text>' if name else ""
    return f'<g class="mark" tabindex="0" role="img" aria-label="{escape(told)}" style="--ink:{ink}">{shape}{label}{tip}</g>'


def pareto(report: Report) -> Iterator[str]:
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
) -> str:
    values = {arm: (x.value or 0.0, y.value or 0.0) for arm, (x, y) in points.items()}
    best = [arm for arm, (x, y) in values.items() if not any(
        (u <= x if less else u >= x) and v <= y and (u, v) != (x, y) for u, v in values.values())]  # fmt: skip
    line = " ".join(
        f"{_x(SHARE, values[a][0]):.1f},{_y(SHARE, values[a][1]):.1f}" for a in sorted(best, key=lambda a: values[a])
    )
    marks = [f'<polyline class="front" points="{line}"/>']
    for arm, (x, y) in points.items():
        at = (_x(SHARE, values[arm][0]), _y(SHARE, values[arm][1]))
        cross = f'<path d="M{_x(SHARE, x.low or 0):.1f} {at[1]:.1f}H{_x(SHARE, x.high or 0):.1f}M{at[0]:.1f} {_y(SHARE, y.low or 0):.1f}V{_y(SHARE, y.high or 0):.1f}"/>'
        told = f"{arm}: {labels[0]} {format.interval(x)}; {labels[1]} {format.interval(y)}"
        marks.append(
            _mark(f'{cross}<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="5"/>', told, colour(report, arm), at, arm)
        )
    return _frame(PERCENT, PERCENT, labels, marks)


class Line(NamedTuple):
    """Places of one arm."""

    arm: str
    x: Sequence[float]
    y: Sequence[float]
    told: str


def curves(report: Report) -> Iterator[str]:
    """Loss a response token over steps: a drawing for each series, a line a training."""
    for series in list(dict.fromkeys(curve.series for curve in report.learnability))[:4]:
        own = [c for c in report.learnability if c.series == series and len(c.steps) > 1]
        lines = [
            Line(c.arm, c.steps, c.loss, f"{c.arm}{'' if c.seed is None else f'/{c.seed}'}: ends at {c.loss[-1]:.3f}")
            for c in own
        ]
        positive = [v for line in lines for v in line.y if v > 0]
        if positive:
            ticks = tuple(t for t in (0.01, 0.03, 0.1, 0.3, 1, 3, 10) if min(positive) <= t <= max(positive))
            yield _lines(
                report, lines, Axis(min(positive), max(positive), ticks, True), ("step", f"nats a token, {series}")
            )


def attempts(report: Report) -> Iterator[str]:
    """The share of questions that at least one of k attempts got through to."""
    found: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for r in report.results:
        head, _, k = r.metric.partition("/best_of_")
        if head in SUCCESS and (k or head == r.metric) and r.seed is None and r.arm in report.arms and r.bench != ALL:
            found.setdefault((r.bench, r.attack), {}).setdefault(r.arm, {})[int(k or 1)] = 100 * (r.estimate.value or 0)
    for at, own in found.items():
        lines = [
            Line(arm, list(s), list(s.values()), f"{arm}: {s[max(s)]:.0f} % within {max(s)}")
            for arm, s in own.items()
            if len(s) > 1
        ]
        if lines:
            yield _lines(report, lines, PERCENT, (f"attempts a question, {format.place(*at)}", "%"))


def _lines(report: Report, lines: Sequence[Line], y: Axis, labels: tuple[str, str]) -> str:
    most = max((max(line.x) for line in lines), default=1)
    x = Axis(0, most, tuple(round(most * k / 4) for k in range(5)))
    marks = []
    for line in lines:
        places = [(_x(x, u), _y(y, max(v, y.low))) for u, v in zip(line.x, line.y, strict=True)]
        path = f'<polyline points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in places)}"/>'
        marks.append(_mark(path, line.told, colour(report, line.arm), places[-1]))
    return _frame(x, y, labels, marks)
