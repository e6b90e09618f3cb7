"""Wrappers: texts around a question, such as jailbreak templates. Filling them, and finding the questions in them.

A template is a text with `{question}` wherever the question goes; `{question:1/3}` stands for the first of three equal
pieces. `tools/recover_templates.py` writes a file of templates from prompts whose questions are known.

Jailbreak sets put a few hundred questions into a few dozen templates and publish only the result. Compared as they are,
all rows of one template look alike, and one question in twenty templates looks like twenty questions. To `unwrap`, the
wrapper is what several rows share word for word, at length, at their beginning and end; the rest is the question.
"""

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
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
SHORTEST = 60  # Least characters of a wrapper; plain questions share beginnings too ("Give instructions for …")
LAST_WORD = re.compile(r"[^\W_]+\Z")  # Of a shared text: it may be the beginning of a word that differs
PROBE = 8  # Characters by which a repetition is looked for
START = 24  # Characters that two neighbours must share to be compared
shared_beginning = commonprefix  # Character by character


def fill(template: str, question: str) -> str:
    """The wrapped question. What looks like a slot inside the question remains text."""
    return SLOT.sub(lambda slot: piece(question, int(slot[1] or 1), int(slot[2] or 1)), template)


def piece(text: str, number: int, of: int) -> str:
    """One of `of` consecutive pieces of equal length; the first are a character longer where something is left over."""
    size, longer = divmod(len(text), of)
    begin = (number - 1) * size + min(number - 1, longer)
    return text[begin : begin + size + (number <= longer)]


def read_templates(path: Path) -> dict[str, str]:
    """Templates of a file by the column `name`, or numbered. Raises UserError: none, two of one name, or no slot."""
    templates: dict[str, str] = {}
    for number, row in readers.rows(path):
        text = next((value for value in row.values() if isinstance(value, str) and SLOT.search(value)), None)
        if text is None:
            raise UserError(
                f"{path}:{number}: a template without {{question}}, which marks where the question goes. "
                "From prompts that are wrapped already, tools/recover_templates.py makes a file of templates."
            )
        name = str(row.get("name") or len(templates) + 1)
        if name in templates:
            raise UserError(f"{path}:{number}: a second template named '{name}'.")
        templates[name] = text
    if not templates:
        raise UserError(f"{path}: no templates in it.")
    return templates


def wrap(prompts: Sequence[Prompt], templates: Mapping[str, str], *, each: int, seed: int) -> list[Prompt]:
    """Each question in `each` different templates, drawn by the seed and the question alone."""
    if each > len(templates):
        raise UserError(f"per_question = {each}, but there are {len(templates)} templates.")
    names, wrapped = list(templates), []
    for prompt in prompts:
        for i in sorted(random.Random(f"templates {seed} {prompt.id}").sample(range(len(names)), each)):
            text, attack = fill(templates[names[i]], prompt.text), f"template:{names[i]}"
            parent = prompt.parent or prompt.id
            wrapped.append(msgspec.structs.replace(prompt, id="", text=text, attack=attack, parent=parent))
    return wrapped


class Unwrapped(NamedTuple):
    """The question inside a prompt, and the id of the template around it."""

    question: str
    template: str


def unwrap(texts: Iterable[str]) -> dict[str, Unwrapped]:
    """The question and the template of each text that has a wrapper."""
    every, found = dict.fromkeys(texts), dict[str, Unwrapped]()

    def peel(search: Callable[[set[str]], dict[str, Unwrapped]], texts: Iterable[str]) -> bool:
        """Take off these texts the layer of wrappers that a search finds; whether there was one."""
        bare = {text: found[text].question if text in found else text for text in texts}
        inner = search(set(bare.values()))
        for text, (question, template) in ((text, inner[bare[text]]) for text in bare if bare[text] in inner):
            layers = (found[text].template if text in found else "", template)
            found[text] = Unwrapped(question, digest(layers)[:8])
        return bool(inner)

    peel(_alike, every)
    repeated = peel(_repetitions, every)
    # A question that several templates end with looks like a wrapper itself: only texts without a wrapper are compared.
    if peel(partial(_alike, step=-1), [text for text in every if text not in found]) or repeated:
        peel(_repetitions, every)
    return found


def _alike(texts: Iterable[str], *, step: int = 1) -> dict[str, Unwrapped]:
    """Texts that begin alike or, read backwards (`step` -1), end alike, where templates begin with the question."""
    runs = [list(run) for _, run in groupby(sorted(text[::step] for text in texts), key=lambda text: text[:START])]
    groups = [group for run in runs if len(run) >= FEWEST for group in _split(run)]
    return {text: bare for group in groups for text, bare in _without_wrapper([text[::step] for text in group]).items()}


def _repetitions(texts: Iterable[str]) -> dict[str, Unwrapped]:
    """Texts with the question first, last and perhaps in between, and the same words around it."""
    around: dict[str, dict[str, str]] = {}
    for text in texts:
        question = _border(text) if len(text) > SHORTEST and text.rfind(text[:PROBE]) > 0 else ""
        frame = text.replace(question, "\0") if question else ""
        if len(frame) >= SHORTEST:
            around.setdefault(frame, {})[text] = question
    frames = [(digest(frame)[:8], rows) for frame, rows in around.items() if len(rows) >= FEWEST]
    return {text: Unwrapped(question, name) for name, rows in frames for text, question in rows.items()}


def _split(run: list[str]) -> list[list[str]]:
    """Divide a run whose parts share much more than the whole: two templates that begin alike."""
    common = len(shared_beginning(run))
    finer = [list(part) for _, part in groupby(run, key=lambda text: text[: common + SHORTEST])]
    parts = [part for part in finer if len(part) >= FEWEST]
    if len(parts) < 2 or sum(map(len, parts)) < 0.8 * len(run):
        return [run]
    return [group for part in parts for group in _split(part)]


def _without_wrapper(group: list[str]) -> dict[str, Unwrapped]:
    """The question of each text of a group, if what they share is long enough to be a wrapper."""
    before = LAST_WORD.sub("", shared_beginning(group))
    after = LAST_WORD.sub("", shared_beginning([text[len(before) :][::-1] for text in group]))[::-1]
    inner = {text: text[len(before) : len(text) - len(after)].strip() for text in group}
    if len(before) + len(after) < SHORTEST or not all(inner.values()):
        return {}
    name = digest([before, after])[:8]
    return {text: Unwrapped(question, name) for text, question in inner.items()}


def _border(text: str) -> str:
    """The longest text that is both the beginning and the end, without overlapping itself."""
    at = text.find(text[:PROBE], -(-len(text) // 2))
    while at >= 0 and not text.startswith(text[at:]):
        at = text.find(text[:PROBE], at + 1)
    return text[at:].strip() if at >= 0 else ""
