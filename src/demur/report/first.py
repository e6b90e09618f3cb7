"""The first table, arms down and headline metrics across, and the notes under it: how far it can be trusted."""

from collections.abc import Iterable, Iterator, Sequence

from demur.attack import title
from demur.records import Estimate
from demur.report import format
from demur.report.data import Report
from demur.report.metrics import ALL, Column
from demur.report.tables import DOUBT, Cell, Head, Section, Table, doubtful, estimate, plain, templates

COLLAPSED = 0.5  # Below this share of the untrained arm's answer length answers have collapsed


def columns(report: Report) -> list[Column]:
    """What benchmarks call their headline, with the mean of each metric behind it; then no answer and thinking tokens.

    A column without any number is left out. Full refusals of harmless prompts stand beside full and partial ones where there
    are partial ones.
    """
    numbers = report.table()

    def values(column: Column) -> list[float | None]:
        return [numbers[arm, *column[:5]].value for arm in report.arms if (arm, *column[:5]) in numbers]

    every = [Column(r.bench, r.attack, r.metric, r.judge, r.part, r.better, r.unit) for r in report.results]
    means = {column.metric: column for column in every if column.bench == ALL}
    known = [column for column in report.columns if set(values(column)) - {None}]
    found: list[Column] = []
    for column, after in zip(known, (*known[1:], None), strict=False):
        found.append(column)
        if after is None or after.metric != column.metric:
            found += [means[column.metric]] if column.metric in means else []
            both = [one for one in known if one.metric == column.metric == "over_refusal"]
            full = [one._replace(metric="full_over_refusal") for one in both]
            found += [f for f, b in zip(full, both, strict=True) if f in every and values(f) != values(b)]
    return found + [means[name] for name in ("no_reply", "thinking_tokens") if name in means]


def first(report: Report) -> Iterator[Section]:
    """The table with its notes, where anything was measured."""
    if not report.arms:
        return
    shown, numbers = columns(report), report.table()
    most: dict[Column, Estimate] = {}  # of a column the number that rests on the most replies
    for column in shown:
        own = [e for (_, *at), e in numbers.items() if tuple(at) == column[:5]]
        most[column] = max(own, key=lambda e: e.n + e.unscored)
    best = {(b.bench, b.attack, b.metric, b.arm) for b in report.best}
    means = {column.metric for column in shown if column.bench != ALL}  # what else is over all counts replies
    rows: list[tuple[Cell | str, ...]] = []
    for arm in report.arms:
        cells = []
        for column in shown:
            mark, where = (*column[:3], arm) in best, format.where(arm, column.bench, column.attack)
            asked = 0 if column.bench == ALL and column.metric in means else most[column].n + most[column].unscored
            parts = [c for c in shown if not asked and c.metric == column.metric and column.judge in ("", c.judge)]
            doubt = any(doubtful(numbers[at]) for c in parts if (at := (arm, *c[:5])) in numbers)  # a mean's parts'
            cell = estimate(
                numbers.get((arm, *column[:5])), column.unit, where=where, best=mark, asked=asked, doubt=doubt
            )
            theirs = report.published.get("|".join((arm, *column[:3])))
            cells.append(cell if theirs is None else cell._replace(text=f"{cell.text} ({format.number(theirs)})"))
        rows.append((Cell(arm, "warn" if arm in report.incoherent else ""), *cells))
    table = Table((Head("arm", number=False), *(_head(column, most) for column in shown)), rows)
    unscored = any(e.unscored for column in shown for arm in report.arms if (e := numbers.get((arm, *column[:5]))))
    beside = unscored or any(" n=" in plain(cell) for row in rows for cell in row)
    missing = [column for column in report.columns if column not in shown]
    yield Section("results", "", (table,), notes=_notes(report, missing, beside, any(c.bench == ALL for c in shown)))


def _head(column: Column, shown: dict[Column, Estimate]) -> Head:
    """A heading: the metric over all its columns, each with benchmark or attack, judge where several, and replies."""
    same = [other for other in shown if other.metric == column.metric and other.bench != ALL]
    group = format.metric(column.metric, column.better, ", %" if column.unit == "share" else "")
    if column.bench == ALL:
        return Head("mean" if same else "all benchmarks", group)
    one = len({other[:2] for other in same}) == 1
    parts = [column.bench] if one or len({other.bench for other in same}) > 1 else []
    parts += [title(column.attack)] if column.attack != "none" or not parts else []
    parts += [column.judge] if sum(other[:3] == column[:3] for other in same) > 1 else []
    most = shown[column]
    prompts = f", {most.clusters:,} prompts" if most.clusters else ""
    return Head(f"{' '.join(parts)}\nn={most.n + most.unscored:,}{prompts}", group)


def _notes(report: Report, missing: Sequence[Column], beside: bool, mean: bool) -> tuple[str, ...]:
    """What stands under the table, by notes.txt: how far to trust it, what is missing, what else is known."""
    numbers = report.table()
    found = [(arm, c, numbers[arm, *c[:5]]) for arm in report.arms for c in report.columns if (arm, *c[:5]) in numbers]
    once = [(arm, e) for arm, column, e in found if column.metric != "pairs"]  # which are of replies that others count
    why: dict[str, dict[str, int]] = {}  # replies held no answer, arm by arm
    means: dict[str, dict[str, float]] = {}
    for (arm, bench, _, metric, *_), e in numbers.items():
        head, _, reason = metric.partition("/")
        if head == "no_reply" and reason and e.value and arm in report.arms:
            own = why.setdefault(arm, {})
            own[reason] = own.get(reason, 0) + round(e.value * e.n)
        elif bench == ALL:
            means.setdefault(arm, {})[metric] = e.value or 0.0
    every = {a: [means.get(a, {}).get(t, 0.0) for t in ("thinking_tokens", "answer_tokens")] for a in report.arms}
    raw = next((claim.b for claim in report.changes), "")
    usual = every[raw][1] if raw else 0.0
    text = templates().get_template("notes.txt").render(
        report=report, format=format, seeds=max((p.seeds for p in report.protocols), default=1), pairs=len(once) < len(found),
        scored=sum(e.n + e.unscored for _, e in once), truncated=_shares(once, "truncated"), unscored=_shares(once, "unscored"),
        judges=list(dict.fromkeys([f"{c.judge} ({c.part})" for c in report.columns] or [j for p in report.protocols for j in p.judges])),
        missing=[(c, {arm: e for arm, other, e in found if other == c}) for c in missing], why=why, doubts="\n".join(doubts(found)),
        lengths={arm: own for arm, own in every.items() if sum(own)}, raw=raw, beside=beside, mean=mean,
        short={arm: answer / usual for arm, (_, answer) in every.items() if usual and answer < COLLAPSED * usual},
        claims=[claim for claim in report.claims if claim.winner or claim.margin is not None],
    )  # fmt: skip
    return tuple(filter(None, text.split("\n")))


def _shares(found: Iterable[tuple[str, Estimate]], key: str) -> str:
    """What share of the replies was truncated, or could not be scored; of several arms that of each too, the largest first."""
    counts: dict[str, tuple[int, int]] = {"": (0, 0)}  # replies of that kind, and all, of all arms and of each
    for at, e in ((at, e) for arm, e in found for at in ("", arm)):
        part, whole = counts.get(at, (0, 0))
        counts[at] = part + getattr(e, key), whole + e.n + e.unscored
    shares = {arm: 100 * part / whole for arm, (part, whole) in counts.items() if part}
    order = sorted(shares, key=lambda arm: (arm != "", -shares[arm]))
    every, *each = [f"{arm} {max(0.1, shares[arm]):.1f} %".lstrip() for arm in order] or ["0"]
    each += ["others 0"] * (len(each) + 1 < len(counts))
    return every + f" ({', '.join(each)})" * (every != "0" and len(counts) > 2)


def doubts(found: Iterable[tuple[str, Sequence[str], Estimate]]) -> Iterator[str]:
    """Where so much was truncated or unscored that the number could be quite another one, in one line."""
    places = []
    for arm, column, e in found:
        if doubtful(e) and e.best is not None and e.worst is not None:
            low, high = (format.number(bound) for bound in sorted((e.best, e.worst)))
            count = f"{e.truncated} truncated, {e.unscored} unscored of {e.n + e.unscored}"
            places.append(f"{arm}, {format.place(*column[:3])} between {low} and {high} ({count})")
    if places:
        more = f"; and {len(places) - 3} more" if len(places) > 3 else ""
        yield f"{DOUBT} truncated or unscored, so much that a rate lies, whatever they held: {'; '.join(places[:3])}{more}"
