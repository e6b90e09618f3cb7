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
TEXTS: dict[str, Any] = json.loads(files("demur.report").joinpath("sections.json").read_text())
"""Id -> title, what is said of it, whether it is folded, and, of one table, its headings."""
DRAWN: dict[str, Callable[[Report], Iterator[figures.Figure]]] = {  # Sections with drawings
    "pareto": figures.pareto, "learnability": figures.losses, "tries": figures.attempts, "depth": figures.depth,
}  # fmt: skip


def sections(report: Report, more: dict[str, list[Table]] | None = None) -> list[Section]:
    """All that there is to show; `more` is what a page adds."""
    counts = [test.comparisons for one in report.findings for test in one.evidence]
    facts = {"tests": max(counts, default=0), "claims": max((t.comparisons for t in report.claims), default=0)}
    made = _patterns(report) | _data(report) | _details(report) | _small(report) | (more or {})
    made |= {"changes": _changes(report), "comparisons": [comparison(report.claims)]}
    raw = next((test.b for test in report.changes), "")
    ours = {section.id: section for section in first(report)}
    found = []
    for name, (heading, about, fold, *_) in TEXTS.items():
        tables = tuple(one for one in made.get(name, ()) if one.rows)
        drawings = tuple(DRAWN[name](report)) if name in DRAWN else ()
        if name in ours:
            found.append(ours[name]._replace(title=heading))
        elif tables or drawings:
            found.append(Section(name, heading, tables, about.format(raw=raw, **facts), (), drawings, fold))
    return found


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
    return table(TEXTS["comparisons"][3], rows)


def _changes(report: Report) -> list[Table]:
    """Gain and cost of training."""
    benches = {t.metric: f" on {t.bench}" if t.bench else "" for t in report.changes}
    rows: dict[str, dict[str, Cell]] = {}
    for t in report.changes:
        won = "best" if t.winner == t.a else ""
        rows.setdefault(t.a, {})[t.metric] = Cell(format.spread(t.difference, t.unit), won, format.verdict(t))
    titles = ("arm", *(f"#{format.metric(metric)}{where}, points" for metric, where in benches.items()))
    return [table(titles, [(arm, *(own.get(metric, Cell("")) for metric in benches)) for arm, own in rows.items()])]


def _patterns(report: Report) -> dict[str, list[Table]]:
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
    first = table(("traces", "pattern", *titles, "#n", "#undecided", "detector"), rows)
    return {"patterns": [first, table(("traces", "measure", "#mean [95 %]", "#n"), more, what)]}


def _data(report: Report) -> dict[str, list[Table]]:
    """From prompts to training rows."""

    def counted(name: str, first: tuple[str, ...], rows: Sequence[tuple[Row, dict[str, Any]]], missing: str) -> Table:
        keys = dict.fromkeys(key for _, counts in rows for key in counts)
        cells = [(*names, *(f"{own[key]:,}" if key in own else missing for key in keys)) for names, own in rows]
        return table((*first, *(f"#{key.replace('_', ' ')}" for key in keys)), cells, name)

    funnels, repairs = ([((name,), own) for name, own in sets.items()] for sets in (report.funnels, report.repairs))
    every = [(arm, number, {**row}) for arm, mix in report.mixes.items() for number, row in enumerate(mix)]
    mixes = [(("" if number else arm, row.pop("share")), row) for arm, number, row in every]
    return {"data": [
        counted("what became of the teacher's replies", ("strategy",), funnels, format.NONE),  # nobody judged
        counted("repairs", ("traces",), repairs, "0"), counted("mixes", ("arm", "component"), mixes, ""),
    ]}  # fmt: skip


def _details(report: Report) -> dict[str, list[Table]]:
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
    made = {}
    for section, label in (("options", "option"), ("turns", "turn"), ("alarms", "category")):
        titles = list(dict.fromkeys(title for row in found[section].values() for title in row))
        rows: list[Row] = [(*at, *(row.get(title, "") for title in titles)) for at, row in found[section].items()]
        made[section] = [table(("arm", "benchmark", "judge", label, *(f"#{title}, %" for title in titles)), rows)]
    return made


def _small(report: Report) -> dict[str, list[Table]]:
    """A table of one kind of record each."""
    rows: dict[str, Iterable[Row]] = {
        "findings": _findings(report), "every": _every(report),
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
        "stages": report.stages.items(),
    }  # fmt: skip
    return {name: own_table(name, own) for name, own in rows.items()}


def own_table(name: str, rows: Iterable[Row]) -> list[Table]:
    """The one table of a section."""
    return [table(TEXTS[name][3], list(rows))]


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
            about = format.place(r.bench, r.attack), format.metric(r.metric, r.better), judge
            yield (arm, *about, value, format.of(e), f"{e.unscored:,}", f"{e.truncated:,}", bounds)
