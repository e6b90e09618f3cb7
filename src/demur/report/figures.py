"""Drawings of the report, as SVG that takes its ink from the page: text stays text, dark mode needs no second drawing."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from demur.bench.metrics import SUCCESS
from demur.records import Estimate
from demur.report import words
from demur.report.data import Report
from demur.report.tell import Head, heads, lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
"""Stands for the page's own colour of text."""
FAINT = "#040506"
"""Stands for the page's colour of rules."""
COLOURS = ("#4477aa", "#cc6677", "#228833", "#aa8800", "#2299bb", "#aa3377", "#777777", "#ee7733")
"""A palette that colour-blind readers can tell apart, on light and dark ground (after Paul Tol)."""
WIDTH = 9.2


class Dot(NamedTuple):
    """An estimate in a row of a panel."""

    estimate: Estimate | None
    filled: bool = True


class Panel(NamedTuple):
    """A small picture among others: one list of dots for each row."""

    title: str
    rows: list[list[Dot]]


def figures(report: Report) -> dict[str, str]:
    """Every drawing that the report has data for, by name."""
    makers: dict[str, Callable[[Report], str | None]] = {
        "success": lambda r: _headline(r, SUCCESS),
        "cost": lambda r: _headline(r, ("over_refusal", "accuracy")),
        "point": operating_point,
        "patterns": patterns,
        "learnability": learnability,
        "lengths": lengths,
        "tries": tries,
    }
    drawn = {name: make(report) for name, make in makers.items()}
    return {name: svg for name, svg in drawn.items() if svg}


def _headline(report: Report, metrics: tuple[str, ...]) -> str | None:
    """Every arm in every headline column of some metrics."""
    chosen = [(place, head) for place, head in enumerate(heads(report)) if head.column.metric in metrics]
    table = lines(report)
    panels = [Panel(_title(head), [[Dot(line.cells[place])] for line in table]) for place, head in chosen]
    return _dots(report.arms, panels, _colours(report, report.arms)) if panels else None


def _title(head: Head) -> str:
    return f"{head.group}\n{head.title}" if head.title else head.group


def patterns(report: Report) -> str | None:
    """Pattern rates before the filter (open) and after it (filled), a panel a pattern."""
    rates = [rate for rate in report.patterns if rate.kind == "pattern"]
    names = list(dict.fromkeys(rate.traces for rate in rates))
    found = {(rate.traces, rate.pattern): rate for rate in rates}
    panels = []
    for pattern in dict.fromkeys(rate.pattern for rate in rates):
        rows = []
        for traces in names:
            rate = found.get((traces, pattern))
            rows.append([Dot(rate.before, filled=False), Dot(rate.after)] if rate else [])
        panels.append(Panel(pattern.replace("_", " ").replace("lack of safety ", "lack of safety\n"), rows))
    return _dots(names, panels, _colours(report, names)) if panels else None


def _dots(names: Sequence[str], panels: Sequence[Panel], colours: Sequence[str]) -> str:
    """Small multiples that share their rows: dots with intervals, in per cent."""
    across = min(len(panels), 5)
    down = -(-len(panels) // across)
    figure, axes = _figure(down, across, height=(0.55 + 0.26 * len(names)) * down)
    for place, axis in enumerate(axes):
        if place >= len(panels):
            axis.set_visible(False)
            continue
        panel = panels[place]
        for row, dots in enumerate(panel.rows):
            for number, dot in enumerate(dots):
                _dot(axis, row + (number - (len(dots) - 1) / 2) * 0.34, dot, colours[row])
        axis.set_title(panel.title, fontsize=9, color=INK, loc="left")
        axis.set_xlim(-4, 104)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_xticks([0, 50, 100])
        axis.set_yticks(range(len(names)), names if place % across == 0 else [""] * len(names))
    return _svg(figure)


def _dot(axis: Axes, y: float, dot: Dot, colour: str) -> None:
    e = dot.estimate
    if e is None or e.value is None or e.low is None or e.high is None:
        return
    axis.plot([100 * e.low, 100 * e.high], [y, y], color=colour, linewidth=1.6, solid_capstyle="round", alpha=0.75)
    face = colour if dot.filled else "none"
    axis.plot([100 * e.value], [y], "o", markersize=5, color=colour, markerfacecolor=face)


def operating_point(report: Report) -> str | None:
    """Each arm by over-refusal and by success of the attack that gets through to it most often."""
    columns = heads(report)
    harm = [i for i, head in enumerate(columns) if head.column.metric in SUCCESS]
    over = [i for i, head in enumerate(columns) if head.column.metric == "over_refusal"]
    maths = [i for i, head in enumerate(columns) if head.column.metric == "accuracy"]
    if not harm or not over:
        return None
    figure, (axis,) = _figure(1, 1, height=3.6, width=6.4)
    for place, line in enumerate(lines(report)):
        attacks = [e for i in harm if (e := line.cells[i]) is not None and e.value is not None]
        kind = line.cells[over[0]]
        if not attacks or kind is None or kind.value is None:
            continue
        worst = max(attacks, key=lambda e: e.value or 0.0)
        colour = COLOURS[place % len(COLOURS)]
        x, y = 100 * kind.value, 100 * (worst.value or 0.0)
        axis.plot([100 * (kind.low or 0), 100 * (kind.high or 0)], [y, y], color=colour, linewidth=1.2, alpha=0.6)
        axis.plot([x, x], [100 * (worst.low or 0), 100 * (worst.high or 0)], color=colour, linewidth=1.2, alpha=0.6)
        axis.plot([x], [y], "o", color=colour, markersize=6)
        solved = [e.value for i in maths if (e := line.cells[i]) is not None and e.value is not None]
        name = f"{line.arm} ({100 * sum(solved) / len(solved):.0f})" if solved else line.arm
        axis.annotate(name, (x, y), xytext=(6, 5), textcoords="offset points", fontsize=9, color=INK)
    axis.set_xlabel(f"over-refusal, % ({columns[over[0]].column.bench})", fontsize=9)
    axis.set_ylabel("success of the strongest attack, %", fontsize=9)
    axis.set_xlim(left=-2)
    axis.set_ylim(-4, 104)
    axis.grid(True, color=FAINT, linewidth=0.6)
    return _svg(figure)


def learnability(report: Report) -> str | None:
    """Loss a response token over steps: a panel for each series, a line an arm, its seeds thin behind their mean."""
    series = list(dict.fromkeys(curve.series for curve in report.learnability))[:4]
    arms = list(dict.fromkeys(curve.arm for curve in report.learnability))
    if not series:
        return None
    figure, axes = _figure(1, len(series), height=2.9)
    for axis, name in zip(axes, series, strict=True):
        for arm, colour in zip(arms, _colours(report, arms), strict=True):
            curves = [c for c in report.learnability if c.series == name and c.arm == arm and len(c.steps) > 1]
            for curve in curves:
                axis.plot(curve.steps, curve.loss, color=colour, linewidth=0.7, alpha=0.4)
            if curves:
                shortest = min(len(c.steps) for c in curves)
                mean = [sum(c.loss[i] for c in curves) / len(curves) for i in range(shortest)]
                axis.plot(curves[0].steps[:shortest], mean, color=colour, linewidth=1.6, label=arm)
        axis.set_title(name, fontsize=9, color=INK, loc="left")
        axis.set_xlabel("step", fontsize=9)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(lambda value, _: "")
        axis.grid(True, color=FAINT, linewidth=0.6)
    return _svg(_with_legend(figure, axes[0]))


def lengths(report: Report) -> str | None:
    """Tokens of thinking: median, the middle half and the middle 90 %."""
    rows = report.lengths
    if not rows:
        return None
    colours = _colours(report, [row.traces.removesuffix(" (teacher)") for row in rows])
    figure, (axis,) = _figure(1, 1, height=0.5 + 0.26 * len(rows), width=7.0)
    for place, row in enumerate(rows):
        q, colour = row.quantiles, colours[place]
        axis.plot([q[1], q[19]], [place, place], color=colour, linewidth=1.2)
        axis.plot([q[5], q[15]], [place, place], color=colour, linewidth=5, alpha=0.55, solid_capstyle="butt")
        axis.plot([q[10]], [place], "o", color=colour, markersize=4.5)
    axis.set_yticks(range(len(rows)), [row.traces for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(left=0)
    axis.set_xlabel("tokens of thinking", fontsize=9)
    return _svg(figure)


def tries(report: Report) -> str | None:
    """The share of questions that at least one of k attempts got through to."""
    groups = list(dict.fromkeys((t.bench, t.attack) for t in report.tries))[:4]
    if not groups:
        return None
    figure, axes = _figure(1, len(groups), height=2.6)
    for axis, (bench, attack) in zip(axes, groups, strict=True):
        for place, arm in enumerate(report.arms):
            for curve in report.tries:
                if (curve.arm, curve.bench, curve.attack) == (arm, bench, attack):
                    k = range(1, len(curve.share) + 1)
                    axis.plot(k, [100 * s for s in curve.share], color=COLOURS[place % len(COLOURS)], label=arm)
        axis.set_title(f"{bench} · {words.attack(attack)}", fontsize=9, color=INK, loc="left")
        axis.set_xlabel("attempts a question", fontsize=9)
        axis.set_ylim(-3, 103)
    return _svg(_with_legend(figure, axes[0]))


def _colours(report: Report, names: Sequence[str]) -> list[str]:
    """An arm has one colour in every drawing, and so do the traces of its format; others take the next."""
    known = list(dict.fromkeys([*report.arms, *names]))
    return [COLOURS[known.index(name) % len(COLOURS)] for name in names]


def _with_legend(figure: Figure, axis: Axes) -> Figure:
    """Names of the lines under all panels."""
    handles, names = axis.get_legend_handles_labels()
    where = "outside lower center"
    figure.legend(handles, names, loc=where, ncols=8, fontsize=9, frameon=False, labelcolor=INK)
    return figure


def _figure(down: int, across: int, *, height: float, width: float = WIDTH) -> tuple[Figure, list[Any]]:
    """An empty figure in the page's colours."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height + 0.35), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axis in axes:
        axis.tick_params(which="both", colors=INK, labelsize=9, length=0)
        axis.xaxis.label.set_color(INK)
        axis.yaxis.label.set_color(INK)
        axis.patch.set_alpha(0)
        axis.grid(True, axis="x", color=FAINT, linewidth=0.6)
        axis.set_axisbelow(True)
        for spine in axis.spines.values():
            spine.set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The drawing as an element to put into a page: no fixed size, no date, the page's own ink."""
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "demur", "font.family": "sans-serif", "text.parse_math": False}
    ):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()[out.getvalue().index("<svg") :]
    width = re.search(r'width="([\d.]+)pt"', text)
    size = f'style="width:{float(width[1]) * 96 / 72:.0f}px" role="img"' if width else ""
    text = re.sub(
        r'<svg([^>]*?) width="[^"]*"', rf"<svg {size}\1", re.sub(r'height="[\d.]+pt"', "", text, count=1), count=1
    )
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: (\d+(?:\.\d+)?)px [^;\"]*", r"font-size: \1px", text)
    return text.replace(INK, "currentColor").replace(FAINT, "var(--rule)")
