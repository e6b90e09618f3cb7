"""From what a user said about a model to one that answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from demur.errors import UserError
from demur.models.config import ModelConfig

if TYPE_CHECKING:
    from demur.interfaces import Model
    from demur.storage.reply_cache import ReplyCache


@asynccontextmanager
async def open_model(role: ModelConfig, *, journal: ReplyCache | None = None, label: str = "") -> AsyncIterator[Model]:
    """The model behind a role, ready to answer.

    Args:
        role: what the user said.
        journal: where replies are kept; `None`: for this use only.
        label: `ROLE/STAGE`, under which requests are counted.

    Raises:
        UserError: something the role needs is missing.
    """
    if lacks := role.missing():
        raise UserError("\n".join(f"{role.where}: {line}" for line in lacks))
    from demur.storage.reply_cache import ReplyCache

    if journal is None:
        with ReplyCache(None) as own:
            async with open_model(role, journal=own, label=label) as model:
                yield model
    elif role.script:
        from demur.models.scripted import ScriptedModel

        yield ScriptedModel(role, journal=journal, label=label)
    elif role.url:
        from demur.models.client import endpoint

        async with endpoint(role.model_copy(update={"url": role.urls}), journal=journal, label=label) as model:
            yield model
    elif role.serve:
        from demur.models.client import endpoint
        from demur.models.vllm import served_role

        async with served_role(role) as remote, endpoint(remote, journal=journal, label=label) as model:
            yield model
    else:
        from demur.models.local import LocalModel

        yield await LocalModel.load(role, journal=journal, label=label)
