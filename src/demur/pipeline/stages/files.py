"""Files from outside as stages have them: everything that a loader found, and what a share of a mix draws from."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from demur.mix import example_of, unfit
from demur.mix.settings import ShareSettings
from demur.pipeline.run import Task
from demur.prompts.formats import Odd, load_file
from demur.records import Example, Trace
from demur.storage.artifacts import Artifact
from demur.storage.records_file import RecordFile

T = TypeVar("T")


class Pool(NamedTuple):
    """What a share draws from, and what it cannot."""

    examples: RecordFile[Example]
    left: Counter[str]
    """Reason -> how many traces cannot be trained on."""
    odd: list[Odd]
    """RecordFile of a file that nothing could be made of."""


def import_file(task: Task) -> None:
    """Read a file of any known form: traces, prompts, examples and odd rows, each in a file of its own."""
    settings = task.node.settings
    loaded = load_file(task.files["file"], form=settings.get("form"), intent=settings.get("intent"))
    limit = settings.get("limit")
    rows = {
        "traces": task.draft.write("traces", loaded.traces[:limit]),
        "examples": task.draft.write("examples", loaded.examples[:limit]),
        "prompts": task.draft.write("prompts", loaded.prompts),
        "odd": task.draft.write("odd", loaded.odd),
    }
    counted = ", ".join(f"{rows[kind]:,} {kind}" for kind in ("examples", "traces", "prompts") if rows[kind])
    odd = f", {rows['odd']:,} odd rows kept aside" if rows["odd"] else ""
    task.draft.summary |= rows | {"form": loaded.form, "line": f"{counted} read as {loaded.form}{odd}"}


def pool(source: Path | Artifact, *, share: str, options: ShareSettings, only: set[str] | None = None) -> Pool:
    """What a share draws from, why some of its traces cannot be trained on, and a file's odd rows.

    Args:
        source: a file or folder of any form, or a stage with examples or traces.
        share: name of the share.
        options: its form, intent, and what becomes of replies without thinking.
        only: ids of the traces that count, where a filter chose; examples go by the trace they were made of.
    """
    examples, traces, odd = _read(source, options)
    if only is not None:
        examples = _where(examples, [example.origin.trace in only for example in examples])
        traces = _where(traces, [trace.id in only for trace in traces])
    left: Counter[str] = Counter()
    if options.grade:
        right = asyncio.run(_right(traces))
        left["its final answer is not the gold one"] = len(traces) - len(right)
        traces = _where(traces, [trace.id in right for trace in traces])
    made = RecordFile(Example, examples)
    for trace in traces:
        if reason := unfit(trace, no_thinking=options.no_thinking):
            left[reason] += 1
        else:
            made.append(example_of(trace, share=share))
    return Pool(made, +left, odd)


def _read(source: Path | Artifact, options: ShareSettings) -> tuple[RecordFile[Example], RecordFile[Trace], list[Odd]]:
    """The examples, traces and odd rows of a share's source."""
    if isinstance(source, Artifact):
        examples = source.table("examples", Example) if source.has("examples") else RecordFile(Example)
        return examples, source.table("traces", Trace) if source.has("traces") else RecordFile(Trace), []
    loaded = load_file(source, form=options.form, intent=options.intent)
    return RecordFile(Example, loaded.examples), RecordFile(Trace, loaded.traces), loaded.odd


def _where(rows: RecordFile[T], wanted: list[bool]) -> RecordFile[T]:
    return rows.taken(np.flatnonzero(wanted))


async def _right(traces: Sequence[Trace]) -> set[str]:
    """Ids of the traces whose answer the grader finds equal to the gold one."""
    from demur.judge import open_judge

    return {verdict.trace async for verdict in open_judge("maths").verdicts(traces) if verdict.label == "correct"}
