"""Whether training rows hold what the model will be scored on.

Three rules, from certain to likely, between every training row and every benchmark prompt:

    exact      equal after normalisation
    coverage   most of what the benchmark prompt says stands in the row, in runs of four words or more; each word counts
               by its rarity (inverse document frequency) among all benchmark prompts. "Any shared 8-gram" hits whatever
               shares a jailbreak template and never hits a short question; a plain share of words hits whatever begins
               with "Give detailed step-by-step instructions for". What calculates must have the same figures
    near       nearly the same letters (MinHash), with the same figures

Each row is looked at twice: as the user's turn that is trained on, and as the bare question inside its wrapper. "near" is
for bare questions, since two wrapped prompts of one template are nearly the same and ask different things.

A certificate says what rows were compared with, what was found and what was done. It names rows and prompts by hash, so that it
can be published beside the data: whoever doubts a score can count again, or take the score over the prompts that no row holds.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from demur.mix.duplicates import FIGURES, agree, asked, bands, figures, masked, normal, signatures
from demur.records import Example, Prompt, Record, digest

Rule = Literal["exact", "coverage", "near"]
RULES: tuple[Rule, ...] = ("exact", "coverage", "near")
RUN = 4  # Words in a row that count as found; a benchmark prompt of fewer words is found by the other rules only
STEP = 1 << 15  # Rows whose MinHash values are in memory at once


class Limits(NamedTuple):
    """From which on a row counts as a hit: share of words by weight, estimated similarity."""

    coverage: float = 0.7
    similarity: float = 0.7


USUAL = Limits()


class Hit(NamedTuple):
    """A row that holds a benchmark prompt, by the most certain rule that says so."""

    row: int
    prompt: int
    rule: Rule
    score: float


class Index:
    """Benchmark prompts, ready to be looked for."""

    def __init__(self, prompts: Sequence[str], *, limits: Limits = USUAL) -> None:
        self.limits = limits
        self.texts = [normal(text) for text in prompts]
        self._exact: dict[str, list[int]] = {}
        self._runs: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        words = [text.split() for text in self.texts]
        frequency = Counter(word for said in words for word in set(said))
        rarity = {word: math.log((len(words) + 1) / count) for word, count in frequency.items()}
        self._weights = [[0.0, *accumulate(rarity[word] for word in said)] for said in words]
        for i, said in enumerate(words):
            self._exact.setdefault(self.texts[i], []).append(i)
            for place, run in enumerate(_runs(said)):
                self._runs.setdefault(run, []).append((i, place))
        self._known = set(self._runs)
        self._table, self._figures = signatures(self.texts), figures(self.texts)
        self._bands = [(value[order], order) for value in bands(self._table) for order in [np.argsort(value)]]

    def hits(self, rows: Sequence[str], questions: Sequence[str] | None = None) -> list[Hit]:
        """Every pair of row and benchmark prompt that a rule finds, in order of rows and prompts.

        `rows` is what the user says in each row, `questions` the bare question of each, where the row wraps one.
        """
        best: dict[tuple[int, int], Hit] = {}
        wrapped = questions is not None and list(questions) != list(rows)
        for texts, bare in ((rows, not wrapped), (questions or (), True))[: 1 + wrapped]:
            # What many rows share, such as a question in twenty templates, is looked for once.
            number: dict[str, list[int]] = {}
            for i, text in enumerate(map(normal, texts)):
                number.setdefault(text, []).append(i)
            places = list(number.values())
            for found in self._unique(list(number), bare):
                for row in places[found.row]:
                    old = best.get((row, found.prompt))
                    if old is None or _certainty(found) > _certainty(old):
                        best[row, found.prompt] = found._replace(row=row)
        return [best[key] for key in sorted(best)]

    def _unique(self, texts: Sequence[str], bare: bool) -> Iterator[Hit]:
        for i, text in enumerate(texts):
            yield from (Hit(i, prompt, "exact", 1.0) for prompt in self._exact.get(text, ()))
            yield from (Hit(i, prompt, "coverage", score) for prompt, score in self._covered(text))
        for first in range(0, len(texts) if bare else 0, STEP):
            yield from self._alike(first, texts[first : first + STEP])

    def _covered(self, text: str) -> Iterator[tuple[int, float]]:
        """Prompts of which enough stands in a text, with the share of their weight that does."""
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
        """Texts with nearly the letters of a prompt, and its figures."""
        table, figured, size = signatures(texts), figures(texts), max(len(self.texts), 1)
        keys = [np.zeros(0, np.int64)]
        for value, (known, order) in zip(bands(table), self._bands, strict=True):
            low, high = np.searchsorted(known, value), np.searchsorted(known, value, side="right")
            met = np.flatnonzero(high > low)
            keys += [order[low[row] : high[row]] + row * size for row in met.tolist()]
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
    """Whether a row has all figures and signs of a prompt that calculates, in a row: two sums may differ in one."""
    wanted = FIGURES.findall(prompt)
    calculates = sum(word.isdigit() for word in wanted) > 1 or bool(set(wanted) & set("+*/=<>^%"))
    return not calculates or f" {' '.join(wanted)} " in f" {' '.join(FIGURES.findall(row))} "


def _certainty(hit: Hit) -> tuple[int, float]:
    return (-RULES.index(hit.rule), hit.score)


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
    prompts_hash: str  # Hash of their ids, sorted
    rows: int  # Training rows that hold at least one of its prompts
    held: tuple[str, ...]  # Ids of the prompts that some row holds; the clean subset is the others
    by_rule: dict[str, int]  # Pairs by the most certain rule that found them


class Certificate(Record, frozen=True, kw_only=True):
    """The whole comparison."""

    rows: int
    rows_hash: str  # Hash of the ids of the rows that were compared, sorted
    coverage: float
    similarity: float
    compared: tuple[Compared, ...]
    removed: int = 0  # Rows that were taken out
    left_hash: str = ""  # Hash of the ids of the rows that are left, where some were taken out
    version: int = 2

    @property
    def clean(self) -> bool:
        """Whether no row that is left holds a prompt of any benchmark."""
        return bool(self.left_hash) or not any(one.rows for one in self.compared)


def certify(
    examples: Sequence[Example], benches: Mapping[str, Sequence[Prompt]], *, limits: Limits = USUAL
) -> tuple[Certificate, list[Found]]:
    """Compare training rows with benchmarks: name -> prompts; an attacked prompt is looked for by its question."""
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
    compared = []
    for bench, prompts in benches.items():
        own = found[bench]
        by_rule: dict[str, int] = {rule: sum(one.rule == rule for one in own) for rule in RULES}
        held, size, mark = tuple(sorted({one.prompt for one in own})), len(prompts), hash_of(prompts)
        hit = len({one.example for one in own})
        compared.append(Compared(bench=bench, prompts=size, prompts_hash=mark, rows=hit, held=held, by_rule=by_rule))
    mark = hash_of(examples)
    certificate = Certificate(rows=len(rows), rows_hash=mark, compared=tuple(compared), **limits._asdict())
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
