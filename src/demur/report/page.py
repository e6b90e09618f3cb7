"""report.html: one file that needs nothing else, from a report's sections and a few of the run's traces."""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from demur.judge.base import ABSTAINS
from demur.records import Finding, Trace, Verdict
from demur.report import figures, format
from demur.report.data import Report, run_names
from demur.report.format import passages, visible
from demur.report.read import arm_seed_bench, bench_name, family, label
from demur.report.sections import TEXTS, sections
from demur.report.tables import STAND_IN, Cell, Table, table, templates
from demur.storage.artifacts import COMMANDS, Artifact, artifacts

SAMPLES = 3  # Traces shown of each kind: enough to see what the numbers are about; the viewer has them all
LIMIT = 6_000  # Characters of a text on the page
Sample = dict[str, Any]  # A trace as the page shows it


def page(report: Report, runs: Sequence[Path]) -> str:
    """The whole page, of the report of some runs."""
    environment = templates()
    environment.globals["ink"] = figures.colour
    prefixes = [f"{name}:" for name in run_names(runs)] if len(runs) > 1 else [""]
    stages, groups = list[Artifact](), list[tuple[str, list[Sample]]]()
    for run, prefix in zip(runs, prefixes, strict=True):
        present = [s for s in artifacts(run) if report.stages.get(prefix + s.manifest.name) == s.manifest.fingerprint]
        stages += present
        groups += samples(present, prefix)
    script = environment.loader.get_source(environment, "report.js")[0]
    return str(environment.get_template("report.html").render(
        report=report, sections=sections(report, _certified(dict(zip(prefixes, runs, strict=True)))), samples=groups, script=script,
        banner=STAND_IN if report.stand_in else "", about=_about(stages, runs),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    ))  # fmt: skip


def _about(stages: Sequence[Artifact], runs: Sequence[Path]) -> str:
    """Version, day and how to make it again: every command since the last `demur run`, which left no earlier stages."""
    versions = sorted({stage.manifest.host.get("demur", "") for stage in stages} - {""})
    last = max(((stage.folder / "manifest.json").stat().st_mtime for stage in stages), default=0.0)
    day = datetime.fromtimestamp(last, UTC).date()
    texts = [f"\n{(run / COMMANDS).read_text()}" for run in runs if (run / COMMANDS).is_file()]
    commands = [line for text in texts for line in "".join(text.rpartition("\ndemur run ")[1:]).strip().splitlines()]
    made_by = "; ".join(commands) or "demur run RUN/study.yaml --out RUN"
    return f"demur {', '.join(versions)} · finished {day} · made by: {made_by}"


def samples(stages: Sequence[Artifact], prefix: str) -> Iterator[tuple[str, list[Sample]]]:
    """A few traces of every distillation that was diagnosed, and of every evaluation of an arm's first training."""
    makers = {stage.manifest.fingerprint: stage for stage in stages}
    first: dict[str, tuple[str, Any]] = {}
    replies: dict[str, list[Sample]] = {}
    for stage in stages:
        source = makers.get(stage.manifest.inputs.get("traces", ""))
        if stage.manifest.kind == "diagnose" and source is not None:
            yield f"{prefix}training traces: {label(source)}", list(_diagnosed(source, stage))
        elif stage.manifest.kind in ("evaluate", "judge") and stage.has("traces"):
            arm, seed, _ = arm_seed_bench(stage)
            if first.setdefault(arm.partition("@")[0], (arm, seed)) == (arm, seed):
                replies.setdefault(prefix + arm, []).extend(_judged(stage, prefix + arm))
    yield from ((f"replies of {arm}", traces) for arm, traces in replies.items())


def _diagnosed(source: Artifact, stage: Artifact) -> Iterator[Sample]:
    """The first traces in which a pattern was found."""
    findings: dict[str, list[Finding]] = {}
    for finding in stage.read("findings", Finding):
        if finding.present and (finding.trace in findings or len(findings) < SAMPLES):
            findings.setdefault(finding.trace, []).append(finding)
    for trace in source.read("traces", Trace) if findings else ():
        if present := findings.get(trace.id):
            yield sample(trace, findings=present, tags=tuple(f.pattern.replace("_", " ") for f in present))


def _judged(stage: Artifact, arm: str) -> Iterator[Sample]:
    """One trace of each label that the stage's judge gave."""
    first: dict[str, Verdict] = {}
    for verdict in stage.read("verdicts", Verdict) if stage.has("verdicts") else ():
        first.setdefault(verdict.label or "cannot tell", verdict)
    wanted = {verdict.trace: verdict for verdict in first.values()}
    for trace in stage.read("traces", Trace) if wanted else ():
        if trace.id in wanted:
            verdict = wanted.pop(trace.id)
            label = (verdict.label or f"cannot tell: {verdict.reason.removeprefix(ABSTAINS)}").replace("_", " ")
            bench, attack = bench_name(stage), family(trace.prompt.attack)
            where = f"arm={arm}&bench={bench}&attack={attack}&trace={trace.id}"
            yield sample(trace, tags=(format.place(bench, attack), label), where=where)
        if not wanted:
            break


def sample(trace: Trace, *, findings: Sequence[Finding] = (), tags: tuple[str, ...] = (), where: str = "") -> Sample:
    """A trace with its findings marked in the text."""
    texts, more = passages(trace, findings, LIMIT)
    return {
        "where": where or f"trace={trace.id}", "tags": (*tags, trace.outcome.replace("_", " ")), **texts, "more": more,
        "prompt": visible(trace.prompt.text[:LIMIT]), "masked": trace.prompt.intent == "harmful",
    }  # fmt: skip


def _certified(runs: Mapping[str, Path]) -> dict[str, list[Table]]:
    """The certificates of `demur check contamination` for the training rows, benchmark by benchmark."""
    rows: list[tuple[Cell | str, ...]] = []
    for prefix, run in runs.items():
        path = run / "contamination.json"
        content = msgspec.json.decode(path.read_bytes()) if path.is_file() else {}
        for name, certificate in content.get("certificates", {}).items():
            removed = f", {certificate['removed']} taken out" if certificate.get("removed") else ""
            for bench in certificate["compared"]:
                held = Cell(f"{bench['rows']} of {certificate['rows']}{removed}", "warn" if bench["rows"] else "")
                rows.append((prefix + name, bench["bench"], held, f"{bench['prompts']:,}"))
    return {"contamination": [table(TEXTS["contamination"][3], rows)]}
