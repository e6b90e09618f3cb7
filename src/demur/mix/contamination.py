"""Whether training rows hold what the model will be scored on.

Three rules, from certain to likely, compare every training row with every benchmark prompt:

    exact      equal after normalisation
    coverage   most of the benchmark prompt is in the row, in runs of four words or more; each word counts by its rarity
               (inverse document frequency) among all benchmark prompts. "Any shared 8-gram" would match all rows that
               share a jailbreak template and never a short question; a plain share of words would match whatever begins
               with "Give detailed step-by-step instructions for". Calculations must have the same figures
    near       nearly the same letters (MinHash), with the same figures

Each row is compared twice: as the user's turn that is trained on, and as the bare question inside its wrapper. "near"
is for bare questions, since two wrapped prompts of one template are nearly the same and ask different things.

A certificate lists what rows were compared with, what was found and what was done. It names rows and prompts by hash
and can be published beside the data: readers can repeat the comparison, or score only the prompts that no row holds.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from demur.mix.duplicates import FIGURES, agree, bands, figures, masked, normal, signatures, user_text
from demur.records import Example, Prompt, Record, digest

Rule = Literal["exact", "coverage", "near"]
RULES: tuple[Rule, ...] = ("exact", "coverage", "near")
RUN = 4  # Consecutive words that count as shared; a benchmark prompt of fewer words is found by the other rules only
STEP = 1 << 15  # Rows whose MinHash values are in memory at once


class Limits(NamedTuple):
    """The least weighted share of words, and the least estimated similarity, that make a row a hit."""

    coverage: float = 0.7
    similarity: float = 0.7


USUAL = Limits()


class Hit(NamedTuple):
    """A row that holds a benchmark prompt, by the most certain rule that applies."""

    row: int
    prompt: int
    rule: Rule
    score: float


class Index:
    """Benchmark prompts, prepared for the comparison with rows."""

    def __init__(self, prompts: Sequence[str], *, limits: Limits = USUAL) -> None:
        self.limits = limits
        self.texts = [normal(text) for text in prompts]
        self._exact: dict[str, list[int]] = {}  # Text -> prompts
        self._runs: dict[tuple[str, ...], list[tuple[int, int]]] = {}  # Run -> prompts, and its first word in each
        split = [text.split() for text in self.texts]
        frequency = Counter(word for words in split for word in set(words))
        rarity = {word: math.log((len(split) + 1) / count) for word, count in frequency.items()}
        self._weights = [[0.0, *accumulate(rarity[word] for word in words)] for words in split]
        for i, words in enumerate(split):
            self._exact.setdefault(self.texts[i], []).append(i)
            for place, run in enumerate(_runs(words)):
                self._runs.setdefault(run, []).append((i, place))
        self._known = set(self._runs)
        self._table, self._figures = signatures(self.texts), figures(self.texts)
        self._bands = [(value[order], order) for value in bands(self._table) for order in [np.argsort(value)]]

    def hits(self, rows: Sequence[str], questions: Sequence[str] | None = None) -> list[Hit]:
        """Every pair of row and benchmark prompt that a rule finds, in order of rows and prompts.

        `rows` are the user's texts, `questions` the bare question of each, where rows wrap one.
        """
        best: dict[tuple[int, int], Hit] = {}
        wrapped = questions is not None and list(questions) != list(rows)
        for texts, bare in ((rows, not wrapped), (questions or (), True))[: 1 + wrapped]:
            # What many rows share, such as a question in twenty templates, is compared once.
            rows_of: dict[str, list[int]] = {}
            for i, text in enumerate(map(normal, texts)):
                rows_of.setdefault(text, []).append(i)
            shared = list(rows_of.values())
            for hit in self._unique(list(rows_of), bare):
                for row in shared[hit.row]:
                    old = best.get((row, hit.prompt))
                    if old is None or _certainty(hit) > _certainty(old):
                        best[row, hit.prompt] = hit._replace(row=row)
        return [best[key] for key in sorted(best)]

    def _unique(self, texts: Sequence[str], bare: bool) -> Iterator[Hit]:
        """The hits of different texts, `row` being the place of the text; "near" only where they are bare questions."""
        for i, text in enumerate(texts):
            yield from (Hit(i, prompt, "exact", 1.0) for prompt in self._exact.get(text, ()))
            yield from (Hit(i, prompt, "coverage", score) for prompt, score in self._covered(text))
        for first in range(0, len(texts) if bare else 0, STEP):
            yield from self._alike(first, texts[first : first + STEP])

    def _covered(self, text: str) -> Iterator[tuple[int, float]]:
        """Prompts that a text covers well enough, with the share of their weight that it covers."""
        places: dict[int, set[int]] = {}
        for run in self._known.intersection(_runs(text.split())):
            for prompt, place in self._runs[run]:
                places.setdefault(prompt, set()).update(range(place, place + RUN))
        for prompt, covered in places.items():
            weights = self._weights[prompt]
            share = sum(weights[place + 1] - weights[place] for place in covered) / weights[-1]
            if share >= self.limits.coverage - 1e-9 and _same_sum(self.texts[prompt], text):
                yield prompt, round(share, 3)

    def _alike(self, first: int, texts: Sequence[str]) -> Iterator[Hit]:
        """Texts with nearly the letters of a prompt, and its figures; `first` is the place of the first text."""
        table, figured, size = signatures(texts), figures(texts), max(len(self.texts), 1)
        keys = [np.zeros(0, np.int64)]
        for value, (known, order) in zip(bands(table), self._bands, strict=True):
            low, high = np.searchsorted(known, value), np.searchsorted(known, value, side="right")
            keys += [order[low[row] : high[row]] + row * size for row in np.flatnonzero(high > low).tolist()]
        pairs = np.unique(np.concatenate(keys))
        row, prompt = pairs // size, pairs % size
        same = figured[row] == self._figures[prompt]
        row, prompt = row[same], prompt[same]
        scores = agree(table[row], self._table[prompt])
        for i in np.flatnonzero(scores >= self.limits.similarity).tolist():
            yield Hit(first + int(row[i]), int(prompt[i]), "near", round(float(scores[i]), 3))


def _runs(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(words[place:] for place in range(RUN)), strict=False)


def _same_sum(prompt: str, row: str) -> bool:
    """Whether a row has all figures of a prompt that calculates, consecutively: two sums may differ in one."""
    wanted = FIGURES.findall(prompt)
    calculates = sum(word.isdigit() for word in wanted) > 1 or bool(set(wanted) & set("+*/=<>^%"))
    return not calculates or f" {' '.join(wanted)} " in f" {' '.join(FIGURES.findall(row))} "


def _certainty(hit: Hit) -> tuple[int, float]:
    return (-RULES.index(hit.rule), hit.score)


class Match(Record, frozen=True, kw_only=True):
    """A training row that holds a benchmark prompt. The texts are masked: recognisable, and of no use."""

    example: str
    bench: str
    prompt: str
    rule: Rule
    score: float
    row_text: str = ""
    prompt_text: str = ""


class Compared(Record, frozen=True, kw_only=True):
    """The result for one benchmark."""

    bench: str
    prompts: int
    prompts_hash: str  # Hash of their ids, sorted
    rows: int  # Training rows that hold at least one of its prompts
    held: tuple[str, ...]  # Ids of the prompts that some row holds; the others are the clean subset
    by_rule: dict[str, int]  # Pairs by the most certain rule that found them


class Certificate(Record, frozen=True, kw_only=True):
    """The whole comparison."""

    rows: int
    rows_hash: str  # Hash of the ids of the rows that were compared, sorted
    coverage: float
    similarity: float
    compared: tuple[Compared, ...]
    removed: int = 0  # Rows that were taken out
    left_hash: str = ""  # Hash of the ids of the remaining rows, where some were taken out
    version: int = 2

    @property
    def clean(self) -> bool:
        """Whether no remaining row holds a prompt of any benchmark."""
        return bool(self.left_hash) or not any(result.rows for result in self.compared)


def certify(
    examples: Sequence[Example], benches: Mapping[str, Sequence[Prompt]], *, limits: Limits = USUAL
) -> tuple[Certificate, list[Match]]:
    """Compare training rows with the prompts of benchmarks, by name; of an attacked prompt its question counts."""
    rows = [user_text(example) for example in examples]
    questions = [example.origin.question or row for example, row in zip(examples, rows, strict=True)]
    every = [(bench, prompt) for bench, prompts in benches.items() for prompt in prompts]
    # One index over all benchmarks: the rarity of words needs as many prompts as there are.
    hits = Index([prompt.question for _, prompt in every], limits=limits).hits(rows, questions)
    matches: dict[str, list[Match]] = {bench: [] for bench in benches}
    for row, at, rule, score in sorted(hits, key=lambda hit: (RULES.index(hit.rule), -hit.score, hit.row, hit.prompt)):
        bench, prompt = every[at]
        texts = {"row_text": masked(questions[row]), "prompt_text": masked(prompt.question)}
        match = Match(example=examples[row].id, bench=bench, prompt=prompt.id, rule=rule, score=score, **texts)
        matches[bench].append(match)
    compared = [_compared(bench, prompts, matches[bench]) for bench, prompts in benches.items()]
    certificate = Certificate(rows=len(rows), rows_hash=hash_of(examples), compared=tuple(compared), **limits._asdict())
    return certificate, [match for bench in benches for match in matches[bench]]


def _compared(bench: str, prompts: Sequence[Prompt], matches: Sequence[Match]) -> Compared:
    by_rule: dict[str, int] = {rule: sum(match.rule == rule for match in matches) for rule in RULES}
    held, rows = tuple(sorted({match.prompt for match in matches})), len({match.example for match in matches})
    size, prompts_hash = len(prompts), hash_of(prompts)
    return Compared(bench=bench, prompts=size, prompts_hash=prompts_hash, rows=rows, held=held, by_rule=by_rule)


def without(
    certificate: Certificate, examples: Sequence[Example], matches: Sequence[Match]
) -> tuple[Certificate, list[Example]]:
    """The rows that hold no benchmark prompt, in order, and their certificate."""
    bad = {match.example for match in matches}
    left = [example for example in examples if example.id not in bad]
    removed = len(examples) - len(left)
    return msgspec.structs.replace(certificate, removed=removed, left_hash=hash_of(left)), left


def hash_of(rows: Iterable[Example] | Iterable[Prompt]) -> str:
    """Hash of the ids of rows or prompts, whatever their order."""
    return digest(sorted(row.id for row in rows))
