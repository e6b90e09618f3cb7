"""A model that is a Python function, for tests, dry runs and the miniature teacher: same Protocol, same cache.

A script is `def script(messages, sampling, rng) -> str`. It returns raw text with tags, the same for the same request.
Words count as tokens, so that token budgets take effect.
"""

import asyncio
import inspect
import random
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from demur import registry
from demur.errors import UserError
from demur.interfaces import Request
from demur.models import SCRIPTS
from demur.models.answering import Answering, key_fields, record, seed_of
from demur.models.config import Scripted
from demur.records import Failure, Finish, Message, Sampling, Trace, digest
from demur.storage.reply_cache import Reply, ReplyCache, key_of

Script = Callable[[Sequence[Message], Sampling, random.Random], str]
_WORD = re.compile(r"\s*\S+")


def load_script(name: str) -> tuple[Script, str]:
    """A script and its identity, which changes with its module's source. Raises UserError: no such script."""
    script: Script = registry.resolve("script", name, SCRIPTS)
    module = sys.modules.get(getattr(script, "__module__", ""))
    try:
        source = inspect.getsource(module) if module else ""
    except OSError:
        source = ""
    return script, f"script:{name}@{digest([name, source])[:8]}"


def run_script(script: Script, request: Request) -> tuple[str, Finish, int]:
    """A script's reply to a request, within its budget: the text, why it ended, and the number of words."""
    sampling = request.sampling
    text = (sampling.prefill or "") + script(request.messages, sampling, random.Random(seed_of(request)))
    words = list(_WORD.finditer(text))
    if len(words) <= sampling.max_tokens:
        return text, "stop", len(words)
    return text[: words[sampling.max_tokens - 1].end()], "length", sampling.max_tokens


class ScriptedModel(Answering):
    """A `Model` over a script, in this process."""

    def __init__(self, config: Scripted, *, cache: ReplyCache, label: str = "") -> None:
        self._script, self.identity = load_script(config.script)
        self._config, self._cache, self._label = config, cache, label
        self.width = config.in_flight

    def check(self, sampling: Sampling) -> None:
        """Raise `UserError` for a thinking budget, which scripts do not support."""
        if sampling.thinking_budget is not None:
            raise UserError(f"{self._config.where}: a script has no thinking budget; leave thinking_budget out.")

    async def answer(self, request: Request, *, fresh: bool = False) -> Trace | Failure:
        """The script's text for one request."""

        async def ask() -> Reply:
            if self._config.timeout is None:
                text, finish, count = run_script(self._script, request)
            else:
                work = asyncio.to_thread(run_script, self._script, request)
                try:
                    text, finish, count = await asyncio.wait_for(work, self._config.timeout)
                except TimeoutError:
                    return Reply(content="", failure="timeout", detail=f"no reply in {self._config.timeout:g} s")
            words_in = sum(len(_WORD.findall(turn.content)) for turn in request.messages)
            return Reply(content=text, finish=finish, tokens_in=words_in, tokens_out=count)

        key = key_of([self.identity, *key_fields(request)])
        reply = await self._cache.once(key, ask, label=self._label, model=self.identity, fresh=fresh)
        return record(request, reply, model=self.identity, opened=self._config.opens_thinking)


@asynccontextmanager
async def open_scripted(config: Scripted, *, cache: ReplyCache, label: str = "") -> AsyncIterator[ScriptedModel]:
    """The model of a script."""
    yield ScriptedModel(config, cache=cache, label=label)
