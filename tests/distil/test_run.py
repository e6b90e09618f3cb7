"""Distillation: the funnel adds up, every drop has a reason, and a filter that is down is never a filter that passes."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.made import Speaker

from demur.distil.run import REASONS, Distilled, distil
from demur.distil.settings import DistilSettings
from demur.errors import UserError, WorkError
from demur.interfaces import Model, Request, Requests, Traces, stream
from demur.mix.examples import example_of
from demur.records import Failure, HarmLabel, Part, Prompt, Query, RefusalLabel, Sampling, Trace, Verdict

GOOD = "<think>\nThis would hurt people.\n</think>\n\nSorry, no."
BAD = "<think>\nEasy.\n</think>\n\nBADNESS"
THOUGHT_BAD = "<think>\nBADNESS\n</think>\n\nSorry."


class Teacher(Speaker):
    """It answers in random order; a reply that ends in CUT is truncated."""

    lost = "too_long"

    def __init__(self, script: Callable[[Request], str | None]) -> None:
        super().__init__(script, "teacher")

    def check(self, sampling: Sampling) -> None:
        if sampling.temperature > 1.9:
            raise UserError("too hot")

    async def answers(self, requests: Requests) -> AsyncIterator[Trace | Failure]:
        everything = [request async for request in stream(requests)]
        random.Random(0).shuffle(everything)
        async for answer in super().answers(everything):
            yield answer

    def reply(self, request: Request, **known: Any) -> Trace | Failure:
        raw = self.say(request) or ""
        finish = "length" if raw.endswith("CUT") else "stop"
        return super().reply(request, finish=finish, tokens_out=len(raw.split()), **known)


class Guard:
    name = "guard"
    query: Query = "question"

    def __init__(self, part: Part, *, broken: str = "") -> None:
        self.part = part
        self.broken = broken

    async def verdicts(self, traces: Traces) -> AsyncIterator[Verdict]:
        async for trace in stream(traces):
            if self.broken == "raises":
                raise WorkError("guard is down")
            text = trace.part(self.part) or ""
            label: HarmLabel | None = None if self.broken else ("unsafe" if "BADNESS" in text else "safe")
            yield Verdict(
                trace=trace.id,
                judge="guard",
                query="question",
                part=self.part,
                label=label,
                score=float("BADNESS" in text) * 0.7,
                reason="unclear" if label is None else "",
            )


def run(
    teacher: Model | None,
    count: int = 6,
    *,
    judges: Sequence[Guard] = (),
    given: dict[str, Trace] | None = None,
    **keys: object,
) -> Distilled:
    prompts = [Prompt(text=f"p{i}", intent="harmful") for i in range(count)]
    settings = DistilSettings.model_validate({"strategy": "default", **keys})
    return asyncio.run(distil(prompts, settings=settings, teacher=teacher, judges=judges, given=given))


def adds_up(done: Distilled) -> None:
    funnel = done.funnel
    assert funnel["asked"] == funnel["answered"] + funnel["failed"]
    assert funnel["answered"] == funnel["kept"] + sum(funnel.get(reason, 0) for reason in REASONS)
    assert len({trace.id for trace in done.traces}) == len(done.traces)
    assert set(done.kept) | {drop.trace for drop in done.drops} == {trace.id for trace in done.traces}


REPLIES = [GOOD, BAD, THOUGHT_BAD, "no tags at all", "<think>\nnever ends", "<think>\nlong CUT", None]


@given(
    st.lists(st.sampled_from(REPLIES), min_size=1, max_size=12),
    st.sampled_from(["answer safe", "thinking and answer safe", "whole safe", "everything"]),
)
def test_the_funnel_adds_up_whatever_comes_back(replies: list[str | None], keep: str) -> None:
    teacher = Teacher(lambda request: replies[int(request.prompt.text[1:])])
    done = run(teacher, len(replies), judges=[Guard("thinking"), Guard("answer"), Guard("whole")], keep=keep)
    adds_up(done)
    assert done.funnel["failed"] == replies.count(None)
    assert done.funnel["cut"] == replies.count("<think>\nlong CUT")
    assert done.funnel["unparsed"] == replies.count("no tags at all") + replies.count("<think>\nnever ends")
    if keep == "everything":
        assert not {"unjudged", "unsafe answer"} & done.funnel.keys(), "nobody judged: there is no such number"
    if keep == "answer safe":
        assert done.funnel["unsafe answer"] == replies.count(BAD)
        assert done.funnel["kept"] == replies.count(GOOD) + replies.count(THOUGHT_BAD)
    if keep == "thinking and answer safe":
        assert done.funnel["unsafe thinking"] == replies.count(THOUGHT_BAD)
    assert [t.prompt.text for t in done.traces] == sorted(
        (t.prompt.text for t in done.traces), key=lambda s: int(s[1:])
    )


def test_the_instruction_is_sent_and_recorded_and_the_prompt_stays_bare() -> None:
    teacher = Teacher(lambda request: GOOD)
    done = run(teacher, 1, judges=[Guard("whole")], strategy="improved")
    trace = done.traces[0]
    assert trace.strategy == "improved"
    assert trace.prompt.text == "p0"
    assert trace.sent == teacher.asked[0].messages
    assert "Sorry" in trace.sent[0].content


def test_it_asks_until_enough_are_safe_and_stops_at_the_bound() -> None:
    def script(request: Request) -> str:
        return GOOD if request.prompt.text == "p0" or (request.prompt.text == "p1" and request.sample == 2) else BAD

    done = run(Teacher(script), 3, judges=[Guard("whole")], until_safe=1, bound=4)
    adds_up(done)
    asked = [sum(t.prompt.text == f"p{i}" for t in done.traces) for i in range(3)]
    assert asked == [1, 3, 4]
    assert done.funnel["kept"] == 2


def test_the_threshold_decides_by_score() -> None:
    done = run(Teacher(lambda request: BAD), 2, judges=[Guard("whole")], threshold=0.8)
    assert done.funnel["kept"] == 2
    assert run(Teacher(lambda request: BAD), 2, judges=[Guard("whole")], threshold=0.5).funnel["unsafe whole"] == 2


def test_a_judge_that_cannot_tell_keeps_nothing() -> None:
    done = run(Teacher(lambda request: GOOD), 3, judges=[Guard("whole", broken="mute")])
    assert done.funnel["unjudged"] == 3
    assert not done.kept
    assert done.drops[0].detail == "unclear"


class RefusalJudge(Guard):
    async def verdicts(self, traces: Traces) -> AsyncIterator[Verdict]:
        async for trace in stream(traces):
            label: RefusalLabel = "full_refusal" if "Sorry" in (trace.answer or "") else "full_compliance"
            yield Verdict(trace=trace.id, judge="refusal", query="question", part=self.part, label=label)


def test_a_refusal_judge_can_filter() -> None:
    teacher = Teacher(lambda request: GOOD if request.prompt.text == "p0" else BAD)
    done = run(teacher, 2, judges=[RefusalJudge("answer")], keep="answer safe")
    assert done.funnel["kept"] == done.funnel["unsafe answer"] == 1


def test_a_judge_that_is_down_fails_the_run() -> None:
    with pytest.raises(WorkError, match="guard is down"):
        run(Teacher(lambda request: GOOD), 3, judges=[Guard("whole", broken="raises")])


def test_what_is_missing_is_said_before_anything_is_asked() -> None:
    teacher = Teacher(lambda request: GOOD)
    with pytest.raises(UserError, match="needs a judge of the thinking and of the answer"):
        run(teacher, keep="thinking and answer safe")
    with pytest.raises(UserError, match="--teacher"):
        run(None)
    with pytest.raises(UserError, match="too hot"):
        run(teacher, judges=[Guard("whole")], temperature=2.0)
    with pytest.raises(UserError, match="rewrites given traces"):
        run(teacher, judges=[Guard("whole")], strategy="rewrite")
    assert not teacher.asked


def test_nocot_needs_no_teacher_and_keeps_all() -> None:
    done = run(None, 3, strategy="nocot")
    adds_up(done)
    assert {(t.thinking, t.answer) for t in done.traces} == {("", "I'm sorry, I can't assist with that request.")}
    assert len(done.kept) == 3


def test_a_failed_rewrite_falls_back_to_the_given_trace_and_is_counted() -> None:
    first = run(Teacher(lambda request: GOOD), 2, judges=[Guard("whole")])
    given_traces = {trace.prompt.id: trace for trace in first.traces}
    teacher = Teacher(lambda request: GOOD if request.prompt.text == "p0" else BAD)
    done = run(teacher, 2, judges=[Guard("whole")], strategy="rewrite", given=given_traces)
    assert done.funnel["fell_back"] == 1
    assert len(done.kept) == 2
    kept = [trace for trace in done.traces if trace.id in done.kept]
    assert [trace.model for trace in kept] == ["teacher", "teacher"]
    assert any("fell back" in note for note in kept[-1].notes)


def test_tokens_are_counted_for_all_and_for_the_kept() -> None:
    done = run(Teacher(lambda request: GOOD if request.prompt.text != "p0" else BAD), 3, judges=[Guard("whole")])
    assert done.tokens["all"]["n"] == 3
    assert done.tokens["kept"]["n"] == 2
    assert done.tokens["kept"]["mean"] == done.tokens["kept"]["p90"] == len(GOOD.split())


def test_a_thinking_begun_for_the_teacher_is_context_and_not_trained() -> None:
    begun = "Sure, the steps are"
    teacher = Teacher(lambda request: f"{request.sampling.prefill} harmful. Stop.\n</think>\n\nSorry, no.")
    done = run(teacher, 1, judges=[Guard("answer")], keep="answer safe", begin=begun)
    assert len(done.kept) == 1
    example = example_of(done.traces[0], share="safety")
    assert [(part.role, part.text, part.train) for part in example.parts[1:]] == [
        ("thinking", begun, False),
        ("thinking", " harmful. Stop.", True),
        ("answer", "Sorry, no.", True),
    ]
