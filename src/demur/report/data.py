"""What a report says, before anyone lays it out: numbers and words, a pure function of a run's stages.

Times, hosts and places are no part of it, so equal stages give equal bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from demur.records import Estimate, Record, Result
from demur.report import training
from demur.report.agreement import Agreement, Crossing, agreement, crossing
from demur.report.metrics import Column, Tries, bench_of, cells, results, tries
from demur.report.patterns import PatternRate, measures, patterns
from demur.report.published import Published, published
from demur.report.read import Run, read
from demur.report.tests import HEADLINES, Best, Finding, PairedTest, best, declared, findings

GARBLED = 0.10
"""Above this share of garbled replies an arm does not speak coherently, and its refusals mean little."""


class Protocol(Record, frozen=True, kw_only=True):
    """How a benchmark was used."""

    bench: str
    version: int | None
    attack: str
    judges: tuple[str, ...]
    prompts: int
    replies: int
    seeds: int
    sampling: dict[str, Any] = {}
    paper: str = ""
    sha256: str = ""


class Report(Record, frozen=True, kw_only=True):
    """All that is known of a run."""

    name: str
    question: str
    stand_in: bool
    arms: tuple[str, ...]
    results: tuple[Result, ...]
    claims: tuple[PairedTest, ...] = ()
    best: tuple[Best, ...] = ()
    findings: tuple[Finding, ...] = ()
    bases: tuple[str, ...] = ()
    """Several bases that every arm was made from; numbers are over all, and of each under `ARM@BASE`."""
    incoherent: dict[str, Estimate] = {}
    """Arms whose replies are garbled more often than `GARBLED`."""
    protocols: tuple[Protocol, ...] = ()
    patterns: tuple[PatternRate, ...] = ()
    measures: dict[str, dict[str, Estimate]] = {}
    """What detectors count a trace besides the patterns, by set of traces."""
    funnels: dict[str, dict[str, int]] = {}
    lengths: tuple[training.Lengths, ...] = ()
    learnability: tuple[training.Curve, ...] = ()
    learnt: tuple[training.Learnability, ...] = ()
    crossing: tuple[Crossing, ...] = ()
    agreement: tuple[Agreement, ...] = ()
    tries: tuple[Tries, ...] = ()
    mixes: dict[str, list[dict[str, Any]]] = {}
    published: tuple[Published, ...] = ()
    stages: dict[str, str] = {}
    """Every stage with its fingerprint."""

    def find(self, arm: str, column: Column, seed: int | None = None) -> Estimate | None:
        """The number of an arm in a column."""
        at = (arm, *column[:5])
        return next((r.estimate for r in self.results if r.seed == seed and _place(r) == at), None)

    @property
    def listed(self) -> list[Result]:
        """Every number once: over all seeds where there is such a number, else of each seed."""
        pooled = {_place(r) for r in self.results if r.seed is None}
        return [r for r in self.results if r.seed is None or _place(r) not in pooled]

    @property
    def columns(self) -> list[Column]:
        """The columns of the first table: each benchmark's own judge, by metric and then as they were measured."""
        seen: dict[tuple[str, str, str], Column] = {}
        for r in self.results:
            if r.seed is None and r.metric in HEADLINES:
                column = Column(r.bench, r.attack, r.metric, r.judge, r.part, r.better)
                seen.setdefault((r.bench, r.attack, r.metric), column)
        return sorted(seen.values(), key=lambda column: HEADLINES.index(column.metric))


def _place(r: Result) -> tuple[str, ...]:
    """Where a number stands: its arm, and what a column is told by."""
    return r.arm, r.bench, r.attack, r.metric, r.judge, r.part


def build(run: Path | Sequence[Path]) -> Report:
    """The report of a run, or of several laid side by side (arms are then named `RUN:arm`)."""
    folders = [run] if isinstance(run, Path) else list(run)
    runs = [read(folder) for folder in folders]
    return of_run(runs[0] if len(runs) == 1 else merged(runs))


def merged(runs: Sequence[Run]) -> Run:
    """Several runs as one."""
    names = [str(run.study.get("name") or run.folder.name) for run in runs]
    if len(set(names)) < len(names):
        names = [run.folder.name for run in runs]
    evaluations = [
        e._replace(arm=f"{name}:{e.arm}") for name, run in zip(names, runs, strict=True) for e in run.evaluations
    ]
    study = {"name": " and ".join(names), "stand_in": any(run.study.get("stand_in") for run in runs)}
    return Run(runs[0].folder, study, [stage for run in runs for stage in run.stages], evaluations)


def of_run(run: Run) -> Report:
    """The report of a run that was read."""
    copies = [e for e in run.evaluations if run.split(e.arm)[1]]
    single, run = run, run.pooled()
    found = cells(run.evaluations)
    numbers = [*results(found), *results(cells(run.evaluations, by_category=True)), *results(cells(copies))]
    blank = Report(
        name=str(run.study.get("name") or "run"),
        question=str(run.study.get("question") or ""),
        stand_in=bool(run.study.get("stand_in")),
        arms=tuple(found),
        results=tuple(numbers),
    )
    incoherent, taken = _incoherent(blank), tuple(training.learnability(single))
    return replace(
        blank,
        claims=tuple(declared(found, blank.columns, run.study.get("compare") or [])),
        best=tuple(best(found, blank.columns)),
        incoherent=incoherent,
        bases=tuple(str(base) for base in run.study.get("bases") or ()),
        findings=tuple(findings(run, found, taken, incoherent)),
        protocols=tuple(_protocols(run)),
        patterns=tuple(patterns(run)),
        measures=measures(run),
        funnels=training.funnels(run),
        lengths=tuple(training.lengths(run)),
        learnability=tuple(training.curves(run)),
        learnt=taken,
        crossing=tuple(crossing(run.evaluations)),
        agreement=tuple(agreement(run.evaluations)),
        tries=tuple(tries(found, blank.columns)),
        mixes=training.mixes(run),
        published=tuple(published(run)),
        stages={stage.manifest.name: stage.manifest.fingerprint for stage in run.stages},
    )


def _incoherent(report: Report) -> dict[str, Estimate]:
    """Arms that are garbled too often, with the worst of their rates."""
    found: dict[str, list[Estimate]] = {}
    for r in report.results:
        mine = r.arm in report.arms and (r.part, r.metric, r.seed) == ("answer", "garbled", None)
        if mine and (r.estimate.value or 0) > GARBLED:
            found.setdefault(r.arm, []).append(r.estimate)
    return {arm: max(rates, key=lambda e: e.value or 0) for arm, rates in found.items()}


def _protocols(run: Run) -> list[Protocol]:
    """How each benchmark was used, over all arms."""
    groups: dict[tuple[str, str], list[Any]] = {}
    for evaluation in run.evaluations:
        groups.setdefault((evaluation.bench, evaluation.attack), []).append(evaluation)
    rows = []
    for (name, attack), members in groups.items():
        bench, settings = bench_of(name), members[0].stage.manifest.settings if members[0].stage else {}
        use = settings["bench"] if isinstance(settings.get("bench"), dict) else {}
        rows.append(
            Protocol(
                bench=name,
                version=bench.version if bench else None,
                attack=attack,
                judges=tuple(dict.fromkeys(f"{j} ({p})" for m in members for j, p in m.judges)),
                prompts=max(len({row.prompt for row in m.rows}) for m in members),
                replies=sum(len(m.rows) for m in members),
                seeds=len({m.seed for m in members if m.seed is not None}) or 1,
                sampling=plain(bench.sampling) | (use.get("sampling") or {}) if bench else {},
                paper=bench.paper if bench else "",
                sha256=bench.sha256 if bench else "",
            )
        )
    return rows


def plain(record: Record) -> dict[str, Any]:
    """A record as plain data, defaults left out."""
    data: dict[str, Any] = msgspec.to_builtins(record)
    return data
