"""What a benchmark is: prompts, attacks, sampling, judge, metrics and a version, in one place and under one name."""

from typing import Any, Literal

from demur.records import Intent, Label, Part, Query, Record, Sampling


class Metric(Record, frozen=True, kw_only=True):
    """A rate over verdicts: of the replies with a label of `family`, the share with one of `labels`."""

    name: str
    labels: tuple[Label, ...]
    family: tuple[Label, ...]  # All labels that count as scored; verdicts with other labels belong to other metrics
    better: Literal["lower", "higher", "neither"]
    intents: tuple[Intent, ...] = ()  # Empty: prompts of every intent count
    headline: bool = False  # Whether a report's first table shows it
    title: str = ""  # The column's heading; the name when left empty
    unit: Literal["share", "tokens", "nats", "count"] = "share"


class Bench(Record, frozen=True, kw_only=True):
    """One benchmark under one protocol. `version` increases whenever its numbers change."""

    name: str  # Such as `xstest` (demur's own protocol) or `xstest@paper-v2`
    version: int = 1
    form: str = "text"  # How rows become prompts: a name of `forms.FORMS`, or `module:function(bench, path, n=, seed=)`
    columns: dict[str, str] = {}  # Field of the form -> the column that holds it, as `forms` explains
    options: dict[str, Any] = {}  # Further options of the form
    count: int | None = None  # Number of prompts in the release; another number is refused. `None`: any number
    sampling: Sampling
    judge: str  # A judge's name, or `module:attribute`
    query: Query = "question"
    part: Part = "answer"
    metrics: tuple[Metric, ...]
    files: tuple[str, ...] = ()  # Names under which a local copy is found in `--data-dir`
    hub: str = ""  # The file on the Hugging Face hub: `owner/name@REVISION:FILE` (`storage.hub`)
    sha256: str = ""
    licence: str = ""
    restriction: str = ""  # What the licence or the card forbids, and whether the hub requires a login
    paper: str = ""
    attacks: tuple[str, ...] = ("none",)  # Attacks that it is commonly used with
    about: str = ""

    @property
    def generated(self) -> bool:
        """Whether its prompts are generated, not read from a file."""
        return not self.files and not self.hub
