"""Asking and judging at the same time: the judges start on the first trace while the model still writes the last.

Results go to disk; memory holds only the requests in flight and the traces that wait for a judge.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from demur.interfaces import Judge, Model, Progress, Request, Requests, quiet, stream
from demur.records import Failure, Trace, Verdict
from demur.storage.records_file import I64, Places, RecordFile, numbers
from demur.thinking import Parsed

AHEAD = 4096  # Most traces that may wait for a judge; beyond that the model waits too


class Flow(NamedTuple):
    """The results, in the order in which they became ready."""

    traces: RecordFile[Trace]
    failures: RecordFile[Failure]
    verdicts: RecordFile[Verdict]
    filed_again: int = 0  # Replies without tags that other replies of the model show to be thinking


async def ask_and_judge(
    model: Model,
    requests: Requests,
    judges: Sequence[Judge] = (),
    *,
    mark: Callable[[Trace], Trace] = lambda trace: trace,
    judged: Callable[[Trace], bool] = lambda trace: True,
    progress: Progress = quiet,
) -> Flow:
    """Ask a model and have every judge read the replies, each from a queue of its own.

    `mark` changes a trace when it arrives, such as to name its strategy; judges see those for which `judged` holds.

    Raises WorkError: too many answers hold a thinking tag that was not recognised.
    """
    flow = Flow(RecordFile(Trace), RecordFile(Failure), RecordFile(Verdict))
    queues: list[asyncio.Queue[Trace | None]] = [asyncio.Queue(AHEAD) for _ in judges]
    parsed = Parsed()
    waiting: dict[tuple[str, int], list[Request]] = {}

    async def remembered() -> AsyncIterator[Request]:
        async for request in stream(requests):
            waiting.setdefault((request.prompt.id, request.sample), []).append(request)
            yield request

    async def ask() -> None:
        async for reply in model.answers(remembered()):
            same = waiting.pop(key := (reply.prompt.id, reply.sample))
            request = same.pop()
            if same:  # the same prompt, asked twice
                waiting[key] = same
            if isinstance(reply, Failure) and reply.kind == "timeout":
                reply = _out_of_time(reply, request)
            if isinstance(reply, Failure):
                flow.failures.append(reply)
            else:
                trace = mark(reply)
                flow.traces.append(trace)
                parsed.add(trace)
                for queue in queues if judged(trace) else ():
                    await queue.put(trace)
            progress(len(flow.traces) + len(flow.failures), None, "")
        for queue in queues:
            await queue.put(None)

    readers = (_judge(judge, queue, flow.verdicts) for judge, queue in zip(judges, queues, strict=True))
    await _together(ask(), *readers)
    parsed.require()
    return flow._replace(filed_again=parsed.filed_again)


def _out_of_time(failure: Failure, request: Request) -> Trace:
    """A timeout as a truncated reply, like one that its budget ended: left out, the longest thoughts would not count."""
    return Trace(
        prompt=failure.prompt, model=failure.model, sampling=request.sampling, sent=request.messages, sample=failure.sample,
        raw="", thinking=None, answer=None, outcome="cut_in_thinking", opened_by=None, finish="timeout",
    )  # fmt: skip


async def _judge(judge: Judge, queue: asyncio.Queue[Trace | None], verdicts: RecordFile[Verdict]) -> None:
    """Have a judge read the traces of its queue, up to `None`."""
    more = True

    async def arriving() -> AsyncIterator[Trace]:
        nonlocal more
        while (trace := await queue.get()) is not None:
            yield trace
        more = False

    async for verdict in judge.verdicts(arriving()):
        verdicts.append(verdict)
    while more:  # a judge that stopped reading early must not block the model
        more = await queue.get() is not None


class _Id(msgspec.Struct, frozen=True, gc=False):
    id: str = ""


class _Row(msgspec.Struct, gc=False):
    """The fields of a trace, failure or verdict that decide its place."""

    prompt: _Id = _Id()
    id: str = ""
    sample: int = 0
    trace: str = ""
    judge: str = ""
    part: str = ""


def in_order(flow: Flow, asked: Iterable[str]) -> Flow:
    """Traces and failures in the order in which the prompts of these ids were asked; verdicts by trace, judge and part."""
    prompts = Places(asked)

    def by_prompt(rows: RecordFile[_Row]) -> I64:
        place = prompts.of(row.prompt.id for row in rows)
        return np.lexsort((numbers(row.sample for row in rows), place))

    traces = flow.traces.take(by_prompt(flow.traces.read_as(_Row)))
    failures = flow.failures.take(by_prompt(flow.failures.read_as(_Row)))
    verdicts = flow.verdicts.read_as(_Row)
    readers = sorted({(verdict.judge, verdict.part) for verdict in verdicts})
    reader = numbers(readers.index((verdict.judge, verdict.part)) for verdict in verdicts)
    place = Places(row.id for row in traces.read_as(_Row)).of(verdict.trace for verdict in verdicts)
    return Flow(traces, failures, flow.verdicts.take(np.lexsort((reader, place))), flow.filed_again)


async def _together(*work: Coroutine[Any, Any, None]) -> None:
    """Run coroutines side by side; the first error ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in work:
                group.create_task(coroutine)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors.exceptions[0].__cause__
