"""What a report shows, in the order of sections.json: tables and drawings, the same for a terminal, a summary and a page."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files

from demur.attack import title
from demur.report import figures, format
from demur.report.data import Report, place
from demur.report.first import first
from demur.report.tables import Cell, Head, Section, Table, estimate, table
from demur.report.tests import PairedTest

Row = tuple[Cell | str, ...]
Part = tuple[str, Sequence[Table], dict[str, object]]  # Id of a section, its tables, and what its text has to say
DRAWN: dict[str, Callable[[Report], Iterator[figures.Figure]]] = {  # Sections with drawings
    "pareto": figures.pareto, "learnability": figures.losses, "tries": figures.attempts,
    "depth": figures.depth,
}  # fmt: skip


def sections(report: Report, more: Iterable[Part] = ()) -> list[Section]:
    """All that there is to show; `more` is what a page adds."""
    texts: dict[str, tuple[str, str, bool]] = json.loads(files("demur.report").joinpath("sections.json").read_text())
    found = {}
    for name, tables, own in (*_parts(report), *more):
        if filled := tuple(one for one in tables if one.rows):
            found[name] = Section(name, texts[name][0], filled, texts[name][1].format(**own))
    for name, draw in DRAWN.items():
        if shown := tuple(draw(report)):
            found[name] = found.get(name, Section(name, *texts[name][:1], about=texts[name][1]))._replace(figures=shown)
    found |= {section.id: section for section in first(report)}
    return [found[name]._replace(title=title, fold=fold) for name, (title, _, fold) in texts.items() if name in found]


def _parts(report: Report) -> Iterator[Part]:
    makers: tuple[Callable[[Report], Iterator[Part]], ...] = (
        _findings, _changes, _patterns, _data, _details, _small, _every, _protocol,
    )  # fmt: skip
    for make in makers:
        yield from make(report)
    if report.claims:
        yield "comparisons", [comparison(report.claims)], {"count": report.claims[0].comparisons}


def _findings(report: Report) -> Iterator[Part]:
    """The claims that a study puts to the test."""
    rows: list[Row] = []
    for one in report.findings:
        for number, test in enumerate(one.evidence):
            head: Row = ("", "")
            if number == 0:
                head = one.claim, Cell(one.outcome, "best" if one.outcome == "supported" else "")
            outcome = "" if len(one.evidence) == 1 else f"{test.outcome}: "
            what = f"{_of(test)}, {test.expect}; {outcome}{format.because(test)}"
            what += f"; {test.split}" if test.split else ""
            numbers = format.spread(test.difference, test.unit), format.distance(test.by, test.unit)
            rows.append((*head, what, *numbers, format.p_value(test.p_holm), _rests(test)))
    titles = "claim", "outcome", "test", "#difference [95 %]", "#matters from", "#p (Holm)", "rests on"
    count = max((test.comparisons for one in report.findings for test in one.evidence), default=0)
    yield "findings", [table(titles, rows)], {"count": count}


def _of(test: PairedTest) -> str:
    part = f" of the {test.part}" if test.part else ""
    at = format.place(test.bench, test.attack) if test.bench or test.attack else ""
    weights = ", ".join(f"{title(a)} {w:g}" for a, w in test.weights.items())
    weighed = f", weights {weights}" if len(set(test.weights.values())) > 1 else ""
    return f"{test.a} − {test.b}, {format.metric(test.metric)}{part}{f' ({at})' if at else ''}{weighed}"


def _rests(test: PairedTest) -> str:
    d = test.difference
    trained = f"{format.plural(d.seeds, 'training')} on {format.plural(test.bases, 'base')}"
    return format.NONE if d.value is None else trained if test.unit == "nats" else f"{d.n:,} pairs, {trained}"


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
    return table(("benchmark: metric, prompts of both", "#A", "#B", "#A − B [95 %]", "#p (Holm)", "in words"), rows)


def _changes(report: Report) -> Iterator[Part]:
    """Gain and cost of training."""
    metrics = list(dict.fromkeys(t.metric for t in report.changes))
    found = {(t.a, t.metric): t for t in report.changes}
    arms = dict.fromkeys(t.a for t in report.changes)
    rows: list[Row] = [(arm, *(_gap(found.get((arm, metric))) for metric in metrics)) for arm in arms]
    if rows:
        benches = {t.metric: f" on {t.bench}" if t.bench else "" for t in report.changes}
        titles = ("arm", *(f"#{format.metric(metric)}{benches[metric]}, points" for metric in metrics))
        yield "changes", [table(titles, rows)], {"raw": report.changes[0].b}


def _gap(test: PairedTest | None) -> Cell:
    if test is None:
        return Cell("")
    won = "best" if test.winner == test.a else ""
    return Cell(format.spread(test.difference, test.unit), won, format.verdict(test))


def _patterns(report: Report) -> Iterator[Part]:
    """Failure patterns of traces, and what else detectors measure."""
    kinds = {"pattern": "", "class": " (class)", "any": " pattern"}
    rows: list[Row] = [
        (r.traces, r.pattern.replace("_", " ") + kinds[r.kind], estimate(r.before), estimate(r.after), format.of(r.before),
         f"{r.before.unscored:,}", r.detector)
        for r in report.patterns
    ]  # fmt: skip
    found = ((name, key.replace("_", " "), e) for name, own in report.measures.items() for key, e in own.items())
    more: list[Row] = [(name, key, format.interval(e, "count", digits=2), f"{e.n:,}") for name, key, e in found]
    first = table(("traces", "pattern", "#before the filter, %", "#after, %", "#n", "#undecided", "detector"), rows)
    if not any(r.after for r in report.patterns):  # there was no filter
        heads = (*first.heads[:2], Head("in, %"), *first.heads[4:])
        first = Table(heads, [(*row[:3], *row[4:]) for row in rows])
    what = "what else is measured, a trace: sentences; places as shares of the thinking, loop and switch of the traces"
    second = table(("traces", "measure", "#mean [95 %]", "#n"), more, what)
    yield "patterns", [first, second], {}


def _data(report: Report) -> Iterator[Part]:
    """From prompts to training rows."""

    def titles(*first: str, keys: Iterable[str]) -> tuple[str, ...]:
        return *first, *(f"#{key.replace('_', ' ')}" for key in keys)

    tables = []
    for name, label, own, missing in (
        ("what became of the teacher's replies", "strategy", report.funnels, format.NONE),  # nobody judged
        ("repairs", "traces", report.repairs, "0"),
    ):
        keys = list(dict.fromkeys(key for counts in own.values() for key in counts))
        rows: list[Row] = [(n, *(f"{of[key]:,}" if key in of else missing for key in keys)) for n, of in own.items()]
        tables.append(table(titles(label, keys=keys), rows, name))
    keys = list(dict.fromkeys(key for mix in report.mixes.values() for row in mix for key in row if key != "share"))
    rows = [
        (arm if not number else "", str(row["share"]), *(str(row.get(key, "")) for key in keys))
        for arm, mix in report.mixes.items()
        for number, row in enumerate(mix)
    ]
    yield "data", [*tables, table(titles("arm", "component", keys=keys), rows, "mixes")], {}


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


def _small(report: Report) -> Iterator[Part]:
    """Tables of one kind of record each."""
    yield "learnability", [table(
        ("part", "arm", "#rows", "#before training", "#at the end", "#target", "#steps to it", "#tokens to it"),
        [(r.part, r.arm if r.seed is None else f"{r.arm}/{r.seed}", str(r.rows), f"{r.distance:.2f} ({r.distance_sequence:.1f})",
          f"{format.number(r.end, 'nats')} ({format.number(r.end_sequence, 'nats')})", f"{r.target:.3f}", f"{r.steps:,}", f"{r.tokens:,}") for r in report.learnt],
    )], {}  # fmt: skip
    yield "crossing", [table(
        ("arm", "benchmark", "judge", "thinking", "answer", "called", "#share, %"),
        [(c.arm, format.place(c.bench, c.attack), c.judge, c.thinking, c.answer, c.name.replace("_", " "), estimate(c.estimate))
         for c in report.crossing],
    )], {}  # fmt: skip
    yield "agreement", [table(
        ("part", "judges", "#agree, %", "#kappa"),
        [(a.part, f"{a.a} and {a.b}", estimate(a.same), format.number(a.kappa, "count", digits=2)) for a in report.agreement],
    )], {}  # fmt: skip
    yield "corrected", [table(
        ("arm", "benchmark", "judge", "#as judged, %", "#corrected, %", "#sensitivity, %", "#specificity, %"),
        [(c.arm, format.place(c.bench, c.attack, c.metric), c.judge, *map(estimate, (c.observed, c.corrected, c.sensitivity, c.specificity)))
         for c in report.corrected],
    )], {}  # fmt: skip
    yield "measured", [table(
        ("arm", "base", "trained on", "who answered", "seeds"),
        [(s.arm, s.base or format.NONE, s.made or "as it is", ", ".join(s.models[:3]) + (" …" if len(s.models) > 3 else ""),
          ", ".join(map(str, s.seeds)) or format.NONE) for s in report.subjects],
    )], {}  # fmt: skip
    yield "stages", [table(("stage", "fingerprint"), list(report.stages.items()))], {}


def _every(report: Report) -> Iterator[Part]:
    """Every number once: over all seeds where there is such a number, else of each seed."""
    pooled = report.table()
    rows: list[Row] = []
    for r in report.results:
        if r.seed is None or place(r) not in pooled:
            e, judge = r.estimate, f"{r.judge} ({r.part})" if r.judge else ""
            bounded = e.best is not None and r.unit == "share"
            bounds = f"{format.number(e.best)} … {format.number(e.worst)}" if bounded else ""
            arm = r.arm if r.seed is None else f"{r.arm}/{r.seed}"
            value = estimate(e, r.unit, where=format.where(r.arm, r.bench, r.attack))._replace(track=None)
            counts = (format.of(e), *(f"{count:,}" for count in (e.unscored, e.truncated)))
            about = format.place(r.bench, r.attack), format.directed(r.metric, r.better), judge
            rows.append((arm, *about, value, *counts, bounds))
    counted = "#n", "#unscored", "#truncated", "#if those went well … badly"
    yield "every", [table(("arm", "benchmark", "metric", "judge", "#value [95 %]", *counted), rows)], {}


def _protocol(report: Report) -> Iterator[Part]:
    rows: list[Row] = [
        (f"{p.bench}{f', version {p.version}' if p.version else ''}", title(p.attack), ", ".join(p.judges), f"{p.prompts:,}",
         f"{p.replies:,}", str(p.seeds), " ".join(f"{k}={v}" for k, v in p.sampling.items()),
         " ".join(filter(None, (p.paper, p.sha256[:12], p.licence))) or p.file or ("a file of yours" if "=" in p.bench else "generated"))
        for p in report.protocols
    ]  # fmt: skip
    titles = "benchmark", "attack", "judges (part)", "#prompts", "#replies", "#seeds", "sampling", "source"
    yield "protocol", [table(titles, rows)], {}
