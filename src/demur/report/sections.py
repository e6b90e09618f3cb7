"""What a report shows, in the order of sections.json: tables and drawings, the same for a terminal, a summary and a page."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from typing import Any

from demur.attack import title
from demur.report import figures, format
from demur.report.data import Report, place
from demur.report.first import first
from demur.report.tables import Cell, Section, Table, estimate, table
from demur.report.tests import PairedTest

Row = tuple[Cell | str, ...]
Part = tuple[str, Sequence[Table], dict[str, object]]  # Id of a section, its tables, and what its text has to say
TEXTS: dict[str, Any] = json.loads(files("demur.report").joinpath("sections.json").read_text())
"""Id -> title, what is said of it, whether it is folded, and, of one table, its headings."""
DRAWN: dict[str, Callable[[Report], Iterator[figures.Figure]]] = {  # Sections with drawings
    "pareto": figures.pareto, "learnability": figures.losses, "tries": figures.attempts, "depth": figures.depth,
}  # fmt: skip


def sections(report: Report, more: Iterable[Part] = ()) -> list[Section]:
    """All that there is to show; `more` is what a page adds."""
    found = {}
    for name, tables, own in (*_parts(report), *more):
        if filled := tuple(one for one in tables if one.rows):
            found[name] = Section(name, TEXTS[name][0], filled, TEXTS[name][1].format(**own))
    for name, draw in DRAWN.items():
        if shown := tuple(draw(report)):
            empty = Section(name, TEXTS[name][0], about=TEXTS[name][1])
            found[name] = found.get(name, empty)._replace(figures=shown)
    found |= {section.id: section for section in first(report)}
    return [
        found[name]._replace(title=title, fold=fold) for name, (title, _, fold, *_) in TEXTS.items() if name in found
    ]


def own_table(name: str, rows: Sequence[Row]) -> list[Table]:
    """The one table of a section."""
    return [table(TEXTS[name][3], rows)]


def _parts(report: Report) -> Iterator[Part]:
    tests = [test for one in report.findings for test in one.evidence]
    yield (
        "findings",
        own_table("findings", list(_findings(report))),
        {"count": max((t.comparisons for t in tests), default=0)},
    )
    yield from (*_changes(report), *_patterns(report), *_data(report), *_details(report))
    yield from ((name, own_table(name, rows), {}) for name, rows in _small(report).items())
    yield "every", own_table("every", list(_every(report))), {}
    if report.claims:
        yield "comparisons", [comparison(report.claims)], {"count": report.claims[0].comparisons}


def _findings(report: Report) -> Iterator[Row]:
    """The claims that a study puts to the test."""
    for one in report.findings:
        for number, test in enumerate(one.evidence):
            head: Row = (
                ("", "") if number else (one.claim, Cell(one.outcome, "best" if one.outcome == "supported" else ""))
            )
            part = f" of the {test.part}" if test.part else ""
            at = f" ({format.place(test.bench, test.attack)})" if test.bench or test.attack else ""
            weights = ", ".join(f"{title(a)} {w:g}" for a, w in test.weights.items())
            at += f", weights {weights}" if len(set(test.weights.values())) > 1 else ""
            outcome = "" if len(one.evidence) == 1 else f"{test.outcome}: "
            what = f"{test.a} − {test.b}, {format.metric(test.metric)}{part}{at}, {test.expect}; {outcome}{format.because(test)}"
            what += f"; {test.split}" if test.split else ""
            d, trained = test.difference, ""
            if d.value is not None:
                trained = f"{format.plural(d.seeds, 'training')} on {format.plural(test.bases, 'base')}"
                trained = trained if test.unit == "nats" else f"{d.n:,} pairs, {trained}"
            numbers = format.spread(d, test.unit), format.distance(test.by, test.unit), format.p_value(test.p_holm)
            yield (*head, what, *numbers, trained or format.NONE)


def comparison(tests: Sequence[PairedTest]) -> Table:
    """Comparisons as rows."""
    apart = {t.metric for t in tests if len({o.judge for o in tests if (o.bench, o.metric) == (t.bench, t.metric)}) > 1}
    rows: list[Row] = []
    for t in tests:
        at = format.place(t.bench, t.attack, t.metric)
        at += f" by {t.judge}" if t.metric in apart else ""
        a, b = (format.counted(e, t.unit) for e in (t.estimate_a, t.estimate_b))
        sides = (f"{arm} {estimate(e, t.unit).text}" for arm, e in ((t.a, t.estimate_a), (t.b, t.estimate_b)))
        gap = Cell(format.spread(t.difference, t.unit), about=f"{t.difference.how}; A {a}; B {b}")
        words = Cell(format.verdict(t), "best" if t.winner else "")
        rows.append((f"{at}, n={t.difference.clusters:,}", *sides, gap, format.p_value(t.p_holm), words))
    return own_table("comparisons", rows)[0]


def _changes(report: Report) -> Iterator[Part]:
    """Gain and cost of training."""
    benches = {t.metric: f" on {t.bench}" if t.bench else "" for t in report.changes}
    rows: dict[str, dict[str, Cell]] = {}
    for t in report.changes:
        won = "best" if t.winner == t.a else ""
        rows.setdefault(t.a, {})[t.metric] = Cell(format.spread(t.difference, t.unit), won, format.verdict(t))
    if rows:
        titles = ("arm", *(f"#{format.metric(metric)}{where}, points" for metric, where in benches.items()))
        cells: list[Row] = [(arm, *(own.get(metric, Cell("")) for metric in benches)) for arm, own in rows.items()]
        yield "changes", [table(titles, cells)], {"raw": report.changes[0].b}


def _patterns(report: Report) -> Iterator[Part]:
    """Failure patterns of traces, and what else detectors measure."""
    kinds, filtered = {"pattern": "", "class": " (class)", "any": " pattern"}, any(r.after for r in report.patterns)
    rows: list[Row] = [
        (r.traces, r.pattern.replace("_", " ") + kinds[r.kind], estimate(r.before), *[estimate(r.after)] * filtered,
         format.of(r.before), f"{r.before.unscored:,}", r.detector)
        for r in report.patterns
    ]  # fmt: skip
    titles = ("#before the filter, %", "#after, %") if filtered else ("#in, %",)
    found = ((name, key.replace("_", " "), e) for name, own in report.measures.items() for key, e in own.items())
    more: list[Row] = [(name, key, format.interval(e, "count", digits=2), f"{e.n:,}") for name, key, e in found]
    what = "what else is measured, a trace: sentences; places as shares of the thinking, loop and switch of the traces"
    yield "patterns", [
        table(("traces", "pattern", *titles, "#n", "#undecided", "detector"), rows),
        table(("traces", "measure", "#mean [95 %]", "#n"), more, what),
    ], {}  # fmt: skip


def _data(report: Report) -> Iterator[Part]:
    """From prompts to training rows."""

    def counted(name: str, first: str, own: Iterable[tuple[str, dict[str, Any]]], missing: str) -> Table:
        rows = list(own)
        keys = list(dict.fromkeys(key for _, counts in rows for key in counts))
        titles = (first, *(key if key == "component" else f"#{key.replace('_', ' ')}" for key in keys))
        return table(titles, [(n, *(_count(of.get(key), missing) for key in keys)) for n, of in rows], name)

    mixes = (
        (
            "" if number else arm,
            {"component": row["share"]} | {key: value for key, value in row.items() if key != "share"},
        )
        for arm, mix in report.mixes.items()
        for number, row in enumerate(mix)
    )
    yield "data", [
        counted("what became of the teacher's replies", "strategy", report.funnels.items(), format.NONE),  # nobody judged
        counted("repairs", "traces", report.repairs.items(), "0"), counted("mixes", "arm", mixes, ""),
    ], {}  # fmt: skip


def _count(value: Any, missing: str) -> str:
    return missing if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _details(report: Report) -> Iterator[Part]:
    """What one form of benchmark or attack has alone, and a harm judge's alarms on harmless prompts."""
    found: dict[str, dict[tuple[str, str, str, str], dict[str, Cell]]] = {"options": {}, "turns": {}, "alarms": {}}
    for r in report.results:
        name, _, rest = r.metric.partition("/")
        section = {"chosen": "options", "right": "options", "turn": "turns", "unsafe_on_harmless": "alarms"}.get(name)
        at, _, cell = rest.partition("/") if section == "turns" else (rest, "", "")
        title = {"options": name, "turns": cell.replace("_", " ") or f"{r.part} gives way"}.get(section or "", "unsafe")
        if section and at and r.seed is None and r.arm in report.arms:
            row = found[section].setdefault((r.arm, format.place(r.bench, r.attack), r.judge, at), {})
            row[title] = estimate(r.estimate, where=format.where(r.arm, r.bench, r.attack))
    for section, label in (("options", "option"), ("turns", "turn"), ("alarms", "category")):
        titles = list(dict.fromkeys(title for row in found[section].values() for title in row))
        rows: list[Row] = [(*at, *(row.get(title, "") for title in titles)) for at, row in found[section].items()]
        yield section, [table(("arm", "benchmark", "judge", label, *(f"#{title}, %" for title in titles)), rows)], {}


def _small(report: Report) -> dict[str, list[Row]]:
    """Rows of one kind of record each."""
    return {
        "learnability": [
            (r.part, r.arm if r.seed is None else f"{r.arm}/{r.seed}", str(r.rows), f"{r.distance:.2f} ({r.distance_sequence:.1f})",
             f"{format.number(r.end, 'nats')} ({format.number(r.end_sequence, 'nats')})", f"{r.target:.3f}", f"{r.steps:,}", f"{r.tokens:,}")
            for r in report.learnt],
        "crossing": [
            (c.arm, format.place(c.bench, c.attack), c.judge, c.thinking, c.answer, c.name.replace("_", " "), estimate(c.estimate))
            for c in report.crossing],
        "agreement": [
            (a.part, f"{a.a} and {a.b}", estimate(a.same), format.number(a.kappa, "count", digits=2)) for a in report.agreement],
        "corrected": [
            (c.arm, format.place(c.bench, c.attack, c.metric), c.judge, *map(estimate, (c.observed, c.corrected, c.sensitivity, c.specificity)))
            for c in report.corrected],
        "measured": [
            (s.arm, s.base or format.NONE, s.made or "as it is", ", ".join(s.models[:3]) + (" …" if len(s.models) > 3 else ""),
             ", ".join(map(str, s.seeds)) or format.NONE)
            for s in report.subjects],
        "protocol": [
            (f"{p.bench}{f', version {p.version}' if p.version else ''}", title(p.attack), ", ".join(p.judges), f"{p.prompts:,}",
             f"{p.replies:,}", str(p.seeds), " ".join(f"{k}={v}" for k, v in p.sampling.items()),
             " ".join(filter(None, (p.paper, p.sha256[:12], p.licence))) or p.file or ("a file of yours" if "=" in p.bench else "generated"))
            for p in report.protocols],
        "stages": list(report.stages.items()),
    }  # fmt: skip


def _every(report: Report) -> Iterator[Row]:
    """Every number once: over all seeds where there is such a number, else of each seed."""
    pooled = report.table()
    for r in report.results:
        if r.seed is None or place(r) not in pooled:
            e, judge = r.estimate, f"{r.judge} ({r.part})" if r.judge else ""
            bounded = e.best is not None and r.unit == "share"
            bounds = f"{format.number(e.best)} … {format.number(e.worst)}" if bounded else ""
            arm = r.arm if r.seed is None else f"{r.arm}/{r.seed}"
            value = estimate(e, r.unit, where=format.where(r.arm, r.bench, r.attack))._replace(track=None)
            about = format.place(r.bench, r.attack), format.directed(r.metric, r.better), judge
            yield (arm, *about, value, format.of(e), f"{e.unscored:,}", f"{e.truncated:,}", bounds)
