"""Settings of a repair."""

import re
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from demur.models.sampling import TeacherSampling
from demur.settings import Strict

COMPLIANCE = re.compile(  # Matched in any case, as a study's own `cue` is
    r"\b(?:let me|i(?:'ll| will| can| should)(?: now)?|let's) (?:provide|give|explain|outline|list|write|describe|walk|start)"
    r"|\bfirst,|\bstep (?:1|one)\b|\bhere(?:'s| is| are) (?:how|the steps|a)\b"
)
Means = Literal["reask", "continue", "trim", "align", "drop"]


class Intervention(Strict):
    """A defence while a model thinks, without training: cut before the first sentence that begins to comply, insert a
    reminder, and let it continue (after SafeRemind, arXiv 2601.03662, and SafeThink, arXiv 2602.11096)."""

    cue: re.Pattern[str] = COMPLIANCE
    insert: str = "Wait, let me think about whether this could hurt somebody."


class RepairSettings(TeacherSampling):
    """How traces with patterns are repaired. In a study file and in `--set` the means are called `with`."""

    model_config = ConfigDict(populate_by_name=True)

    means: tuple[Means, ...] = Field(default=("trim", "align", "reask", "drop"), alias="with", min_length=1)
    """Tried in this order until a result passes the detector. Without `drop`, a trace that nothing repairs is left."""
    tries: int = Field(default=2, ge=1)  # Most replies that `reask` or `continue` requests for one trace
    cut: Literal["pattern", "cue", "share"] = "pattern"
    """Where `continue` cuts: before the first sentence that shows a pattern or that `cue` matches, or at `share`."""
    cue: re.Pattern[str] = COMPLIANCE  # For the first sentence that begins to comply
    share: float = Field(default=0.5, ge=0, le=1)  # Of the sentences of a thinking
    insert: str = "Wait. This could hurt somebody, and it is not for me to help with that."
    """What `continue` inserts where it cuts. The teacher continues it; there is loss on both."""
    refusal: str = "Sorry, I can't help with that."  # What `align` answers to a reasoning that decided to refuse

    @field_validator("means", mode="before")
    @classmethod
    def _commas(cls, value: Any) -> Any:
        """`trim,align` and `[trim, align]` mean the same."""
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value
