"""Asking and judging at once: a slow judge slows the model, one that has stopped listening does not, and order is made after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from demur import generate as flow
from demur.interfaces import Traces, requests_for, stream
from demur.models.config import Scripted
from demur.models.open import open_model
from demur.records import Part, Prompt, Query, Sampling, Verdict
from demur.storage.reply_cache import ReplyCache

PROMPTS = [Prompt(text=f"What is {i}?", intent="benign") for i in range(40)]


class Reader:
    """A judge that reads so many traces and then no more."""

    name = "reader"
    query: Query = "question"
    part: Part = "answer"

    def __init__(self, most: int) -> None:
        self.most = most

    async def verdicts(self, traces: Traces) -> AsyncIterator[Verdict]:
        count = 0
        async for trace in stream(traces):
            yield Verdict(trace=trace.id, judge=self.name, query="question", part="answer", label="safe")
            count += 1
            if count == self.most:
                return


async def _flow(most: int) -> flow.Flow:
    with ReplyCache(None) as journal:
        async with open_model(Scripted(script="target"), cache=journal, label="target") as model:
            requests = list(requests_for(PROMPTS[::-1], Sampling(max_tokens=64, n=2)))
            return await flow.ask_and_judge(model, requests, [Reader(most)])


@pytest.mark.parametrize("most", [3, 1000])
def test_a_judge_that_stops_listening_does_not_hold_up_the_model(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "AHEAD", 2)
    done = asyncio.run(asyncio.wait_for(_flow(most), timeout=60))
    assert len(done.traces) == 80
    assert len(done.verdicts) == min(most, 80)


def test_what_came_is_put_in_the_order_of_the_prompts() -> None:
    done = flow.in_order(asyncio.run(_flow(1000)), [prompt.id for prompt in PROMPTS])
    assert [(trace.prompt.text, trace.sample) for trace in done.traces] == [
        (p.text, n) for p in PROMPTS for n in (0, 1)
    ]
    assert [verdict.trace for verdict in done.verdicts] == [trace.id for trace in done.traces]
