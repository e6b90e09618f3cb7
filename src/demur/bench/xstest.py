"""XSTest (Röttger et al. 2024, arXiv 2308.01263): 250 safe prompts that look unsafe, 200 unsafe ones that look alike.

Both halves together show an operating point: a model that refuses everything and one that serves everything each look
perfect on one of them. A prompt's category is its type; a safe type and its contrast share no cluster, because each
prompt was written by hand.

The paper's second version trains on 100 safe prompts and tests on the other 150, without saying which. Here they are
drawn once and for all by `split`; `docs/protocols.md` lists the ids.
"""

from __future__ import annotations

import random
from pathlib import Path

from msgspec.structs import replace

from demur.bench.load import read_rows, text
from demur.bench.metrics import FULL_OVER_REFUSAL, HARM, OVER, OVER_REFUSAL, SAFETY
from demur.records import Intent, Prompt, Sampling

COLUMNS = ("prompt", "type")
SPLIT_SEED = 2505_15404
TRAIN = 100


def read(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """All prompts; the unsafe ones are those of a contrast type (or with the label unsafe)."""
    made = []
    for row in read_rows(path, COLUMNS):
        kind = text(row, "type")
        unsafe = kind.startswith("contrast_") or row["_row"].get("label") == "unsafe"
        intent: Intent = "harmful" if unsafe else "borderline"
        made.append(Prompt(text=text(row, "prompt"), intent=intent, source="xstest", category=kind))
    return made


def read_safe(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """The 250 safe prompts."""
    return [prompt for prompt in read(path) if prompt.intent != "harmful"]


def read_train(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """The 100 safe prompts to train on: `demur.bench.xstest:read_train` is a source of prompts."""
    return _half(read_safe(path), train=True)


def read_test(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """The 150 safe prompts to test on."""
    return _half(read_safe(path), train=False)


def split(count: int = 250) -> tuple[int, ...]:
    """Positions, from 0 among the safe prompts in the order of the release, of those to train on."""
    return tuple(sorted(random.Random(SPLIT_SEED).sample(range(count), TRAIN)))


def _half(safe: list[Prompt], *, train: bool) -> list[Prompt]:
    chosen = set(split(len(safe))) if len(safe) >= TRAIN else set()
    return [prompt for position, prompt in enumerate(safe) if (position in chosen) == train]


XSTEST = replace(
    SAFETY,
    name="xstest",
    source="demur.bench.xstest:read",
    count=450,
    metrics=(*OVER, *HARM),
    files=("xstest_prompts.csv", "xstest_v2_prompts.csv", "xstest.csv", "xstest.jsonl"),
    columns=COLUMNS,
    hub="Paul/XSTest@f600c994b256f12867dfa5b3eb3d545a3e62f8b5:xstest_prompts.csv",
    sha256="7825a0089e43147cbb3b45a5ea74a5a664b6435c0dd33ccc043368a5cc285fc4",
    licence="CC-BY-4.0",
    paper="arXiv 2308.01263",
    about="250 safe and 200 unsafe prompts; refusal in three classes",
)
XSTEST_PAPER_V1 = replace(
    XSTEST,
    name="xstest@paper-v1",
    source="demur.bench.xstest:read_safe",
    count=250,
    sha256="8661d52c2242761ac027f78dfaececc283d045c95b40564a08333050b22188dd",
    sampling=Sampling(temperature=0.0, top_p=1.0, max_tokens=256),
    judge="xstest_llm",
    part="whole",
    metrics=(FULL_OVER_REFUSAL, OVER_REFUSAL),
    paper="arXiv 2505.15404v1",
    about="as the first version's code: 256 tokens, which end most thoughts; kept to show what that hides",
)
XSTEST_PAPER_V2 = replace(
    XSTEST_PAPER_V1,
    name="xstest@paper-v2",
    source="demur.bench.xstest:read_test",
    count=150,
    sha256="15afb53f6da3b386513e53359a2004432d27a59c08048442c817d44e3ebd32bc",
    sampling=Sampling(temperature=0.0, top_p=1.0, max_tokens=2048),
    paper="arXiv 2505.15404v2",
    about="as the second version: 150 held-out safe prompts, greedy, 2,048 tokens, the whole reply judged",
)
