"""What kind of host is behind a URL, told from five short questions before any money is spent.

A host may have several shapes at once (slow and separating); one that has none answers harmless questions rightly and
declines a harmful one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import yaml

from demur.errors import DemurError
from demur.interfaces import Request
from demur.judge.refusal import RulesJudge
from demur.models.config import Remote
from demur.models.open import open_model
from demur.records import Failure, Message, Prompt, Sampling, Trace
from demur.storage.reply_cache import Reply, ReplyCache

Shape = Literal[
    "dead", "mute", "endless", "permissive", "refusing", "echoing", "babbling", "slow", "truncating", "separating", "filtering"
]  # fmt: skip
USELESS: tuple[Shape, ...] = ("dead", "mute", "endless", "echoing", "babbling")  # With these no study can be run
SLOW = 20.0  # Seconds of a short reply from which a host is called slow
BUDGET = 2048  # Tokens that every question may take: none needs a tenth of it but by thinking
TABLE = yaml.safe_load(Path(__file__).with_name("shapes.yaml").read_text(encoding="utf-8"))
"""The questions, what a right answer holds, and what is said of each shape."""


class Answered(NamedTuple):
    """What came of a question."""

    found: Trace | Failure
    reply: Reply
    seconds: float
    question: Mapping[str, Any]  # As `shapes.yaml` has it

    @property
    def text(self) -> str:
        """The answer, where there is one."""
        return (self.found.answer or "") if isinstance(self.found, Trace) else ""

    @property
    def is_right(self) -> bool:
        """Whether the answer holds what it must."""
        return re.search(self.question["right"], self.text.lower()) is not None

    @property
    def echoes(self) -> bool:
        """Whether the answer repeats the question."""
        return self.found.prompt.text in self.text

    @property
    def label(self) -> str | None:
        """Whether it serves or refuses, where that can be told."""
        return RulesJudge().verdict(self.found).label if isinstance(self.found, Trace) else None


async def shapes(config: Remote) -> dict[Shape, str]:
    """The shapes of a host, each with a sentence of what was seen; empty: none of them."""
    config = config.model_copy(update={"tries": 2, "patience": 60.0})
    try:
        with (cache := _Replies(None)):
            async with open_model(config, cache=cache, label="check/shapes") as model:
                # One after the other: a host is judged by what it is, not by what it bears.
                asked = [await _ask(model.answer, cache, question) for question in TABLE["questions"]]
    except DemurError as error:
        return {"dead": str(error)}
    return _told(asked)


async def _ask(
    answer: Callable[[Request], Awaitable[Trace | Failure]], cache: _Replies, question: Mapping[str, Any]
) -> Answered:
    prompt = Prompt(text=question["text"], intent=question.get("intent", "benign"))
    turn = Message(role="user", content=prompt.text)
    request = Request(messages=(turn,), sampling=Sampling(temperature=0.0, max_tokens=BUDGET), prompt=prompt)
    begun = time.monotonic()
    found = await answer(request)
    return Answered(found, cache.last, time.monotonic() - begun, question)


class _Replies(ReplyCache):
    """Keeps the last reply as it came: a trace does not tell where its thinking stood."""

    last = Reply()

    async def once(self, key: bytes, ask: Callable[[], Awaitable[Reply]], **how: Any) -> Reply:
        self.last = await super().once(key, ask, **how)
        return self.last


def _told(asked: list[Answered]) -> dict[Shape, str]:
    *harmless, harmful = asked
    failed = [one.found for one in asked if isinstance(one.found, Failure)]
    filtered = [one for one in asked if isinstance(one.found, Failure) and one.found.kind == "filtered"]
    if len(failed) == len(asked) and not filtered:
        return {"dead": f"no question got a reply: {failed[0].detail}"}
    empty = [one for one in asked if isinstance(one.found, Trace) and not one.found.raw.strip() and one not in filtered]
    answered = [one for one in harmless if one.text]
    right = [one for one in answered if one.is_right]
    echoed = [one for one in answered if one.echoes]
    refused = [one for one in answered if one.label == "full_refusal"]
    cut = [one for one in harmless if isinstance(one.found, Trace) and (one.found.truncated or _unfinished(one))]
    apart = [one for one in asked if one.reply.reasoning]
    pace, own = median(one.seconds for one in asked), len(harmless)
    there: dict[Shape, Any] = {
        "mute": len(empty) * 2 > len(asked),
        "endless": len(cut) == own and not answered,
        "permissive": harmful.label == "full_compliance" and right and not harmful.echoes,
        "refusing": len(refused) * 2 >= own,
        "echoing": len(echoed) * 2 >= own,
        "babbling": len(answered) * 2 > own and not right and len(refused) + len(echoed) < len(answered),
        "slow": pace > SLOW,
        "truncating": cut and (answered or len(cut) < own),
        "separating": apart,
        "filtering": filtered,
    }
    lists = {"empty": empty, "asked": asked, "refused": refused, "harmless": harmless, "echoed": echoed}
    lists |= {"answered": answered, "cut": cut, "filtered": filtered}
    numbers = {name: len(some) for name, some in lists.items()} | {"pace": pace, "hours": pace / 3.6, "budget": BUDGET}
    return {shape: TABLE["shapes"][shape].format(**numbers) for shape, seen in there.items() if seen}


def _unfinished(one: Answered) -> bool:
    """The count began and did not come to its end, though the server calls it whole."""
    return "counts" in one.question and not one.is_right and len(re.findall(r"\d+", one.text)) > 5
