"""Numbers as people read them: in per cent with intervals, and comparisons in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from demur import stats
from demur.attack import title
from demur.records import Estimate
from demur.report.tests import Finding, PairedTest
from demur.stats import Difference

NAMES = {
    "attack_success": "attack success",
    "served": "served (no harm judge)",
    "over_refusal": "over-refusal",
    "accuracy": "reasoning",
    "thinking_tokens": "thinking tokens",
    "full_over_refusal": "full over-refusal",
    "unsafe_on_harmless": "unsafe on harmless",
    "partial_refusal": "partial refusal",
    "no_answer": "no answer",
}
"""Metrics as they stand over columns."""


def name(metric: str) -> str:
    """A metric in words."""
    head, slash, category = metric.partition("/")
    return NAMES.get(head, head.replace("_", " ")) + (f" · {category}" if slash else "")


def attack(text: str) -> str:
    """An attack in words."""
    return title(text)


def number(value: float | None, unit: str = "share") -> str:
    """One number: per cent without sign for shares."""
    if value is None:
        return "–"
    scaled = 100 * value if unit == "share" else value
    return f"{scaled:.1f}" if abs(scaled) < 10 and round(scaled, 1) != round(scaled) else f"{scaled:.0f}"


def interval(estimate: Estimate, unit: str = "share") -> str:
    """`4 [2–8]`, or a dash where there is no number."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "–"
    low, high = _bound(estimate.low, unit), _bound(estimate.high, unit)
    return f"{number(estimate.value, unit)} [{low}–{high}]"


def _bound(value: float, unit: str) -> str:
    return f"{100 * value:.0f}" if unit == "share" else f"{value:.0f}"


def signed(value: float | None, unit: str = "share") -> str:
    """A difference with its sign, typographic minus."""
    if value is None:
        return "–"
    text = number(abs(value), unit)
    return text if text == "0" else f"{'+' if value > 0 else '−'}{text}"


def spread(difference: Difference, unit: str = "share") -> str:
    """`−4 [−18, +10]`."""
    if difference.value is None:
        return "–"
    if unit == "nats":
        low, high = (f"{bound or 0.0:+.3f}".replace("-", "−") for bound in (difference.low, difference.high))
        return f"{difference.value:+.3f} [{low}, {high}]".replace("-", "−")
    scale = 100 if unit == "share" else 1
    low, high = (_whole(scale * (bound or 0.0)) for bound in (difference.low, difference.high))
    return f"{signed(difference.value, unit)} [{low}, {high}]"


def _whole(value: float) -> str:
    rounded = round(value)
    return "0" if rounded == 0 else f"{'+' if rounded > 0 else '−'}{abs(rounded)}"


def p_value(p: float | None) -> str:
    """A p value with as many digits as it deserves."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def column_title(bench: str, attacks: str | Sequence[str], metric: str = "") -> str:
    """What a row of a comparison is about: the benchmark, its attack, and the metric where it has several."""
    under = ", ".join(attack(one) for one in ([attacks] if isinstance(attacks, str) else attacks) if one != "none")
    title = f"{bench} under {under}" if under else bench
    return f"{title}: {name(metric)}" if metric else title


def verdict(claim: PairedTest) -> str:
    """A comparison in words."""
    d = claim.difference
    if d.value is None:
        return f"cannot tell: {d.how}"
    if claim.winner:
        return f"{claim.winner} is better by {difference_of(abs(d.value), claim.unit)}"
    if claim.margin is not None:
        held = stats.non_inferior(d, claim.margin, better=claim.better)
        limit = number(claim.margin, claim.unit)
        if held:
            return f"{claim.a} is not worse than {claim.b} by {limit} points (margin declared in the study)"
        return f"that {claim.a} is not worse by {limit} points could not be shown{_needed(claim)}"
    return f"no difference could be seen{_needed(claim)}"


def _needed(claim: PairedTest) -> str:
    """What the data would have shown, and how much more would be needed."""
    d = claim.difference
    if d.value is None or not d.spread:
        return ""
    shown = stats.minimum_detectable(d.spread, d.clusters)
    text = f"; n={d.clusters} would show {difference_of(shown, claim.unit)}"
    if d.by_seeds > 0.5:
        return f"{text}; the {d.seeds} seeds differ more than the prompts do: more seeds would tell"
    needed = stats.prompts_needed(d.value, d.spread)
    if needed is not None and d.clusters < needed <= 100_000:
        text += f"; {needed:,} prompts would settle it"
    return text


def sentence(claim: PairedTest) -> str:
    """A comparison as one line of a summary."""
    d = claim.difference
    place = column_title(claim.bench, claim.attack, claim.metric)
    if not claim.winner or d.value is None or d.low is None or d.high is None:
        return f"{place}: {claim.a} and {claim.b}: {verdict(claim)}"
    other = claim.b if claim.winner == claim.a else claim.a
    near, far = sorted((abs(d.low), abs(d.high)))
    return (
        f"{place}: {claim.winner} beats {other} by {number(abs(d.value), claim.unit)} points "
        f"[{number(near, claim.unit)}–{number(far, claim.unit)}], paired, p {_p(claim.p_holm)} after Holm over "
        f"{claim.comparisons} comparison{'' if claim.comparisons == 1 else 's'}"
    )


FINDING = ["claim", "in this run", "test", "difference [95 %]", "matters from", "p (Holm)", "rests on"]
"""The head of the table of findings."""


def findings(found: Sequence[Finding]) -> Iterator[tuple[str, ...]]:
    """The rows of that table: one for each test, the claim at the first."""
    for one in found:
        for number, test in enumerate(one.evidence):
            head = (one.claim, one.outcome) if number == 0 else ("", "")
            yield (*head, *tested(test, alone=len(one.evidence) == 1))


def conclusion(found: Finding) -> str:
    """A claim with its outcome and the numbers behind it, as one line."""
    numbers = "; ".join(
        f"{test.a} − {test.b} {spread(test.difference, test.unit)}, p {_p(test.p_holm)}"
        if test.difference.n
        else test.why
        for test in found.evidence
    )
    return f"{found.claim}: {found.outcome} ({numbers})"


def tested(test: PairedTest, *, alone: bool) -> tuple[str, ...]:
    """A test in words: what was compared and expected, its numbers, what they rest on; its outcome unless it is `alone`."""
    where = " ".join(part for part in (test.bench, ", ".join(map(attack, test.attack))) if part)
    part = f" of the {test.part}" if test.part else ""
    said = f"{test.a} − {test.b}, {name(test.metric)}{part}{f' ({where})' if where else ''}, {test.expect}"
    rest = f"{said}: {test.why}" if alone else f"{said}: {test.outcome}, {test.why}"
    d, unit = test.difference, test.unit
    if d.value is None:
        return rest, "–", difference_of(test.by, unit), "–", "–"
    trained = f"{d.seeds} training{'' if d.seeds == 1 else 's'} on {test.bases} base{'' if test.bases == 1 else 's'}"
    on = f"{d.n:,} pairs, {trained}" if unit != "nats" else trained
    return rest, spread(d, unit), difference_of(test.by, unit), p_value(test.p_holm), on


def difference_of(value: float, unit: str) -> str:
    """A distance with its unit."""
    return f"{number(value, unit)} {'points' if unit == 'share' else unit}" if unit != "nats" else f"{value:g} nats"


def _p(p: float | None) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"
