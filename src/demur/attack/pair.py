"""PAIR (Chao et al. 2023, arXiv 2310.08419), TAP and Crescendo: an attacker refines its prompt against the live target.

Public versions differ in what their judge sees and whether streams share a conversation. Here the judge sees goal,
prompt and reply, and streams share nothing; `pair@paper-v1` has the four defects of the version that the paper's first
study ran. Unlike the original, the attacker's reply is not prefilled, because not every server supports that.
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
"""The paper's parameters (arXiv 2505.15404v2, Appendix D, and its code) where they differ from the defaults; they are
the same in both versions. Its target has temperature 1 with top-p 0, which is greedy; its code passes on whole replies
with thinking."""


class Pair(Search):
    """The search with demur's own defaults."""

    wording = "pair"
    files: ClassVar[tuple[File, ...]] = (texts("pair"),)


class PairPaperV2(Pair):
    """PAIR as the paper's second version ran it; only the wording can be changed."""

    Settings: ClassVar[type[AttackSettings]] = AttackSettings
    smoke = {"name": "pair", **Search.smoke}
    fixed = PAPER


class PairPaperV1(PairPaperV2):
    """PAIR as the code of the paper's first version ran it (AISafetyLab of April 2025), with that code's four defects.

    For half of the goals the attacker's instruction and its first message are swapped. All streams of a goal, one after
    the other, continue one conversation. In it the attacker's reply replaces the message that it replies to. The judge
    gets one message, in which the goal also takes the place of the prompt.
    """

    async def search(self, goal: Prompt) -> Prompt:
        """The streams in turn, each from where the last one left the conversation; a stop score ends them at once."""
        first, done = self.streams(goal)[0], list[tuple[Attempt, Stream]]()
        if Random(f"pair@paper-v1 {goal.question}").random() < 0.5:
            first = first._replace(system=first.message, message=first.system)
        messages = [first.message] * self.params.streams
        past: tuple[Message, ...] = ()
        for iteration in range(self.params.iterations):
            for index in range(self.params.streams):
                stream = first._replace(place=index, message=messages[index], past=past)
                attempt, _, after = await self.turn(goal, stream, iteration)
                done.append((attempt, stream))
                if attempt.broken:
                    return self.best(goal, done)
                past, messages[index] = after.past, after.message
        return self.best(goal, sorted(done, key=lambda turn: (turn[0].stream, turn[0].iteration)))

    def advance(self, stream: Stream, after: Stream, written: str, attempt: Attempt, reply: Trace | Failure) -> Stream:
        """The attacker's reply, where it had the right form, replaces the message that it replies to."""
        turn = Message(role="user", content=written if attempt.written else stream.message)
        return after._replace(past=(*stream.past, turn)[-2 * self.params.keep_last :])

    def judged(self, goal: Prompt, prompt: str, shown: str) -> tuple[Message, ...]:
        """One message, in which the goal also takes the place of the prompt."""
        system, user = super().judged(goal, goal.question, shown)
        return (Message(role="user", content=f"{system.content}\n\n{user.content}"),)


class TapSettings(SearchSettings):
    """Tree of attacks with pruning (Mehrotra et al. 2023, arXiv 2312.02119), with that paper's parameters."""

    streams: int = Field(default=1, ge=1)
    iterations: int = Field(default=10, ge=1)
    branches: int = Field(default=4, ge=1)  # Prompts written from each conversation
    width: int = Field(default=10, ge=1)  # Conversations that go on: those with the highest scores


class Tap(Pair):
    """PAIR whose conversations branch. Off-topic prompts are pruned before they are sent; the best others go on."""

    Settings = TapSettings
    files = (texts("pair"), File("topic", "the question whether a prompt is on topic", default=TEXTS / "topic.txt"))
    smoke = {**Search.smoke, "branches": 2, "width": 2}


class CrescendoSettings(SearchSettings):
    """One conversation of ten turns, all of which the attacker is shown."""

    streams: int = Field(default=1, ge=1)
    iterations: int = Field(default=10, ge=1)
    keep_last: int = Field(default=10, ge=1)


class Crescendo(Search):
    """An attack over several turns, after Crescendo (Russinovich et al. 2024, arXiv 2404.01833).

    The conversation begins with something harmless; each turn builds on the target's own replies. A turn with the
    lowest score is taken back. The turn with the highest is sent again, behind those before it.
    """

    Settings = CrescendoSettings
    wording = "crescendo"
    files = (texts("crescendo"),)

    def __init__(self, name: str, settings: Any, files: Mapping[str, Path]) -> None:
        super().__init__(name, settings, files)
        self.max_turns = self.turns_at_most()
        turn_tokens = self.params.attacker_max_tokens + self.params.target_max_tokens
        self.max_added_chars += WIDEST * self.params.iterations * turn_tokens

    def advance(self, stream: Stream, after: Stream, written: str, attempt: Attempt, reply: Trace | Failure) -> Stream:
        """Adds the turn to the conversation with the target, unless it got the lowest score."""
        after = super().advance(stream, after, written, attempt, reply)
        if isinstance(reply, Failure):
            return after
        turn = f"turn {1 + len(stream.before) // 2}"
        prompt = replace(reply.prompt, attack=f"{self.name}:{turn}", category=turn)
        self.conversations.append(replace(reply, id="", prompt=prompt))
        if (attempt.score or 1) == 1:
            return after
        messages = Message(role="user", content=attempt.prompt), Message(role="assistant", content=reply.answer or "")
        return after._replace(before=(*stream.before, *messages))
