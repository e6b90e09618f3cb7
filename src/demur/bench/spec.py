"""What a benchmark is: prompts, attacks, sampling, judge, metrics and a version, in one place and under one name."""

from __future__ import annotations

from typing import Literal

from demur.records import Intent, Label, Part, Query, Record, Sampling


class Metric(Record, frozen=True, kw_only=True):
    """A rate over verdicts: the share of traces, with a prompt of these intents, whose label is one of these."""

    name: str
    labels: tuple[Label, ...]
    better: Literal["lower", "higher", "neither"]
    intents: tuple[Intent, ...] = ()
    """Empty: prompts of every intent count."""


class Bench(Record, frozen=True, kw_only=True):
    """One benchmark under one protocol. `version` is raised whenever its numbers change."""

    name: str
    """Such as `xstest` (demur's own protocol) or `xstest@paper-v2`."""
    version: int
    source: str
    """Name of a prompt source, or `module:function`."""
    count: int | None
    """Prompts that the release holds; a copy with another number is refused. `None`: generated, any number."""
    sampling: Sampling
    judge: str
    """Name of a judge, or of the role whose model judges."""
    query: Query
    part: Part
    metrics: tuple[Metric, ...]
    files: tuple[str, ...] = ()
    """Names under which a local copy is found in `--data-dir`."""
    columns: tuple[str, ...] = ()
    hub: str = ""
    """The file on the Hugging Face hub: `owner/name@REVISION:FILE` (`storage.hub`)."""
    sha256: str = ""
    licence: str = ""
    paper: str = ""
    attacks: tuple[str, ...] = ("none",)
    """Attacks it is commonly used with."""
    about: str = ""
