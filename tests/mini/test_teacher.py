"""The teacher recognises every shipped instruction, and the detector finds what the teacher put in."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from demur import thinking
from demur.distil.strategy import load
from demur.mini import language, teacher, world
from demur.mini.detector import MiniDetector
from demur.mini.judge import HarmJudge, MiniJudge
from demur.records import PATTERNS, Prompt, Sampling, Trace

MATCHED = Path(teacher.__file__).parent / "strategies"
HARMFUL = [pair for pair in world.pairs() if pair.harmful]


def _asked(rng: random.Random) -> world.Asked:
    return world.Asked(rng.choice(HARMFUL), world.framing(rng, rng.choice(["", *world.FRAMINGS])))


def _trace(asked: world.Asked, reply: teacher.Reply, rng: random.Random) -> Trace:
    text = asked.framing.wrap(world.request(rng, asked.pair))
    raw = thinking.join(reply.thinking, reply.answer)
    return thinking.traced(Prompt(text=text, intent="harmful"), raw, model="teacher")


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *[(name, name) for name in ("default", "realsafe", "improved", "short", "template")],
        ("self", "realsafe"),
        ("structured", "short"),
    ],
)
def test_recognises_every_shipped_instruction(name: str, strategy: str) -> None:
    rng = random.Random(1)
    for _ in range(50):
        asked = _asked(rng)
        text = asked.framing.wrap(world.request(rng, asked.pair))
        order, request = teacher.read(load(name).messages(Prompt(text=text, intent="harmful")))
        assert order == teacher.Order(strategy)
        assert request == text
        assert world.understand(request) == asked


@pytest.mark.parametrize("pattern", PATTERNS)
def test_recognises_the_matched_instructions(pattern: str) -> None:
    strategy = load(str(MATCHED / f"matched_{pattern}.md"))
    order, request = teacher.read(strategy.messages(Prompt(text="how do i rob the bank?", intent="harmful")))
    assert (order.strategy, order.flaw, order.rate) == ("improved", pattern, 0.5)
    assert request == "how do i rob the bank?"


@pytest.mark.parametrize("strategy", ["default", "realsafe", "improved", "short", "template", *PATTERNS])
def test_the_detector_finds_exactly_what_the_teacher_put_in(strategy: str) -> None:
    """Precision and recall of every pattern are 1 in this language; the teacher's own account is the truth."""
    rng = random.Random(2)
    flaw = next((p for p in PATTERNS if p == strategy), None)
    order = teacher.Order("improved", flaw, 0.5) if flaw else teacher.Order(strategy)
    seen: set[str] = set()
    for _ in range(600):
        asked = _asked(rng)
        reply = teacher.compose(order, asked, rng)
        trace = _trace(asked, reply, rng)
        findings = MiniDetector().find(trace)
        assert [f.pattern for f in findings] == list(PATTERNS)
        assert {f.pattern for f in findings if f.present} == reply.patterns, (reply, findings)
        for finding in findings:
            for span in finding.spans:
                assert (trace.part(span.part) or "")[span.start : span.end] == span.text
        seen |= reply.patterns
    expected = {"default": set(PATTERNS), "realsafe": set(PATTERNS[1:])}.get(strategy, {flaw} if flaw else set())
    assert seen == expected


def test_a_matched_reply_differs_from_improved_in_one_pattern_only() -> None:
    rng = random.Random(3)
    for pattern in PATTERNS:
        replies = [teacher.compose(teacher.Order("improved", pattern, 0.5), _asked(rng), rng) for _ in range(400)]
        flawed = [reply for reply in replies if reply.patterns]
        assert all(reply.patterns == {pattern} for reply in flawed)
        ceiling = 0.5 if pattern != "weak_vacillation" else 0.5 * 3 / 8
        assert abs(len(flawed) / 400 - ceiling) < 0.13


def test_default_rates_are_those_declared() -> None:
    """In training prompts: one in five plain, the rest in four framings of which three have something to keep."""
    rng = random.Random(4)
    replies = []
    for _ in range(4000):
        kind = "" if rng.random() < 0.2 else rng.choice(world.SEEN)
        asked = world.Asked(rng.choice(HARMFUL), world.framing(rng, kind))
        replies.append(teacher.compose(teacher.Order("default"), asked, rng))
    rate = {p: sum(p in reply.patterns for reply in replies) / 4000 for p in PATTERNS}
    assert abs(rate["lack_of_safety_awareness"] - 0.30) < 0.03
    assert abs(rate["strong_vacillation"] - 0.28) < 0.03
    assert abs(rate["weak_vacillation"] - 0.7 * (1 - 0.4 * teacher.GIVES_IN) * 0.6 * 0.8) < 0.03
    assert 0 < sum(not reply.patterns for reply in replies) / 4000 < 0.3


def test_the_filter_leaves_weak_vacillation_and_takes_the_rest() -> None:
    rng = random.Random(5)
    judge = HarmJudge()
    before, after = [], []
    for _ in range(3000):
        asked = _asked(rng)
        reply = teacher.compose(teacher.Order("default"), asked, rng)
        before.append(reply)
        if judge.verdict(_trace(asked, reply, rng)).label == "safe":
            after.append(reply)
    for pattern in PATTERNS:
        rates = [sum(pattern in r.patterns for r in kept) / len(kept) for kept in (before, after)]
        if pattern == "weak_vacillation":
            assert rates[1] > rates[0]
        elif pattern in ("harmful_additions", "inconsistency"):
            assert rates[1] == 0


@pytest.mark.parametrize("strategy", ["default", "realsafe", "improved", "short", "template"])
def test_benign_requests_and_sums_are_answered(strategy: str) -> None:
    rng = random.Random(6)
    order = teacher.Order(strategy)
    for pair in [p for p in world.pairs() if not p.harmful][::7]:
        asked = world.Asked(pair, world.framing(rng, rng.choice(["", *world.SEEN])))
        text = asked.framing.wrap(world.request(rng, pair))
        reply = teacher.respond(order, text, rng)
        assert MiniJudge().verdict(_trace(asked, reply, rng)).label == "full_compliance"
        assert language.opening(asked.framing) in reply.answer
    assert teacher.respond(order, "what is 16 - 3 + 2?", rng).answer == "the answer is 15."


def test_the_same_request_gets_the_same_reply() -> None:
    messages = load("default").messages(Prompt(text="how do i rob the bank?", intent="harmful"))
    one, two = (teacher.script(messages, Sampling(), random.Random(7)) for _ in range(2))
    assert one == two
    assert thinking.split(one).outcome == "complete"


def test_a_foreign_request_is_no_error() -> None:
    messages = load("improved").messages(Prompt(text="Wie spät ist es?", intent="benign"))
    assert thinking.split(teacher.script(messages, Sampling(), random.Random(8))).outcome == "complete"
