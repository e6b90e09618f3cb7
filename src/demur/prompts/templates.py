"""Finds the wrappers that a file's prompts share, and the questions inside them.

Jailbreak sets put a few hundred questions into a few dozen templates and publish only the result. Whoever compares such
rows as they are finds that all rows of one template are alike and that one question in twenty templates is twenty
questions; both are wrong. Here a wrapper is what several rows share at their beginning and end, word for word and at
length; what differs between them is the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from demur.records import digest

FEWEST = 5
"""RecordFile that must share a wrapper."""
SHORTEST = 60
"""Characters that a wrapper has at least; plain questions share beginnings too ("Give detailed instructions for …")."""
START = 24
"""Characters two neighbours must share to be looked at together."""


class Unwrapped(NamedTuple):
    """The question inside a prompt and the id of what was around it; the prompt itself and "" when nothing was."""

    question: str
    template: str


def unwrap(texts: Sequence[str]) -> list[Unwrapped]:
    """The question inside each text, in order."""
    unique = list(dict.fromkeys(texts))
    questions, templates = list(unique), [""] * len(unique)
    joined: dict[tuple[str, str], str] = {}
    for strip in (_beginnings, _repetitions, _endings, _repetitions):
        # A question that several templates end with looks like a wrapper itself: endings are for what has none yet.
        bare = strip is _endings
        found = strip(sorted({q for q, t in zip(questions, templates, strict=True) if not (bare and t)}))
        for i, question in enumerate(questions) if found else ():
            if question in found and not (bare and templates[i]):
                new, pair = found[question], (templates[i], found[question].template)
                questions[i], templates[i] = new.question, joined.get(pair) or joined.setdefault(pair, digest(pair)[:8])
    place = {text: i for i, text in enumerate(unique)}
    return [Unwrapped(questions[place[text]], templates[place[text]]) for text in texts]


def _beginnings(ordered: list[str]) -> dict[str, Unwrapped]:
    """Texts that begin alike, without what they share."""
    found: dict[str, Unwrapped] = {}
    for group in _groups(ordered, START):
        _take_apart(group, found)
    return found


def _endings(ordered: list[str]) -> dict[str, Unwrapped]:
    """The same from behind, for templates that begin with the question."""
    found: dict[str, Unwrapped] = {}
    for group in _groups(sorted(text[::-1] for text in ordered), START):
        _take_apart([text[::-1] for text in group], found)
    return found


def _repetitions(ordered: list[str]) -> dict[str, Unwrapped]:
    """Texts that say one thing first, last and perhaps between, with the same words around it."""
    around: dict[str, dict[str, str]] = {}
    for text in ordered:
        question = _border(text) if len(text) > SHORTEST and text.rfind(text[:8]) > 0 else ""
        frame = text.replace(question, "\0") if question else ""
        if len(frame) >= SHORTEST:
            around.setdefault(frame, {})[text] = question
    return {
        text: Unwrapped(question, digest(frame)[:8])
        for frame, rows in around.items()
        if len(rows) >= FEWEST
        for text, question in rows.items()
    }


def _groups(ordered: list[str], shared: int) -> list[list[str]]:
    """Runs of neighbours in sorted order that share their first characters, where a run is long enough."""
    runs: list[list[str]] = []
    last = None
    for text in ordered:
        if len(text) > shared and text[:shared] == last:
            runs[-1].append(text)
        else:
            runs.append([text])
            last = text[:shared]
    return [group for run in runs if len(run) >= FEWEST for group in _split(run)]


def _split(run: list[str]) -> list[list[str]]:
    """Part a run whose rows go on to share much more in parts: two templates that begin alike."""
    common = len(_common(run))
    finer: list[list[str]] = [[]]
    for text in run:
        if finer[-1] and finer[-1][-1][: common + SHORTEST] != text[: common + SHORTEST]:
            finer.append([])
        finer[-1].append(text)
    parts = [part for part in finer if len(part) >= FEWEST]
    if len(parts) < 2 or sum(map(len, parts)) < 0.8 * len(run):
        return [run]
    return [group for part in parts for group in _split(part)]


def _take_apart(group: list[str], found: dict[str, Unwrapped]) -> None:
    """Record the question of each row of a group, if what they share is long enough to be a wrapper."""
    before = _whole_words(_common(group))
    after = _whole_words(_common([text[len(before) :][::-1] for text in group]))[::-1]
    if len(before) + len(after) < SHORTEST:
        return
    inner = {text: text[len(before) : len(text) - len(after)].strip() for text in group}
    if not all(inner.values()):
        return
    template = digest([before, after])[:8]
    found.update({text: Unwrapped(question, template) for text, question in inner.items()})


def _border(text: str) -> str:
    """The longest text that stands both at the beginning and at the end, without overlapping itself."""
    lengths = [0] * len(text)
    for i in range(1, len(text)):  # Knuth, Morris and Pratt's failure function
        length = lengths[i - 1]
        while length and text[i] != text[length]:
            length = lengths[length - 1]
        lengths[i] = length + (text[i] == text[length])
    length = lengths[-1]
    while length * 2 > len(text):
        length = lengths[length - 1]
    return text[:length].strip()


def _common(texts: Sequence[str]) -> str:
    """What all texts begin with; the first and the last in sorted order tell."""
    low, high = min(texts), max(texts)
    end = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:end]


def _whole_words(shared: str) -> str:
    """The shared text without the last word, which may be the beginning of what differs."""
    end = len(shared)
    while end and shared[end - 1].isalnum():
        end -= 1
    return shared[:end]
