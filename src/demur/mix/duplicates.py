"""Questions that are the same or nearly so, at a million at a time.

Equal after normalisation first: without case, punctuation, white space and the forms that Unicode has for one letter. Then
MinHash (rensa) over runs of five letters, banded so that pairs of similarity 0.7 meet with a chance of 99 % (25 bands of 5 of
128 values), verified by the share of equal values. Two texts with different numbers or signs of calculation are never nearly
the same: "17 + 5" and "17 + 6" are two problems.

Compared are bare questions. Wrapped prompts of one jailbreak template are nearly equal letter for letter and ask different
things; one question in twenty templates is one cluster.
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

LETTERS = 5
VALUES = 128
BANDS, DEEP = 25, 5
SEED = 20250521
_PUNCTUATION = str.maketrans({chr(i): " " for i in range(128) if not chr(i).isalnum()})
_CALCULATES = re.compile(r"[0-9=]")
_SIGN = re.compile(r"([-+*/=<>^%])")
_OTHER = re.compile(r"[^\w+*/=<>^%-]|_")
FIGURES = re.compile(r"[0-9]+|[-+*/=<>^%]")
CHUNK = 1 << 19  # Bytes that are worked on at once: enough for numpy, little enough for the cache
U32 = NDArray[np.uint32]


def asked(example: Example) -> str:
    """What the user says in an example."""
    return "".join(part.text for part in example.parts if part.role == "user")


def normal(text: str) -> str:
    """The words of a text, lower-cased, with single spaces between; two texts with the same are the same."""
    if text.isascii():
        text = text.lower()
    else:
        for _ in range(2):  # folding can undo a normal form, and a normal form can bring new capitals
            text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if _CALCULATES.search(text):
        text = _SIGN.sub(r" \1 ", _OTHER.sub(" ", text))
    elif text.isascii():
        text = text.translate(_PUNCTUATION)
    else:
        text = re.sub(r"[\W_]+", " ", text)
    return " ".join(text.split())


def masked(text: str) -> str:
    """A text that a person can recognise and nobody can use: the first letters of its words."""
    return " ".join(word[:2] + "·" * (len(word) - 2) for word in text.split()[:16])


def clusters(examples: Iterable[Example], *, similarity: float) -> list[str]:
    """The cluster id of each example, after joining the clusters whose questions are nearly the same.

    The id of a joined cluster is the smallest of its members' ids, so that it does not depend on their order. A question is
    `origin.question`, or what the user says; at similarity 1 only those are the same that are equal after normalisation.
    """
    own: list[str] = []

    def questions() -> Iterator[str]:
        for example in examples:
            own.append(example.cluster or example.origin.prompt or example.id)
            yield example.origin.question or asked(example)

    alike = components(questions(), similarity=similarity)
    return _joined(alike, own)


def components(texts: Iterable[str], *, similarity: float) -> I64:
    """A number for each text; texts that are nearly the same, directly or through others, have the same."""
    number: dict[int, int] = {}
    which = array("q")

    def different() -> Iterator[str]:
        for text in map(normal, texts):
            key = hash(text)
            if key not in number:
                number[key] = len(number)
                yield text
            which.append(number[key])

    if similarity >= 1:
        deque(different(), maxlen=0)
        return np.array(which, dtype=np.int64)
    table = _Table(different())
    count = len(number)
    number.clear()
    if count < 2:
        return np.array(which, dtype=np.int64)
    return _connected(count, *_similar(table, similarity))[which]


def signatures(texts: Iterable[str]) -> U32:
    """MinHash values of normalised texts, [texts, VALUES]."""
    return np.concatenate([np.empty((0, VALUES), dtype=np.uint32), *_signed(texts)])


def _signed(texts: Iterable[str]) -> Iterator[U32]:
    """MinHash values of texts, in chunks that fit the cache."""
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
    """All runs of `LETTERS` bytes, hashed (SplitMix64's finaliser: runs differ in few bits), and rensa's MinHash of them."""
    from rensa import RMinHash

    lengths = np.fromiter(map(len, texts), dtype=np.int64)
    padding = b"\0" * LETTERS  # a text that is shorter than a run gives itself
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
    """The MinHash values of many texts, on the disk (512 bytes a text would not stay small), their bands and their figures."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._values = scratch()
        figured = array("q")
        parts: list[U32] = []

        def noted() -> Iterator[str]:
            for text in texts:
                figured.append(_figures(text))
                yield text

        for values in _signed(noted()):
            values.tofile(self._values)
            parts.append(np.stack(list(bands(values))))
        self._values.flush()
        weakref.finalize(self, self._values.close)
        self.bands = np.concatenate(parts, axis=1) if parts else np.zeros((BANDS, 0), dtype=np.uint32)
        self.figures = np.array(figured, dtype=np.int64)

    def rows(self, which: I64) -> U32:
        """The values of some texts."""
        size = 4 * VALUES
        data = b"".join(os.pread(self._values.fileno(), size, size * row) for row in which.tolist())
        return np.frombuffer(data, dtype=np.uint32).reshape(-1, VALUES)


def figures(texts: Sequence[str]) -> I64:
    """A number for each text that is the same for the same figures and signs of calculation in the same order."""
    return numbers(map(_figures, texts))


def _figures(text: str) -> int:
    found = FIGURES.findall(text)
    if not found:
        return 0
    digest = hashlib.blake2b(" ".join(found).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def bands(table: U32) -> Iterator[U32]:
    """For each band a number for each text; similar texts are likely to have the same in one of them."""
    for band in range(BANDS):
        value = np.zeros(len(table), dtype=np.uint64)
        for column in range(band * DEEP, (band + 1) * DEEP):
            value = (value ^ table[:, column]) * np.uint64(0x9E3779B97F4A7C15)
            value ^= value >> np.uint64(29)
        yield value.astype(np.uint32)


def agree(a: U32, b: U32) -> NDArray[np.float64]:
    """The estimated Jaccard similarity of each row of `a` with the same row of `b`."""
    same: NDArray[np.float64] = (a == b).mean(axis=1)
    return same


def _similar(table: _Table, similarity: float) -> tuple[I64, I64]:
    """Pairs of texts that are nearly the same; not all of them, but all that hold a cluster together."""
    size, before = len(table.figures), None
    pairs = []
    for value in table.bands:
        # Within a bucket, sorted by another band, the most similar stand beside each other: a chain of neighbours
        # holds it together in linear time where all pairs would take the square.
        order = np.lexsort((value if before is None else before, value))
        before = value
        same = np.flatnonzero(value[order[1:]] == value[order[:-1]])
        a, b = order[same], order[same + 1]
        like = table.figures[a] == table.figures[b]
        a, b = a[like], b[like]
        pairs.append(np.minimum(a, b) * size + np.maximum(a, b))
    keys = np.unique(np.concatenate(pairs))
    left, right = keys // size, keys % size
    parts = [slice(i, i + (1 << 16)) for i in range(0, len(left), 1 << 16)]  # rows are gathered piece by piece
    near = [agree(table.rows(left[part]), table.rows(right[part])) >= similarity for part in parts]
    close = np.concatenate([np.zeros(0, dtype=bool), *near])
    return left[close], right[close]


def _connected(n: int, left: I64, right: I64) -> I64:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(left), dtype=np.int8), (left, right)), shape=(n, n))
    labels: I64 = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels


def _joined(alike: I64, own: Sequence[str]) -> list[str]:
    """Cluster ids when texts of one component and texts of one cluster belong together."""
    ordered = sorted(set(own))
    names = {name: i for i, name in enumerate(ordered)}
    which = np.fromiter((names[name] for name in own), dtype=np.int64, count=len(own))
    del names
    total = len(ordered) + (int(alike.max()) + 1 if len(alike) else 0)
    labels = _connected(total, which, alike + len(ordered))
    # Names are in order, so that the first of a component is its smallest.
    _, first, component = np.unique(labels[: len(ordered)], return_index=True, return_inverse=True)
    return [ordered[i] for i in first[component[which]].tolist()]
