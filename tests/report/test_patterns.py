"""Rates: patterns and classes, before and after the filter; what was not decided is not counted as absent."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.made import publish

from demur.records import CLASSES, PATTERNS, Finding, Intent, Kept, Prompt, Sampling, Trace
from demur.report.patterns import PatternRate, patterns
from demur.report.read import read

Flag = bool | None


def made(number: int, *, intent: Intent = "harmful", strategy: str = "default") -> Trace:
    return Trace(
        prompt=Prompt(text=f"p{number}", intent=intent),
        model="m",
        sampling=Sampling(),
        sent=(),
        raw="",
        thinking="",
        answer="",
        outcome="complete",
        opened_by="model",
        finish="stop",
        strategy=strategy,
    )


def findings(trace: Trace, flags: tuple[Flag, ...]) -> list[Finding]:
    return [Finding(trace=trace.id, pattern=p, present=f, detector="d") for p, f in zip(PATTERNS, flags, strict=True)]


def rates(traces: list[Trace], found: list[Finding], *, kept: list[str] | None = None) -> list[PatternRate]:
    """What a report says of a run with these records."""
    with TemporaryDirectory() as folder:
        records: dict[str, list[Any]] = {"traces": traces}
        if kept is not None:
            records["kept"] = [Kept(trace=name) for name in kept]
        made = publish(Path(folder), "distil-all", "distil", records)
        marks = {"traces": made.manifest.fingerprint}
        publish(Path(folder), "diagnose", "diagnose", {"findings": found}, inputs=marks)
        return list(patterns(read(Path(folder))))


@given(st.lists(st.tuples(*[st.sampled_from([True, False, None])] * 5), min_size=2, max_size=12))
def test_counts_are_those_of_the_findings(rows: list[tuple[Flag, ...]]) -> None:
    traces = [made(i) for i in range(len(rows))]
    found = [f for trace, flags in zip(traces, rows, strict=True) for f in findings(trace, flags)]
    table = {rate.pattern: rate.before for rate in rates(traces, found)}
    assert set(table) == {*PATTERNS, *CLASSES, "any"}
    for index, pattern in enumerate(PATTERNS):
        decided = [flags[index] for flags in rows if flags[index] is not None]
        assert table[pattern].n == len(decided)
        assert table[pattern].unscored == len(rows) - len(decided)
        if len(decided) >= 2:
            assert table[pattern].value == sum(map(bool, decided)) / len(decided)
    for name, members in {**CLASSES, "any": PATTERNS}.items():
        own = [[flags[PATTERNS.index(p)] for p in members] for flags in rows]
        known = [[flag is True for flag in flags] for flags in own if None not in flags]
        decided = [any(flags) for flags in known]
        assert table[name].n == len(decided), "a trace is not counted sooner because a pattern is there"
        if len(decided) >= 2:
            assert table[name].value == sum(map(bool, decided)) / len(decided)
        assert table[name].best == sum(True in flags for flags in own) / len(rows)
        assert table[name].worst == sum(True in flags or None in flags for flags in own) / len(rows)


def test_before_and_after_the_filter_and_by_strategy() -> None:
    traces = [made(i, strategy="default" if i < 4 else "short") for i in range(8)]
    flags = [(False, False, i % 2 == 0, False, False) for i in range(8)]
    found = [f for trace, row in zip(traces, flags, strict=True) for f in findings(trace, row)]
    table = rates(traces, found, kept=[t.id for i, t in enumerate(traces) if i in (0, 2, 4, 5)])
    weak = {r.traces: (r.before.value, r.after and r.after.value) for r in table if r.pattern == "weak_vacillation"}
    assert weak == {"all: default": (0.5, 1.0), "all: short": (0.5, 0.5)}


def test_traces_of_harmless_prompts_are_not_counted() -> None:
    traces = [made(0), made(1), made(2, intent="benign")]
    found = [f for trace in traces for f in findings(trace, (True,) * 5)]
    assert {r.before.n for r in rates(traces, found)} == {2}
