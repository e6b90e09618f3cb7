"""XSTest (Röttger et al. 2024, arXiv 2308.01263): 250 safe prompts that look unsafe, 200 unsafe ones that look alike.

Both halves together show an operating point: a model that refuses everything and one that serves everything each look
perfect on one of them. A prompt's category is its type. The i-th prompt of a contrast type was written against the i-th
of its safe type: they are a pair, in no common cluster, because each was written by hand.

The paper's second version trains on 100 safe prompts and tests on the other 150, without saying which. Here they are
drawn once and for all by `split`; `docs/protocols.md` lists the ids.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from msgspec.structs import replace

from demur.bench.forms import rows
from demur.bench.metrics import OVER, SERVING, THINKING, metrics
from demur.bench.spec import Bench
from demur.records import Prompt, Sampling

COLUMNS = {"prompt": "prompt", "type": "type", "label": "?label"}
CONTRASTS = {"real_group_nons_discr": "discr", "privacy_fictional": "privacy"}
"""Safe type -> what the name of its contrast type says, where that is not the type's own name."""
UNPAIRED = ("nons_group_real_discr", "privacy_public")
SPLIT_SEED = 2505_15404
TRAIN = 100


def read(bench: Bench, path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """The option `part`: all prompts, the safe ones, or those of the safe ones to train or to test on."""
    return read_part(path, bench.options.get("part", "all"))


def read_part(path: Path, part: str) -> list[Prompt]:
    """A part of a copy; the unsafe prompts are those of a contrast type (or with the label unsafe)."""
    made, seen = [], Counter[str]()
    for row in rows(path, COLUMNS):
        kind = row["type"]
        unsafe = kind.startswith("contrast_") or row["label"] == "unsafe"
        pair = kind.removeprefix("contrast_") if unsafe else CONTRASTS.get(kind, kind)
        made.append(
            Prompt(
                text=row["prompt"],
                intent="harmful" if unsafe else "borderline",
                source="xstest",
                category=kind,
                pair="" if kind in UNPAIRED else f"xstest-{pair}-{seen[kind]}",
            )
        )
        seen[kind] += 1
    safe = [prompt for prompt in made if prompt.intent != "harmful"]
    chosen = set(split(len(safe))) if len(safe) >= TRAIN else set()
    halves = {half: [p for i, p in enumerate(safe) if (i in chosen) == (half == "train")] for half in ("train", "test")}
    return {"all": made, "safe": safe, **halves}[part]


def read_train(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """The 100 safe prompts to train on: `demur.bench.xstest:read_train` is a source of prompts."""
    return read_part(path, "train")


def split(count: int = 250) -> tuple[int, ...]:
    """Positions, from 0 among the safe prompts in the order of the release, of those to train on."""
    return tuple(sorted(random.Random(SPLIT_SEED).sample(range(count), TRAIN)))


XSTEST = Bench(
    name="xstest",
    form="demur.bench.xstest:read",
    columns=COLUMNS,
    count=450,
    sampling=THINKING,
    judge="rules",
    metrics=metrics(*OVER, *SERVING),
    files=("xstest_prompts.csv", "xstest_v2_prompts.csv", "xstest.csv", "xstest.jsonl"),
    hub="Paul/XSTest@f600c994b256f12867dfa5b3eb3d545a3e62f8b5:xstest_prompts.csv",
    sha256="7825a0089e43147cbb3b45a5ea74a5a664b6435c0dd33ccc043368a5cc285fc4",
    licence="CC-BY-4.0",
    paper="arXiv 2308.01263",
    about="250 safe and 200 unsafe prompts, 200 of each in pairs",
)
XSTEST_PAPER_V1 = replace(
    XSTEST,
    name="xstest@paper-v1",
    options={"part": "safe"},
    count=250,
    sha256="8661d52c2242761ac027f78dfaececc283d045c95b40564a08333050b22188dd",
    sampling=Sampling(temperature=0.0, top_p=1.0, max_tokens=256),
    judge="xstest_llm",
    part="whole",
    metrics=metrics("full_over_refusal", "over_refusal"),
    paper="arXiv 2505.15404v1",
    about="as the first version's code: 256 tokens, which end most thoughts; kept to show what that hides",
)
XSTEST_PAPER_V2 = replace(
    XSTEST_PAPER_V1,
    name="xstest@paper-v2",
    options={"part": "test"},
    count=150,
    sha256="15afb53f6da3b386513e53359a2004432d27a59c08048442c817d44e3ebd32bc",
    sampling=Sampling(temperature=0.0, top_p=1.0, max_tokens=2048),
    paper="arXiv 2505.15404v2",
    about="as the second version: 150 held-out safe prompts, greedy, 2,048 tokens, the whole reply judged",
)
