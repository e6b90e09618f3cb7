"""What a benchmark is: prompts, attacks, sampling, judge, metrics and a version, in one place and under one name."""

from typing import Any, Literal

from demur.records import Intent, Label, Part, Query, Record, Sampling


class Metric(Record, frozen=True, kw_only=True):
    """A rate over verdicts: of the replies that a judge of this family labels, the share with one of `labels`."""

    name: str
    labels: tuple[Label, ...]
    family: tuple[Label, ...]  # All labels that count as scored; a judge that says none of them answers another metric
    better: Literal["lower", "higher", "neither"]
    intents: tuple[Intent, ...] = ()  # Empty: prompts of every intent count
    headline: bool = False  # Whether it stands in a report's first table
    title: str = ""  # The column's heading; the name when left empty
    unit: Literal["share", "tokens", "nats", "count"] = "share"


class Bench(Record, frozen=True, kw_only=True):
    """One benchmark under one protocol. `version` is raised whenever its numbers change."""

    name: str  # Such as `xstest` (demur's own protocol) or `xstest@paper-v2`
    version: int = 1
    form: str = "text"  # How rows become prompts: a name of `forms.FORMS`, or `module:function(bench, path, n=, seed=)`
    columns: dict[str, str] = {}  # What the form reads -> the column that holds it; see `forms.cell`
    options: dict[str, Any] = {}  # Further arguments of the form
    count: int | None = None  # Prompts that the release holds; another number is refused. `None`: any number
    sampling: Sampling
    judge: str  # A judge's name, or `module:attribute`
    query: Query = "question"
    part: Part = "answer"
    metrics: tuple[Metric, ...]
    files: tuple[str, ...] = ()  # Names under which a local copy is found in `--data-dir`
    hub: str = ""  # The file on the Hugging Face hub: `owner/name@REVISION:FILE` (`storage.hub`)
    sha256: str = ""
    licence: str = ""
    restriction: str = ""  # What the licence or the card forbids, and whether the hub wants a login
    paper: str = ""
    attacks: tuple[str, ...] = ("none",)  # Attacks it is commonly used with
    about: str = ""

    @property
    def generated(self) -> bool:
        """Whether its prompts come from no file."""
        return not self.files and not self.hub
