"""Many conversations that ask one model at the same time, each waiting for its own reply only.

A `Model` answers a stream of requests in any order; here that stream is fed by whoever asks next, and replies find their
way back by the id of the request's prompt. A server gets questions as they come. A local model answers only once it has
the complete list, so it gets what has gathered while it was at work, again and again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from demur.errors import WorkError
from demur.interfaces import Model, Request
from demur.records import Failure, Trace

GATHER = 0.02
"""Seconds that a local model waits for more questions after the first: conversations move on together."""


class Desk:
    """One model's. Ids of prompts must differ between questions that are open at the same time; use it in `async with`.

    What ends the model's answers (its server is down) ends every open and later question with the same error.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._asked: asyncio.Queue[Request | None] = asyncio.Queue()
        self._waiting: dict[str, asyncio.Future[Trace | Failure]] = {}

    async def __aenter__(self) -> Desk:
        self._reader = asyncio.create_task(self._read())
        self._reader.add_done_callback(self._ended)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._asked.put_nowait(None)
        self._reader.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await self._reader

    async def ask(self, request: Request) -> Trace | Failure:
        """The reply to one request."""
        if self._reader.done():
            raise self._why()
        assert request.prompt.id not in self._waiting, "two open questions of one id"
        future: asyncio.Future[Trace | Failure] = asyncio.get_running_loop().create_future()
        self._waiting[request.prompt.id] = future
        self._asked.put_nowait(request)
        return await future

    async def _feed(self) -> AsyncIterator[Request]:
        while (request := await self._asked.get()) is not None:
            yield request

    async def _gathered(self) -> AsyncIterator[list[Request]]:
        while (request := await self._asked.get()) is not None:
            await asyncio.sleep(GATHER)
            found = [request]
            while not self._asked.empty():
                if (more := self._asked.get_nowait()) is None:
                    return
                found.append(more)
            yield found

    async def _read(self) -> None:
        if getattr(self._model, "complete_first", False):
            async for requests in self._gathered():
                await self._tell(self._model.answers(requests))
        else:
            await self._tell(self._model.answers(self._feed()))

    async def _tell(self, replies: AsyncIterator[Trace | Failure]) -> None:
        async for reply in replies:
            future = self._waiting.pop(reply.prompt.id)
            if not future.done():
                future.set_result(reply)

    def _ended(self, _: asyncio.Task[None]) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(self._why())

    def _why(self) -> BaseException:
        """Why the model answers no more."""
        error = None if self._reader.cancelled() else self._reader.exception()
        return error or WorkError(
            f"{self._model.identity} stopped answering. What came is kept; run the same command again."
        )
