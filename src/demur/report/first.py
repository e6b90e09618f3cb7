"""The first table, with a row for each arm and a column for each headline metric, and the notes on its reliability."""

from collections.abc import Iterable, Iterator, Sequence

from demur.attack import title
from demur.records import Estimate
from demur.report import format
from demur.report.data import Report
from demur.report.metrics import ALL, Column
from demur.report.tables import DOUBT, Cell, Head, Section, Table, doubtful, estimate, plain, templates

COLLAPSED = 0.5  # Below this share of the untrained arm's answer length answers have collapsed


def columns(report: Report) -> list[Column]:
    """The headline columns that have a number, with means and full refusals; then no answer and thinking tokens."""
    numbers = report.table()

    def values(column: Column) -> list[float | None]:
        return [numbers[arm, *column[:5]].value for arm in report.arms if (arm, *column[:5]) in numbers]

    every = [Column(r.bench, r.attack, r.metric, r.judge, r.part, r.better, r.unit) for r in report.results]
    means = {column.metric: column for column in every if column.bench == ALL}
    known = [column for column in report.columns if set(values(column)) - {None}]
    shown: list[Column] = []
    for column, after in zip(known, (*known[1:], None), strict=False):
        shown.append(column)
        if after is None or after.metric != column.metric:
            shown += [means[column.metric]] if column.metric in means else []
            both = [c for c in known if c.metric == column.metric == "over_refusal"]
            full = [c._replace(metric="full_over_refusal") for c in both]
            shown += [f for f, b in zip(full, both, strict=True) if f in every and values(f) != values(b)]
    return shown + [means[name] for name in ("no_reply", "thinking_tokens") if name in means]


def first(report: Report) -> Iterator[Section]:
    """The table with its notes, where anything was measured."""
    if not report.arms:
        return
    shown, numbers = columns(report), report.table()
    largest: dict[Column, Estimate] = {}  # A column's number with the most replies
    for column in shown:
        estimates = [e for (_, *key), e in numbers.items() if tuple(key) == column[:5]]
        largest[column] = max(estimates, key=lambda e: e.n + e.unscored)
    best = {(b.bench, b.attack, b.metric, b.arm) for b in report.best}
    means = {column.metric for column in shown if column.bench != ALL}  # Of other metrics ALL counts replies
    rows: list[tuple[Cell | str, ...]] = []
    for arm in report.arms:
        cells = []
        for column in shown:
            mark, where = (*column[:3], arm) in best, format.where(arm, column.bench, column.attack)
            most = largest[column]
            asked = 0 if column.bench == ALL and column.metric in means else most.n + most.unscored
            parts = [c for c in shown if not asked and c.metric == column.metric and column.judge in ("", c.judge)]
            doubt = any(doubtful(numbers[key]) for c in parts if (key := (arm, *c[:5])) in numbers)  # Of a mean's parts
            number = numbers.get((arm, *column[:5]))
            cell = estimate(number, column.unit, where=where, best=mark, asked=asked, doubt=doubt)
            printed = report.published.get("|".join((arm, *column[:3])))
            cells.append(cell if printed is None else cell._replace(text=f"{cell.text} ({format.number(printed)})"))
        rows.append((Cell(arm, "warn" if arm in report.incoherent else ""), *cells))
    table = Table((Head("arm", number=False), *(_head(column, largest) for column in shown)), rows)
    unscored = any(e.unscored for column in shown for arm in report.arms if (e := numbers.get((arm, *column[:5]))))
    counted = unscored or any(" n=" in plain(cell) for row in rows for cell in row)
    missing = [column for column in report.columns if column not in shown]
    yield Section("results", "", (table,), notes=_notes(report, missing, counted, any(c.bench == ALL for c in shown)))


def _head(column: Column, largest: dict[Column, Estimate]) -> Head:
    """A heading: metric above; below benchmark or attack, the judge where there are several, and the replies."""
    same = [other for other in largest if other.metric == column.metric and other.bench != ALL]
    group = format.metric(column.metric, column.better, ", %" if column.unit == "share" else "")
    if column.bench == ALL:
        return Head("mean" if same else "all benchmarks", group)
    alone = len({other[:2] for other in same}) == 1
    parts = [column.bench] if alone or len({other.bench for other in same}) > 1 else []
    parts += [title(column.attack)] if column.attack != "none" or not parts else []
    parts += [column.judge] if sum(other[:3] == column[:3] for other in same) > 1 else []
    e = largest[column]
    prompts = f", {e.clusters:,} prompts" if e.clusters else ""
    return Head(f"{' '.join(parts)}\nn={e.n + e.unscored:,}{prompts}", group)


def _notes(report: Report, missing: Sequence[Column], counted: bool, mean: bool) -> tuple[str, ...]:
    """The notes under the table, by notes.txt: how reliable it is, what is missing, what else is known."""
    numbers = report.table()
    cells = [(arm, c, numbers[arm, *c[:5]]) for arm in report.arms for c in report.columns if (arm, *c[:5]) in numbers]
    replies = [(arm, e) for arm, column, e in cells if column.metric != "pairs"]  # Pairs are of the same replies
    reasons: dict[str, dict[str, int]] = {}  # Why replies held no answer: arm -> reason -> replies
    means: dict[str, dict[str, float]] = {}
    for (arm, bench, _, metric, *_), e in numbers.items():
        head, _, reason = metric.partition("/")
        if head == "no_reply" and reason and e.value and arm in report.arms:
            counts = reasons.setdefault(arm, {})
            counts[reason] = counts.get(reason, 0) + round(e.value * e.n)
        elif bench == ALL:
            means.setdefault(arm, {})[metric] = e.value or 0.0
    lengths = {a: [means.get(a, {}).get(t, 0.0) for t in ("thinking_tokens", "answer_tokens")] for a in report.arms}
    raw = next((test.b for test in report.changes), "")
    usual = lengths[raw][1] if raw else 0.0
    names = [f"{c.judge} ({c.part})" for c in report.columns] or [j for p in report.protocols for j in p.judges]
    text = templates().get_template("notes.txt").render(
        report=report, format=format, seeds=max((p.seeds for p in report.protocols), default=1), raw=raw,
        pairs=len(replies) < len(cells), scored=sum(e.n + e.unscored for _, e in replies), counted=counted, mean=mean,
        truncated=_shares(replies, "truncated"), unscored=_shares(replies, "unscored"), reasons=reasons,
        missing=[(c, {arm: e for arm, other, e in cells if other == c}) for c in missing],
        doubts="\n".join(doubts(cells)), lengths={arm: pair for arm, pair in lengths.items() if sum(pair)},
        short={arm: answer / usual for arm, (_, answer) in lengths.items() if usual and answer < COLLAPSED * usual},
        claims=[claim for claim in report.claims if claim.winner or claim.margin is not None],
        judges=list(dict.fromkeys(names)),
    )  # fmt: skip
    return tuple(filter(None, text.split("\n")))


def _shares(replies: Iterable[tuple[str, Estimate]], key: str) -> str:
    """The share of replies that were truncated, or unscored; with several arms also that of each, the largest first."""
    counts: dict[str, tuple[int, int]] = {"": (0, 0)}  # Arm, or "" for all -> replies of that kind, and all
    for name, e in ((name, e) for arm, e in replies for name in ("", arm)):
        part, whole = counts.get(name, (0, 0))
        counts[name] = part + getattr(e, key), whole + e.n + e.unscored
    shares = {arm: 100 * part / whole for arm, (part, whole) in counts.items() if part}
    order = sorted(shares, key=lambda arm: (arm != "", -shares[arm]))
    total, *each = [f"{arm} {max(0.1, shares[arm]):.1f} %".lstrip() for arm in order] or ["0"]
    each += ["others 0"] * (len(each) + 1 < len(counts))
    return total + f" ({', '.join(each)})" * (total != "0" and len(counts) > 2)


def doubts(numbers: Iterable[tuple[str, Sequence[str], Estimate]]) -> Iterator[str]:
    """One line on the numbers, given by arm and column, that truncated or unscored replies could change a lot."""
    places = []
    for arm, column, e in numbers:
        if doubtful(e) and e.best is not None and e.worst is not None:
            low, high = (format.number(bound) for bound in sorted((e.best, e.worst)))
            count = f"{e.truncated} truncated, {e.unscored} unscored of {e.n + e.unscored}"
            places.append(f"{arm}, {format.place(*column[:3])} between {low} and {high} ({count})")
    if places:
        more = f"; and {len(places) - 3} more" if len(places) > 3 else ""
        note = "many replies are truncated or unscored; whatever they held, the rate is"
        yield f"{DOUBT} {note}: {'; '.join(places[:3])}{more}"
