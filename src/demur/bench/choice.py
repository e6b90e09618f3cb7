"""Multiple choice: the form of its benchmarks and the judge that reads which option a reply chose.

Options are shuffled by a seed where a release puts the right one first. The last option that the answer names counts;
the thinking is not read. The score of a verdict is accuracy beyond chance: 1 for the right option, and 0 on average for
guessing, whatever the number of options. The `raw` text of a verdict is the chosen letter.
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

ANSWER_FORMAT = "Think it through, then end with one line that holds the letter of the right option: Answer: X"
_LETTER = re.compile(
    r"\b(?i:answer|option|choice)\b(?:\s+is\b)?[\s:=*_`$\\({\[\"']*(?:boxed\{)?(?:text\{)?\(?([A-Z])\b(?!['’])"
    r"|\\boxed\{\s*(?:\\text\{)?\(?([A-Z])\)?\s*\}|^[\s*_`(\[]*([A-Z])[)\].:*_`\s]*$",
    re.MULTILINE,
)


def read(bench: Bench, path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """One question a row: `question`, perhaps `category`, and its options in one of three ways.

    `correct` and the columns of the option `wrong`; a list `options` with `answer`; or columns A, B, C … with `answer`.
    An answer is an option's text, its letter, or its position from 0. Option: `shuffle`.
    """
    prompts, source = [], bench.name.partition("@")[0]
    for row in raw_rows(path):
        question = cell(pick(row, bench.columns["question"], path))
        options, right = _options(bench, row, row["_at"])
        order = list(range(len(options)))
        if bench.options.get("shuffle"):
            random.Random(f"options {seed} {question}").shuffle(order)
        lines = "\n".join(f"{LETTERS[place]}. {options[index]}" for place, index in enumerate(order))
        answer = {"answer": LETTERS[order.index(right)], "options": [options[index] for index in order]}
        text, gold = f"{question}\n\n{lines}\n\n{ANSWER_FORMAT}", json.dumps(answer, ensure_ascii=False)
        category = cell(pick(row, bench.columns.get("category", "?"), path))
        fields = {"source": source, "category": category, "gold": gold}
        prompts.append(Prompt(text=text, question=question, intent="benign", **fields))
    return prompts


def _options(bench: Bench, row: dict[str, Any], where: str) -> tuple[list[str], int]:
    """The options of a row, and the position of the right one."""
    if correct := cell(row.get("correct") or pick(row, bench.columns.get("correct", "?"), where)):
        wrong = [cell(pick(row, name, where)) for name in bench.options.get("wrong", ())]
        return [correct, *filter(None, wrong)], 0
    columns = bench.columns.get("options", "?options|choices")
    values = pick(row, columns, where)
    if isinstance(values, dict):  # {"text": […], "label": […]}
        values = values.get("text")
    if isinstance(values, str) and not values.lstrip().startswith("["):
        values = values.split("\n")
    elif values is not None:
        values = listed(values, columns.removeprefix("?"), where)
    options = [cell(value) for value in values or [row[letter] for letter in LETTERS if cell(row.get(letter))]]
    answer = cell(pick(row, bench.columns.get("answer", "answer|label|gold"), where))
    places = [options.index(answer)] if answer in options else []
    places += [LETTERS.index(answer.upper())] if len(answer) == 1 and answer.upper() in LETTERS else []
    places += [int(answer)] if answer.isdecimal() else []
    if not 2 <= len(options) <= len(LETTERS) or not places or places[0] >= len(options):
        fault = f"{len(options)} options, and '{answer}' names none by its text, letter or place"
        raise UserError(f"{where}: {fault}; 2 to {len(LETTERS)} are wanted, and an answer among them.")
    return options, places[0]


class ChoiceJudge(Grader):
    """Correct, wrong or no_answer."""

    name = "choice"

    def verdict(self, trace: Trace) -> Verdict:
        """The verdict on one trace: with the chosen letter as `raw`, and the score beyond chance."""
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
    """The letter of the last option that an answer names, out of this number of options; `None` where it names none."""
    letters = [next(filter(None, match), "") for match in _LETTER.findall(answer)]
    return next((letter for letter in reversed(letters) if letter in LETTERS[:options]), None)
