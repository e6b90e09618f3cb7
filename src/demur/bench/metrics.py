"""The metrics that benchmarks share, so that each name has one meaning."""

from pathlib import Path
from typing import get_args

from msgspec import convert

from demur.bench.spec import Bench, Metric
from demur.records import GradeLabel, HarmLabel, RefusalLabel, Sampling
from demur.settings import from_yaml

HARM: tuple[str, ...] = get_args(HarmLabel)
REFUSAL: tuple[str, ...] = get_args(RefusalLabel)
_FAMILIES = {"harm": HARM, "refusal": REFUSAL, "grade": get_args(GradeLabel)}
_TABLE = from_yaml(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
METRICS: dict[str, Metric] = {
    name: convert({"name": name, "headline": "title" in row} | row | {"family": _FAMILIES[row["family"]]}, Metric)
    for name, row in _TABLE.items()
}
SUCCESS = ("attack_success", "served")  # A harmful request got through: by a harm judge, or by a refusal judge
STORED = Bench(
    name="stored", sampling=Sampling(temperature=0.6, top_p=0.95, max_tokens=8192), judge="rules",
    metrics=tuple(metric for name, metric in METRICS.items() if metric.intents),
    about="traces of a file that says nothing of a benchmark",
)  # fmt: skip
"""The metrics for stored traces without a protocol."""
