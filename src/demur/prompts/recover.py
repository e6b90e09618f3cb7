"""Jailbreak templates: question x template -> prompt, and back from prompts to templates.

A template is text with `{question}` where the question goes, as often as it likes; `{question:1/3}` stands for the first
of three equal pieces, for templates that take a question apart. `recover` finds the templates behind a set of prompts
whose questions are known, and what it gives back is proved: every prompt it claims is rebuilt to the character.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from demur.records import digest

SLOT = re.compile(r"\{question(?::([1-9])/([1-9]))?\}")
PIECES = 3


class Recovered(NamedTuple):
    """Templates found behind prompts."""

    templates: dict[str, str]
    """Name -> template."""
    uses: Counter[str]
    """Name -> prompts that it rebuilds."""
    unexplained: list[str]
    """Prompts that no found template rebuilds."""


def fill(template: str, question: str) -> str:
    """The wrapped question. What looks like a slot inside the question stays text."""
    return SLOT.sub(
        lambda slot: question if slot[1] is None else _piece(question, int(slot[1]), int(slot[2])), template
    )


def question_in(template: str, text: str) -> str | None:
    """The question in a wrapped text; `None` when this template did not wrap it. Only for slots of whole questions."""
    fixed = template.split("{question}")
    length, rest = divmod(len(text) - sum(map(len, fixed)), max(1, len(fixed) - 1))
    if len(fixed) < 2 or rest or length <= 0:
        return None
    found = text[len(fixed[0]) : len(fixed[0]) + length]
    return found if fill(template, found) == text else None


def pieces(text: str, number: int) -> list[str]:
    """A text cut into `number` consecutive pieces of equal length; what is left over lengthens the first ones by one."""
    return [_piece(text, place, number) for place in range(1, number + 1)]


def _piece(text: str, number: int, of: int) -> str:
    size, longer = divmod(len(text), of)
    begin = (number - 1) * size + min(number - 1, longer)
    return text[begin : begin + size + (number <= longer)]


def recover(prompts: Iterable[str], questions: Iterable[str], *, at_least: int = 2) -> Recovered:
    """The templates behind prompts, given the questions that were put into them.

    Whole questions are looked for first, the longest first; in what is left, questions cut into three pieces. A template
    counts when it rebuilds at least `at_least` of the prompts.
    """
    texts = list(prompts)
    known = sorted(set(questions), key=lambda q: (-len(q), q))
    candidates = [_candidate(text, known) for text in texts]
    counts = Counter(template for template, _ in filter(None, candidates))
    names = {template: f"t{digest(template)[:6]}" for template, count in counts.most_common() if count >= at_least}
    found = Recovered({name: template for template, name in names.items()}, Counter(), [])
    for text, candidate in zip(texts, candidates, strict=True):
        template = candidate[0] if candidate and fill(*candidate) == text else None
        if template not in names:
            template = next((t for t in names if question_in(t, text) is not None), None)
        if template is None:
            found.unexplained.append(text)
        else:
            found.uses[names[template]] += 1
    return found


def _candidate(text: str, questions: Sequence[str]) -> tuple[str, str] | None:
    """The prompt with its question taken out, and the question."""
    for question in questions:
        if question in text:
            return text.replace(question, "{question}"), question
    for question in questions:
        parts = pieces(question, PIECES)
        if min(map(len, parts)) > 3 and all(part in text for part in parts):
            for index, part in enumerate(parts, 1):
                text = text.replace(part, f"{{question:{index}/{PIECES}}}", 1)
            return text, question
    return None
