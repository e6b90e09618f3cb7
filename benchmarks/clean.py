"""Near-duplicates and contamination at scale: synthetic prompts (templates x questions) against benchmark prompts.

    python benchmarks/clean.py                 1,000,000 rows against 10,000 prompts, growth from 10,000 on
    python benchmarks/clean.py --rows 100000   smaller

What is timed is everything from texts to clusters and hits: questions out of their wrappers, near-duplicates among the
questions, every row (wrapped and bare) against every benchmark prompt. Leaks and near-duplicates are planted, so that the
table says what was found beside how fast. Beside it run what people use, each in a process of its own: a Python set of word
13-grams (any shared one is a hit), whose recall is over the leaks that have thirteen words, since it is made for those, and
datasketch's MinHash LSH, on the rows as they are and on the questions without their wrappers, which it cannot take off.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

VERBS = [
    "describe",
    "explain",
    "outline",
    "write",
    "draft",
    "list",
    "summarise",
    "sketch",
    "translate",
    "review",
    "plan",
    "compose",
    "justify",
    "compare",
]
TEMPLATES = 40
LEAKED = 0.01
"""Share of rows whose question is a benchmark prompt, as it is or with one word changed."""
PEER_ROWS = 100_000
"""The peers run on at most so many rows."""


class World(NamedTuple):
    """RecordFile, benchmark prompts, and which rows were planted to hold one."""

    rows: list[str]
    questions: list[str]
    bench: list[str]
    leaked: set[int]


def made(count: int, prompts: int) -> World:
    """A world from a fixed seed. Each question stands in about twenty templates."""
    rng = random.Random(7)
    words = [
        "".join(rng.choice("bcdfghklmnprst") + rng.choice("aeiou") for _ in range(rng.randint(2, 4)))
        for _ in range(20_000)
    ]
    weights = [1 / (i + 10) for i in range(len(words))]

    def sentence(low: int, high: int) -> str:
        return " ".join(rng.choices(words, weights, k=rng.randint(low, high)))

    templates = [f"{sentence(20, 50)}. Now: {{}} {sentence(10, 40)}!" for _ in range(TEMPLATES)]
    questions = [f"{rng.choice(VERBS)} how {sentence(6, 14)}?" for _ in range(max(count // 20, 50))]
    for i in range(0, len(questions) // 20):  # near-duplicates: one word more
        questions[-1 - i] = f"{questions[i]} {rng.choice(words)}"
    bench = [f"{rng.choice(VERBS)} how {sentence(6, 14)}?" for _ in range(prompts)]
    rows, asked, leaked = [], [], set()
    for i in range(count):
        if rng.random() < LEAKED:
            parts = rng.choice(bench).split()
            if rng.random() < 0.5:
                parts[rng.choice((0, -1))] = rng.choice(words)
            question = " ".join(parts)
            leaked.add(i)
        else:
            question = rng.choice(questions)
        asked.append(question)
        rows.append(rng.choice(templates).format(question))
    return World(rows, asked, bench, leaked)


def ours(world: World) -> dict[str, float]:
    """demur: unwrap, cluster, compare."""
    from demur.mix.contamination import Index
    from demur.mix.duplicates import components
    from demur.prompts.wrappers import unwrap

    began = time.perf_counter()
    inside = unwrap(world.rows)
    questions = [inside[row].question if row in inside else row for row in world.rows]
    unwrapped = time.perf_counter()
    labels = components(questions, similarity=0.8)
    clustered = time.perf_counter()
    hits = Index(world.bench).hits(world.rows, questions)
    done = time.perf_counter()
    found = {hit.row for hit in hits}
    return {
        "seconds": done - began,
        "unwrap": unwrapped - began,
        "cluster": clustered - unwrapped,
        "compare": done - clustered,
        "clusters": int(labels.max()) + 1,
        "unwrapped": sum(a == b for a, b in zip(questions, world.questions, strict=True)) / len(questions),
        **quality(found, world),
    }


def ngram_set(world: World) -> dict[str, float]:
    """A Python set of word 13-grams of the benchmark; a row that shares one is a hit."""
    began = time.perf_counter()
    known = {gram for text in world.bench for gram in grams(text.lower().split(), 13)}
    found = {i for i, text in enumerate(world.rows) if any(g in known for g in grams(text.lower().split(), 13))}
    return scored(began, found, world)


def datasketch(world: World, *, unwrapped: bool = False) -> dict[str, float]:
    """datasketch's MinHash and LSH over word 5-grams, as its documentation has it."""
    from datasketch import MinHash, MinHashLSH

    began = time.perf_counter()
    index = MinHashLSH(threshold=0.7, num_perm=128)

    def sketch(text: str) -> Any:
        value = MinHash(num_perm=128)
        value.update_batch([" ".join(gram).encode() for gram in grams(text.lower().split(), 5)])
        return value

    for i, text in enumerate(world.bench):
        index.insert(i, sketch(text))
    rows = world.questions if unwrapped else world.rows
    found = {i for i, text in enumerate(rows) if index.query(sketch(text))}
    return scored(began, found, world)


def grams(words: list[str], n: int) -> Iterator[tuple[str, ...]]:
    for i in range(max(len(words) - n + 1, 1)):
        yield tuple(words[i : i + n])


def scored(began: float, found: set[int], world: World) -> dict[str, float]:
    return {"seconds": time.perf_counter() - began, **quality(found, world)}


def quality(found: set[int], world: World) -> dict[str, float]:
    """Recall, recall of the leaks that have thirteen words, and precision."""
    long = {i for i in world.leaked if len(world.questions[i].split()) >= 13}
    return {
        "recall": len(found & world.leaked) / max(len(world.leaked), 1),
        "recall_13": len(found & long) / max(len(long), 1),
        "precision": len(found & world.leaked) / max(len(found), 1),
    }


WAYS: dict[str, Callable[[World], dict[str, float]]] = {
    "demur": ours,
    "ngram_set": ngram_set,
    "datasketch": datasketch,
    "datasketch, unwrapped": partial(datasketch, unwrapped=True),
}


def apart(way: str, rows: int, prompts: int) -> dict[str, float]:
    """One measurement in a process of its own, with the highest memory it had."""
    command = [sys.executable, __file__, "--way", way, "--rows", str(rows), "--prompts", str(prompts)]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--prompts", type=int, default=10_000)
    options.add_argument("--json", type=Path)
    options.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.way:
        result = WAYS[given.way](made(given.rows, given.prompts))
        result["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(result))
        return
    table: list[tuple[str, int, dict[str, float]]] = []
    sizes = [size for size in (10_000, 100_000, 1_000_000) if size < given.rows] + [given.rows]
    peers = min(given.rows, PEER_ROWS)
    plan = [("demur", size) for size in sizes] + [("ngram_set", peers)]
    plan += [(way, min(peers, 10_000)) for way in ("datasketch", "datasketch, unwrapped")]
    print(
        f"{'way':<21} {'rows':>9} {'seconds':>8} {'rows/s':>9} {'MB':>6} {'recall':>7} {'of 13+':>7} {'precision':>9}"
    )
    for way, size in plan:
        found = apart(way, size, given.prompts)
        table.append((way, size, found))
        print(
            f"{way:<21} {size:>9,} {found['seconds']:>8.2f} {size / found['seconds']:>9,.0f} {found['rss_mb']:>6.0f} "
            f"{found['recall']:>7.3f} {found['recall_13']:>7.3f} {found['precision']:>9.3f}",
            flush=True,
        )
    own = {size: found for way, size, found in table if way == "demur"}
    last = own[sizes[-1]]
    print("  ".join(f"{key} {last[key]:.3g}" for key in ("unwrap", "cluster", "compare", "unwrapped", "clusters")))
    before = sizes[-2] if len(sizes) > 1 else sizes[-1]
    exponent = (
        math.log(last["seconds"] / own[before]["seconds"]) / math.log(sizes[-1] / before) if before != sizes[-1] else 1
    )
    peer = {way: (size, found) for way, size, found in table if way != "demur"}
    flat = {
        "seconds_1m" if given.rows == 1_000_000 else "seconds": last["seconds"],
        "rss_mb_1m" if given.rows == 1_000_000 else "rss_mb": last["rss_mb"],
        "growth_exponent": exponent,
        "recall": last["recall"],
        "precision": last["precision"],
        # Like with like: the set only compares, so it stands beside our comparison, which also reads the wrapped rows.
        "over_ngram_set": peer["ngram_set"][1]["seconds"] / own.get(peers, last)["compare"],
        "whole_over_ngram_set": peer["ngram_set"][1]["seconds"] / own.get(peers, last)["seconds"],
        "over_datasketch": (peer["datasketch"][1]["seconds"] / peer["datasketch"][0]) / (last["seconds"] / given.rows),
        "ngram_set_recall_13": peer["ngram_set"][1]["recall_13"],
        "datasketch_recall": peer["datasketch, unwrapped"][1]["recall"],
    }
    print("\n".join(f"{key:<18} {value:.3f}" for key, value in flat.items()))
    if given.json:
        given.json.write_text(json.dumps(flat))


if __name__ == "__main__":
    main()
