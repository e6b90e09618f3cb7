"""Multiple choice: the form of its benchmarks and the judge that reads which option a reply chose.

Options are shuffled by a seed where a release puts the right one first. What counts is the last option that the answer names;
the thinking before it is not read. The score of a verdict is accuracy beyond chance: 0 where guessing gets, 1 where all is
right, whatever the number of options. A verdict's own words are the letter that was chosen.
"""

import json
import random
import re
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import Any

from demur.bench.forms import cell, listed, pick, raw_rows
from demur.bench.spec import Bench
from demur.errors import UserError
from demur.judge.base import Grader
from demur.records import Label, Prompt, Trace, Verdict

WISH = "Think it through, then end with one line that holds the letter of the right option: Answer: X"
_LETTER = re.compile(
    r"\b(?i:answer|option|choice)\b(?:\s+is\b)?[\s:=*_`$\\({\[\"']*(?:boxed\{)?(?:text\{)?\(?([A-Z])\b(?!['’])"
    r"|\\boxed\{\s*(?:\\text\{)?\(?([A-Z])\)?\s*\}|^[\s*_`(\[]*([A-Z])[)\].:*_`\s]*$",
    re.MULTILINE,
)


def read(bench: Bench, path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """One question a row: `question`, perhaps `category`, and its options in one of three ways.

    `correct` and the columns of the option `wrong`; or `options`, a list, with `answer`; or columns A, B, C … with `answer`.
    An answer is an option's text, its letter, or its place from 0. Option: `shuffle`.
    """
    made = []
    for row in raw_rows(path):
        question = cell(pick(row, bench.columns["question"], path))
        options, right = _options(bench, row, row["_at"])
        order = list(range(len(options)))
        if bench.options.get("shuffle"):
            random.Random(f"options {seed} {question}").shuffle(order)
        lines = "\n".join(f"{LETTERS[place]}. {options[index]}" for place, index in enumerate(order))
        gold = {"answer": LETTERS[order.index(right)], "options": [options[index] for index in order]}
        text, known = f"{question}\n\n{lines}\n\n{WISH}", json.dumps(gold, ensure_ascii=False)
        source, kind = bench.name.partition("@")[0], cell(pick(row, bench.columns.get("category", "?"), path))
        made.append(Prompt(text=text, question=question, intent="benign", source=source, category=kind, gold=known))
    return made


def _options(bench: Bench, row: dict[str, Any], where: str) -> tuple[list[str], int]:
    """The options of a row, and the place of the right one."""
    if correct := cell(row.get("correct") or pick(row, bench.columns.get("correct", "?"), where)):
        wrong = [cell(pick(row, name, where)) for name in bench.options.get("wrong", ())]
        return [correct, *filter(None, wrong)], 0
    found = pick(row, said := bench.columns.get("options", "?options|choices"), where)
    if isinstance(found, dict):  # {"text": […], "label": […]}
        found = found.get("text")
    if isinstance(found, str) and not found.lstrip().startswith("["):
        found = found.split("\n")
    elif found is not None:
        found = listed(found, said.removeprefix("?"), where)
    options = [cell(option) for option in found or [row[letter] for letter in LETTERS if cell(row.get(letter))]]
    answer = cell(pick(row, bench.columns.get("answer", "answer|label|gold"), where))
    places = [options.index(answer)] if answer in options else []
    places += [LETTERS.index(answer.upper())] if len(answer) == 1 and answer.upper() in LETTERS else []
    places += [int(answer)] if answer.isdecimal() else []
    if not 2 <= len(options) <= len(LETTERS) or not places or places[0] >= len(options):
        told = f"{where}: {len(options)} options, and '{answer}' names none by its text, letter or place"
        raise UserError(f"{told}; 2 to {len(LETTERS)} are wanted, and an answer among them.")
    return options, places[0]


class ChoiceJudge(Grader):
    """Correct, wrong, or no answer."""

    name = "choice"

    def verdict(self, trace: Trace) -> Verdict:
        """The verdict on one trace: the letter that it chose in its own words, and the score beyond chance."""
        if trace.prompt.gold is None:
            return self.new_verdict(trace.id, None, "the prompt has no options")
        gold = json.loads(trace.prompt.gold)
        options: list[str] = gold["options"]
        chosen = chosen_of(trace.answer or "", len(options))
        right, chance = chosen == gold["answer"], 1 / len(options)
        label: Label = "no_answer" if chosen is None else "correct" if right else "wrong"
        reason = f"{chosen or trace.outcome}, {gold['answer']} is right" if not right else ""
        return self.new_verdict(trace.id, label, reason, score=(right - chance) / (1 - chance), raw=chosen)


def chosen_of(answer: str, options: int) -> str | None:
    """The letter of the last of so many options that an answer names; `None` where it names none."""
    found = [next(filter(None, match), "") for match in _LETTER.findall(answer)]
    return next((letter for letter in reversed(found) if letter in LETTERS[:options]), None)
