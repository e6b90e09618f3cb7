"""The only formatter: of numbers (intervals, differences, p values, counts), of comparisons in words, of models' texts.

A model's text is cut into pieces by findings, and characters that could act on a reader's terminal or page are made
visible. Escaping is left to the templates.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import urlencode

from demur import stats
from demur.attack import title
from demur.bench.metrics import METRICS
from demur.errors import plural as plural
from demur.records import Estimate, Span, Trace
from demur.records import Finding as PatternFinding
from demur.report.metrics import ALL
from demur.report.tests import ALPHA, Finding, PairedTest
from demur.stats import Difference

NAMES = {  # Metrics whose heading is not their name, beside those that declare one
    "accuracy": "reasoning", "pairs": "pairs told apart", "full_over_refusal": "full refusals alone",
    "no_reply": "no answer", "no_answer": "no final answer", "cut": "truncated",
    "score": "the judge's own score (by rules: the chance that a reply refuses)",
}  # fmt: skip
NONE = "–"


def metric(name: str, better: stats.Better = "neither", unit: str = "") -> str:
    """A metric in words, with its unit and the direction that is better."""
    head, slash, category = name.partition("/")
    known = METRICS.get(head)
    text = NAMES.get(head) or (known.title if known else "") or head.replace("_", " ")
    text += f" · {category.replace('_', ' ')}" if slash else ""
    return f"{text}{unit}{f' ({better} is better)' if better != 'neither' else ''}"


def number(value: float | None, unit: str = "share", *, digits: int = 1) -> str:
    """One number: shares in per cent, one decimal below ten; 0 and 100 are only printed of none and of all."""
    if value is None or unit == "nats":
        return NONE if value is None else "<0.001" if 0 < value < 0.0005 else f"{value:.3f}"
    scaled = 100 * value if unit == "share" else value
    text = f"{scaled:.{digits}f}" if abs(scaled) < 10 and round(scaled, digits) != round(scaled) else f"{scaled:.0f}"
    if unit == "share" and 0 < value < 1 and text in ("0", "100"):
        return "<0.1" if scaled < 0.05 else ">99.9" if scaled >= 99.95 else f"{scaled:.1f}"
    return text


def interval(estimate: Estimate | None, unit: str = "share", *, digits: int = 0) -> str:
    """`4 [2–8]`, or a dash where there is no number."""
    if estimate is None or estimate.value is None or estimate.low is None or estimate.high is None:
        return NONE
    scale = 100 if unit == "share" else 1
    low, value, high = (scale * bound for bound in (estimate.low, estimate.value, estimate.high))
    places = 3 if unit == "nats" else digits
    text = number(estimate.value, unit)
    if not places and not round(low) <= float(text.strip("<>")) <= round(high):
        places = 1  # Rounded bounds would leave the value out
    text = f"{value:.{places}f}" if digits and text[0] not in "<>" else text
    return f"{text} [{low:.{places}f}–{high:.{places}f}]"


def counted(estimate: Estimate | None, unit: str = "share") -> str:
    """`96.7 [94.6–98.0], n=450, 3 unscored`, or why there is no number."""
    if estimate is None or estimate.value is None:
        return f"{NONE} ({estimate.how})" if estimate else NONE
    unscored = f", {estimate.unscored:,} unscored" if estimate.unscored else ""
    return f"{interval(estimate, unit, digits=1 if unit == 'share' else 2)}, n={estimate.n:,}{unscored}"


def of(estimate: Estimate) -> str:
    """`1,200`, or `1,200 of 100 prompts` where there are fewer prompts than replies."""
    prompts = f" of {plural(estimate.clusters, 'prompt')}" if estimate.clusters else ""
    return f"{estimate.n:,}{prompts}"


def signed(value: float | None, unit: str = "share") -> str:
    """A difference with its sign, and a typographic minus."""
    text = NONE if value is None else number(abs(value), unit).replace("<0.1", "0")
    return text if value is None or not text.strip("0.") else f"{'+' if value > 0 else '−'}{text}"


def spread(difference: Difference, unit: str = "share") -> str:
    """`−4 [−18, +10]`."""
    if difference.value is None:
        return NONE
    low, high = (signed(bound, unit) for bound in (difference.low, difference.high))
    return f"{signed(difference.value, unit)} [{low}, {high}]"


def p_value(p: float | None, sign: str = "") -> str:
    """A p value with the digits that matter: `0.031`, `= 0.031`, `< 0.001`."""
    return sign + NONE if p is None else "< 0.001" if p < 0.001 else f"{sign}{p:.3f}" if p < 0.1 else f"{sign}{p:.2f}"


def distance(value: float, unit: str) -> str:
    """A distance with its unit."""
    return f"{value:g} nats" if unit == "nats" else f"{number(value, unit)} {'points' if unit == 'share' else unit}"


def place(bench: str, attacks: str | Sequence[str], name: str = "") -> str:
    """The column of a number in words: the benchmark, its attacks, and the metric `name` where it is given."""
    names = [attacks] if isinstance(attacks, str) else attacks
    under = ", ".join(title(attack) for attack in names if attack != "none")
    where = f"{bench} under {under}" if under else bench
    return f"{where}: {metric(name)}" if name else where


def where(arm: str, bench: str, attacks: str) -> str:
    """The traces behind a number, as the viewer's filters."""
    wanted = {"arm": arm, "bench": bench, "attack": attacks}
    return urlencode({key: value for key, value in wanted.items() if value != ALL})


def verdict(test: PairedTest) -> str:
    """A comparison in words."""
    d = test.difference
    if d.value is None:
        return f"undecided: {d.how}"
    if test.winner:
        words = f"{test.winner} is better by {distance(abs(d.value), test.unit)}"
    elif test.margin is not None:
        held = stats.non_inferior(d, test.margin, better=test.better)
        words = f"{test.a} is {'' if held else 'not shown to be '}not worse than {test.b} by "
        words += f"{distance(test.margin, test.unit)}, the study's margin{'' if held else _needed(test)}"
    else:
        words = f"no difference is shown{_needed(test)}"
    return f"{words}; {test.split}" if test.split else words


def _needed(test: PairedTest) -> str:
    """The difference that this many prompts show in four of five cases, and how many more would show the one seen."""
    d, share = test.difference, test.unit == "share"
    if d.value is None or not d.spread:
        return ""
    if share and test.estimate_a.value == test.estimate_b.value and test.estimate_a.value in (0, 1):
        most = max(-(d.low or 0), d.high or 0)  # Without any difference their spread is unknown
        return f"; alike on all {d.clusters} prompts, which leaves room for at most {distance(most, test.unit)}"
    by_seeds = max(0.0, d.by_seeds)  # The share of the variance that more prompts do not reduce
    fixed, count = by_seeds * d.spread**2 / d.clusters, max(1, test.comparisons)
    spread = d.spread * (1 - by_seeds) ** 0.5
    least = stats.minimum_detectable(spread, d.clusters, comparisons=count, share=share, fixed=fixed)
    text = f"; n={d.clusters} shows {distance(least, test.unit)} or more" if least < 1 or not share else ""
    if d.by_seeds > 0.5:
        return f"{text}; {plural(d.seeds, 'training')} differ more than prompts do: more trainings would decide"
    needed = stats.prompts_needed(d.value, spread, comparisons=count, share=share, fixed=fixed)
    if needed is not None and d.clusters < needed <= 100_000:
        more = needed - d.clusters
        text += f"; {plural(more, 'more prompt')} would show a difference of {distance(abs(d.value), test.unit)}"
    return text


def sentence(test: PairedTest) -> str:
    """A comparison as one line of a summary."""
    d, where = test.difference, place(test.bench, test.attack, test.metric)
    if not test.winner or d.value is None or d.low is None or d.high is None:
        return f"{where}: {test.a} and {test.b}: {verdict(test)}"
    other = test.b if test.winner == test.a else test.a
    near, far = sorted((abs(d.low), abs(d.high)))
    of = "these two checkpoints: " if d.seeds == 1 else ""
    return (
        f"{where}: {of}{test.winner} beats {other} by {number(abs(d.value), test.unit)} points "
        f"[{number(near, test.unit)}–{number(far, test.unit)}], paired, p {p_value(test.p_holm, '= ')} after Holm over "
        f"{plural(test.comparisons, 'comparison')}{f'; {test.split}' if test.split else ''}"
    )


def because(test: PairedTest) -> str:
    """The number that decides a finding's test, or leaves it undecided."""
    d, unit = test.difference, test.unit
    if d.value is None or d.low is None or d.high is None:
        return test.why
    range_, by = f"[{signed(d.low, unit)}, {signed(d.high, unit)}]", distance(test.by, unit)
    if test.outcome == "undecided":
        if test.p_holm is not None and test.p_holm < ALPHA and test.shown:
            return f"{signed(d.value, unit)} is shown, and less than {by}"
        return f"{range_} holds both 0 and {by}" if test.expect != "same" else f"{range_} reaches beyond {by}"
    if (test.outcome == "supported") == (test.expect == "same"):
        return f"{range_} rules out {by}"
    return f"{signed(d.value, unit)}, p {p_value(test.p_holm, '= ')}, at least {by}"


def conclusion(finding: Finding) -> str:
    """A claim with its outcome and the numbers behind it, as one line."""
    numbers = "; ".join(f"{t.a} − {t.b} {spread(t.difference, t.unit)}: {because(t)}" for t in finding.evidence)
    return f"{finding.claim}: {finding.outcome} ({numbers})"


_CONTROLS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_MARKS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)
_TABLE: dict[int, int | str] = {**_CONTROLS, **{code: f"⟨U+{code:04X}⟩" for code in _MARKS}}


class Piece(NamedTuple):
    """Some text, and the names of the findings that it is evidence of."""

    text: str
    names: tuple[str, ...] = ()


def visible(text: str) -> str:
    """Text with control characters and marks of direction replaced by visible signs."""
    return text.translate(_TABLE)


def pieces(text: str, marks: Sequence[tuple[str, Span]], *, limit: int | None = None) -> list[Piece]:
    """A text cut at the borders of spans; spans that overlap share pieces, spans outside the text are ignored."""
    end_of_text = len(text) if limit is None else min(limit, len(text))
    inside = [(name, max(0, s.start), min(s.end, end_of_text)) for name, s in marks if 0 <= s.start < s.end]
    borders = {0, end_of_text}.union(*({start, end} for _, start, end in inside if start < end_of_text))
    result = []
    for start, end in pairwise(sorted(borders)):
        names = tuple(dict.fromkeys(name for name, low, high in inside if low <= start and end <= high))
        result.append(Piece(visible(text[start:end]), names))
    return result


def passages(
    trace: Trace, findings: Sequence[PatternFinding], limit: int | None
) -> tuple[dict[str, list[Piece] | None], int]:
    """Thinking and answer in pieces by their findings, and how many characters a limit leaves out."""
    texts = {"thinking": trace.thinking, "answer": trace.answer}
    marks = [(finding.pattern, span) for finding in findings if finding.present for span in finding.spans]
    parts: dict[str, list[Piece] | None] = {}
    for part, text in texts.items():
        parts[part] = None if text is None else pieces(text, [m for m in marks if m[1].part == part], limit=limit)
    return parts, sum(max(0, len(text or "") - limit) for text in texts.values()) if limit else 0
