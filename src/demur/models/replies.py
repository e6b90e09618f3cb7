"""From a stored reply to the record that travels on, the same for every backend; and many requests at once."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from demur import thinking
from demur.errors import UserError
from demur.interfaces import Request, Requests, stream
from demur.records import Failure, Message, Trace, digest
from demur.storage.reply_cache import Reply

T = TypeVar("T")


ESTIMATED = "thinking tokens estimated from its share of the characters"
"""The note of a trace whose server counts all new tokens and not those of the thinking."""


def record(request: Request, reply: Reply, *, model: str, opened: bool | None = None) -> Trace | Failure:
    """What a reply means for its request.

    Args:
        request: what was asked.
        reply: what came.
        model: identity of who answered.
        opened: whether the prompt opened the thinking, where the role says so; else what the reply knows.
    """
    if reply.failure is not None:
        return Failure(
            prompt=request.prompt, model=model, kind=reply.failure, detail=reply.detail, sample=request.sample
        )
    raw, parts = thinking.from_fields(
        reply.reasoning, reply.content, finish=reply.finish, opened=reply.opened if opened is None else opened
    )
    tokens_thinking, notes = reply.tokens_thinking, reply.notes
    if tokens_thinking is None and reply.tokens_out is not None and parts.thinking is not None:
        share = len(parts.thinking) / max(1, len(parts.thinking) + len(parts.answer or ""))
        tokens_thinking, notes = round(reply.tokens_out * share), (*notes, ESTIMATED)
    return Trace(
        prompt=request.prompt,
        model=model,
        sampling=request.sampling,
        sent=request.messages,
        raw=raw,
        thinking=parts.thinking,
        answer=parts.answer,
        outcome=parts.outcome,
        opened_by=parts.opened_by,
        finish=reply.finish,
        sample=request.sample,
        tokens_in=reply.tokens_in,
        tokens_out=reply.tokens_out,
        tokens_thinking=tokens_thinking,
        cost=reply.cost,
        first_tokens=reply.first_tokens,
        notes=notes,
    )


def seed_of(request: Request) -> int:
    """63 bits that belong to this request alone: the same in every batch, every run, on every machine."""
    sampling = request.sampling
    return int(digest([request.messages, sampling.prefill, sampling.seed, request.sample]), 16) >> 1


def rng_of(request: Request) -> random.Random:
    """The random numbers of a request."""
    return random.Random(seed_of(request))


def asked(request: Request) -> list[object]:
    """What of a request decides its reply: part of the journal's key. How many samples there are in all does not."""
    return [request.messages, msgspec.structs.replace(request.sampling, n=1), request.sample]


async def chunks(requests: Requests, size: int) -> AsyncIterator[list[Request]]:
    """Requests in lists of at most `size`, in order. A stream is never waited for while something is at hand."""
    if not isinstance(requests, AsyncIterable):
        source = iter(requests)
        while chunk := list(itertools.islice(source, size)):
            yield chunk
        return
    at_hand: list[Request] = []
    news = asyncio.Event()
    room = asyncio.Semaphore(size)

    async def feed() -> None:
        async for request in requests:
            await room.acquire()
            at_hand.append(request)
            news.set()

    feeder = asyncio.create_task(feed())
    feeder.add_done_callback(lambda _: news.set())
    try:
        while at_hand or not feeder.done():
            await news.wait()
            news.clear()
            chunk, at_hand[:] = at_hand[:], []
            for _ in chunk:
                room.release()
            if chunk:
                yield chunk
        feeder.result()
    finally:
        feeder.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await feeder


async def answered(
    requests: Requests, answer: Callable[[Request], Awaitable[T]], *, limit: int
) -> AsyncGenerator[T, None]:
    """Answers to requests as they become ready, at most `limit` at work; requests are drawn only when there is room.

    The first error ends all, after the others at work were cancelled.
    """
    ready: asyncio.Queue[asyncio.Task[T] | None] = asyncio.Queue()
    room = asyncio.Semaphore(limit)
    at_work: set[asyncio.Task[T]] = set()
    source = stream(requests)

    def finish(task: asyncio.Task[T]) -> None:
        at_work.discard(task)
        ready.put_nowait(task)

    async def feed() -> None:
        try:
            async for request in source:
                await room.acquire()
                task = asyncio.ensure_future(answer(request))
                at_work.add(task)
                task.add_done_callback(finish)
        finally:
            ready.put_nowait(None)

    feeder = asyncio.create_task(feed())
    open_end = True
    try:
        while open_end or at_work or not ready.empty():
            task = await ready.get()
            if task is None:
                open_end = False
                await feeder
                continue
            yield task.result()
            # Only now may the next be drawn: who reads slowly is not buried.
            room.release()
    finally:
        unfinished: list[asyncio.Task[Any]] = [feeder, *at_work]
        for waiting in unfinished:
            waiting.cancel()
        for waiting in unfinished:
            with suppress(asyncio.CancelledError, Exception):
                await waiting
        while not ready.empty():
            # Nobody will read these; an error among them is not to be reported as forgotten.
            if (unread := ready.get_nowait()) is not None and not unread.cancelled():
                unread.exception()


class Template:
    """A chat template read from a file or a tokenizer's folder, rendered in a sandbox."""

    def __init__(self, where: Path) -> None:
        """Read it.

        Raises:
            UserError: there is none.
        """
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        text, self._names = _template_text(where)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        self._template = environment.from_string(text)
        self.hash = digest([text, self._names])

    def render(self, messages: tuple[Message, ...]) -> str:
        """The prompt for these turns, ending where the reply begins."""
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]
        return str(self._template.render(messages=turns, add_generation_prompt=True, **self._names))


def _template_text(where: Path) -> tuple[str, dict[str, str]]:
    """The template and the special tokens that it may name."""
    if where.is_file():
        return where.read_text(encoding="utf-8"), {"bos_token": "", "eos_token": ""}
    settings = where / "tokenizer_config.json"
    loaded = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    names = {}
    for name in ("bos_token", "eos_token"):
        token = loaded.get(name) or ""
        names[name] = token.get("content", "") if isinstance(token, dict) else str(token)
    own = where / "chat_template.jinja"
    text = own.read_text(encoding="utf-8") if own.is_file() else loaded.get("chat_template")
    if not isinstance(text, str):
        raise UserError(
            f"{where} holds no chat template (chat_template.jinja, or chat_template in tokenizer_config.json)."
        )
    return text, names
