"""What all backends share: from a stored reply to the record that travels on, and many requests over one `answer`."""

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
    """A model made of `answer`: many requests are many calls of it."""

    width = 256  # Most requests at work at the same time

    async def answer(self, request: Request, *, fresh: bool = False) -> Trace | Failure:
        """The reply to one request; see `interfaces.Model`."""
        raise NotImplementedError

    async def answers(self, requests: Requests) -> AsyncIterator[Trace | Failure]:
        """One result a request, as replies come."""
        async with aclosing(answered(requests, self.answer, limit=self.width)) as results:
            async for result in results:
                yield result


def budgets_fit(sampling: Sampling) -> None:
    """Raise `UserError` where the thinking's budget leaves nothing for an answer."""
    budget, most = sampling.thinking_budget, sampling.max_tokens
    if budget is not None and budget >= most:
        raise UserError(f"thinking_budget {budget} leaves nothing of max_tokens {most} for an answer.")


ESTIMATED = "thinking tokens estimated from its share of the characters"
"""The note of a trace whose server counts all new tokens and not those of the thinking."""


def record(
    request: Request, reply: Reply, *, model: str, opened: bool | None = None, family: str = ""
) -> Trace | Failure:
    """What a reply means for its request.

    `model` is the identity of who answered. Where the model's declaration says so, `opened` is whether the prompt opened the
    thinking (else the reply knows), and `family` how it marks its thinking (`thinking.FAMILIES`).
    """
    if reply.failure is not None:
        return Failure(
            prompt=request.prompt, model=model, kind=reply.failure, detail=reply.detail, sample=request.sample
        )
    opened = reply.opened if opened is None else opened
    raw, parts = thinking.from_fields(reply.reasoning, reply.content, finish=reply.finish, opened=opened, family=family)
    notes = (*reply.notes, *parts.notes, *[thinking.AS_TEXT] * (family == "none"))
    tokens_thinking = reply.tokens_thinking
    if tokens_thinking is None and reply.tokens_out is not None and parts.thinking is not None:
        share = len(parts.thinking) / max(1, len(parts.thinking) + len(parts.answer or ""))
        tokens_thinking, notes = round(reply.tokens_out * share), (*notes, ESTIMATED)
    return Trace(
        prompt=request.prompt, model=model, sampling=request.sampling, sent=request.messages, sample=request.sample,
        raw=raw, finish=reply.finish, tokens_in=reply.tokens_in, tokens_out=reply.tokens_out, cost=reply.cost,
        tokens_thinking=tokens_thinking, first_tokens=reply.first_tokens, notes=notes, **thinking.fields(parts),
    )  # fmt: skip


def seed_of(request: Request) -> int:
    """63 bits that belong to this request alone: the same in every batch, every run, on every machine."""
    sampling = request.sampling
    return int(digest([request.messages, sampling.prefill, sampling.seed, request.sample]), 16) >> 1


def asked(request: Request) -> list[object]:
    """What of a request decides its reply: part of the cache's key. How many samples there are in all does not."""
    return [request.messages, msgspec.structs.replace(request.sampling, n=1), request.sample]


def begun(request: Request, opened: bool) -> str:
    """What the reply is begun with. Where the template opens the thinking, it is not opened twice."""
    prefill = request.sampling.prefill or ""
    return prefill.lstrip().removeprefix(thinking.OPEN).lstrip("\n") if opened else prefill


async def answered(
    requests: Iterable[S] | AsyncIterable[S], answer: Callable[[S], Coroutine[Any, Any, T]], *, limit: int
) -> AsyncGenerator[T, None]:
    """Answers to requests as they become ready, at most `limit` at work; requests are drawn only when there is room.

    The first error ends all, after the others at work were cancelled.
    """
    ready: asyncio.Queue[asyncio.Task[T | None]] = asyncio.Queue()
    room = asyncio.Semaphore(limit)
    at_work: set[asyncio.Task[T | None]] = set()

    def start(work: Coroutine[Any, Any, T | None]) -> asyncio.Task[T | None]:
        task = asyncio.create_task(work)
        at_work.add(task)
        task.add_done_callback(finish)
        return task

    def finish(task: asyncio.Task[T | None]) -> None:
        at_work.discard(task)
        ready.put_nowait(task)

    async def feed() -> None:
        async for request in stream(requests):
            await room.acquire()
            start(answer(request))

    feeder = start(feed())
    try:
        while at_work or not ready.empty():
            task = await ready.get()
            result = task.result()
            if task is not feeder:
                yield cast(T, result)
                # Only now may the next be drawn: who reads slowly is not buried.
                room.release()
    finally:
        for task in (unfinished := list(at_work)):
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        while not ready.empty():
            # Nobody will read these; an error among them is not to be reported as forgotten.
            if not (unread := ready.get_nowait()).cancelled():
                unread.exception()
