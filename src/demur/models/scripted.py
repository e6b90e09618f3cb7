"""A model that is a function: for tests, stand-ins and the miniature teacher. Same Protocol, same journal, no tokens.

A script is `def script(messages, sampling, rng) -> str`: raw text, tags included, the same for the same request. It counts
words as tokens, so that budgets bind.
"""

from __future__ import annotations

import inspect
import random
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence

from demur import registry
from demur.errors import UserError
from demur.interfaces import Request, Requests
from demur.models import SCRIPTS
from demur.models.config import ModelConfig
from demur.models.replies import asked, chunks, record, rng_of
from demur.records import Failure, Finish, Message, Sampling, Trace, digest
from demur.storage.reply_cache import Reply, ReplyCache, key_of

Script = Callable[[Sequence[Message], Sampling, random.Random], str]
CHUNK = 64
"""Replies of one commit."""
_WORD = re.compile(r"\s*\S+")


def load_script(name: str) -> tuple[Script, str]:
    """A script and its identity, which changes when its module's source does.

    Raises:
        UserError: there is no such script.
    """
    script: Script = registry.resolve("script", name, SCRIPTS)
    module = sys.modules.get(getattr(script, "__module__", ""))
    try:
        source = inspect.getsource(module) if module else ""
    except OSError:
        source = ""
    return script, f"script:{name}@{digest([name, source])[:8]}"


def spoken(script: Script, request: Request) -> tuple[str, Finish, int]:
    """What a script says to a request within its budget: text, why it ended, and the number of words."""
    sampling = request.sampling
    text = (sampling.prefill or "") + script(request.messages, sampling, rng_of(request))
    words = list(_WORD.finditer(text))
    if len(words) <= sampling.max_tokens:
        return text, "stop", len(words)
    return text[: words[sampling.max_tokens - 1].end()], "length", sampling.max_tokens


class ScriptedModel:
    """A `Model` over a script, in this process."""

    def __init__(self, role: ModelConfig, *, journal: ReplyCache, label: str = "") -> None:
        self._script, self.identity = load_script(role.script or "")
        self._role = role
        self._journal = journal
        self._label = label

    def check(self, sampling: Sampling) -> None:
        """Scripts have no notion of a thinking budget."""
        if sampling.thinking_budget is not None:
            raise UserError(f"{self._role.where}: a script keeps no thinking budget; leave thinking_budget out.")

    async def answers(self, requests: Requests) -> AsyncIterator[Trace | Failure]:
        """One trace a request, in the requests' order, committed in chunks."""
        async for chunk in chunks(requests, CHUNK):
            for found in await self._answer(chunk):
                yield found

    async def _answer(self, requests: list[Request]) -> list[Trace | Failure]:
        keys = [key_of([self.identity, *asked(r)]) for r in requests]
        known = {key: reply for key in keys if (reply := self._journal.get(key)) is not None}
        new: dict[bytes, Reply] = {}
        for key, request in zip(keys, requests, strict=True):
            if key not in known and key not in new:
                text, finish, count = spoken(self._script, request)
                sent = sum(len(_WORD.findall(turn.content)) for turn in request.messages)
                new[key] = Reply(content=text, finish=finish, tokens_in=sent, tokens_out=count)
        if new:
            stored = await self._journal.put(new.items(), label=self._label, model=self.identity)
            known.update(zip(new, stored, strict=True))
        return [
            record(request, known[key], model=self.identity, opened=self._role.opens_thinking)
            for key, request in zip(keys, requests, strict=True)
        ]
