"""The sections of a report, in the order of sections.json: tables and figures for a terminal, a summary and a page."""

import json
from collections import Counter
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
"""Id -> title, introduction, whether it is folded, and the headings where it has one table."""
DRAWN: dict[str, Callable[[Report], Iterator[figures.Figure]]] = {  # Sections with figures
    "pareto": figures.pareto, "learnability": figures.losses, "tries": figures.attempts, "depth": figures.depth,
}  # fmt: skip


def sections(report: Report, more: dict[str, list[Table]] | None = None) -> list[Section]:
    """All sections that have anything to show; `more`: tables that only a page has."""
    counts = [test.comparisons for finding in report.findings for test in finding.evidence]
    facts: dict[str, Any] = {"raw": next((test.b for test in report.changes), ""), "tests": max(counts, default=0)}
    facts["claims"] = max((test.comparisons for test in report.claims), default=0)
    content = _patterns(report) | _data(report) | _details(report) | _small(report) | (more or {})
    content |= {"changes": _changes(report), "comparisons": [comparison(report.claims)]}
    results = {section.id: section for section in first(report)}
    shown = []
    for name, (heading, about, fold, *_) in TEXTS.items():
        tables = tuple(t for t in content.get(name, ()) if t.rows)
        drawings = tuple(DRAWN[name](report)) if name in DRAWN else ()
        if name in results:
            shown.append(results[name]._replace(title=heading))
        elif tables or drawings:
            shown.append(Section(name, heading, tables, about.format(**facts), (), drawings, fold))
    return shown


def _findings(report: Report) -> Iterator[Row]:
    """The claims that a study tests, a row for each test."""
    for finding in report.findings:
        for number, test in enumerate(finding.evidence):
            tone = "best" if finding.outcome == "supported" else ""
            head: Row = ("", "") if number else (finding.claim, Cell(finding.outcome, tone))
            part = f" of the {test.part}" if test.part else ""
            place = f" ({format.place(test.bench, test.attack)})" if test.bench or test.attack else ""
            weights = ", ".join(f"{title(a)} {w:g}" for a, w in test.weights.items())
            place += f", weights {weights}" if len(set(test.weights.values())) > 1 else ""
            outcome = "" if len(finding.evidence) == 1 else f"{test.outcome}: "
            what = f"{test.a} − {test.b}, {format.metric(test.metric)}{part}{place}, {test.expect}; "
            what += "; ".join(filter(None, (f"{outcome}{format.because(test)}", test.split)))
            d, basis = test.difference, format.NONE
            if d.value is not None:
                basis = "" if test.unit == "nats" else f"{d.n:,} pairs, "
                basis += f"{format.plural(d.seeds, 'training')} on {format.plural(test.bases, 'base')}"
            numbers = format.spread(d, test.unit), format.distance(test.by, test.unit), format.p_value(test.p_holm)
            yield (*head, what, *numbers, basis)


def comparison(tests: Sequence[PairedTest]) -> Table:
    """Comparisons as rows."""
    judges = Counter((metric, bench) for metric, bench, _ in {(t.metric, t.bench, t.judge) for t in tests})
    several = {metric for (metric, _), count in judges.items() if count > 1}
    rows: list[Row] = []
    for t in tests:
        name = format.place(t.bench, t.attack, t.metric) + (f" by {t.judge}" if t.metric in several else "")
        a, b = (format.counted(e, t.unit) for e in (t.estimate_a, t.estimate_b))
        sides = (f"{arm} {estimate(e, t.unit).text}" for arm, e in ((t.a, t.estimate_a), (t.b, t.estimate_b)))
        gap = Cell(format.spread(t.difference, t.unit), about=f"{t.difference.how}; A {a}; B {b}")
        words = Cell(format.verdict(t), "best" if t.winner else "")
        rows.append((f"{name}, n={t.difference.clusters:,}", *sides, gap, format.p_value(t.p_holm), words))
    return table(TEXTS["comparisons"][3], rows)


def _changes(report: Report) -> list[Table]:
    """Gain and cost of training."""
    benches = {t.metric: f" on {t.bench}" if t.bench else "" for t in report.changes}
    rows: dict[str, dict[str, Cell]] = {}
    for t in report.changes:
        tone = "best" if t.winner == t.a else ""
        rows.setdefault(t.a, {})[t.metric] = Cell(format.spread(t.difference, t.unit), tone, format.verdict(t))
    titles = ("arm", *(f"#{format.metric(metric)}{on}, points" for metric, on in benches.items()))
    return [table(titles, [(arm, *(row.get(metric, Cell("")) for metric in benches)) for arm, row in rows.items()])]


def _patterns(report: Report) -> dict[str, list[Table]]:
    """Failure patterns of traces, and the other measures of detectors."""
    kinds, filtered = {"pattern": "", "class": " (class)", "any": " pattern"}, any(r.after for r in report.patterns)
    rows: list[Row] = [
        (r.traces, r.pattern.replace("_", " ") + kinds[r.kind], estimate(r.before), *[estimate(r.after)] * filtered,
         format.of(r.before), f"{r.before.unscored:,}", r.detector)
        for r in report.patterns
    ]  # fmt: skip
    titles = ("#before the filter, %", "#after, %") if filtered else ("#in, %",)
    values = ((name, key.replace("_", " "), e) for name, row in report.measures.items() for key, e in row.items())
    measures: list[Row] = [(*key, format.interval(e, "count", digits=2), f"{e.n:,}") for *key, e in values]
    name = "other measures per trace: sentences; places as shares of the thinking, loop and switch of the traces"
    main = table(("traces", "pattern", *titles, "#n", "#undecided", "detector"), rows)
    return {"patterns": [main, table(("traces", "measure", "#mean [95 %]", "#n"), measures, name)]}


def _data(report: Report) -> dict[str, list[Table]]:
    """From prompts to training rows."""

    def counted(name: str, first: tuple[str, ...], rows: Sequence[tuple[Row, dict[str, Any]]], missing: str) -> Table:
        keys = dict.fromkeys(key for _, counts in rows for key in counts)
        cells = [(*names, *(f"{row[key]:,}" if key in row else missing for key in keys)) for names, row in rows]
        return table((*first, *(f"#{key.replace('_', ' ')}" for key in keys)), cells, name)

    funnels, repairs = ([((name,), row) for name, row in sets.items()] for sets in (report.funnels, report.repairs))
    every = [(arm, number, {**row}) for arm, mix in report.mixes.items() for number, row in enumerate(mix)]
    mixes = [(("" if number else arm, row.pop("share")), row) for arm, number, row in every]
    return {"data": [
        counted("what became of the teacher's replies", ("strategy",), funnels, format.NONE),  # Not judged
        counted("repairs", ("traces",), repairs, "0"), counted("mixes", ("arm", "component"), mixes, ""),
    ]}  # fmt: skip


def _details(report: Report) -> dict[str, list[Table]]:
    """Numbers that only one form of benchmark or attack has, and a harm judge's alarms on harmless prompts."""
    kinds = {"chosen": "options", "right": "options", "turn": "turns", "unsafe_on_harmless": "alarms"}
    labels = {"options": "option", "turns": "turn", "alarms": "category"}
    content: dict[str, dict[tuple[str, str, str, str], dict[str, Cell]]] = {section: {} for section in labels}
    for r in report.results:
        name, _, rest = r.metric.partition("/")
        if (section := kinds.get(name)) and rest and r.seed is None and r.arm in report.arms:
            at, _, cell = rest.partition("/") if section == "turns" else (rest, "", "")
            title = {"options": name, "alarms": "unsafe"}.get(section, cell.replace("_", " ") or f"{r.part} gives way")
            row = content[section].setdefault((r.arm, format.place(r.bench, r.attack), r.judge, at), {})
            row[title] = estimate(r.estimate, where=format.where(r.arm, r.bench, r.attack))
    tables = {}
    for section, label in labels.items():
        titles = list(dict.fromkeys(title for row in content[section].values() for title in row))
        rows: list[Row] = [(*at, *(row.get(title, "") for title in titles)) for at, row in content[section].items()]
        tables[section] = [table(("arm", "benchmark", "judge", label, *(f"#{title}, %" for title in titles)), rows)]
    return tables


def _small(report: Report) -> dict[str, list[Table]]:
    """The sections with one table of one kind of record."""
    place, number, dash = format.place, format.number, format.NONE
    rows: dict[str, Iterable[Row]] = {
        "findings": _findings(report), "every": _every(report), "stages": report.stages.items(),
        "learnability": [
            (r.part, r.arm if r.seed is None else f"{r.arm}/{r.seed}", str(r.rows),
             f"{r.distance:.2f} ({r.distance_sequence:.1f})",
             f"{number(r.end, 'nats')} ({number(r.end_sequence, 'nats')})",
             f"{r.target:.3f}", f"{r.steps:,}", f"{r.tokens:,}")
            for r in report.learnt],
        "crossing": [
            (c.arm, place(c.bench, c.attack), c.judge, c.thinking, c.answer, c.name.replace("_", " "),
             estimate(c.estimate))
            for c in report.crossing],
        "agreement": [
            (a.part, f"{a.a} and {a.b}", estimate(a.same), number(a.kappa, "count", digits=2))
            for a in report.agreement],
        "corrected": [
            (c.arm, place(c.bench, c.attack, c.metric), c.judge,
             *map(estimate, (c.observed, c.corrected, c.sensitivity, c.specificity)))
            for c in report.corrected],
        "measured": [
            (s.arm, s.base or dash, s.made or "as it is", ", ".join(s.models[:3]) + " …" * (len(s.models) > 3),
             ", ".join(map(str, s.seeds)) or dash)
            for s in report.subjects],
        "protocol": [
            (f"{p.bench}, version {p.version}" if p.version else p.bench, title(p.attack), ", ".join(p.judges),
             f"{p.prompts:,}", f"{p.replies:,}", str(p.seeds), " ".join(f"{k}={v}" for k, v in p.sampling.items()),
             " ".join(filter(None, (p.paper, p.sha256[:12], p.licence))) or p.file
             or ("a file of yours" if "=" in p.bench else "generated"))
            for p in report.protocols],
    }  # fmt: skip
    return {name: [table(TEXTS[name][3], list(content))] for name, content in rows.items()}


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
            column = format.place(r.bench, r.attack), format.metric(r.metric, r.better), judge
            yield (arm, *column, value, format.of(e), f"{e.unscored:,}", f"{e.truncated:,}", bounds)
