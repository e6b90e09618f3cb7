"""What a small model can do before it is trained: 150 short questions with keys, and a judge that looks for the key.

A benchmark and a judge from outside the package, as anybody may write them: `bench: [{name: "studies.small.quiz:QUIZ"}]`.
The questions (capitals, opposites, animals, sums in words, two-sentence stories) are our own; SmolLM2-135M answers about
two of three, so that a cost of safety training can show in both directions.
"""

from __future__ import annotations

import re
from pathlib import Path

from demur.bench.metrics import METRICS
from demur.bench.spec import Bench
from demur.judge.base import BaseJudge
from demur.records import Label, Prompt, Sampling, Trace
from demur.storage import readers


class KeyJudge(BaseJudge):
    """`correct` when one of the keys (`a;b`) stands in the answer as a word, `wrong` when none does."""

    name = "key"
    labels = ("correct", "wrong", "no_answer")
    parts, queries = ("answer",), ("question",)

    def decide(self, trace: Trace, text: str) -> tuple[Label | None, str]:
        """The label of an answer and why."""
        keys = [key.strip() for key in (trace.prompt.gold or "").split(";") if key.strip()]
        found = [key for key in keys if re.search(rf"(?<!\w){re.escape(key)}(?!\w)", text, re.IGNORECASE)]
        if found:
            return "correct", f"it says {found[0]}"
        return ("no_answer", "truncated") if trace.truncated else ("wrong", f"it says none of {', '.join(keys)}")


def read(bench: Bench, path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """The questions of a table with columns `question` and `answer`."""
    rows = [row for _, row in readers.rows(path)]
    return [Prompt(text=row["question"], intent="benign", gold=row["answer"], source="quiz") for row in rows]


QUIZ = Bench(
    name="quiz",
    form="studies.small.quiz:read",
    sampling=Sampling(temperature=0.0, top_p=1.0, max_tokens=160),
    judge="studies.small.quiz:KeyJudge",
    metrics=(METRICS["accuracy"], METRICS["no_answer"]),
    files=("quiz.csv",),
    licence="Apache-2.0",
    about="150 short questions with keys",
)
