"""The miniature world: a controlled English in which harm is a property of a verb and an object together.

To kill a nurse is harmful; to kill a process is not; to paint a nurse is not either. Whoever refuses by the verb alone
refuses too much, and whoever looks at neither refuses nothing. There are five categories of harm, eight framings in which
any request, harmful or not, can be wrapped, and arithmetic that is solved step by step. Half of the framings and a
share of the words are kept away from safety training, so that generalisation can be asked for.

Nothing here is knowledge of any use to anyone: to comply is to list code words (`step 1: alpha.`).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

WORDS: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "words.yaml").read_text())
HARMFUL_VERBS: dict[str, list[str]] = WORDS["harmful_verbs"]
OBJECTS: dict[str, list[str]] = WORDS["objects"]
VICTIM: dict[str, str] = WORDS["victim"]
HELD_OUT = frozenset(WORDS["held_out"])
CATEGORY_OF = {verb: category for category, verbs in HARMFUL_VERBS.items() for verb in verbs}
KIND_OF = {thing: kind for kind, things in OBJECTS.items() for thing in things}
VERBS = (*CATEGORY_OF, *WORDS["neutral_verbs"])
FRAMINGS: dict[str, list[str]] = WORDS["framings"]
PHRASINGS: list[str] = WORDS["phrasings"]
CODE_WORDS, FILLERS = WORDS["code_words"], WORDS["fillers"]
SUMS = WORDS["sums"]
SEEN = ("persona", "format", "fiction", "research")
HELD_OUT_FRAMINGS = ("prefix", "authority", "override", "game")
LARGEST = 49
"""The largest running total of the arithmetic."""


class Pair(NamedTuple):
    """What a request is about."""

    verb: str
    object: str

    @property
    def category(self) -> str:
        """The category of the verb; `work` for a neutral one."""
        return CATEGORY_OF.get(self.verb, "work")

    @property
    def kind(self) -> str:
        """The kind of the object."""
        return KIND_OF[self.object]

    @property
    def harmful(self) -> bool:
        """Whether verb and object together do harm."""
        return VICTIM.get(self.category) == self.kind

    @property
    def alarming(self) -> bool:
        """Whether it only sounds harmful."""
        return self.category != "work" and not self.harmful

    @property
    def new(self) -> bool:
        """Whether a word of it is kept away from safety training."""
        return self.verb in HELD_OUT or self.object in HELD_OUT

    @property
    def tested(self) -> bool:
        """Whether it belongs to the tests: all pairs with a new word, and one in three of the others."""
        return self.new or hashlib.sha256(f"{self.verb} {self.object}".encode()).digest()[0] % 3 == 0


class Framing(NamedTuple):
    """How a request is wrapped: the kind, which of its phrasings, and what it asks to keep."""

    kind: str = ""
    phrasing: int = 0
    filler: str = ""

    def wrap(self, request: str) -> str:
        """The request inside this framing."""
        return FRAMINGS[self.kind][self.phrasing].format(r=request, x=self.filler) if self.kind else request


PLAIN = Framing()


class Asked(NamedTuple):
    """A request as it was understood."""

    pair: Pair
    framing: Framing


def pairs() -> Iterator[Pair]:
    """Every pair that is ever asked, in a fixed order."""
    for verb in VERBS:
        for thing in KIND_OF:
            pair = Pair(verb, thing)
            if pair.category == "work" or pair.kind in ("thing", VICTIM[pair.category]):
                yield pair


def framing(rng: random.Random, kind: str) -> Framing:
    """A random framing of a kind; the empty kind is no framing."""
    if not kind:
        return PLAIN
    return Framing(kind, rng.randrange(len(FRAMINGS[kind])), rng.choice(FILLERS.get(kind, ("",))))


def request(rng: random.Random, pair: Pair) -> str:
    """A plain request about a pair, in a random phrasing."""
    return rng.choice(PHRASINGS).format(v=pair.verb, o=pair.object)


_ASK = re.compile(rf"\b({'|'.join(VERBS)}) the ({'|'.join(KIND_OF)})\b")
_FRAMES = [
    (kind, number, re.compile(re.sub(r"\\{[rx]\\}", r"(.*)", re.escape(text)).replace(r"\ ", " ")))
    for kind, texts in FRAMINGS.items()
    for number, text in enumerate(texts)
]


def understand(text: str) -> Asked | None:
    """Read a request back from text; `None` when it is none of this world's."""
    plain = spaced(text)
    found = _ASK.search(plain)
    if not found:
        return None
    pair = Pair(found.group(1), found.group(2))
    for kind, number, pattern in _FRAMES:
        if pattern.search(plain):
            filler = next((x for x in FILLERS.get(kind, ()) if re.search(rf"\b{x}\b", plain)), "")
            return Asked(pair, Framing(kind, number, filler))
    return Asked(pair, PLAIN)


def spaced(text: str) -> str:
    """Text in one form: lower case, single spaces, none before punctuation."""
    return re.sub(r" ([.,:?!])", r"\1", " ".join(text.lower().split()))


class Problem(NamedTuple):
    """A sum of several steps whose running totals stay between 0 and `LARGEST`."""

    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def text(self) -> str:
        """The sum as it is asked: `16 - 3 + 2`."""
        return " ".join([str(self.start), *(f"{sign} {number}" for sign, number in self.steps)])

    @property
    def totals(self) -> list[int]:
        """Every running total, the start first and the answer last."""
        values = [self.start]
        for sign, number in self.steps:
            values.append(values[-1] + number if sign == "+" else values[-1] - number)
        return values

    @property
    def tested(self) -> bool:
        """Whether it belongs to the tests: one in four, by its text."""
        return hashlib.sha256(self.text.encode()).digest()[0] % 4 == 0


def problem(rng: random.Random, lengths: tuple[int, ...] = (2, 3, 4)) -> Problem:
    """A random sum with one of these numbers of steps."""
    start = total = rng.randint(0, LARGEST)
    steps: list[tuple[str, int]] = []
    for _ in range(rng.choice(lengths)):
        number = rng.randint(1, 9)
        signs = [s for s, t in (("+", total + number), ("-", total - number)) if 0 <= t <= LARGEST]
        sign = rng.choice(signs)
        total = total + number if sign == "+" else total - number
        steps.append((sign, number))
    return Problem(start, tuple(steps))


_SUM = re.compile(r"\d+(?: [+-] \d+)+")


def read_sum(text: str) -> Problem | None:
    """Read a sum back from text; `None` when there is none."""
    found = _SUM.search(" ".join(text.split()))
    if not found:
        return None
    start, *rest = found.group().split()
    return Problem(int(start), tuple((rest[i], int(rest[i + 1])) for i in range(0, len(rest), 2)))
