"""XSTest (Röttger et al. 2024, arXiv 2308.01263): 250 safe prompts that look unsafe, and 200 similar unsafe ones.

Only both halves together show an operating point: a model that refuses everything, and one that serves everything, is
perfect on one of them. A prompt's category is its type. The i-th prompt of a contrast type was written against the i-th
of its safe type: they are a pair, but not in one cluster, because each was written by hand.

The paper's second version trains on 100 safe prompts and tests on the other 150, without naming them. Here `split`
draws them, always the same ones; `docs/protocols.md` lists the ids.
"""

import random
from collections import Counter
from functools import partial
from pathlib import Path

from demur.bench.forms import rows
from demur.bench.spec import Bench
from demur.records import Intent, Prompt

CONTRASTS = {"real_group_nons_discr": "discr", "privacy_fictional": "privacy"}
"""Safe type -> its name in the contrast type `contrast_NAME`, where that differs."""
UNPAIRED = ("nons_group_real_discr", "privacy_public")
SPLIT_SEED = 2505_15404
TRAIN = 100


def read(bench: Bench | None, path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """The prompts of the option `part`: `all`, the `safe` ones, or of these the `train` or `test` ones.

    Without a benchmark: `train`. Unsafe prompts are those of a contrast type or with the label unsafe.
    """
    prompts, seen = [], Counter[str]()
    for row in rows(path, {"prompt": "prompt", "type": "type", "label": "?label"}):
        kind = row["type"]
        unsafe = kind.startswith("contrast_") or row["label"] == "unsafe"
        topic = kind.removeprefix("contrast_") if unsafe else CONTRASTS.get(kind, kind)
        pair = "" if kind in UNPAIRED else f"xstest-{topic}-{seen[kind]}"
        intent: Intent = "harmful" if unsafe else "borderline"
        prompts.append(Prompt(text=row["prompt"], intent=intent, source="xstest", category=kind, pair=pair))
        seen[kind] += 1
    safe = [prompt for prompt in prompts if prompt.intent != "harmful"]
    chosen = set(split(len(safe))) if len(safe) >= TRAIN else set()
    train = [prompt for index, prompt in enumerate(safe) if index in chosen]
    test = [prompt for index, prompt in enumerate(safe) if index not in chosen]
    parts = {"all": prompts, "safe": safe, "train": train, "test": test}
    return parts["train" if bench is None else bench.options.get("part", "all")]


read_train = partial(read, None)  # The 100 safe prompts to train on, as a source of prompts


def split(count: int = 250) -> tuple[int, ...]:
    """Positions of the prompts to train on, from 0, among the safe prompts in the order of the release."""
    return tuple(sorted(random.Random(SPLIT_SEED).sample(range(count), TRAIN)))
