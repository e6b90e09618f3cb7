"""From a model's configuration to an open model. A new backend is a class in `config.py` and a line in `BACKENDS`."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from msgspec.structs import replace

from demur import registry
from demur.errors import UserError
from demur.interfaces import Model, Request, Requests, stream
from demur.models.config import Custom, ModelConfig
from demur.models.sampling import Defaults
from demur.records import Failure, Sampling, Trace
from demur.storage.reply_cache import ReplyCache

BACKENDS: dict[str, str] = {
    "Remote": "demur.models.client:open_remote",
    "Served": "demur.models.vllm:open_served",
    "Local": "demur.models.local:open_local",
    "Scripted": "demur.models.scripted:open_scripted",
    "Custom": "demur.models.open:open_custom",
}
"""Class of the configuration -> asynchronous context manager, called as `opener(config, cache=, label=)`."""


@asynccontextmanager
async def open_model(config: ModelConfig, *, cache: ReplyCache | None = None, label: str = "") -> AsyncIterator[Model]:
    """The model of a configuration, ready to answer. Raises UserError: something that it needs is missing.

    Replies are stored in `cache` (`None`: until the model is closed) and counted under `label`, as `PART/STAGE`.
    """
    if lines := config.missing():
        raise UserError("\n".join(f"{config.where}: {line}" for line in lines))
    opener = registry.resolve("backend", type(config).__name__, BACKENDS)
    with contextlib.nullcontext(cache) if cache is not None else ReplyCache(None) as replies:
        async with opener(config, cache=replies, label=label) as model:
            yield model if config.sampling == Defaults() else WithDefaults(model, config.sampling)


class WithDefaults:
    """A model that completes the sampling of each request with the defaults of its configuration."""

    def __init__(self, model: Model, defaults: Defaults) -> None:
        self.identity = model.identity
        self._model, self._defaults = model, defaults

    def check(self, sampling: Sampling) -> None:
        """Check what the model will be asked for, defaults included."""
        self._model.check(self._defaults.complete(sampling))

    async def answer(self, request: Request, *, fresh: bool = False) -> Trace | Failure:
        """The model's reply to the completed request."""
        return await self._model.answer(self._completed(request), fresh=fresh)

    async def answers(self, requests: Requests) -> AsyncIterator[Trace | Failure]:
        """The model's replies to the completed requests."""
        async for result in self._model.answers(self._completed(request) async for request in stream(requests)):
            yield result

    def _completed(self, request: Request) -> Request:
        return replace(request, sampling=self._defaults.complete(request.sampling))


@asynccontextmanager
async def open_custom(config: Custom, *, cache: ReplyCache, label: str) -> AsyncIterator[Model]:
    """The model of a user's own backend."""
    async with config.backend.open(cache=cache, label=label) as model:
        yield model
