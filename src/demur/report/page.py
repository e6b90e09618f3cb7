"""report.html: one file that needs nothing else, from a report's numbers and a few of the run's traces."""

from __future__ import annotations

import base64
import hashlib
from bisect import insort
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from demur.records import PATTERNS, Finding, Pattern, Trace, Verdict
from demur.report import words
from demur.report.calibrated import corrections
from demur.report.data import Report
from demur.report.figures import figures
from demur.report.marks import Piece, pieces, visible
from demur.report.patterns import label
from demur.report.read import bench_name
from demur.report.tell import heads, lines, notes
from demur.storage.artifacts import Artifact, artifacts
from demur.storage.records_file import project

SAMPLES = 3
"""Traces shown of each stage: enough to see what the numbers are about; the viewer has them all."""
LIMIT = 6_000
"""Characters of a text on the page."""


class Sample(NamedTuple):
    """A trace as the page shows it."""

    title: str
    prompt: str
    thinking: list[Piece]
    answer: list[Piece]
    outcome: str
    tags: tuple[str, ...]
    masked: bool
    more: int
    """Characters left out."""


class Cost(NamedTuple):
    """What a stage's replies took."""

    stage: str
    replies: int
    tokens: int
    cost: float | None


def page(report: Report, runs: Sequence[Path]) -> str:
    """The whole page."""
    environment = html()
    stages = [
        stage
        for run in runs
        for stage in artifacts(run)
        if report.stages.get(stage.manifest.name) == stage.manifest.fingerprint
    ]
    script = environment.loader.get_source(environment, "report.js")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.get_template("report.html")
    return str(
        template.render(
            report=report,
            heads=heads(report),
            lines=lines(report),
            notes=notes(report),
            figures=figures(report),
            samples=samples(stages),
            costs=costs(stages),
            certificates=certificates(runs),
            repaired=[row for run in runs for row in corrections(report, run)] if len(runs) == 1 else [],
            script=script,
            script_hash=digest,
        )
    )


def html() -> Any:
    """The templates' environment: everything that is not marked as ours is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("demur.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["words"] = words
    environment.filters["visible"] = visible
    return environment


def samples(stages: Sequence[Artifact]) -> list[tuple[str, list[Sample]]]:
    """A few traces of every distillation (with findings first) and of every evaluation of an arm's first training."""
    by_mark = {stage.manifest.fingerprint: stage for stage in stages}
    groups: dict[str, list[Sample]] = {}
    first: dict[str, tuple[str, int | None]] = {}
    for stage in stages:
        kind = stage.manifest.kind
        source = by_mark.get(stage.manifest.inputs.get("traces", "")) if kind == "diagnose" else None
        if source is not None:
            groups[f"training traces: {label(source)}"] = list(_diagnosed(source, stage))
        elif kind == "evaluate":
            arm, seed = str(stage.manifest.settings.get("arm")), stage.manifest.settings.get("seed")
            if first.setdefault(arm.partition("@")[0], (arm, seed)) == (arm, seed):
                groups.setdefault(f"replies of {arm}", []).extend(_judged(stage))
    return list(groups.items())


def _diagnosed(source: Artifact, stage: Artifact) -> Iterator[Sample]:
    """Traces in which most was found, different patterns first."""
    best: dict[frozenset[Pattern], list[str]] = {}
    findings = project(stage.folder / "findings.jsonl", Finding, "trace", "pattern", "present")
    for name, group in groupby(findings, key=lambda finding: finding[0]):
        if shown := frozenset(pattern for _, pattern, present in group if present):
            names = best.setdefault(shown, [])
            insort(names, name)
            del names[SAMPLES:]
    chosen: set[str] = set()
    seen: set[str] = set()
    ordered = sorted(
        ((name, shown) for shown, names in best.items() for name in names), key=lambda o: (-len(o[1]), o[0])
    )
    for name, shown in ordered:
        if len(chosen) < SAMPLES and (shown - seen or len(seen) == len(PATTERNS)):
            chosen.add(name)
            seen |= shown
    found: dict[str, list[Finding]] = {}
    for finding in stage.read("findings", Finding) if chosen else ():
        if finding.present and finding.trace in chosen:
            found.setdefault(finding.trace, []).append(finding)
    for trace in source.read("traces", Trace) if chosen else ():
        if trace.id in found:
            tags = tuple(f.pattern.replace("_", " ") for f in found[trace.id])
            yield sample(trace, findings=found[trace.id], tags=tags, title=trace.prompt.category or trace.prompt.source)


def _judged(stage: Artifact) -> Iterator[Sample]:
    """One trace of each label that the stage's judge gave."""
    first: dict[str, Verdict] = {}
    verdicts = stage.read("verdicts", Verdict) if stage.has("verdicts") else iter(())
    for _, group in groupby(verdicts, key=lambda verdict: verdict.trace):
        *_, last = group
        first.setdefault(last.label or "cannot tell", last)
    wanted = {verdict.trace: verdict for verdict in first.values()}
    for trace in stage.read("traces", Trace) if wanted else ():
        if (verdict := wanted.pop(trace.id, None)) is not None:
            tag = verdict.label or f"cannot tell: {verdict.reason}"
            attack = f" under {words.attack(trace.prompt.attack)}" if trace.prompt.attack else ""
            yield sample(trace, tags=(tag.replace("_", " "),), title=f"{bench_name(stage)}{attack}")
        if not wanted:
            break


def sample(trace: Trace, *, findings: Sequence[Finding] = (), tags: tuple[str, ...] = (), title: str = "") -> Sample:
    """A trace with its findings in place."""
    marks = [(f.pattern.replace("_", " "), span) for f in findings for span in f.spans]
    thinking, answer = trace.thinking or "", trace.answer or ""
    return Sample(
        title=title,
        prompt=visible(trace.prompt.text[:LIMIT]),
        thinking=pieces(thinking, [m for m in marks if m[1].part == "thinking"], limit=LIMIT),
        answer=pieces(answer, [m for m in marks if m[1].part == "answer"], limit=LIMIT),
        outcome=trace.outcome,
        tags=tags,
        masked=trace.prompt.intent == "harmful",
        more=max(0, len(thinking) - LIMIT) + max(0, len(answer) - LIMIT),
    )


def certificates(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """What `demur check contamination` certified of a run's training rows, benchmark by benchmark."""
    found = []
    for path in (run / "contamination.json" for run in runs):
        given = msgspec.json.decode(path.read_bytes()) if path.is_file() else {}
        for name, certificate in given.get("certificates", {}).items():
            for one in certificate["compared"]:
                rows = {"rows": one["rows"], "of": certificate["rows"], "removed": certificate.get("removed", 0)}
                found.append({"mix": name, "bench": one["bench"], "prompts": one["prompts"]} | rows)
    return found


def costs(stages: Sequence[Artifact]) -> list[Cost]:
    """Replies, tokens and cost, by stage."""
    found = []
    for stage in stages:
        if stage.manifest.kind in ("distil", "evaluate", "judge", "attack"):
            count, tokens, priced = 0, 0, list[float]()
            for out, cost in project(stage.folder / "traces.jsonl", Trace, "tokens_out", "cost"):
                count += 1
                tokens += out or 0
                priced += [] if cost is None else [cost]
            found.append(Cost(stage.manifest.name, count, tokens, sum(priced) if priced else None))
    return found
