"""What can be said about a repair."""

import re
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from demur.models.sampling import Drawn
from demur.settings import Strict

COMPLIANCE = re.compile(  # In any case, as what a study says
    r"\b(?:let me|i(?:'ll| will| can| should)(?: now)?|let's) (?:provide|give|explain|outline|list|write|describe|walk|start)"
    r"|\bfirst,|\bstep (?:1|one)\b|\bhere(?:'s| is| are) (?:how|the steps|a)\b"
)


Means = Literal["reask", "continue", "trim", "align", "drop"]


class Intervention(Strict):
    """A defence while a model thinks, without training: cut before the first sentence that goes about complying, put a
    reminder there, and let it go on (after SafeRemind, arXiv 2601.03662, and SafeThink, arXiv 2602.11096)."""

    cue: re.Pattern[str] = COMPLIANCE
    insert: str = "Wait, let me think about whether this could hurt somebody."


class RepairSettings(Drawn):
    """How traces with patterns are mended. In a study file and in `--set` the means are called `with`."""

    model_config = ConfigDict(populate_by_name=True)

    means: tuple[Means, ...] = Field(default=("trim", "align", "reask", "drop"), alias="with", min_length=1)
    """Tried in this order until one passes the detector. Without `drop`, a trace that nothing mends stays as it was."""
    tries: int = Field(default=2, ge=1)  # Most replies that `reask` or `continue` asks for one trace
    cut: Literal["pattern", "cue", "share"] = "pattern"
    """Where `continue` cuts: before the first sentence that shows a pattern, before the first that `cue` matches, or at `share`."""
    cue: re.Pattern[str] = COMPLIANCE  # For the first sentence that goes about complying
    share: float = Field(default=0.5, ge=0, le=1)  # Of the sentences of a thinking
    insert: str = "Wait. This could hurt somebody, and it is not for me to help with that."
    """What `continue` puts where it cuts. The teacher goes on from there; loss falls on this and on what it adds."""
    refusal: str = "Sorry, I can't help with that."  # What `align` answers to a reasoning that decided to refuse

    @field_validator("means", mode="before")
    @classmethod
    def _commas(cls, value: Any) -> Any:
        """`trim,align` and `[trim, align]` mean the same."""
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value
