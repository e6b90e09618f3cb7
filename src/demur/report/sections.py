"""What a report shows, in its order: sections of tables and drawings, the same for a terminal, a summary and a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import urlencode

from demur.records import Estimate
from demur.report import figures, format
from demur.report.data import Report, place
from demur.report.metrics import ALL, Column
from demur.report.tables import Cell, Head, Section, Table, estimate, heads
from demur.report.tests import PairedTest

OPEN = 0.10
"""Above this distance between best and worst case a number carries a warning."""
STAND_IN = "smoke run: small local models in every part; these numbers say nothing of any real model"
COLLAPSED = 0.5
"""Below this share of the untrained arm's answer length answers have collapsed."""


def where(arm: str, column: Column) -> str:
    """The traces behind a number, as the viewer's filters."""
    wanted = {"arm": arm, "bench": column.bench, "attack": column.attack}
    return urlencode({key: value for key, value in wanted.items() if value != ALL})


def sections(report: Report) -> list[Section]:
    """All that there is to show."""
    made = (
        _measured, _findings, first, _changes, _comparisons, _points, _patterns, _data, _learnability, _lengths, _crossing,
        _tries, _trust, _every, _protocol,
    )  # fmt: skip
    return [section for make in made for section in make(report)]


def _measured(report: Report) -> Iterator[Section]:
    """What was measured."""
    if report.subjects:
        rows: list[tuple[Cell | str, ...]] = [
            (
                s.arm,
                s.base or "–",
                s.made or "as it is",
                ", ".join(s.models[:3]) + (" …" if len(s.models) > 3 else ""),
                _seeds(s.seeds),
            )
            for s in report.subjects
        ]
        table = Table(heads("arm", "base", "trained on", "who answered", "seeds", left=5), rows)
        yield Section("measured", "What was measured", (table,), fold=len(rows) > 1)


def _seeds(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds)) or "–"


def _findings(report: Report) -> Iterator[Section]:
    """The claims that a study puts to the test."""
    rows: list[tuple[Cell | str, ...]] = []
    for one in report.findings:
        for number, test in enumerate(one.evidence):
            head = (
                (one.claim, Cell(one.outcome, "best" if one.outcome == "supported" else "")) if not number else ("", "")
            )
            outcome = "" if len(one.evidence) == 1 else f"{test.outcome}: "
            what = (
                f"{_of(test)}, {test.expect}; {outcome}{format.because(test)}{f'; {test.split}' if test.split else ''}"
            )
            numbers = format.spread(test.difference, test.unit), format.distance(test.by, test.unit)
            rows.append((*head, what, *numbers, format.p_value(test.p_holm), _rests(test)))
    if rows:
        titles = heads("claim", "outcome", "test", "difference [95 %]", "matters from", "p (Holm)", "rests on", left=3)
        count = max(test.comparisons for one in report.findings for test in one.evidence)
        about = (
            "The claims and what decides them were declared in the study. Paired by prompt, over attacks that weigh the same "
            f"unless the study weighs them, seeds and bases. The interval is of one test alone; p is adjusted for all {count}, "
            "and is the larger of two: with trainings, and with bases, as what varies."
        )
        yield Section("findings", "Findings", (Table(titles, rows),), about)


def _of(test: PairedTest) -> str:
    part = f" of the {test.part}" if test.part else ""
    at = format.place(test.bench, test.attack) if test.bench or test.attack else ""
    weights = ", ".join(f"{format.attack(a)} {w:g}" for a, w in test.weights.items())
    weighed = f", weights {weights}" if len(set(test.weights.values())) > 1 else ""
    return f"{test.a} − {test.b}, {format.metric(test.metric)}{part}{f' ({at})' if at else ''}{weighed}"


def _rests(test: PairedTest) -> str:
    d = test.difference
    trained = f"{format.plural(d.seeds, 'training')} on {format.plural(test.bases, 'base')}"
    return format.NONE if d.value is None else trained if test.unit == "nats" else f"{d.n:,} pairs, {trained}"


def columns(report: Report) -> list[Column]:
    """The columns of the first table: what benchmarks call their headline, with the mean of each metric behind it."""
    found: list[Column] = []
    means = {r.metric: c for r in report.results if r.bench == ALL and (c := column_of(place(r), r.better, r.unit))}
    for number, column in enumerate(report.columns):
        found.append(column)
        last = number + 1 == len(report.columns) or report.columns[number + 1].metric != column.metric
        if last and column.metric in means:
            found.append(means[column.metric])
    return found + [means[name] for name in ("no_reply", "thinking_tokens") if name in means]


def column_of(at: tuple[str, ...], better: str, unit: str) -> Column:
    """The column of a number's place."""
    _, bench, attack, metric, judge, part = at
    return Column(bench, attack, metric, judge, part, better, unit)  # type: ignore[arg-type]


def first(report: Report) -> Iterator[Section]:
    """The first table: arms down, headline metrics across."""
    if not report.arms:
        return
    shown, numbers = columns(report), report.table()
    best = {(b.bench, b.attack, b.metric, b.arm) for b in report.best}
    rows: list[tuple[Cell | str, ...]] = []
    for arm in report.arms:
        cells = []
        for column in shown:
            mark = (column.bench, column.attack, column.metric, arm) in best
            cell = estimate(numbers.get((arm, *column[:5])), column.unit, where=where(arm, column), best=mark)
            theirs = report.published.get("|".join((arm, column.bench, column.attack, column.metric)))
            cells.append(cell if theirs is None else cell._replace(text=f"{cell.text} ({format.number(theirs)})"))
        rows.append((Cell(arm, "warn" if arm in report.incoherent else ""), *cells))
    table = Table((Head("arm", number=False), *(_head(report, column, shown) for column in shown)), rows)
    yield Section("results", "Results", (table,), notes=tuple(notes(report)))


def _head(report: Report, column: Column, shown: list[Column]) -> Head:
    """A heading: the metric over all its columns, each with benchmark or attack, judge where several, and replies."""
    same = [other for other in shown if other.metric == column.metric and other.bench != ALL]
    better = f" ({column.better} is better)" if column.better != "neither" else ""
    group = f"{format.metric(column.metric)}{', %' if column.unit == 'share' else ''}{better}"
    if column.bench == ALL:
        return Head("mean" if same else "all benchmarks", group)
    one = len({other[:2] for other in same}) == 1
    parts = [column.bench] if one or len({other.bench for other in same}) > 1 else []
    parts += [format.attack(column.attack)] if column.attack != "none" or not parts else []
    parts += [column.judge] if sum(other[:3] == column[:3] for other in same) > 1 else []
    found = [e for (_, *at), e in report.table().items() if tuple(at) == column[:5]]
    return Head(f"{' '.join(parts)}\nn={max((e.n + e.unscored for e in found), default=0):,}", group)


def notes(report: Report) -> list[str]:
    """What stands under the first table: how far it can be trusted."""
    numbers = report.table()
    found = [(arm, c, numbers[arm, *c[:5]]) for arm in report.arms for c in report.columns if (arm, *c[:5]) in numbers]
    replies = sum(e.n + e.unscored for _, _, e in found)
    cut, unscored = sum(e.truncated for *_, e in found), sum(e.unscored for *_, e in found)
    seeds, judges = (
        max((p.seeds for p in report.protocols), default=1),
        dict.fromkeys(f"{c.judge} ({c.part})" for c in report.columns),
    )
    levels = (", seeds as their own level" if seeds > 1 else "") + (
        f", and {len(report.bases)} bases as theirs" if len(report.bases) > 1 else ""
    )
    text = [
        f"{format.plural(seeds, 'seed')}; 95 % intervals, clustered by prompt{levels}, each of one number alone; n counts replies; "
        f"truncated {_share(cut, replies)}, unscored {_share(unscored, replies)}; "
        f"judge{'' if len(judges) == 1 else 's'}: {', '.join(judges) or 'none'}"
    ]
    text += [
        f"{arm} is garbled in {format.interval(e)} % of replies: read its row with that in mind, it does not speak coherently"
        for arm, e in report.incoherent.items()
    ]
    text += [*_no_answer(report), *_wide(found), *_replies(report)]
    text += [f"{at}: this server's samples do not differ; the replies to a prompt count once" for at in report.alike]
    text += [
        f"{a.a} and {a.b} agree on the {a.part} of {format.interval(a.same)} % of replies, kappa {format.number(a.kappa, 'count', digits=2)}"
        for a in report.agreement
    ]
    if report.published:
        text.append("in brackets: what the paper printed (arXiv 2505.15404 v2), without intervals")
    if report.best:
        text.append("* better than every other arm, paired, p after Holm and interval agree")
    shown = [claim for claim in report.claims if claim.winner or claim.margin is not None]
    text += [format.sentence(claim) for claim in shown]
    if left := len(report.claims) - len(shown):
        others = f"{left} other comparison{'' if left == 1 else 's'}" if shown else format.plural(left, "comparison")
        text.append(f"no difference is shown in {others}; the report says how many prompts would show one")
    return text


def _share(part: int, whole: int) -> str:
    return "0" if not part or not whole else f"{max(0.1, 100 * part / whole):.1f} %"


def _no_answer(report: Report) -> Iterator[str]:
    """Why replies held no answer, over all arms."""
    why: dict[str, int] = {}
    for (_, _, _, metric, *_), e in report.table().items():
        head, _, reason = metric.partition("/")
        if head == "no_reply" and reason:
            why[reason] = why.get(reason, 0) + round((e.value or 0) * e.n)
    if why:
        yield "replies without an answer: " + ", ".join(f"{count:,} {reason}" for reason, count in sorted(why.items()))


def _wide(found: list[tuple[str, Column, Estimate]]) -> Iterator[str]:
    """Where so much was truncated or unscored that the number could be quite another one: one line for all like it."""
    groups: dict[str, list[str]] = {}
    for arm, column, e in found:
        if e.best is not None and e.worst is not None and abs(e.worst - e.best) > OPEN:
            low, high = (format.number(bound) for bound in sorted((e.best, e.worst)))
            at = f"{arm}, {format.place(column.bench, column.attack, column.metric)}"
            groups.setdefault(f"the rate lies between {low} and {high} whatever they held", []).append(
                f"{at} ({e.truncated + e.unscored} of {e.n + e.unscored})"
            )
    for what, places in groups.items():
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        yield f"truncated or unscored, so that {what}: {'; '.join(places[:3])}{more}"


def _replies(report: Report) -> Iterator[str]:
    """How much of the replies is thinking, and whose answers have collapsed."""

    def of(arm: str, metric: str) -> float:
        return next(
            (e.value or 0.0 for at, e in report.table().items() if (at[0], at[1], at[3]) == (arm, ALL, metric)), 0.0
        )

    lengths = {arm: (of(arm, "thinking_tokens"), of(arm, "answer_tokens")) for arm in report.arms}
    shares = [f"{arm} {100 * t / (t + a):.0f} %" for arm, (t, a) in lengths.items() if t + a]
    if shares and len(shares) <= 12:
        yield f"tokens that are thinking: {', '.join(shares)}"
    raw = next((claim.b for claim in report.changes), "")
    if raw and lengths[raw][1]:
        short = {arm: a / lengths[raw][1] for arm, (_, a) in lengths.items() if a < COLLAPSED * lengths[raw][1]}
        if short:
            yield (
                f"answers are shorter than {raw}'s: "
                + ", ".join(f"{arm} {100 * s:.0f} %" for arm, s in short.items())
                + " of its length"
            )


def comparison(tests: Sequence[PairedTest]) -> Table:
    """Comparisons as rows."""
    several = {t.bench for t in tests if len({o.metric for o in tests if o.bench == t.bench}) > 1}
    rows: list[tuple[Cell | str, ...]] = []
    for t in tests:
        at = format.place(t.bench or "all", t.attack, t.metric if t.bench in several or not t.bench else "")
        about = (
            f"{t.difference.how}; A {format.counted(t.estimate_a, t.unit)}; B {format.counted(t.estimate_b, t.unit)}"
        )
        sides = f"{t.a} {format.interval(t.estimate_a, t.unit)}", f"{t.b} {format.interval(t.estimate_b, t.unit)}"
        words = Cell(format.verdict(t), "best" if t.winner else "")
        rows.append(
            (
                f"{at}, n={t.difference.clusters:,}",
                *sides,
                Cell(format.spread(t.difference, t.unit), about=about),
                format.p_value(t.p_holm),
                words,
            )
        )
    titles = ("benchmark, prompts", "A", "B", "A − B [95 %]", "p (Holm)", "in words")
    return Table(tuple(Head(title, number=title in titles[1:5]) for title in titles), rows)


def _comparisons(report: Report) -> Iterator[Section]:
    if report.claims:
        about = (
            "Of the same questions, paired by prompt. The interval is of one comparison alone; p is exact and adjusted by Holm's "
            f"method for all {report.claims[0].comparisons}. A winner is named where both agree."
        )
        yield Section("comparisons", "Comparisons", (comparison(report.claims),), about)


def _changes(report: Report) -> Iterator[Section]:
    """Gain and cost of training."""
    if report.changes:
        raw, metrics = report.changes[0].b, list(dict.fromkeys(t.metric for t in report.changes))
        found = {(t.a, t.metric): t for t in report.changes}
        rows: list[tuple[Cell | str, ...]] = []
        for arm in dict.fromkeys(t.a for t in report.changes):
            own = [found.get((arm, metric)) for metric in metrics]
            cells = [
                Cell(format.spread(t.difference, t.unit), "best" if t.winner == arm else "", format.verdict(t))
                if t
                else ""
                for t in own
            ]
            rows.append((arm, *cells))
        table = Table(heads("arm", *(f"{format.metric(metric)}, points" for metric in metrics)), rows)
        yield Section(
            "changes",
            f"What training changed, against {raw}",
            (table,),
            "Paired by prompt, over all attacks and benchmarks of a metric, each weighing the same.",
        )


def _points(report: Report) -> Iterator[Section]:
    """Safety against what it costs."""
    drawn = tuple(figures.pareto(report, columns(report)))
    if drawn:
        yield Section(
            "pareto",
            "Safety against its cost",
            figures=drawn,
            about="Down is safer. Lines are 95 % intervals; arms on the dotted line are beaten by none in both.",
        )


def _patterns(report: Report) -> Iterator[Section]:
    """Failure patterns of traces, and what else detectors measure."""
    tables = []
    rows: list[tuple[Cell | str, ...]] = [
        (r.traces, f"{r.pattern.replace('_', ' ')}{'' if r.kind == 'pattern' else ' (class)' if r.kind == 'class' else ' pattern'}",
         estimate(r.before), estimate(r.after), f"{r.before.n:,}", f"{r.before.unscored:,}", r.detector)
        for r in report.patterns
    ]  # fmt: skip
    if rows:
        tables.append(
            Table(
                (
                    *heads("traces", "pattern", "before the filter, %", "after, %", "n", "undecided", left=2),
                    Head("detector", number=False),
                ),
                rows,
            )
        )
    more: list[tuple[Cell | str, ...]] = [
        (name, key.replace("_", " "), format.interval(e, "count", digits=2), f"{e.n:,}")
        for name, own in report.measures.items()
        for key, e in own.items()
    ]
    if more:
        tables.append(
            Table(heads("traces", "measure", "mean [95 %]", "n", left=2), more, "what else is measured, a trace")
        )
    if tables:
        yield Section(
            "patterns",
            "Failure patterns in the traces",
            tuple(tables),
            "Of traces of harmful prompts; 95 % intervals of sampling alone, clustered by prompt, which say nothing of the detector's own errors.",
        )


def _data(report: Report) -> Iterator[Section]:
    """From prompts to training rows."""
    tables = []
    for name, label, own in (
        ("what became of the teacher's replies", "strategy", report.funnels),
        ("repairs", "traces", report.repairs),
    ):
        keys = list(dict.fromkeys(key for counts in own.values() for key in counts))
        rows: list[tuple[Cell | str, ...]] = [
            (n, *(f"{counts.get(key, 0):,}" for key in keys)) for n, counts in own.items()
        ]
        tables += [Table(heads(label, *(key.replace("_", " ") for key in keys)), rows, name)] if rows else []
    keys = list(dict.fromkeys(key for mix in report.mixes.values() for row in mix for key in row if key != "share"))
    rows = [
        (arm if not number else "", str(row["share"]), *(str(row.get(key, "")) for key in keys))
        for arm, mix in report.mixes.items()
        for number, row in enumerate(mix)
    ]
    if rows:
        tables.append(Table(heads("arm", "share", *(key.replace("_", " ") for key in keys), left=2), rows, "mixes"))
    if tables:
        held = (
            "What was kept and is not given to a mix was held out to measure learnability on." if report.learnt else ""
        )
        yield Section("data", "From prompts to training rows", tuple(tables), held)


def _learnability(report: Report) -> Iterator[Section]:
    """Losses while training, and of rows held out."""
    rows: list[tuple[Cell | str, ...]] = [
        (r.part, r.arm if r.seed is None else f"{r.arm}/{r.seed}", str(r.rows), f"{r.distance:.2f} ({r.distance_sequence:.1f})",
         f"{r.end:.3f} ({r.end_sequence:.2f})", f"{r.target:.3f}", f"{r.steps:,}", f"{r.tokens:,}")
        for r in report.learnt
    ]  # fmt: skip
    titles = heads(
        "part", "arm", "rows", "before training", "at the end", "target", "steps to it", "tokens to it", left=2
    )
    drawn = tuple(figures.curves(report))
    if rows or drawn:
        about = (
            "Loss in nats a response token (in brackets a whole response), on rows held out of training. The target is the loss "
            "that the slowest arm ended with: the question is who got there sooner."
        )
        yield Section(
            "learnability", "Learnability", (Table(titles, rows),) if rows else (), about if rows else "", figures=drawn
        )


def _lengths(report: Report) -> Iterator[Section]:
    rows: list[tuple[Cell | str, ...]] = [
        (r.traces, *(f"{r.quantiles[q]:,.0f}" for q in (1, 5, 10, 15, 19)), f"{r.n:,}") for r in report.lengths
    ]
    if rows:
        titles = heads("traces", "5 %", "25 %", "median", "75 %", "95 %", "n")
        yield Section(
            "lengths",
            "How long is thought",
            (Table(titles, rows),),
            "Tokens of thinking, over all benchmarks; so many per cent of the traces think less.",
            fold=True,
        )


def _crossing(report: Report) -> Iterator[Section]:
    rows: list[tuple[Cell | str, ...]] = [
        (
            c.arm,
            format.place(c.bench, c.attack),
            c.judge,
            c.thinking,
            c.answer,
            c.name.replace("_", " "),
            estimate(c.estimate),
        )
        for c in report.crossing
    ]
    if rows:
        titles = heads("arm", "benchmark", "judge", "thinking", "answer", "called", "share, %", left=6)
        yield Section(
            "crossing",
            "Thinking × answer",
            (Table(titles, rows),),
            "Both judged apart, crossed. Unsafe thinking with a safe answer is a leak; the reverse an inconsistency.",
        )


def _tries(report: Report) -> Iterator[Section]:
    drawn = tuple(figures.attempts(report))
    if drawn:
        yield Section(
            "tries",
            "Attempts",
            figures=drawn,
            about="Share of questions that at least one of so many attempts got through to.",
        )


def _trust(report: Report) -> Iterator[Section]:
    rows: list[tuple[Cell | str, ...]] = [
        (a.part, f"{a.a} and {a.b}", estimate(a.same), format.number(a.kappa, "count", digits=2))
        for a in report.agreement
    ]
    if rows:
        yield Section(
            "agreement",
            "How far judges agree",
            (Table(heads("part", "judges", "agree, %", "kappa", left=2), rows),),
            "A refusal judge and a harm judge are compared on harmful prompts: served counts as unsafe.",
        )


def _every(report: Report) -> Iterator[Section]:
    """Every number once: over all seeds where there is such a number, else of each seed."""
    pooled = report.table()
    rows: list[tuple[Cell | str, ...]] = []
    for r in report.results:
        if r.seed is None or place(r) not in pooled:
            at = where(r.arm, column_of(place(r), r.better, r.unit))
            e, judge = r.estimate, f"{r.judge} ({r.part})" if r.judge else ""
            bounds = (
                f"{format.number(e.best)} … {format.number(e.worst)}"
                if e.best is not None and r.unit == "share"
                else ""
            )
            arm = r.arm if r.seed is None else f"{r.arm}/{r.seed}"
            rows.append(
                (
                    arm,
                    format.place(r.bench, r.attack),
                    format.metric(r.metric),
                    judge,
                    estimate(e, r.unit, where=at)._replace(track=None),
                    f"{e.n:,}",
                    f"{e.unscored:,}",
                    f"{e.truncated:,}",
                    bounds,
                )
            )
    if rows:
        titles = heads(
            "arm",
            "benchmark",
            "metric",
            "judge",
            "value [95 %]",
            "n",
            "unscored",
            "truncated",
            "if those went well … badly",
            left=4,
        )
        yield Section(
            "every",
            "Every number",
            (Table(titles, rows),),
            "All of them are in results.csv beside this page.",
            fold=True,
        )


def _protocol(report: Report) -> Iterator[Section]:
    rows: list[tuple[Cell | str, ...]] = [
        (f"{p.bench}{f', version {p.version}' if p.version else ''}", format.attack(p.attack), ", ".join(p.judges), f"{p.prompts:,}", f"{p.replies:,}",
         str(p.seeds), " ".join(f"{k}={v}" for k, v in p.sampling.items()), " ".join(filter(None, (p.paper, p.sha256[:12], p.licence))) or "generated")
        for p in report.protocols
    ]  # fmt: skip
    titles = ("benchmark", "attack", "judges (part)", "prompts", "replies", "seeds", "sampling", "source")
    if rows:
        yield Section("protocol", "Protocol", (Table(tuple(Head(t, number=t in titles[3:6]) for t in titles), rows),))
    marks: list[tuple[Cell | str, ...]] = list(report.stages.items())
    yield Section(
        "stages",
        "Every stage, with the fingerprint of all that made it",
        (Table(heads("stage", "fingerprint", left=2), marks),),
        fold=True,
    )
