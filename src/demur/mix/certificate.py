"""A certificate of what training rows were compared with, what was found, and what was done about it.

It names rows and prompts by hash, so that it can be published beside the data: whoever
doubts a score can count again, or take the score over the prompts that no row holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from demur.mix.contamination import RULES, USUAL, Index, Limits, Rule
from demur.mix.text import asked, masked
from demur.records import Example, Prompt, Record, digest


class Found(Record, frozen=True, kw_only=True):
    """A training row that holds a benchmark prompt; the texts are masked, for the eye."""

    example: str
    bench: str
    prompt: str
    rule: Rule
    score: float
    row_text: str = ""
    prompt_text: str = ""


class Compared(Record, frozen=True, kw_only=True):
    """What was found for one benchmark."""

    bench: str
    prompts: int
    prompts_hash: str
    """Hash of their ids, sorted."""
    rows: int
    """Training rows that hold at least one of its prompts."""
    held: tuple[str, ...]
    """Ids of the prompts that some row holds; the clean subset is the others."""
    by_rule: dict[str, int]
    """Pairs by the most certain rule that found them."""


class Certificate(Record, frozen=True, kw_only=True):
    """The whole comparison."""

    rows: int
    rows_hash: str
    """Hash of the ids of the rows that were compared, sorted."""
    coverage: float
    similarity: float
    compared: tuple[Compared, ...]
    removed: int = 0
    """Rows that were taken out."""
    left_hash: str = ""
    """Hash of the ids of the rows that are left, where some were taken out."""
    version: int = 2

    @property
    def clean(self) -> bool:
        """Whether no row that is left holds a prompt of any benchmark."""
        return bool(self.left_hash) or not any(one.rows for one in self.compared)

    def clean_subset(self, bench: str, prompts: Iterable[Prompt]) -> list[Prompt]:
        """The prompts of a benchmark that no row holds; attacked ones go by their question."""
        held = {prompt for one in self.compared if one.bench == bench for prompt in one.held}
        return [prompt for prompt in prompts if not {prompt.id, prompt.parent} & held]


def certify(
    examples: Sequence[Example], benches: Mapping[str, Sequence[Prompt]], *, limits: Limits = USUAL
) -> tuple[Certificate, list[Found]]:
    """Compare training rows with benchmarks.

    Args:
        examples: the rows.
        benches: name -> prompts; an attacked prompt is looked for by its question.
        limits: from which on a pair counts.
    """
    rows = [asked(example) for example in examples]
    questions = [example.origin.question or row for example, row in zip(examples, rows, strict=True)]
    names = [(bench, prompt) for bench, prompts in benches.items() for prompt in prompts]
    # One index over all of them, so that a word's rarity is judged on as many prompts as there are.
    hits = Index([prompt.question for _, prompt in names], limits=limits).hits(rows, questions)
    found: dict[str, list[Found]] = {bench: [] for bench in benches}
    for row, at, rule, score in sorted(hits, key=lambda hit: (RULES.index(hit.rule), -hit.score, hit.row, hit.prompt)):
        bench, prompt = names[at]
        texts = {"row_text": masked(questions[row]), "prompt_text": masked(prompt.question)}
        one = Found(example=examples[row].id, bench=bench, prompt=prompt.id, rule=rule, score=score, **texts)
        found[bench].append(one)
    compared = [
        Compared(
            bench=bench,
            prompts=len(prompts),
            prompts_hash=hash_of(prompts),
            rows=len({one.example for one in found[bench]}),
            held=tuple(sorted({one.prompt for one in found[bench]})),
            by_rule={rule: sum(one.rule == rule for one in found[bench]) for rule in RULES},
        )
        for bench, prompts in benches.items()
    ]
    certificate = Certificate(
        rows=len(rows), rows_hash=hash_of(examples), compared=tuple(compared), **limits._asdict()
    )  # fmt: skip
    return certificate, [one for bench in benches for one in found[bench]]


def without(
    certificate: Certificate, examples: Sequence[Example], found: Sequence[Found]
) -> tuple[Certificate, list[Example]]:
    """The rows that hold no benchmark prompt, in order, and the certificate that says so."""
    bad = {one.example for one in found}
    left = [example for example in examples if example.id not in bad]
    removed = len(examples) - len(left)
    return msgspec.structs.replace(certificate, removed=removed, left_hash=hash_of(left)), left


def hash_of(rows: Iterable[Example] | Iterable[Prompt]) -> str:
    """Hash of the ids of rows or prompts, whatever their order."""
    return digest(sorted(row.id for row in rows))
