"""No attack: the question as it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from demur.attack.base import Attack
from demur.records import Prompt


class NoAttack(Attack):
    """Yields what it gets: `attack` of the prompts stays empty."""

    async def attacked(self, prompts: Iterable[Prompt]) -> AsyncIterator[Prompt]:
        """The questions, unchanged."""
        for prompt in prompts:
            yield prompt
