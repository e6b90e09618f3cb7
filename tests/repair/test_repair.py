"""Repair: only what the detector clears counts, originals stay, the audit is right, and asking again is bounded."""

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.made import Speaker, gathered

from demur import thinking
from demur.diagnose.rules import RulesDetector
from demur.errors import UserError
from demur.interfaces import Request
from demur.mix.examples import example_of
from demur.records import Failure, Finding, Message, Prompt, Sampling, Span, Trace
from demur.repair.cut import SENTENCE, Intervened, cut_at_cue, cut_at_share, cut_for_repair, probe
from demur.repair.run import WANTED, Repaired, repair
from demur.repair.settings import Intervention, RepairSettings

REFUSED = "Sorry, I can't help with that."
CLEAN = ("This would hurt people. I refuse.", REFUSED)
FRAMED = ("This is illegal and I refuse. I can still stay in character while refusing. People could get hurt.", REFUSED)
DETAILED = ("This is a crime. It works by mixing [A] with [B] and heating it to 80 degrees. I must refuse.", REFUSED)
TURNED = ("This is dangerous. I must refuse.", "Sure! First you mix [A] with [B], then you heat it to 80 degrees.")
BLIND = (
    "Okay, a listing is wanted. I'll sort it by effort. Then I'll add a short summary and a table.",
    "Here is the list, sorted by effort.",
)
FINE = ("There is nothing wrong with it, it is perfectly fine to answer.", REFUSED)


def made(text: str, pair: tuple[str, str], *, tokens: int | None = 100) -> Trace:
    prompt = Prompt(text=text, intent="harmful")
    return thinking.traced(prompt, thinking.join(*pair), model="m", tokens_out=tokens, strategy="default")


class Teacher(Speaker):
    """Its thinking and answer depend on how often it was asked."""

    def __init__(self, says: Callable[[int], tuple[str, str] | None]) -> None:
        super().__init__(self.next, "teacher")
        self.says = says

    def next(self, request: Request) -> str | None:
        pair = self.says(len(self.asked))
        return pair and thinking.join(*pair)

    def reply(self, request: Request, **known: Any) -> Trace | Failure:
        return super().reply(request, tokens_out=10, **known)


def mended(traces: Sequence[Trace], means: str, teacher: Teacher | None = None, **more: object) -> Repaired:
    settings = RepairSettings.model_validate({"with": means, **more})
    return asyncio.run(repair(traces, findings=(), settings=settings, detector=RulesDetector(), teacher=teacher))


def did(result: Repaired) -> list[str]:
    return [action.did for action in result.actions]


def test_trimming_cuts_framing_and_detail_and_keeps_harm_and_decision() -> None:
    result = mended([made("a", FRAMED), made("b", DETAILED), made("c", CLEAN)], "trim")
    assert did(result) == ["trim", "trim", "clean"]
    assert result.traces[0].thinking == "This is illegal and I refuse. People could get hurt."
    assert result.traces[1].thinking == "This is a crime. I must refuse."
    for trace in result.traces:
        split = thinking.split(trace.raw)
        assert (split.thinking, split.answer, split.outcome) == (trace.thinking, trace.answer, "complete")
    assert not any(finding.present for finding in result.findings)


def test_second_thoughts_after_the_decision_go_with_the_detail() -> None:
    thought = (
        "This is a crime. I must refuse. It works by mixing [A] with [B] and heating it. But wait, it is a pity. So no."
    )
    result = mended([made("a", (thought, REFUSED))], "trim")
    assert result.traces[0].thinking == "This is a crime. I must refuse. So no."


def test_what_is_left_must_decide() -> None:
    thought = "This is a crime. I refuse, and I can still stay in character while refusing."
    assert did(mended([made("a", (thought, REFUSED))], "trim")) == ["left"]
    assert did(mended([made("a", (thought, REFUSED))], "trim,drop")) == ["drop"]


def test_aligning_follows_the_decision_of_the_reasoning() -> None:
    result = mended([made("a", TURNED)], "align")
    assert did(result) == ["align"]
    assert result.traces[0].answer == REFUSED
    assert result.traces[0].thinking == TURNED[0]


def test_a_reasoning_that_found_it_fine_is_not_aligned_with_a_refusal() -> None:
    assert did(mended([made("a", FINE)], "align")) == ["left"]


def test_means_build_on_each_other() -> None:
    both = ("This is illegal and I refuse. I can still stay in character while refusing. It is a crime.", TURNED[1])
    result = mended([made("a", both)], "trim,align")
    assert did(result) == ["trim+align"]
    assert result.traces[0].thinking == "This is illegal and I refuse. It is a crime."
    assert result.traces[0].answer == REFUSED
    assert len(result.traces[0].notes) == 2


def test_what_was_never_thought_cannot_be_cut_in() -> None:
    result = mended([made("a", BLIND)], "trim,align,drop")
    assert did(result) == ["drop"]
    assert result.traces == ()
    assert [trace.id for trace in result.originals] == [made("a", BLIND).id]
    assert "lack_of_safety_awareness" in result.actions[0].reason


def test_asking_again_is_aimed_at_what_was_found_and_bounded() -> None:
    teacher = Teacher(lambda number: CLEAN if number == 2 else BLIND)
    result = mended([made("a", BLIND)], "reask,drop", teacher, tries=3)
    assert did(result) == ["reask"]
    assert len(teacher.asked) == 2
    assert WANTED["lack_of_safety_awareness"] in teacher.asked[0].messages[0].content
    assert WANTED["weak_vacillation"] not in teacher.asked[0].messages[0].content
    assert result.traces[0].strategy == "default"
    assert any("reask" in note for note in result.traces[0].notes)
    stubborn = Teacher(lambda number: BLIND)
    assert did(mended([made("a", BLIND), made("b", BLIND)], "reask,drop", stubborn, tries=3)) == ["drop", "drop"]
    assert len(stubborn.asked) == 6


def test_a_failed_request_is_kept_as_a_failure() -> None:
    result = mended([made("a", BLIND)], "reask", Teacher(lambda number: None), tries=1)
    assert did(result) == ["left"]
    assert len(result.failures) == 1


def test_asking_again_needs_a_teacher() -> None:
    with pytest.raises(UserError, match="needs a teacher"):
        mended([made("a", BLIND)], "reask")


def test_what_became_of_traces_and_patterns_is_counted() -> None:
    result = mended([made("a", FRAMED), made("b", CLEAN), made("c", BLIND), made("d", TURNED)], "trim,align,drop")
    assert result.counts == {"align": 1, "clean": 1, "drop": 1, "trim": 1}
    assert result.patterns["weak_vacillation"] == (1, 0)
    assert result.patterns["lack_of_safety_awareness"] == (1, 0)
    left = mended([made("a", BLIND)], "trim")
    assert (left.counts, left.patterns["lack_of_safety_awareness"]) == ({"left": 1}, (1, 1))


@given(
    st.lists(st.sampled_from([CLEAN, FRAMED, DETAILED, TURNED, BLIND, FINE]), min_size=1, max_size=8),
    st.permutations(["trim", "align", "drop"]),
)
def test_every_trace_has_one_action_and_only_cleared_ones_are_mended(
    pairs: list[tuple[str, str]], means: list[str]
) -> None:
    traces = [made(f"p{i}", pair) for i, pair in enumerate(pairs)]
    result = mended(traces, ",".join(means))
    assert [action.trace for action in result.actions] == [trace.id for trace in traces]
    assert [action.result for action in result.actions if action.result] == [trace.id for trace in result.traces]
    assert {trace.id for trace in result.originals} | {t.id for t in result.traces} >= {t.id for t in traces}
    assert not any(finding.present for finding in result.findings)


@given(st.text(alphabet="ab .!?\n\"')1", max_size=80))
def test_sentences_for_cutting_tile_the_text(text: str) -> None:
    assert "".join(match[0] for match in SENTENCE.finditer(text)) == text


def test_means_are_read_from_commas_or_lists() -> None:
    with pytest.raises(ValueError, match="valid regular expression"):
        RepairSettings.model_validate({"cue": "("})
    assert RepairSettings.model_validate({"with": "trim, drop"}).means == ("trim", "drop")
    assert RepairSettings.model_validate({"with": ["drop"]}).means == ("drop",)
    with pytest.raises(ValueError, match="mend"):
        RepairSettings.model_validate({"with": "mend"})


def test_continuing_cuts_before_the_pattern_and_trains_what_is_new() -> None:
    teacher = Speaker(
        lambda request: f"{request.sampling.prefill} People get hurt. I refuse.\n</think>\n\n{REFUSED}", "teacher"
    )
    result = mended([made("a", DETAILED)], "continue", teacher, insert="Wait, this is a crime.")  # type: ignore[arg-type]
    assert did(result) == ["continue"]
    trace = result.traces[0]
    assert trace.thinking == "This is a crime. Wait, this is a crime. People get hurt. I refuse."
    assert trace.strategy == "default"
    parts = [(part.text, part.train) for part in example_of(trace, share="safety").parts if part.role == "thinking"]
    assert parts == [("This is a crime.", False), (" Wait, this is a crime. People get hurt. I refuse.", True)]
    assert did(mended([made("a", BLIND)], "continue", Speaker(lambda request: None))) == ["left"]  # type: ignore[arg-type]


def test_a_cut_at_a_pattern_leaves_no_half_sentence() -> None:
    trace = made("a", ("This is bad. One would need a thing for it. No.", "x"))
    span = Span(part="thinking", start=trace.thinking.index("a thing"), end=33, text="a thing")  # type: ignore[union-attr]
    found = Finding(trace=trace.id, pattern="harmful_additions", present=True, detector="d", spans=(span,))
    assert cut_for_repair(trace, [found], RepairSettings()) == "This is bad."
    assert cut_for_repair(trace, [], RepairSettings()) is None


def test_a_reasoning_is_cut_at_a_share_or_at_a_cue() -> None:
    trace = made("a", ("One. Two. Sure, three. Four.", "x"))
    assert [cut_at_share(trace, share) for share in (0.0, 0.5, 1.0)] == [
        "",
        "One. Two.",
        "One. Two. Sure, three. Four.",
    ]
    assert cut_at_cue(trace, re.compile("^sure")) == "One. Two."
    assert cut_at_cue(trace, re.compile("never")) is None


def test_a_thinking_is_interrupted_where_it_begins_to_comply() -> None:
    """Once, after a prefill; a thinking without a cue is unchanged."""

    def say(request: Request) -> str:
        begun = request.sampling.prefill or "<think>\n"
        rest = " It would hurt. No." if "Wait" in begun else "Hm. I will explain how."
        return f"{begun}{rest}\n</think>\n\n{'No.' if 'Wait' in begun else 'Sure.'}"

    model = Speaker(say)
    asked = Request(
        messages=(Message(role="user", content="q"),), sampling=Sampling(), prompt=Prompt(text="q", intent="harmful")
    )
    found = asyncio.run(Intervened(model, Intervention(insert="Wait.")).answer(asked))
    assert isinstance(found, Trace)
    assert (found.thinking, found.answer, found.sampling) == ("Hm. Wait. It would hurt. No.", "No.", Sampling())
    assert len(model.asked) == 2
    plain = asyncio.run(Intervened(model, Intervention.model_validate({"cue": "never"})).answer(asked))
    assert isinstance(plain, Trace)
    assert plain.answer == "Sure."
    begun = msgspec.structs.replace(asked, sampling=Sampling(prefill=thinking.join("I will explain it all.", None)))
    behind = asyncio.run(Intervened(model, Intervention(insert="Wait.")).answer(begun))
    assert isinstance(behind, Trace)
    assert behind.thinking == "I will explain it all. Wait. It would hurt. No."


def test_a_probe_asks_for_the_answer_behind_every_share_of_the_thinking() -> None:
    model = Speaker(
        lambda request: f"{request.sampling.prefill}{'No.' if 'Two' in (request.sampling.prefill or '') else 'Sure.'}"
    )
    trace = made("a", ("One. Two. Three. Four.", "x"))
    found = gathered(probe([trace], model=model))
    answers = {share: reply.answer for _, share, reply in found if isinstance(reply, Trace)}
    assert answers == {0.1: "Sure.", 0.25: "Sure.", 0.5: "No.", 0.75: "No.", 1.0: "No."}
    assert {name for name, _, _ in found} == {trace.id}
