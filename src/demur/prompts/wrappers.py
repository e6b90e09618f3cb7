"""Wrappers: texts around a question, such as jailbreak templates. Filling them, and finding the questions in wrapped prompts.

A template is text with `{question}` where the question goes, as often as it likes; `{question:1/3}` stands for the first
of three equal pieces. `tools/recover_templates.py` writes a file of templates from prompts whose questions are known.

Jailbreak sets put a few hundred questions into a few dozen templates and publish only the result. Compared as they are,
all rows of one template look alike, and one question in twenty templates looks like twenty questions. `unwrap` takes for a wrapper
what several rows share at their beginning and end, word for word and at length; what differs between them is the question.
"""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from os.path import commonprefix
from pathlib import Path
from typing import NamedTuple

import msgspec

from demur.errors import UserError
from demur.records import Prompt, digest
from demur.storage import readers

SLOT = re.compile(r"\{question(?::([1-9])/([1-9]))?\}")
FEWEST = 5  # Rows that must share a wrapper
SHORTEST = 60  # Characters of a wrapper at least; plain questions share beginnings too ("Give instructions for …")
LAST_WORD = re.compile(r"[^\W_]+\Z")  # Of what texts share: it may be the beginning of what differs
LIKE = 8  # Letters by which a repetition is looked for
START = 24  # Characters that two neighbours must share to be looked at together
_shared = commonprefix  # What texts begin with, letter by letter


def fill(template: str, question: str) -> str:
    """The wrapped question. What looks like a slot inside the question stays text."""
    return SLOT.sub(lambda slot: piece(question, int(slot[1] or 1), int(slot[2] or 1)), template)


def piece(text: str, number: int, of: int) -> str:
    """One of `of` consecutive pieces of equal length; what is left over lengthens the first ones by a character."""
    size, longer = divmod(len(text), of)
    begin = (number - 1) * size + min(number - 1, longer)
    return text[begin : begin + size + (number <= longer)]


def read_templates(path: Path) -> dict[str, str]:
    """Templates from a table or a text file, by the column `name`; those without a name are numbered.

    Raises UserError: none, two of one name, or a row without a place for the question.
    """
    found: dict[str, str] = {}
    for number, row in readers.rows(path):
        text = next((value for value in row.values() if isinstance(value, str) and SLOT.search(value)), None)
        if text is None:
            raise UserError(
                f"{path}:{number}: a template without {{question}}, which marks where the question goes. "
                "From prompts that are wrapped already, tools/recover_templates.py makes a file of templates."
            )
        name = str(row.get("name") or len(found) + 1)
        if name in found:
            raise UserError(f"{path}:{number}: a second template named '{name}'.")
        found[name] = text
    if not found:
        raise UserError(f"{path}: no templates in it.")
    return found


def wrap(prompts: Sequence[Prompt], templates: Mapping[str, str], *, each: int, seed: int) -> list[Prompt]:
    """Each question in `each` different templates, drawn by the seed and the question alone."""
    if each > len(templates):
        raise UserError(f"per_question = {each}, but there are {len(templates)} templates.")
    names, made = list(templates), []
    for prompt in prompts:
        for i in sorted(random.Random(f"templates {seed} {prompt.id}").sample(range(len(names)), each)):
            text = fill(templates[names[i]], prompt.text)
            parent = prompt.parent or prompt.id
            made.append(msgspec.structs.replace(prompt, id="", text=text, attack=f"template:{names[i]}", parent=parent))
    return made


class Unwrapped(NamedTuple):
    """The question inside a prompt, and the id of what was around it."""

    question: str
    template: str


def unwrap(texts: Iterable[str]) -> dict[str, Unwrapped]:
    """The question inside each text that stands in a wrapper."""
    every, found = dict.fromkeys(texts), dict[str, Unwrapped]()
    joined: dict[tuple[str, str], str] = {}
    changed = 0
    for number, behind in enumerate((False, None, True, None)):
        if number == 3 and not changed:
            break
        # A question that several templates end with looks like a wrapper itself: endings are for what has none yet.
        asked = [(t, found[t].question if t in found else t) for t in every if not (behind and t in found)]
        questions = {question for _, question in asked}
        inner = _repetitions(questions) if behind is None else _alike(questions, behind=behind)
        changed += number * len(inner)
        for text, new in ((text, inner[question]) for text, question in asked if question in inner):
            pair = (found[text].template if text in found else "", new.template)
            found[text] = Unwrapped(new.question, joined.setdefault(pair, digest(pair)[:8]))
    return found


def _alike(asked: Iterable[str], *, behind: bool) -> dict[str, Unwrapped]:
    """Texts that begin alike, or end alike where templates begin with the question, without what they share."""
    turned = sorted(text[::-1] if behind else text for text in asked)
    runs = [list(run) for _, run in groupby(turned, key=lambda text: text[:START])]
    groups = [group for run in runs if len(run) >= FEWEST for group in _split(run)]
    whole = ([text[::-1] for text in group] if behind else group for group in groups)
    return {text: bare for group in whole for text, bare in _taken_apart(group).items()}


def _repetitions(asked: Iterable[str]) -> dict[str, Unwrapped]:
    """Texts that have one thing first, last and perhaps between, with the same words around it."""
    around: dict[str, dict[str, str]] = {}
    for text in asked:
        question = _border(text) if len(text) > SHORTEST and text.rfind(text[:LIKE]) > 0 else ""
        frame = text.replace(question, "\0") if question else ""
        if len(frame) >= SHORTEST:
            around.setdefault(frame, {})[text] = question
    frames = [(digest(frame)[:8], rows) for frame, rows in around.items() if len(rows) >= FEWEST]
    return {text: Unwrapped(question, name) for name, rows in frames for text, question in rows.items()}


def _split(run: list[str]) -> list[list[str]]:
    """Part a run whose rows go on to share much more in parts: two templates that begin alike."""
    common = len(_shared(run))
    finer = [list(part) for _, part in groupby(run, key=lambda text: text[: common + SHORTEST])]
    parts = [part for part in finer if len(part) >= FEWEST]
    if len(parts) < 2 or sum(map(len, parts)) < 0.8 * len(run):
        return [run]
    return [group for part in parts for group in _split(part)]


def _taken_apart(group: list[str]) -> dict[str, Unwrapped]:
    """The question of each row of a group, if what they share is long enough to be a wrapper."""
    before = LAST_WORD.sub("", _shared(group))
    after = LAST_WORD.sub("", _shared([text[len(before) :][::-1] for text in group]))[::-1]
    inner = {text: text[len(before) : len(text) - len(after)].strip() for text in group}
    if len(before) + len(after) < SHORTEST or not all(inner.values()):
        return {}
    name = digest([before, after])[:8]
    return {text: Unwrapped(question, name) for text, question in inner.items()}


def _border(text: str) -> str:
    """The longest text that stands both at the beginning and at the end, without overlapping itself."""
    at = text.find(text[:LIKE], -(-len(text) // 2))
    while at >= 0 and not text.startswith(text[at:]):
        at = text.find(text[:LIKE], at + 1)
    return text[at:].strip() if at >= 0 else ""
