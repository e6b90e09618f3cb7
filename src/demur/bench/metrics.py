"""The metrics that several benchmarks share, so that one name means one thing, and the samplings they are used with."""

from pathlib import Path
from typing import get_args

import yaml
from msgspec import convert

from demur.bench.spec import Bench, Metric
from demur.records import GradeLabel, HarmLabel, RefusalLabel, Sampling

HARM: tuple[str, ...] = get_args(HarmLabel)
REFUSAL: tuple[str, ...] = get_args(RefusalLabel)
GRADE: tuple[str, ...] = get_args(GradeLabel)
_FAMILIES = {"harm": HARM, "refusal": REFUSAL, "grade": GRADE}
_TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
METRICS: dict[str, Metric] = {
    name: convert(row | {"name": name, "family": _FAMILIES[row["family"]], "headline": "title" in row}, Metric)
    for name, row in _TABLE.items()
}
SUCCESS = ("attack_success", "served")  # A harmful request got through, by a harm judge or by one that sees refusals
SERVING = ("attack_success", "served", "refusal", "partial_refusal")
OVER = ("over_refusal", "full_over_refusal", "unsafe_on_harmless")
GRADED = ("accuracy", "no_answer")


def metrics(*names: str) -> tuple[Metric, ...]:
    """Metrics by their names."""
    return tuple(METRICS[name] for name in names)


THINKING = Sampling(temperature=0.6, top_p=0.95, max_tokens=8192)
"""demur's own: what the makers of reasoning models recommend, with room to finish the thought."""
REASONING = Sampling(temperature=0.6, top_p=0.95, max_tokens=32_768)  # The same for problems that take long
_ABOUT = "traces of a file that says nothing of a benchmark"
STORED = Bench(name="stored", sampling=THINKING, judge="rules", metrics=metrics(*SERVING, *OVER), about=_ABOUT)
"""What stored traces are counted by when they come without a protocol."""
