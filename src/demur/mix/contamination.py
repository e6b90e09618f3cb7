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
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from demur.mix.duplicates import FIGURES, Signatures, agree, bands, figures, signatures
from demur.mix.grams import I64, U64, Grams, Packed, packs, places
from demur.mix.text import normal

Rule = Literal["exact", "coverage", "near"]
RULES: tuple[Rule, ...] = ("exact", "coverage", "near")
RUN = 4
"""Words in a row that count as found; a benchmark prompt of fewer words is found by the other rules only."""
SLICE = 4_000_000
"""Meetings of a row's run with a benchmark prompt that are worked on at once."""
BITS = 22


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
        for i, text in enumerate(self.texts):
            self._exact.setdefault(text, []).append(i)
        self._runs = _Runs(self.texts, RUN, _Weights(self.texts))
        self._near = _Near(self.texts, limits.similarity)

    def hits(self, rows: Sequence[str], questions: Sequence[str] | None = None) -> list[Hit]:
        """Every pair of row and benchmark prompt that a rule finds, in order of rows and prompts.

        Args:
            rows: what the user says in each row.
            questions: the bare question of each, where the row wraps one.
        """
        best: dict[tuple[int, int], Hit] = {}
        for texts, bare in _views(rows, questions):
            # What many rows share, such as a question in twenty templates, is looked for once.
            number: dict[str, list[int]] = {}
            for i, text in enumerate(texts):
                number.setdefault(text, []).append(i)
            unique = list(number)
            for found in self._unique(unique, bare):
                for row in number[unique[found.row]]:
                    hit = found._replace(row=row)
                    old = best.get((row, hit.prompt))
                    if old is None or _certainty(hit) > _certainty(old):
                        best[row, hit.prompt] = hit
        return [best[key] for key in sorted(best)]

    def _unique(self, texts: Sequence[str], bare: bool) -> Iterator[Hit]:
        """Hits of different texts, worked through piece by piece so that memory stays small."""
        step = 1 << 15
        for first in range(0, len(texts), step):
            part = [normal(text) for text in texts[first : first + step]]
            for i, text in enumerate(part):
                for prompt in self._exact.get(text, ()):
                    yield Hit(first + i, prompt, "exact", 1.0)
            for offset, pack in packs(part):
                for hit in _as_hits(first + offset, "coverage", self._runs.covered(pack, self.limits.coverage)):
                    if _same_sum(self.texts[hit.prompt], part[hit.row - first]):
                        yield hit
            if bare:
                yield from _as_hits(first, "near", self._near.alike(part))


def _same_sum(prompt: str, row: str) -> bool:
    """Whether a row has all figures and signs of a prompt that calculates, in a row: two sums may differ in one."""
    wanted = FIGURES.findall(prompt)
    calculates = sum(word.isdigit() for word in wanted) > 1 or bool(set(wanted) & set("+*/=<>^%"))
    return not calculates or f" {' '.join(wanted)} " in f" {' '.join(FIGURES.findall(row))} "


def _views(rows: Sequence[str], questions: Sequence[str] | None) -> Iterator[tuple[Sequence[str], bool]]:
    """RecordFile as they are and as bare questions; once where these are the same."""
    if questions is None or list(questions) == list(rows):
        yield rows, True
    else:
        yield rows, False
        yield questions, True


def _certainty(hit: Hit) -> tuple[int, float]:
    return (-RULES.index(hit.rule), hit.score)


Scores = NDArray[np.float64]
Found = tuple[I64, I64, Scores]
"""RecordFile, prompts and scores."""


def _as_hits(first: int, rule: Rule, found: Found) -> Iterator[Hit]:
    for row, prompt, score in zip(*(column.tolist() for column in found), strict=True):
        yield Hit(first + row, prompt, rule, round(score, 3))


def _all_runs(texts: Sequence[str], n: int) -> Grams:
    """Every run of `n` words of all texts."""
    pieces = [(first, pack.runs(n)) for first, pack in packs(texts)]
    if not pieces:
        return Grams(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    return Grams(
        np.concatenate([runs.hashes for _, runs in pieces]),
        np.concatenate([runs.text + first for first, runs in pieces]),
        np.concatenate([runs.place for _, runs in pieces]),
    )


class _Weights:
    """What each word of each benchmark prompt says: the logarithm of how rare it is among the prompts."""

    def __init__(self, texts: Sequence[str]) -> None:
        words = _all_runs(texts, 1)
        size = max(len(texts), 1)
        known, which = np.unique(words.hashes, return_inverse=True)
        frequency = np.bincount(np.unique(which * size + words.text) // size, minlength=len(known))
        weight = np.log((size + 1) / frequency[which])
        self._sum = np.concatenate([[0.0], np.cumsum(weight)])
        self._first = np.searchsorted(words.text, np.arange(len(texts) + 1))

    def between(self, prompt: I64, begin: I64, end: I64) -> Scores:
        """The weight of the words from `begin` to `end` of each prompt."""
        weight: Scores = self._sum[self._first[prompt] + end] - self._sum[self._first[prompt] + begin]
        return weight

    def whole(self, prompt: I64) -> Scores:
        """The weight of all words of each prompt."""
        weight: Scores = self._sum[self._first[prompt + 1]] - self._sum[self._first[prompt]]
        return weight


class _Runs:
    """The benchmark's runs of `n` words: where each stands."""

    def __init__(self, texts: Sequence[str], n: int, weights: _Weights) -> None:
        self.n, self.weights = n, weights
        every = _all_runs(texts, n)
        order = np.argsort(every.hashes, kind="stable")
        self.prompt, self.place = every.text[order], every.place[order]
        self.hashes, first_of, count_of = np.unique(every.hashes[order], return_index=True, return_counts=True)
        self.first, self.count = first_of.astype(np.int64), count_of.astype(np.int64)
        # Nearly all runs of the training rows are in no benchmark; a bitmap that fits the cache says so at once.
        self.maybe = np.zeros(1 << BITS, dtype=bool)
        self.maybe[self._slot(self.hashes)] = True

    @staticmethod
    def _slot(hashes: U64) -> U64:
        return hashes >> np.uint64(64 - BITS)

    def covered(self, pack: Packed, least: float) -> Found:
        """RecordFile, prompts and the share of the prompt that stands in the row in runs of `n` words."""
        runs = pack.runs(self.n)
        likely = np.flatnonzero(self.maybe[self._slot(runs.hashes)])
        at = np.searchsorted(self.hashes, runs.hashes[likely])
        at = np.minimum(at, max(len(self.hashes) - 1, 0))
        hit = self.hashes[at] == runs.hashes[likely] if len(self.hashes) else np.zeros(0, dtype=bool)
        which = np.unique(np.stack([runs.text[likely[hit]], at[hit]]), axis=1)
        found = [self._shares(which[:, part], least) for part in _slices(which[0], self.count[which[1]])]
        if not found:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
        return tuple(np.concatenate([f[i] for f in found]) for i in range(3))  # type: ignore[return-value]

    def _shares(self, which: I64, least: float) -> Found:
        """Coverage from pairs of row and run: each run of a prompt covers its words once."""
        count = self.count[which[1]]
        entry = np.repeat(self.first[which[1]], count) + places(count)
        row, prompt, place = np.repeat(which[0], count), self.prompt[entry], self.place[entry]
        order = np.lexsort((place, prompt, row))
        row, prompt, place = row[order], prompt[order], place[order]
        new = np.ones(len(row), dtype=bool)
        new[1:] = (row[1:] != row[:-1]) | (prompt[1:] != prompt[:-1])
        step = np.full(len(row), self.n, dtype=np.int64)
        step[1:] = np.where(new[1:], self.n, np.minimum(place[1:] - place[:-1], self.n))
        starts = np.flatnonzero(new)
        new_words = self.weights.between(prompt, place + self.n - step, place + self.n)
        share = np.add.reduceat(new_words, starts) / self.weights.whole(prompt[starts]) if len(starts) else np.zeros(0)
        enough = share >= least - 1e-9
        return row[starts][enough], prompt[starts][enough], share[enough]


def _slices(row: I64, work: I64) -> Iterator[slice]:
    """Pieces of bounded work that do not part a row."""
    total = np.cumsum(work)
    begin = 0
    while begin < len(row):
        done = total[begin - 1] if begin else 0
        end = max(int(np.searchsorted(total, done + SLICE)), begin + 1)
        end = int(np.searchsorted(row, row[end - 1], side="right"))
        yield slice(begin, end)
        begin = end


class _Near:
    """The benchmark's MinHash values, by band."""

    def __init__(self, texts: Sequence[str], similarity: float) -> None:
        self.similarity = similarity
        self.table: Signatures = signatures(texts)
        self.figures = figures(texts)
        self.bands = []
        for value in bands(self.table):
            order = np.argsort(value, kind="stable")
            self.bands.append((value[order], order))

    def alike(self, texts: Sequence[str]) -> Found:
        """RecordFile, prompts and similarity."""
        table, figured = signatures(texts), figures(texts)
        size = max(len(self.table), 1)
        keys = []
        for value, (known, order) in zip(bands(table), self.bands, strict=True):
            low, high = np.searchsorted(known, value), np.searchsorted(known, value, side="right")
            count = high - low
            prompt = order[np.repeat(low, count) + places(count)]
            keys.append(np.unique(np.repeat(np.arange(len(texts)), count) * size + prompt))
        key = np.unique(np.concatenate(keys))
        row, prompt = key // size, key % size
        same = figured[row] == self.figures[prompt]
        row, prompt = row[same], prompt[same]
        score = agree(table[row], self.table[prompt])
        close = score >= self.similarity
        return row[close], prompt[close], score[close]
