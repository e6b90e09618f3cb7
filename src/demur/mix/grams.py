"""Hashes of all pieces of many texts at once, without a Python loop over words.

Texts are laid end to end as bytes. With `P[k] = sum of byte[j] * B**j for j < k` (modulo 2**64, B odd and so invertible) the
piece from a to b has the hash `(P[b] - P[a]) * B**-a`, wherever it stands (Karp and Rabin's fingerprint). One cumulative sum
gives every word n-gram and every run of letters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
BASE = 0x9E3779B97F4A7C15
CHUNK = 1 << 19
"""Bytes that are worked on at once: enough for numpy, little enough for the cache."""


class Grams(NamedTuple):
    """Pieces of texts: their hashes, in order, and for each the text it is from and its place there."""

    hashes: U64
    text: I64
    place: I64


class Packed:
    """Normalised texts laid end to end, each with a newline behind it."""

    def __init__(self, texts: Sequence[str]) -> None:
        coded = [text.encode() + b"\n" for text in texts]
        self.data = np.frombuffer(b"".join(coded), dtype=np.uint8)
        self.lengths = np.fromiter(map(len, coded), dtype=np.int64, count=len(coded)) - 1
        self.starts = np.cumsum(self.lengths + 1) - self.lengths - 1
        power, _ = _powers(_room(len(self.data)))
        self._prefix = np.zeros(len(self.data) + 1, dtype=np.uint64)
        np.cumsum(self.data * power[: len(self.data)], out=self._prefix[1:])

    def hashes(self, begin: I64, end: I64) -> U64:
        """The hash of each piece from `begin` to `end`, in bytes."""
        _, inverse = _powers(_room(len(self.data)))
        return _mixed((self._prefix[end] - self._prefix[begin]) * inverse[begin])

    def letters(self, n: int) -> Grams:
        """All runs of `n` bytes inside a text; a text that is shorter gives itself."""
        count = np.maximum(self.lengths - n + 1, 1)
        text = np.repeat(np.arange(len(count)), count)
        place = places(count)
        begin = self.starts[text] + place
        end = np.minimum(begin + n, (self.starts + self.lengths)[text])
        return Grams(self.hashes(begin, end), text, place)

    def words(self) -> tuple[I64, I64, I64]:
        """Begin, end and text of every word."""
        gap = (self.data == ord(" ")) | (self.data == ord("\n"))
        before = np.concatenate([[True], gap[:-1]])
        begin = np.flatnonzero(~gap & before)
        end = np.flatnonzero(gap & ~before)
        text = np.searchsorted(self.starts, begin, side="right") - 1
        return begin, end, text

    def runs(self, n: int) -> Grams:
        """All runs of `n` words inside a text; `place` counts words."""
        begin, end, text = self.words()
        first = np.searchsorted(text, np.arange(len(self.lengths)))
        whole = np.flatnonzero(text[: max(len(text) - n + 1, 0)] == text[n - 1 :])
        hashes = self.hashes(begin[whole], end[whole + n - 1])
        return Grams(hashes, text[whole], whole - first[text[whole]])


def places(counts: I64) -> I64:
    """0, 1, … for each of some counts, end to end."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def packs(texts: Iterable[str]) -> Iterator[tuple[int, Packed]]:
    """The texts in chunks, each with the number of its first text."""
    first, size, chunk = 0, 0, list[str]()
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size > CHUNK:
            yield first, Packed(chunk)
            first, size, chunk = first + len(chunk), 0, []
    if chunk:
        yield first, Packed(chunk)


def _room(length: int) -> int:
    """A table size that fits; powers of two, so that few tables are made."""
    return 1 << max(length, CHUNK).bit_length()


@lru_cache(maxsize=2)
def _powers(length: int) -> tuple[U64, U64]:
    """`B**j` and `B**-j` modulo 2**64 for j < length."""
    both = []
    for base in (BASE, pow(BASE, -1, 1 << 64)):
        table = np.full(length, base, dtype=np.uint64)
        table[0] = 1
        both.append(np.multiply.accumulate(table))
    return both[0], both[1]


def _mixed(values: U64) -> U64:
    """SplitMix64's finaliser: sums of bytes differ in few bits, these do not."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
