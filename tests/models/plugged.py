"""A model backend in a file of its own, as an outsider writes one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from demur.interfaces import Request
from demur.models.answering import Answering
from demur.records import Failure, Sampling, Trace
from demur.settings import Strict
from demur.thinking import join, traced


class Says(Answering):
    def __init__(self, word: str) -> None:
        self.identity, self._word = f"says:{word}", word

    def check(self, sampling: Sampling) -> None:
        return

    async def answer(self, request: Request, *, fresh: bool = False) -> Trace | Failure:
        text = join("A thought.", self._word)
        return traced(request.prompt, text, model=self.identity, sampling=request.sampling, sent=request.messages)


class Backend(Strict):
    word: str

    @asynccontextmanager
    async def open(self, *, cache: Any, label: str) -> AsyncIterator[Says]:
        yield Says(self.word)
