"""The jailbreak templates behind a published set of prompts whose questions are known.

    python tools/recover_templates.py RELEASED QUESTIONS > templates.jsonl

    python tools/recover_templates.py lrm_safety_study_nocot.json harmbench200.txt > lrm_safety_study_templates.jsonl

The second makes the 20 templates of the paper's set, which `studies/paper_v2.yaml` names. Every prompt that a template claims
is rebuilt from it to the character; prompts that no template rebuilds are an error.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from demur.prompts.forms import load_file
from demur.prompts.wrappers import fill, piece
from demur.records import digest, encode

PIECES = 3


class Recovered(NamedTuple):
    """Templates found behind prompts."""

    templates: dict[str, str]
    """Name -> template."""
    uses: Counter[str]
    """Name -> prompts that it rebuilds."""
    unexplained: list[str]
    """Prompts that no found template rebuilds."""


def question_in(template: str, text: str) -> str | None:
    """The question in a wrapped text; `None` when this template did not wrap it. Only for slots of whole questions."""
    fixed = template.split("{question}")
    length, rest = divmod(len(text) - sum(map(len, fixed)), max(1, len(fixed) - 1))
    if len(fixed) < 2 or rest or length <= 0:
        return None
    found = text[len(fixed[0]) : len(fixed[0]) + length]
    return found if fill(template, found) == text else None


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
        parts = [piece(question, number, PIECES) for number in range(1, PIECES + 1)]
        if min(map(len, parts)) > 3 and all(part in text for part in parts):
            for number, part in enumerate(parts, 1):
                text = text.replace(part, f"{{question:{number}/{PIECES}}}", 1)
            return text, question
    return None


def main(released: str, questions: str) -> None:
    """Write the templates as JSON Lines to standard output."""
    asked = (prompt.text for prompt in load_file(Path(questions), intent="harmful").prompts)
    found = recover((prompt.text for prompt in load_file(Path(released), intent="harmful").prompts), asked)
    if found.unexplained or not found.templates:
        sys.exit(f"{released}: {len(found.unexplained):,} prompts are not these questions wrapped in something.")
    for name, template in found.templates.items():
        sys.stdout.write(encode({"name": name, "template": template}).decode() + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
