"""Settings of a training mix."""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from demur.mix.examples import NoThinking
from demur.records import Intent
from demur.settings import Strict

By = Literal["none", "category", "source", "template", "strategy"]


class ShareSettings(Strict):
    """One named share of the mix: its source, and how much of it."""

    n: int | None = Field(default=None, ge=0)
    """How many examples; `up to 1000` accepts fewer. Without `n` and `ratio`: all there are."""
    up_to: bool = False  # Whether fewer than `n` will do, as `n: up to 1000` sets it
    ratio: float | None = Field(default=None, gt=0, le=1)  # Share of the whole mix (not of the file it comes from)
    file: Path | None = None  # File, stage or run that the examples or traces are read from
    hub: str = ""  # Source of a file that is missing here: `owner/name@REVISION:FILE` of the Hugging Face hub
    form: str | None = None  # Form of the file; inferred from its rows when left out
    intent: Intent | None = None  # What the file's prompts want; read from the rows when left out
    balance: By = "none"  # Draw the same number of each of these classes, as far as possible (diversity-balanced)
    cap: int | None = Field(default=None, ge=1)  # At most so many of one cluster: of one question, however wrapped
    no_thinking: NoThinking = "drop"  # Replies without thinking: left out, or with an empty block, trained or masked
    pairs: Literal["none", "judged", "repaired", "against", "file"] = "none"
    """Preference pairs, no examples: of judged samples, of repairs, of traces and the reply `against`, or of a file."""
    against: str = ""
    """A raw reply that every trace is preferred to; its thinking follows the first sentence of the trace's thinking."""
    grade: bool = False  # Leave out maths traces whose final answer is not the gold one, or that have none to compare
    licence: str = ""  # Licence of the source, for the card of a published set

    @model_validator(mode="before")
    @classmethod
    def _up_to(cls, value: Any) -> Any:
        value = {"n": value} if type(value) is int else value  # a number is short for it
        match = re.fullmatch(r"up to (\d+)", str(value.get("n"))) if isinstance(value, dict) else None
        return value | {"n": int(match[1]), "up_to": True} if match else value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.n is not None and self.ratio is not None:
            raise ValueError("n and ratio exclude each other; give one")
        if (self.pairs == "against") != bool(self.against):
            raise ValueError("pairs: against and the reply 'against' need each other; give both or neither")
        return self


class MixDefaults(Strict):
    """Settings of every mix of a study; its arms choose the sizes of the shares."""

    shares: dict[str, ShareSettings] = {}
    total: int | None = Field(default=None, ge=1)  # Of the whole mix; needed only where every share is a ratio
    dedupe: Literal["near", "exact", "none"] = "near"
    """Keep one of examples that ask the same in one wrapper: equal after normalisation (exact), or nearly (near)."""
    similarity: float = Field(default=0.8, gt=0.4, le=1)  # Least estimated Jaccard similarity of near questions
    seed: int = 0  # Seed of every draw and of the order


class MixSettings(MixDefaults):
    """A training mix. Of equal examples one is kept: of a share with a count before one with a ratio, then by name."""

    shares: dict[str, ShareSettings] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len({share.pairs == "none" for share in self.shares.values()}) > 1:
            raise ValueError("a mix is of preference pairs or of examples; some shares have pairs and some do not")
        if all(share.n == 0 for share in self.shares.values()):
            raise ValueError("every share asks for 0 rows: there would be nothing to train on")
        ratios = [share.ratio for share in self.shares.values() if share.ratio is not None]
        whole = sum(ratios) > 1 - 1e-9
        if sum(ratios) > 1 + 1e-9:
            raise ValueError(f"the ratios add up to {sum(ratios):g}; 1 is the whole")
        if len(ratios) < len(self.shares) and whole:
            raise ValueError("the ratios add up to 1, which leaves nothing for the other shares")
        if ratios and len(ratios) == len(self.shares) and not whole:
            raise ValueError(f"the ratios add up to {sum(ratios):g}; with no other share they must make 1")
        if self.total is not None and len(ratios) < len(self.shares):
            raise ValueError("total is for ratios alone; counts already fix how many there will be")
        return self
