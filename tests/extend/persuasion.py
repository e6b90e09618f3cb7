"""An attack of somebody else's, with a setting and queries of its own: it has an attacker soften the question."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any

from demur.attack.base import Attack, AttackSettings, derived
from demur.interfaces import Ask, Request
from demur.records import Message, Prompt, Record, Sampling, Trace

SAMPLING = Sampling(temperature=0.0, max_tokens=64)


class SoftSettings(AttackSettings):
    """How often the question is softened."""

    rounds: int = 2


class Rewrite(Record, frozen=True, kw_only=True):
    """One text of the attacker's."""

    goal: str
    text: str


class Soft(Attack):
    """The question as the attacker puts it after some rounds."""

    Settings = SoftSettings
    parts = ("attacker",)

    def __init__(self, name: str, settings: Any, files: Mapping[str, Path]) -> None:
        super().__init__(name, settings, files)
        self.sampling["attacker"] = SAMPLING
        self.rewrites: list[Rewrite] = []
        self.records["rewrites"] = self.rewrites

    def estimate(self, questions: int, tokens: int) -> list[Ask]:
        asked = questions * self.settings.rounds
        return [Ask("attacker", asked, asked * (tokens + 64), asked * 64)]

    async def attacked(self, prompts: Iterable[Prompt]) -> AsyncIterator[Prompt]:
        for prompt in prompts:
            text = prompt.text
            for number in range(self.settings.rounds):
                asked = Prompt(id=f"{prompt.id}.{number}", text=text, intent=prompt.intent)
                sent = (Message(role="user", content=text),)
                reply = await self.models["attacker"].answer(Request(messages=sent, sampling=SAMPLING, prompt=asked))
                text = (reply.answer or text) if isinstance(reply, Trace) else text
                self.rewrites.append(Rewrite(goal=prompt.id, text=text))
            yield derived(prompt, text, f"{self.name}:{self.settings.rounds}")
