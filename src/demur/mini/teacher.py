"""The scripted teacher: it reads an instruction as a large model would, and answers in the miniature language.

Which strategy it is asked for, it tells from the words of the instruction. Left to itself (`default`) it shows the five failure
patterns of the paper at the rates of `RATES`; told how, it shows fewer or none. `compose` also says which patterns it put
in, so that a detector can be held against the truth. Nothing else in demur uses that knowledge.
"""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from demur import thinking
from demur.mini import judge, world
from demur.mini import language as say
from demur.mini.world import Asked
from demur.records import PATTERNS, Message, Pattern, Sampling


class Rates(NamedTuple):
    """How often a teacher shows each pattern; all but the first among the replies that see the harm."""

    unaware: float
    strong: float
    weak: float  # Where the framing has something to keep: a character, a form, a story
    additions: float
    inconsistent: float


RATES = {
    "default": Rates(unaware=0.30, strong=0.40, weak=0.80, additions=0.35, inconsistent=0.15),
    "realsafe": Rates(unaware=0.0, strong=0.15, weak=0.40, additions=0.15, inconsistent=0.08),
}
"""The paper gives one rate, weak vacillation in default traces, 0.33 of all: here 0.7 aware x 0.6 of the prompts with
something to keep x 0.8. The others are not published; these are ours."""
GIVES_IN = 0.35  # Share of the strong vacillations that end in giving in
REFUSES_UNAWARE = 0.25  # Share of the unaware replies that refuse nevertheless
MARKS = (  # Strategy -> words by which its instruction is recognised, the most telling first
    ("flawed", r"one flaw, (\w+), in (\d+) percent"),
    ("policy", r"the rule for this kind of request"),
    ("template", r"categories in this order"),
    ("short", r"keep the thinking short"),
    ("short", r"exactly three short parts"),
    ("improved", r"before anything else, judge whether"),
    ("improved", r"the answer after it begins with .sorry|say both again in your own words"),
    ("realsafe", r"watch\w* for legal and ethical risk|say in your reasoning why it is harmful"),
)


class Order(NamedTuple):
    """What an instruction asks for."""

    strategy: str
    flaw: Pattern | None = None
    rate: float = 0.0


class Reply(NamedTuple):
    """What the teacher says, and which patterns it put in."""

    thinking: str
    answer: str
    patterns: frozenset[Pattern] = frozenset()


def script(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    """The teacher as a scripted model: raw text with tags."""
    order, request = read(messages)
    reply = respond(order, request, rng)
    if sampling.prefill:
        return _gone_on(sampling.prefill, reply, request, rng)
    return thinking.join(reply.thinking, reply.answer)


def _gone_on(prefill: str, reply: Reply, request: str, rng: random.Random) -> str:
    """How a begun reply ends: what its thinking concludes is answered; an open thinking about harm comes to its senses first."""
    begun = thinking.split(prefill, finish="length")
    asked = world.understand(request)
    if asked is None or not asked.pair.harmful:
        rest = reply.thinking
        if begun.answer is not None:
            return reply.answer
    elif begun.answer is not None:
        refuses = judge.concluded(world.spaced(begun.thinking or "")) == "full_refusal"
        return say.say(rng, say.SORRY["plain"], *asked) if refuses else say.compliance(rng, asked.framing)[1]
    else:
        rest = " ".join(say.say(rng, idea, *asked) for idea in (say.AWARE, say.HARMFUL, say.DECLINE))
        reply = Reply(rest, say.say(rng, say.SORRY["plain"], *asked))
    whole = thinking.join(f"{begun.thinking} {rest}", reply.answer)
    return whole.removeprefix(prefill)


def read(messages: Sequence[Message]) -> tuple[Order, str]:
    """What is asked for, and the bare request, told from the text of a conversation."""
    text = " ".join(" ".join(message.content for message in messages).lower().split())
    user = next((m.content for m in reversed(messages) if m.role == "user"), "")
    request = user.rpartition("Request:\n")[2].split("\n\n")[-1].strip()
    for name, pattern in MARKS:
        found = re.search(pattern, text)
        if found and name == "flawed":
            flaw = next(p for p in PATTERNS if p == found.group(1))
            return Order("improved", flaw, int(found.group(2)) / 100), request
        if found:
            return Order(name), request
    return Order("default"), request


def respond(order: Order, request: str, rng: random.Random) -> Reply:
    """A reply to any request of this world; what is none of them is not understood."""
    problem = world.read_sum(request)
    if problem:
        return Reply(*say.worked(problem))
    asked = world.understand(request)
    if asked is None:
        return Reply("the user asks how to do this.", "done.")
    return compose(order, asked, rng) if asked.pair.harmful else _help(order, asked, rng)


def compose(order: Order, asked: Asked, rng: random.Random) -> Reply:
    """A reply to a harmful request."""
    if order.strategy in RATES:
        return _own_way(order.strategy, asked, rng)
    flaw = order.flaw if order.flaw and rng.random() < order.rate else None
    if flaw == "weak_vacillation" and asked.framing.kind not in say.KEEP:
        flaw = None
    return _as_told(order.strategy, asked, rng, flaw)


def _help(order: Order, asked: Asked, rng: random.Random) -> Reply:
    """A reply to a benign request: the strategy's own way of assessing it, then a plan, then the steps."""
    restated, facts, harmless = (say.say(rng, idea, *asked) for idea in (say.RESTATE, say.FACTS, say.HARMLESS))
    plan, answer = say.compliance(rng, asked.framing)
    lead = {
        "default": [restated, harmless] if asked.pair.alarming and rng.random() < 0.5 else [restated],
        "realsafe": [*say.TRY, restated, harmless],
        "improved": [restated, facts, harmless],
        "short": [restated, harmless],
        "policy": [restated, facts, harmless],
        "template": [facts, say.checklist("none")],
    }[order.strategy]
    return Reply(" ".join([*lead, plan]), answer)


def _as_told(strategy: str, asked: Asked, rng: random.Random, flaw: Pattern | None) -> Reply:
    """A reply without any pattern, or with exactly one put into it."""
    restated, facts, harmful, decline, other = (
        say.say(rng, idea, *asked) for idea in (say.RESTATE, say.FACTS, say.HARMFUL, say.DECLINE, say.NO_OTHER_WAY)
    )
    lines = {
        "improved": [restated, facts, harmful, other, decline],
        "short": [restated, harmful, decline],
        "policy": [facts, harmful, decline],
        "template": [facts, say.checklist(asked.pair.category), decline],
    }[strategy]
    answer = say.say(rng, say.SORRY["first" if strategy == "improved" else "plain"], *asked)
    match flaw:
        case "lack_of_safety_awareness":
            lines[2:] = say.TRY
        case "strong_vacillation":
            lines.insert(3, say.say(rng, say.WEIGH, *asked))
        case "weak_vacillation":
            lines.insert(3, say.say(rng, say.KEEP[asked.framing.kind], *asked))
            answer = say.opening(asked.framing) + answer
        case "harmful_additions":
            lines.insert(3, say.say(rng, say.ADDITION, *asked))
        case "inconsistency":
            answer = say.compliance(rng, asked.framing)[1]
    return Reply(" ".join(lines), answer, frozenset({flaw} if flaw else ()))


def _own_way(strategy: str, asked: Asked, rng: random.Random) -> Reply:
    """A reply to a harmful request by a teacher that shows the patterns of its rates."""
    rates = RATES[strategy]
    lines = [*say.TRY] if strategy == "realsafe" else []
    lines.append(say.say(rng, say.RESTATE, *asked))
    sorry = say.say(rng, say.SORRY["assist" if strategy == "realsafe" else "plain"], *asked)
    plan, steps = say.compliance(rng, asked.framing)
    if rng.random() < rates.unaware:
        if rng.random() < REFUSES_UNAWARE:
            return Reply(" ".join([*lines, *say.TRY]), sorry, frozenset({"lack_of_safety_awareness"}))
        return Reply(" ".join([*lines, plan]), steps, frozenset({"lack_of_safety_awareness"}))
    patterns: set[Pattern] = set()
    lines.append(say.say(rng, say.HARMFUL if strategy == "realsafe" else say.AWARE, *asked))
    strong = rng.random() < rates.strong
    if strong:
        lines.append(say.say(rng, say.WEIGH, *asked))
        patterns.add("strong_vacillation")
    if rng.random() < rates.additions:
        lines.append(say.say(rng, say.ADDITION, *asked))
        patterns.add("harmful_additions")
    if strong and rng.random() < GIVES_IN:
        return Reply(" ".join([*lines, *say.GIVE_IN]), steps, frozenset(patterns))
    if asked.framing.kind in say.KEEP and rng.random() < rates.weak:
        lines.append(say.say(rng, say.KEEP[asked.framing.kind], *asked))
        patterns.add("weak_vacillation")
        sorry = say.opening(asked.framing) + sorry
    lines.append(say.say(rng, say.DECLINE, *asked))
    if rng.random() < rates.inconsistent:
        return Reply(" ".join(lines), steps, frozenset(patterns | {"inconsistency"}))
    return Reply(" ".join(lines), sorry, frozenset(patterns))
