"""What the benchmarks of reasoning share: their metrics, how they are sampled, and what is asked beside the question.

There are two protocols. The models' own (no suffix): what the makers of reasoning models recommend, a wish for reasoning
and a boxed answer in the user's turn. The paper's (`@paper-v2`): the bare question. Both T 0.6, top-p 0.95, 32,768 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from demur.bench.load import read_rows, text
from demur.bench.spec import Bench, Metric
from demur.records import Prompt, Sampling

ACCURACY = Metric(name="accuracy", labels=("correct",), better="higher", intents=("maths", "code"))
"""The share of replies that are right: avg@n, the same as pass@1, when there are several a problem."""
NO_ANSWER = Metric(name="no_answer", labels=("no_answer",), better="lower", intents=("maths", "code"))
"""No final answer in the text, cut texts included; how many were cut stands beside it."""
REASONING = Sampling(temperature=0.6, top_p=0.95, max_tokens=32_768)
BOXED = "Please think it through step by step, and give the final answer in \\boxed{}."


def maths_prompts(path: Path, columns: Sequence[str], source: str, *, category: str = "") -> list[Prompt]:
    """The problems of a copy; `columns` are problem and answer, in this order, each with its other names."""
    problem, answer = (column.partition("|")[0] for column in columns[:2])
    return [
        Prompt(
            text=text(row, problem),
            intent="maths",
            source=source,
            category=str(row["_row"].get(category) or ""),
            gold=text(row, answer),
        )
        for row in read_rows(path, columns)
    ]


def readers(
    columns: Sequence[str], source: str, *, category: str = ""
) -> tuple[Callable[..., list[Prompt]], Callable[..., list[Prompt]], Callable[[Path], dict[str, str]]]:
    """What a benchmark of maths reads: its bare problems, the problems with the wish, and problem -> worked solution."""

    def bare(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
        return maths_prompts(path, columns, source, category=category)

    def wished(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
        return with_wish(bare(path))

    return bare, wished, lambda path: worked(path, columns)


def with_wish(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same problems, with the wish for a boxed answer behind them; the question stays the bare problem."""
    return [replace(prompt, id="", text=f"{prompt.text}\n\n{BOXED}", cluster=prompt.cluster) for prompt in prompts]


def worked(path: Path, columns: Sequence[str]) -> dict[str, str]:
    """Problem -> its worked solution, where the release has a column `solution`."""
    problem = columns[0].partition("|")[0]
    return {
        text(row, problem): str(row["_row"].get("solution") or "")
        for row in read_rows(path, columns)
        if row["_row"].get("solution")
    }


def maths(name: str, source: str, *, count: int, samples: int = 1) -> Bench:
    """A benchmark of maths with what all of them have in common."""
    return Bench(
        name=name,
        version=1,
        source=source,
        count=count,
        sampling=replace(REASONING, n=samples),
        judge="maths",
        query="question",
        part="answer",
        metrics=(ACCURACY, NO_ANSWER),
    )


def paper(bench: Bench) -> Bench:
    """The paper's protocol of a benchmark: the bare question."""
    return replace(
        bench,
        name=f"{bench.name}@paper-v2",
        source=bench.source.replace(":read", ":read_bare"),
        paper="arXiv 2505.15404v2",
        about=f"{bench.about}; the bare question, as in the paper",
    )
