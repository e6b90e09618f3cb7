"""Rates: patterns and classes, before and after the filter; what was not decided is not counted as absent."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.made import publish

from demur.records import CLASSES, PATTERNS, Finding, Intent, Kept, Prompt, Sampling, Trace
from demur.report.patterns import PatternRate, patterns
from demur.report.read import read

Flag = bool | None


def numbered(number: int, *, intent: Intent = "harmful", strategy: str = "default") -> Trace:
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
    """The rates of a run with these records."""
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
    traces = [numbered(i) for i in range(len(rows))]
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
    traces = [numbered(i, strategy="default" if i < 4 else "short") for i in range(8)]
    flags = [(False, False, i % 2 == 0, False, False) for i in range(8)]
    found = [f for trace, row in zip(traces, flags, strict=True) for f in findings(trace, row)]
    table = rates(traces, found, kept=[t.id for i, t in enumerate(traces) if i in (0, 2, 4, 5)])
    weak = {r.traces: (r.before.value, r.after and r.after.value) for r in table if r.pattern == "weak_vacillation"}
    assert weak == {"all: default": (0.5, 1.0), "all: short": (0.5, 0.5)}


def test_traces_of_harmless_prompts_are_not_counted() -> None:
    traces = [numbered(0), numbered(1), numbered(2, intent="benign")]
    found = [f for trace in traces for f in findings(trace, (True,) * 5)]
    assert {r.before.n for r in rates(traces, found)} == {2}


def screened(folder: Path, labels: dict[int, bool]) -> dict[str, PatternRate]:
    """A hundred traces of which the screen flags twenty, some of them labelled by people."""
    traces = [numbered(i) for i in range(100)]
    found = [f for i, trace in enumerate(traces) for f in findings(trace, (i < 20, *(False,) * 4))]
    source = publish(folder, "distil-all", "distil", {"traces": traces})
    publish(
        folder, "diagnose", "diagnose", {"findings": found},
        inputs={"traces": source.manifest.fingerprint}, settings={"detector": "rules"},
    )  # fmt: skip
    (folder / "labels").mkdir()
    rows = [
        {"id": traces[i].id, "by": "a"} | dict.fromkeys(PATTERNS, 0) | {PATTERNS[0]: int(there)}
        for i, there in labels.items()
    ]
    (folder / "labels" / "patterns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {rate.pattern: rate for rate in patterns(read(folder))}


def test_a_screen_prints_no_rate(tmp_path: Path) -> None:
    rate = screened(tmp_path, {})[PATTERNS[0]].before
    assert (rate.value, rate.low, rate.n) == (None, None, 100)
    assert rate.how == "screen: 20 flagged of 100, read them"


def test_labels_of_both_kinds_make_a_rate_of_a_screen(tmp_path: Path) -> None:
    """Half of what it flags is there, and a tenth of what it does not: 0.2 x 0.5 + 0.8 x 0.1."""
    labels = {i: i % 2 == 0 for i in range(10)} | {i: i % 10 == 0 for i in range(20, 60)}
    rate = screened(tmp_path, labels)[PATTERNS[0]].before
    assert rate.value == pytest.approx(0.18)
    assert (rate.low or 0) < 0.12
    assert (rate.high or 1) > 0.26
    assert "20 flagged of 100; from 50 labels" in rate.how


def test_labels_of_what_was_flagged_alone_make_no_rate(tmp_path: Path) -> None:
    rate = screened(tmp_path, dict.fromkeys(range(20), True))[PATTERNS[0]].before
    assert rate.value is None
    assert "label both kinds" in rate.how
