"""PAIR (Chao et al. 2023, arXiv 2310.08419) and its kin: an attacker refines its prompt against the live target, turn by turn.

Public versions differ in what their judge sees and whether streams share a conversation. Here the judge sees goal, prompt and
reply, and streams share nothing; `pair@paper-v1` has the four defects of the version that the paper's first study ran. Unlike
the original the attacker's reply is not begun for it, because not every server can.
"""

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from msgspec.structs import replace
from pydantic import Field

from demur.attack.base import TEXTS, AttackSettings, File, texts
from demur.attack.search import WIDEST, Search, SearchSettings, Stream
from demur.records import Attempt, Failure, Message, Prompt, Trace

PAPER = SearchSettings(target_max_tokens=1536, judge_temperature=1.0, show_thinking=True)
"""The paper's parameters (arXiv 2505.15404v2, Appendix D, and its code), the same in both versions: elsewhere they are the
defaults. Its target has temperature 1 with top-p 0, which is greedy; its code hands whole replies on, thinking included."""


class Pair(Search):
    """The search, with demur's own defaults."""

    own = "pair"
    files: ClassVar[tuple[File, ...]] = (texts("pair"),)


class PairPaperV2(Pair):
    """PAIR as the paper's second version ran it; nothing of it can be set but the wording."""

    Settings: ClassVar[type[AttackSettings]] = AttackSettings
    smoke = {"name": "pair", **Search.smoke}
    fixed = PAPER


class PairPaperV1(PairPaperV2):
    """PAIR as the code of the paper's first version ran it (AISafetyLab of April 2025), with the four defects of that code.

    For half of the goals the attacker's instruction and its first message are exchanged; all streams of a goal, one after the
    other, go on from one conversation; in it the attacker's reply stands in the place of what it was told; and the judge is
    shown, in one message, the goal as the prompt as well.
    """

    async def search(self, goal: Prompt) -> Prompt:
        """The streams in turn, each where the one before left the conversation; a stop score ends them at once."""
        first, done = self.streams(goal)[0], list[tuple[Attempt, Stream]]()
        if Random(f"pair@paper-v1 {goal.question}").random() < 0.5:
            first = first._replace(system=first.next, next=first.system)
        told = [first.next] * self.how.streams
        past: tuple[Message, ...] = ()
        for iteration in range(self.how.iterations):
            for index in range(self.how.streams):
                stream = first._replace(place=index, next=told[index], past=past)
                attempt, _, following = await self.turn(goal, stream, iteration)
                done.append((attempt, stream))
                if attempt.broken:
                    return self.best(goal, done)
                past, told[index] = following.past, following.next
        return self.best(goal, sorted(done, key=lambda one: (one[0].stream, one[0].iteration)))

    def learned(self, stream: Stream, after: Stream, said: str, attempt: Attempt, reply: Trace | Failure) -> Stream:
        """The attacker's reply, where it had the right form, overwrites what it was told."""
        written = Message(role="user", content=said if attempt.written else stream.next)
        return after._replace(past=(*stream.past, written)[-2 * self.how.keep_last :])

    def judged(self, goal: Prompt, prompt: str, shown: str) -> tuple[Message, ...]:
        """One message, in which the goal stands for the prompt too."""
        system, user = super().judged(goal, goal.question, shown)
        return (Message(role="user", content=f"{system.content}\n\n{user.content}"),)


class TapSettings(SearchSettings):
    """Tree of attacks with pruning (Mehrotra et al. 2023, arXiv 2312.02119), with that paper's parameters."""

    streams: int = Field(default=1, ge=1)
    iterations: int = Field(default=10, ge=1)
    branches: int = Field(default=4, ge=1)  # Prompts that are written from each conversation
    width: int = Field(default=10, ge=1)  # Conversations that go on: those with the highest scores


class Tap(Pair):
    """PAIR whose conversations branch; prompts that leave the topic are pruned unasked, and of the others the best go on."""

    Settings = TapSettings
    files = (texts("pair"), File("topic", "the question whether a prompt is on topic", default=TEXTS / "topic.txt"))
    smoke = {**Search.smoke, "branches": 2, "width": 2}


class CrescendoSettings(SearchSettings):
    """One conversation of ten turns; the attacker is reminded of all of them."""

    streams: int = Field(default=1, ge=1)
    iterations: int = Field(default=10, ge=1)
    keep_last: int = Field(default=10, ge=1)


class Crescendo(Search):
    """An attack over several turns, after Crescendo (Russinovich et al. 2024, arXiv 2404.01833).

    The conversation begins on harmless ground; each turn builds on what the target has said itself and goes one step
    further. A turn that earns the lowest score is taken back. The turn with the highest is sent anew, behind those before it.
    """

    Settings = CrescendoSettings
    own = "crescendo"
    files = (texts("crescendo"),)

    def __init__(self, name: str, settings: Any, files: Mapping[str, Path]) -> None:
        super().__init__(name, settings, files)
        self.max_turns = self.turns_at_most()
        turn_tokens = self.how.attacker_max_tokens + self.how.target_max_tokens
        self.max_added_chars += WIDEST * self.how.iterations * turn_tokens

    def learned(self, stream: Stream, after: Stream, said: str, attempt: Attempt, reply: Trace | Failure) -> Stream:
        """What was answered is part of the conversation from now on; what was refused never was."""
        after = super().learned(stream, after, said, attempt, reply)
        if isinstance(reply, Failure):
            return after
        turn = f"turn {1 + len(stream.before) // 2}"
        prompt = replace(reply.prompt, attack=f"{self.name}:{turn}", category=turn)
        self.conversations.append(replace(reply, id="", prompt=prompt))
        if (attempt.score or 1) == 1:
            return after
        spoken = Message(role="user", content=attempt.prompt), Message(role="assistant", content=reply.answer or "")
        return after._replace(before=(*stream.before, *spoken))
