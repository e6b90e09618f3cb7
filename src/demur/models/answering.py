"""What all backends share: many requests by one method `answer`, and the trace that a stored reply becomes."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from contextlib import aclosing
from typing import Any, TypeVar, cast

import msgspec

from demur import thinking
from demur.errors import UserError
from demur.interfaces import Request, Requests, stream
from demur.records import Failure, Sampling, Trace, digest
from demur.storage.reply_cache import Reply

S = TypeVar("S")
T = TypeVar("T")


class Answering:
    """The base of a model that implements `answer`: many requests are concurrent calls of it."""

    width = 256  # Most requests in progress at the same time

    async def answer(self, request: Request, *, fresh: bool = False) -> Trace | Failure:
        """The reply to one request; see `interfaces.Model`."""
        raise NotImplementedError

    async def answers(self, requests: Requests) -> AsyncIterator[Trace | Failure]:
        """One result per request, in the order in which replies arrive."""
        async with aclosing(answered(requests, self.answer, limit=self.width)) as results:
            async for result in results:
                yield result


def check_budgets(sampling: Sampling) -> None:
    """Raise `UserError` where the thinking budget leaves no tokens for an answer."""
    budget, most = sampling.thinking_budget, sampling.max_tokens
    if budget is not None and budget >= most:
        raise UserError(f"thinking_budget {budget} leaves nothing of max_tokens {most} for an answer.")


ESTIMATED = "thinking tokens estimated from its share of the characters"
"""Noted on a trace whose server counts its new tokens, but not those of the thinking alone."""


def record(
    request: Request, reply: Reply, *, model: str, opened: bool | None = None, family: str = ""
) -> Trace | Failure:
    """The trace, or the failure, that a reply is for its request.

    Args:
        model: identity of the model that answered.
        opened: whether the prompt opened the thinking; `None`: as the reply says.
        family: how the model marks its thinking, of `thinking.FAMILIES`; empty: detected in the text.
    """
    prompt, sample = request.prompt, request.sample
    if reply.failure is not None:
        return Failure(prompt=prompt, model=model, kind=reply.failure, detail=reply.detail, sample=sample)
    opened = reply.opened if opened is None else opened
    raw, parts = thinking.from_fields(reply.reasoning, reply.content, finish=reply.finish, opened=opened, family=family)
    notes = (*reply.notes, *parts.notes)
    if family == "none":
        notes += (thinking.AS_TEXT,)
    tokens_thinking = reply.tokens_thinking
    if tokens_thinking is None and reply.tokens_out is not None and parts.thinking is not None:
        share = len(parts.thinking) / max(1, len(parts.thinking) + len(parts.answer or ""))
        tokens_thinking = round(reply.tokens_out * share)
        notes += (ESTIMATED,)
    return Trace(
        prompt=prompt, model=model, sampling=request.sampling, sent=request.messages, sample=sample, raw=raw,
        finish=reply.finish, tokens_in=reply.tokens_in, tokens_out=reply.tokens_out, cost=reply.cost,
        tokens_thinking=tokens_thinking, first_tokens=reply.first_tokens, notes=notes, **thinking.fields(parts),
    )  # fmt: skip


def seed_of(request: Request) -> int:
    """A 63-bit seed derived from the request alone: the same in every batch and run, on every machine."""
    sampling = request.sampling
    return int(digest([request.messages, sampling.prefill, sampling.seed, request.sample]), 16) >> 1


def key_fields(request: Request) -> list[object]:
    """What of a request decides its reply, for the cache's key. The total number of samples (`n`) does not."""
    return [request.messages, msgspec.structs.replace(request.sampling, n=1), request.sample]


def prefill_of(request: Request, opened: bool) -> str:
    """The prefill as it is sent: without an opening tag where the template has already opened the thinking."""
    prefill = request.sampling.prefill or ""
    return prefill.lstrip().removeprefix(thinking.OPEN).lstrip("\n") if opened else prefill


async def answered(
    requests: Iterable[S] | AsyncIterable[S], answer: Callable[[S], Coroutine[Any, Any, T]], *, limit: int
) -> AsyncGenerator[T, None]:
    """Yield the answers to requests as they become ready, with at most `limit` in progress.

    A request is taken from `requests` only when there is room for it. The first error cancels the others and is raised.
    """
    ready: asyncio.Queue[asyncio.Task[T | None]] = asyncio.Queue()
    room = asyncio.Semaphore(limit)
    running: set[asyncio.Task[T | None]] = set()

    def start(work: Coroutine[Any, Any, T | None]) -> asyncio.Task[T | None]:
        task = asyncio.create_task(work)
        running.add(task)
        task.add_done_callback(finish)
        return task

    def finish(task: asyncio.Task[T | None]) -> None:
        running.discard(task)
        ready.put_nowait(task)

    async def feed() -> None:
        async for request in stream(requests):
            await room.acquire()
            start(answer(request))

    feeder = start(feed())
    try:
        while running or not ready.empty():
            task = await ready.get()
            result = task.result()
            if task is not feeder:
                yield cast(T, result)
                # Released only after the consumer took the result, so that a slow consumer bounds what is in memory.
                room.release()
    finally:
        for task in (unfinished := list(running)):
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        while not ready.empty():
            # Nobody reads these results; asking for the error keeps asyncio from logging it as never retrieved.
            if not (unread := ready.get_nowait()).cancelled():
                unread.exception()
