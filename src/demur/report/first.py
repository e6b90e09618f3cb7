"""The first table, arms down and headline metrics across, and the notes under it: how far it can be trusted."""

from collections.abc import Iterable, Iterator, Sequence

from demur.attack import title
from demur.records import Estimate
from demur.report import format
from demur.report.data import Report
from demur.report.metrics import ALL, Column
from demur.report.tables import DOUBT, Cell, Head, Section, Table, doubtful, estimate, plain

BESIDE = "n in a heading: replies, scored or not; n beside a number: the scored ones, where they are fewer than 10 or than 90 % of those"
MEAN = "mean, all benchmarks: the average over benchmarks and attacks, each of the same weight"
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
    rows: list[tuple[Cell | str, ...]] = []
    for arm in report.arms:
        cells = []
        for column in shown:
            mark, where = (*column[:3], arm) in best, format.where(arm, column.bench, column.attack)
            asked = 0 if column.bench == ALL else most[column].n + most[column].unscored
            cell = estimate(numbers.get((arm, *column[:5])), column.unit, where=where, best=mark, asked=asked)
            theirs = report.published.get("|".join((arm, *column[:3])))
            cells.append(cell if theirs is None else cell._replace(text=f"{cell.text} ({format.number(theirs)})"))
        rows.append((Cell(arm, "warn" if arm in report.incoherent else ""), *cells))
    table = Table((Head("arm", number=False), *(_head(column, most) for column in shown)), rows)
    unscored = any(e.unscored for column in shown for arm in report.arms if (e := numbers.get((arm, *column[:5]))))
    said = [BESIDE] * (unscored or any(" n=" in plain(cell) for row in rows for cell in row))
    said += [MEAN] * any(column.bench == ALL for column in shown)
    yield Section("results", "", (table,), notes=(*notes(report), *said))


def _head(column: Column, shown: dict[Column, Estimate]) -> Head:
    """A heading: the metric over all its columns, each with benchmark or attack, judge where several, and replies."""
    same = [other for other in shown if other.metric == column.metric and other.bench != ALL]
    group = format.directed(column.metric, column.better, ", %" if column.unit == "share" else "")
    if column.bench == ALL:
        return Head("mean" if same else "all benchmarks", group)
    one = len({other[:2] for other in same}) == 1
    parts = [column.bench] if one or len({other.bench for other in same}) > 1 else []
    parts += [title(column.attack)] if column.attack != "none" or not parts else []
    parts += [column.judge] if sum(other[:3] == column[:3] for other in same) > 1 else []
    most = shown[column]
    prompts = f", {most.clusters:,} prompts" if most.clusters else ""
    return Head(f"{' '.join(parts)}\nn={most.n + most.unscored:,}{prompts}", group)


def notes(report: Report) -> list[str]:
    """What stands under the table."""
    numbers = report.table()
    found = [(arm, c, numbers[arm, *c[:5]]) for arm in report.arms for c in report.columns if (arm, *c[:5]) in numbers]
    once = [(arm, e) for arm, column, e in found if column.metric != "pairs"]  # which are of replies that others count
    counts = "no reply is scored"
    if any(e.n + e.unscored for _, e in once):
        counts = ", ".join(f"{key} {_shares(once, key)}" for key in ("truncated", "unscored"))
    of_pairs = " (pairs for pairs told apart)" * (len(once) < len(found))
    seeds, bases = max((p.seeds for p in report.protocols), default=1), len(report.bases)
    levels = ", seeds as their own level" * (seeds > 1) + f", and {bases} bases as theirs" * (bases > 1)
    judges = {f"{c.judge} ({c.part})": 0 for c in report.columns} or {j: 0 for p in report.protocols for j in p.judges}
    text = [
        f"{format.plural(seeds, 'seed')}; 95 % intervals, clustered by prompt{levels}, each of one number alone; n counts replies{of_pairs}; "
        f"{counts}; judge{'' if len(judges) == 1 else 's'}: {', '.join(judges) or 'none'}"
    ]
    text += [
        f"{arm} is garbled in {format.interval(e)} % of replies: read its row with that in mind, it does not speak coherently"
        for arm, e in report.incoherent.items()
    ]
    text += [f"{judge}: {note}" for judge, note in report.judges.items()]
    text += [*_missing(report), *_replies(report, doubts(found)), *report.remarks]
    for a in report.agreement:
        kappa = format.number(a.kappa, "count", digits=2)
        text.append(f"{a.a} and {a.b} agree on the {a.part} of {format.interval(a.same)} % of replies, kappa {kappa}")
    text += ["in brackets: what the paper printed (arXiv 2505.15404 v2), without intervals"] * bool(report.published)
    others = " that is not garbled" * bool(report.incoherent)
    text += [f"* better than every other arm{others}, paired, p after Holm and interval agree"] * bool(report.best)
    shown = [claim for claim in report.claims if claim.winner or claim.margin is not None]
    text += [format.sentence(claim) for claim in shown]
    if left := len(report.claims) - len(shown):
        others = format.plural(left, "other comparison" if shown else "comparison")
        text.append(f"no difference is shown in {others}; the report says how many prompts would show one")
    return text


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


def _missing(report: Report) -> Iterator[str]:
    """Columns that hold no number, and what became of their replies."""
    shown, numbers = columns(report), report.table()
    for column in report.columns:
        if column not in shown:
            own = {arm: e for arm in report.arms if (e := numbers.get((arm, *column[:5]))) is not None}
            said = "{} of {:,} replies, {:,} of them truncated"
            each = {arm: said.format(e.n or "none", e.n + e.unscored, e.truncated) for arm, e in own.items()}
            scored = "; ".join(f"of {arm} {text}" if len(own) > 1 else text for arm, text in each.items())
            few = ": too few for a number" if any(e.n for e in own.values()) else ""
            yield f"not shown, {format.place(*column[:3])}: {column.judge or 'no judge'} scored {scored}{few}"


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


def _replies(report: Report, doubted: Iterable[str]) -> Iterator[str]:
    """Why replies held no answer, which numbers that puts in doubt, how much is thinking, and whose answers have collapsed."""
    why: dict[str, dict[str, int]] = {}
    means: dict[str, dict[str, float]] = {}
    for (arm, bench, _, metric, *_), e in report.table().items():
        head, _, reason = metric.partition("/")
        if head == "no_reply" and reason and e.value and arm in report.arms:
            own = why.setdefault(arm if len(report.arms) > 1 else "", {})
            own[reason] = own.get(reason, 0) + round(e.value * e.n)
        elif bench == ALL:
            means.setdefault(arm, {})[metric] = e.value or 0.0
    each = (f"{arm} {', '.join(f'{n:,} {reason}' for reason, n in sorted(own.items()))}" for arm, own in why.items())
    if why:
        yield "replies without an answer: " + "; ".join(map(str.lstrip, each))
    yield from doubted
    lengths = {
        arm: [means.get(arm, {}).get(f"{part}_tokens", 0.0) for part in ("thinking", "answer")] for arm in report.arms
    }
    known = [(arm, thought, answer) for arm, (thought, answer) in lengths.items() if thought + answer]
    if 0 < len(known) <= 12:
        shares = (f"{arm} {100 * thought / (thought + answer):.0f} %" for arm, thought, answer in known)
        yield f"tokens that are thinking: {', '.join(shares)}"
    raw = next((claim.b for claim in report.changes), "")
    usual = lengths[raw][1] if raw else 0.0
    if short := {arm: answer / usual for arm, (_, answer) in lengths.items() if usual and answer < COLLAPSED * usual}:
        of = ", ".join(f"{arm} {100 * share:.0f} %" for arm, share in short.items())
        yield f"answers are much shorter than {raw}'s: {of} of its length"
