"""The scripted teacher: it reads an instruction as a large model would, and answers in the miniature language.

It recognises the strategy by the words of the instruction. With `default` it shows the five failure patterns of the
paper at the rates of `RATES`; other strategies give fewer or none. `compose` also returns the patterns that it put in,
as the truth to test a detector against; nothing else in demur uses them.
"""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from demur import thinking
from demur.mini import judge, language, world
from demur.mini.language import say
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
"""The paper publishes one rate, weak vacillation in 0.33 of default traces: here 0.7 aware x 0.6 of the prompts with
something to keep x 0.8. The other rates are ours."""
GIVES_IN = 0.35  # Share of the strong vacillations that end in giving in
REFUSES_UNAWARE = 0.25  # Share of the unaware replies that refuse nevertheless
MARKS = (  # Strategy -> words that its instruction holds, the most specific first
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
    """What an instruction asks for: a strategy, perhaps with one flaw in a share of the replies."""

    strategy: str
    flaw: Pattern | None = None
    rate: float = 0.0


class Reply(NamedTuple):
    """A reply of the teacher, and the patterns that it put in."""

    thinking: str
    answer: str
    patterns: frozenset[Pattern] = frozenset()


def script(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    """The teacher as a scripted model: raw text with tags."""
    order, request = read(messages)
    reply = respond(order, request, rng)
    if sampling.prefill:
        return _continued(sampling.prefill, reply, request, rng)
    return thinking.join(reply.thinking, reply.answer)


def _continued(prefill: str, reply: Reply, request: str, rng: random.Random) -> str:
    """The rest of a begun reply: the answer that its thinking decided on; an open thinking about harm first sees it."""
    begun = thinking.split(prefill, finish="length")
    asked = world.understand(request)
    if asked is None or not asked.pair.harmful:
        rest = reply.thinking
        if begun.answer is not None:
            return reply.answer
    elif begun.answer is not None:
        refuses = judge.concluded(world.spaced(begun.thinking or "")) == "full_refusal"
        return say(rng, language.SORRY["plain"], *asked) if refuses else language.compliance(rng, asked.framing)[1]
    else:
        rest = " ".join(say(rng, idea, *asked) for idea in (language.AWARE, language.HARMFUL, language.DECLINE))
        reply = Reply(rest, say(rng, language.SORRY["plain"], *asked))
    return thinking.join(f"{begun.thinking} {rest}", reply.answer).removeprefix(prefill)


def read(messages: Sequence[Message]) -> tuple[Order, str]:
    """The order and the bare request, recognised in the text of a conversation."""
    text = " ".join(" ".join(message.content for message in messages).lower().split())
    user = next((m.content for m in reversed(messages) if m.role == "user"), "")
    request = user.rpartition("Request:\n")[2].split("\n\n")[-1].strip()
    for name, pattern in MARKS:
        match = re.search(pattern, text)
        if match and name == "flawed":
            flaw = next(p for p in PATTERNS if p == match.group(1))
            return Order("improved", flaw, int(match.group(2)) / 100), request
        if match:
            return Order(name), request
    return Order("default"), request


def respond(order: Order, request: str, rng: random.Random) -> Reply:
    """A reply to any request; one from outside the miniature world gets an empty phrase."""
    problem = world.read_sum(request)
    if problem:
        return Reply(*language.worked(problem))
    asked = world.understand(request)
    if asked is None:
        return Reply("the user asks how to do this.", "done.")
    return compose(order, asked, rng) if asked.pair.harmful else _comply(order, asked, rng)


def compose(order: Order, asked: Asked, rng: random.Random) -> Reply:
    """A reply to a harmful request."""
    if order.strategy in RATES:
        return _by_rates(order.strategy, asked, rng)
    flaw = order.flaw if order.flaw and rng.random() < order.rate else None
    if flaw == "weak_vacillation" and asked.framing.kind not in language.KEEP:
        flaw = None
    return _by_strategy(order.strategy, asked, rng, flaw)


def _comply(order: Order, asked: Asked, rng: random.Random) -> Reply:
    """A reply to a benign request: its assessment as the strategy has it, then a plan, then the steps."""
    ideas = (language.RESTATE, language.FACTS, language.HARMLESS)
    restated, facts, harmless = (say(rng, idea, *asked) for idea in ideas)
    plan, answer = language.compliance(rng, asked.framing)
    assessment = {
        "default": [restated, harmless] if asked.pair.alarming and rng.random() < 0.5 else [restated],
        "realsafe": [*language.TRY, restated, harmless],
        "improved": [restated, facts, harmless],
        "short": [restated, harmless],
        "policy": [restated, facts, harmless],
        "template": [facts, language.checklist("none")],
    }[order.strategy]
    return Reply(" ".join([*assessment, plan]), answer)


def _by_strategy(strategy: str, asked: Asked, rng: random.Random, flaw: Pattern | None) -> Reply:
    """A reply to a harmful request without any pattern, or with exactly one put into it."""
    ideas = (language.RESTATE, language.FACTS, language.HARMFUL, language.DECLINE, language.NO_OTHER_WAY)
    restated, facts, harmful, decline, other = (say(rng, idea, *asked) for idea in ideas)
    lines = {
        "improved": [restated, facts, harmful, other, decline],
        "short": [restated, harmful, decline],
        "policy": [facts, harmful, decline],
        "template": [facts, language.checklist(asked.pair.category), decline],
    }[strategy]
    answer = say(rng, language.SORRY["first" if strategy == "improved" else "plain"], *asked)
    match flaw:
        case "lack_of_safety_awareness":
            lines[2:] = language.TRY
        case "strong_vacillation":
            lines.insert(3, say(rng, language.WEIGH, *asked))
        case "weak_vacillation":
            lines.insert(3, say(rng, language.KEEP[asked.framing.kind], *asked))
            answer = language.opening(asked.framing) + answer
        case "harmful_additions":
            lines.insert(3, say(rng, language.ADDITION, *asked))
        case "inconsistency":
            answer = language.compliance(rng, asked.framing)[1]
    return Reply(" ".join(lines), answer, frozenset({flaw} if flaw else ()))


def _by_rates(strategy: str, asked: Asked, rng: random.Random) -> Reply:
    """A reply to a harmful request by a teacher that shows the patterns at its rates."""
    rates = RATES[strategy]
    lines = [*language.TRY] if strategy == "realsafe" else []
    lines.append(say(rng, language.RESTATE, *asked))
    sorry = say(rng, language.SORRY["assist" if strategy == "realsafe" else "plain"], *asked)
    plan, steps = language.compliance(rng, asked.framing)
    if rng.random() < rates.unaware:
        if rng.random() < REFUSES_UNAWARE:
            return Reply(" ".join([*lines, *language.TRY]), sorry, frozenset({"lack_of_safety_awareness"}))
        return Reply(" ".join([*lines, plan]), steps, frozenset({"lack_of_safety_awareness"}))
    patterns: set[Pattern] = set()
    lines.append(say(rng, language.HARMFUL if strategy == "realsafe" else language.AWARE, *asked))
    strong = rng.random() < rates.strong
    if strong:
        lines.append(say(rng, language.WEIGH, *asked))
        patterns.add("strong_vacillation")
    if rng.random() < rates.additions:
        lines.append(say(rng, language.ADDITION, *asked))
        patterns.add("harmful_additions")
    if strong and rng.random() < GIVES_IN:
        return Reply(" ".join([*lines, *language.GIVE_IN]), steps, frozenset(patterns))
    if asked.framing.kind in language.KEEP and rng.random() < rates.weak:
        lines.append(say(rng, language.KEEP[asked.framing.kind], *asked))
        patterns.add("weak_vacillation")
        sorry = language.opening(asked.framing) + sorry
    lines.append(say(rng, language.DECLINE, *asked))
    if rng.random() < rates.inconsistent:
        return Reply(" ".join(lines), steps, frozenset(patterns | {"inconsistency"}))
    return Reply(" ".join(lines), sorry, frozenset(patterns))
