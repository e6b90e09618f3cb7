"""The stages about failure patterns: find them in traces, and mend the traces that show them.

Diagnosing streams: of a trace nothing stays in memory, so that millions fit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import msgspec

from demur.diagnose import open_detector
from demur.interfaces import Detector
from demur.pipeline.run import Task
from demur.pipeline.stages.roles import role
from demur.records import PATTERNS, Estimate, Finding, Trace
from demur.settings import validate
from demur.storage.records_file import RecordFile
from demur.storage.reply_cache import ReplyCache

T = TypeVar("T")


def _traces(task: Task) -> Iterator[Trace]:
    """The traces of the input, in order."""
    for number, trace in enumerate(task.inputs["traces"].read("traces", Trace)):
        if number == task.node.settings.get("limit"):
            return
        yield trace


def _kept(task: Task) -> frozenset[str] | None:
    """Ids that passed the filter, as the distillation says, or whoever imported it; `None` where there was no filter."""
    kept = task.inputs["traces"].manifest.summary.get("kept", task.node.settings.get("kept"))
    return None if kept is None else frozenset(kept)


def diagnose(task: Task) -> None:
    """Find the failure patterns: findings.jsonl, measures.jsonl."""
    from demur.diagnose.measures import Measures, measured

    measures = RecordFile(Measures)
    total = task.inputs["traces"].rows("traces")
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        journal = stack.enter_context(ReplyCache(task.journal))
        try:
            model = runner.run(role(task, "detector", journal, stack))
            detector = open_detector(task.node.settings["name"], models=[model] if model else [])

            def findings() -> Iterator[Finding]:
                for count, (trace, found) in enumerate(_paired(runner, detector, _traces(task)), 1):
                    if detector.english:
                        measures.append(measured(trace))
                    task.progress(count, total, "")
                    yield from found

            present = task.draft.write("findings", _counted(findings(), task.draft.summary))
        finally:
            runner.run(stack.aclose())
    if detector.english:
        task.draft.write("measures", measures)
    count = present // len(PATTERNS)
    task.draft.summary |= {
        "traces": count,
        "detector": detector.name,
    }
    task.draft.summary["line"] = f"{count:,} traces, {task.draft.summary['present']:,} of {present:,} findings"


def _counted(findings: Iterable[Finding], summary: dict[str, Any]) -> Iterator[Finding]:
    """The findings, with how many are present counted on the way."""
    summary["present"] = 0
    for finding in findings:
        summary["present"] += finding.present is True
        yield finding


def _paired(
    runner: asyncio.Runner, detector: Detector, traces: Iterable[Trace]
) -> Iterator[tuple[Trace, tuple[Finding, ...]]]:
    """Traces with their findings, in the order of the traces; held back only where a detector answers out of order."""
    waiting: deque[Trace] = deque()
    early: dict[str, tuple[Finding, ...]] = {}

    def passing() -> Iterator[Trace]:
        for trace in traces:
            waiting.append(trace)
            yield trace

    for found in _drained(runner, detector.findings(passing())):
        early[found[0].trace] = found
        while waiting and waiting[0].id in early:
            trace = waiting.popleft()
            yield trace, early.pop(trace.id)


def _drained(runner: asyncio.Runner, items: AsyncIterator[T]) -> Iterator[T]:
    """An asynchronous iterator, read by a synchronous one."""

    async def following() -> T | None:
        return await anext(items, None)

    while (item := runner.run(following())) is not None:
        yield item


def repair(task: Task) -> None:
    """Mend traces with failure patterns: traces.jsonl to go on with, originals.jsonl, findings.jsonl, actions.jsonl."""
    asyncio.run(_repair(task))


async def _repair(task: Task) -> None:
    from demur.repair.run import repair as run
    from demur.repair.settings import RepairSettings

    plain = task.node.settings
    given = plain["repair"] if "repair" in plain else {"with": plain["with"]}
    settings = validate(RepairSettings, given, where=task.node.name)
    kept = _kept(task)
    traces = [trace for trace in _traces(task) if kept is None or trace.id in kept]
    async with AsyncExitStack() as stack:
        journal = stack.enter_context(ReplyCache(task.journal))
        teacher = await role(task, "teacher", journal, stack)
        model = await role(task, "detector", journal, stack)
        done = await run(
            traces,
            findings=task.inputs["findings"].read("findings", Finding) if "findings" in task.inputs else (),
            settings=settings,
            detector=open_detector(plain["name"], models=[model] if model else []),
            teacher=teacher,
            progress=task.progress,
        )
    for name in ("traces", "originals", "findings", "actions", "failures"):
        task.draft.write(name, getattr(done, name))
    counts = done.audit.counts
    said = ", ".join(f"{count:,} {did}" for did, count in counts.items())
    task.draft.summary |= {"audit": msgspec.to_builtins(done.audit), "counts": counts, "line": said}


def shown(estimate: Estimate, *, scale: float = 100.0) -> str:
    """An estimate for a table cell: value and interval, or a dash."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return f"– (n={estimate.n})"
    places = 1 if scale > 1 else 2
    value, low, high = (f"{x * scale:.{places}f}" for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}–{high}]"
