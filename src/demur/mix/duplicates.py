"""Finds questions that are the same or nearly so, among millions.

Texts are the same that are equal after normalisation: without case, punctuation, white space and Unicode's variants of
letters. Near ones are found by MinHash (rensa) over runs of five letters, in 25 bands of 5 of 128 values, so that pairs
of similarity 0.7 meet with a probability of 99 %; the share of equal values verifies them. Two texts with different
numbers or operators are never nearly the same: "17 + 5" and "17 + 6" are two problems.

Bare questions are compared. Wrapped prompts of one jailbreak template are nearly equal letter for letter and ask
different things; one question in twenty templates is one cluster.
"""

import hashlib
import os
import re
import unicodedata
import weakref
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from demur.records import Example
from demur.storage.records_file import I64, numbers, scratch

LETTERS = 5  # Of a run
VALUES = 128  # Of MinHash for each text
BANDS, BAND_VALUES = 25, 5
SEED = 20250521
_PUNCTUATION = str.maketrans({chr(i): " " for i in range(128) if not chr(i).isalnum()})
_CALCULATES = re.compile(r"[0-9=]")
_OPERATOR = re.compile(r"([-+*/=<>^%])")
_OTHER = re.compile(r"[^\w+*/=<>^%-]|_")
FIGURES = re.compile(r"[0-9]+|[-+*/=<>^%]")  # Numbers and operators
CHUNK = 1 << 19  # Bytes that are hashed at once: enough for numpy, and small enough for the processor's cache
U32 = NDArray[np.uint32]


def user_text(example: Example) -> str:
    """The user's turn of an example."""
    return "".join(part.text for part in example.parts if part.role == "user")


def normal(text: str) -> str:
    """The words of a text, in lower case, with single spaces between; texts with equal words are the same."""
    if text.isascii():
        text = text.lower()
    else:
        for _ in range(2):  # folding can undo a normal form, and a normal form can bring new capitals
            text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if _CALCULATES.search(text):
        text = _OPERATOR.sub(r" \1 ", _OTHER.sub(" ", text))
    elif text.isascii():
        text = text.translate(_PUNCTUATION)
    else:
        text = re.sub(r"[\W_]+", " ", text)
    return " ".join(text.split())


def masked(text: str) -> str:
    """The first letters of a text's words: a person can recognise it, and nobody can use it."""
    return " ".join(word[:2] + "·" * (len(word) - 2) for word in text.split()[:16])


def clusters(examples: Iterable[Example], *, similarity: float) -> list[str]:
    """The cluster id of each example, after joining the clusters whose questions are nearly the same.

    A question is `origin.question`, or the user's turn; at similarity 1 it must be equal after normalisation. A joined
    cluster has the smallest of its members' ids, whatever their order.
    """
    ids: list[str] = []

    def questions() -> Iterator[str]:
        for example in examples:
            ids.append(example.cluster or example.origin.prompt or example.id)
            yield example.origin.question or user_text(example)

    alike = components(questions(), similarity=similarity)
    return _joined(alike, ids)


def components(texts: Iterable[str], *, similarity: float) -> I64:
    """A number for each text, equal for texts that are nearly the same, directly or through others; [texts]."""
    numbers_by_hash: dict[int, int] = {}
    number_of_text = array("q")

    def unique() -> Iterator[str]:
        for text in map(normal, texts):
            key = hash(text)
            if key not in numbers_by_hash:
                numbers_by_hash[key] = len(numbers_by_hash)
                yield text
            number_of_text.append(numbers_by_hash[key])

    if similarity >= 1:
        deque(unique(), maxlen=0)
        return np.array(number_of_text, dtype=np.int64)
    table = _Table(unique())
    count = len(numbers_by_hash)
    numbers_by_hash.clear()
    if count < 2:
        return np.array(number_of_text, dtype=np.int64)
    return _connected(count, *_similar(table, similarity))[number_of_text]


def signatures(texts: Iterable[str]) -> U32:
    """MinHash values of normalised texts, [texts, VALUES]."""
    return np.concatenate([np.empty((0, VALUES), dtype=np.uint32), *_signature_chunks(texts)])


def _signature_chunks(texts: Iterable[str]) -> Iterator[U32]:
    chunk, size = list[bytes](), 0
    for text in texts:
        chunk.append(text.encode())
        size += len(chunk[-1])
        if size > CHUNK:
            yield _minhash(chunk)
            chunk, size = [], 0
    if chunk:
        yield _minhash(chunk)


def _minhash(texts: Sequence[bytes]) -> U32:
    """rensa's MinHash of all runs of `LETTERS` bytes, hashed by SplitMix64's finaliser: runs differ in few bits."""
    from rensa import RMinHash

    lengths = np.fromiter(map(len, texts), dtype=np.int64)
    padding = b"\0" * LETTERS  # a text that is shorter than a run becomes a run itself
    data = np.frombuffer(padding.join([*texts, b""]), dtype=np.uint8).astype(np.uint64)
    shifted = [data[at : len(data) - LETTERS + at] << np.uint64(8 * at) for at in range(LETTERS)]
    runs = np.bitwise_or.reduce(shifted)
    counts = np.maximum(lengths - LETTERS + 1, 1)
    starts = np.cumsum(lengths + LETTERS) - lengths - LETTERS
    offsets = np.concatenate([[0], np.cumsum(counts)])
    value = runs[np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1])]
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(31)
    rows = RMinHash.digest_matrix_from_flat_token_hashes(value, offsets.astype(np.uint64), VALUES, SEED).to_rows()
    return np.array(rows, dtype=np.uint32)


class _Table:
    """The MinHash values of many texts, on disk (they take 512 bytes each), and in memory their bands and figures."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._values = scratch()
        figures_of_texts = array("q")
        parts: list[U32] = []

        def noting_figures() -> Iterator[str]:
            for text in texts:
                figures_of_texts.append(_figures(text))
                yield text

        for values in _signature_chunks(noting_figures()):
            values.tofile(self._values)
            parts.append(np.stack(list(bands(values))))
        self._values.flush()
        weakref.finalize(self, self._values.close)
        self.bands = np.concatenate(parts, axis=1) if parts else np.zeros((BANDS, 0), dtype=np.uint32)
        self.figures = np.array(figures_of_texts, dtype=np.int64)

    def rows(self, places: I64) -> U32:
        """The values of the texts at these places, [places, VALUES]."""
        size = 4 * VALUES
        data = b"".join(os.pread(self._values.fileno(), size, size * place) for place in places.tolist())
        return np.frombuffer(data, dtype=np.uint32).reshape(-1, VALUES)


def figures(texts: Sequence[str]) -> I64:
    """A number for each text, equal for the same numbers and operators in the same order; [texts]."""
    return numbers(map(_figures, texts))


def _figures(text: str) -> int:
    found = FIGURES.findall(text)
    if not found:
        return 0
    digest = hashlib.blake2b(" ".join(found).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def bands(table: U32) -> Iterator[U32]:
    """For each band a number for each text, [texts]; similar texts are likely to have equal numbers in some band."""
    for band in range(BANDS):
        value = np.zeros(len(table), dtype=np.uint64)
        for column in range(band * BAND_VALUES, (band + 1) * BAND_VALUES):
            value = (value ^ table[:, column]) * np.uint64(0x9E3779B97F4A7C15)
            value ^= value >> np.uint64(29)
        yield value.astype(np.uint32)


def agree(a: U32, b: U32) -> NDArray[np.float64]:
    """The estimated Jaccard similarity of each row of `a` and the same row of `b`, [rows]."""
    same: NDArray[np.float64] = (a == b).mean(axis=1)
    return same


def _similar(table: _Table, similarity: float) -> tuple[I64, I64]:
    """The places of pairs of texts that are nearly the same: not all pairs, but enough to connect each cluster."""
    size, before = len(table.figures), None
    pairs = []
    for value in table.bands:
        # Within a bucket, sorted by another band, the most similar are neighbours: a chain of neighbours connects it
        # in linear time, where all pairs would take quadratic time.
        order = np.lexsort((value if before is None else before, value))
        before = value
        same = np.flatnonzero(value[order[1:]] == value[order[:-1]])
        a, b = order[same], order[same + 1]
        equal = table.figures[a] == table.figures[b]
        a, b = a[equal], b[equal]
        pairs.append(np.minimum(a, b) * size + np.maximum(a, b))
    keys = np.unique(np.concatenate(pairs))
    left, right = keys // size, keys % size
    parts = [slice(i, i + (1 << 16)) for i in range(0, len(left), 1 << 16)]  # few rows at a time in memory
    near = [agree(table.rows(left[part]), table.rows(right[part])) >= similarity for part in parts]
    close = np.concatenate([np.zeros(0, dtype=bool), *near])
    return left[close], right[close]


def _connected(n: int, left: I64, right: I64) -> I64:
    """The connected component of each of `n` nodes, [n], from the edges between `left` and `right`."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(left), dtype=np.int8), (left, right)), shape=(n, n))
    labels: I64 = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels


def _joined(alike: I64, ids: Sequence[str]) -> list[str]:
    """The cluster id of each text, where texts of one component (`alike`) and texts of one id belong together."""
    ordered = sorted(set(ids))
    index = {name: i for i, name in enumerate(ordered)}
    places = np.fromiter((index[name] for name in ids), dtype=np.int64, count=len(ids))
    del index
    total = len(ordered) + (int(alike.max()) + 1 if len(alike) else 0)
    labels = _connected(total, places, alike + len(ordered))
    # The ids are sorted, so that the first of a component is its smallest.
    _, first, component = np.unique(labels[: len(ordered)], return_index=True, return_inverse=True)
    return [ordered[i] for i in first[component[places]].tolist()]
