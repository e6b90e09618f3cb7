"""What a finished study's scores are without the prompts that its training rows held.

Nothing is asked or judged again: the prompts are those of the stored traces, and the clean score is the full one's records
with the held prompts left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from msgspec.structs import replace

from demur.mix.contamination import Certificate
from demur.records import Example, Failure, Prompt, Record, Result, Trace
from demur.report.metrics import cells, results
from demur.report.read import bench_name, evaluations
from demur.storage.artifacts import Artifact, artifacts


class Beside(Record, frozen=True, kw_only=True):
    """A result over all prompts, and over those that no training row holds."""

    full: Result
    clean: Result | None
    """`None` when no prompt is left."""
    held: int
    """Prompts that some row holds."""


def mixes(run: Path) -> dict[str, list[Example]]:
    """The training rows of a run by arm (by name, for a mix that stands alone)."""
    made = [stage for stage in artifacts(run) if stage.manifest.kind == "mix"]
    return {stage.manifest.name.removeprefix("mix-"): list(stage.read("examples", Example)) for stage in made}


def asked(run: Path, arm: str) -> dict[str, list[Prompt]]:
    """The questions that an arm was scored on, by benchmark."""
    found: dict[str, dict[str, Prompt]] = {}
    for stage in _evaluations(run, arm):
        questions = found.setdefault(bench_name(stage), {})
        for prompt in _prompts(stage):
            key = prompt.parent or prompt.id
            questions[key] = Prompt(text=prompt.question, intent=prompt.intent, id=key)
    return {bench: list(questions.values()) for bench, questions in found.items()}


def beside(run: Path, certificates: Mapping[str, Certificate]) -> list[Beside]:
    """Full and clean results of every evaluation in which some prompt is held by the arm's rows."""
    return [one for arm, certificate in certificates.items() for one in _beside(run, arm, certificate)]


def _beside(run: Path, arm: str, certificate: Certificate) -> Iterable[Beside]:
    for stage in _evaluations(run, arm):
        prompts = {prompt.id: prompt for prompt in _prompts(stage)}
        left = {prompt.id for prompt in certificate.clean_subset(bench_name(stage), prompts.values())}
        if len(left) == len(prompts):
            continue
        every = list(evaluations(stage))
        some = [e._replace(rows=[row for row in e.rows if row.prompt in left]) for e in every]
        clean = {(one.metric, one.attack, one.judge, one.part): one for one in results(cells(some))}
        for full in results(cells(every)):
            key = (full.metric, full.attack, full.judge, full.part)
            yield Beside(
                full=replace(full, seed=stage.manifest.settings.get("seed")),
                clean=clean.get(key),
                held=len(prompts) - len(left),
            )


def _prompts(stage: Artifact) -> Iterator[Prompt]:
    """All that was sent, with a reply or without."""
    yield from (trace.prompt for trace in stage.read("traces", Trace))
    yield from (failure.prompt for failure in stage.read("failures", Failure))


def _evaluations(run: Path, arm: str) -> list[Artifact]:
    return [s for s in artifacts(run) if s.manifest.kind == "evaluate" and s.manifest.settings["arm"] == arm]
