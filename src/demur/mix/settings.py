"""What a study says of its training mix."""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from demur.mix.examples import NoThinking
from demur.records import Intent
from demur.settings import Strict

By = Literal["none", "category", "source", "template", "strategy"]


class ShareSettings(Strict):
    """One named share of the mix: from where, and how much of it."""

    n: int | None = Field(default=None, ge=0)
    """How many examples; `up to 1000` takes fewer where there are fewer. Without `n` and `ratio`: all there are."""
    up_to: bool = False  # Whether fewer than `n` will do; `n: up to 1000` says it
    ratio: float | None = Field(default=None, gt=0, le=1)  # Share of the whole mix (not of the file it comes from)
    file: Path | None = None  # File, stage or run that the examples or traces are read from
    hub: str = ""  # Where rows are found when the file is not here: `owner/name@REVISION:FILE` of the Hugging Face hub
    form: str | None = None  # Form of the file; told from its rows when left out
    intent: Intent | None = None  # What the file's prompts want; told from the rows when left out
    balance: By = "none"  # Draw the same number from each of these classes, as far as it has them (diversity-balanced)
    cap: int | None = Field(default=None, ge=1)  # At most so many of one cluster: of one question, however wrapped
    no_thinking: NoThinking = "drop"  # Replies without: left out, or with an empty block that is trained, or is masked
    pairs: Literal["none", "judged", "repaired", "against", "file"] = "none"
    """Preference pairs in place of examples: of safe and unsafe samples of a prompt, of repaired traces and their originals, of traces and the one reply `against`, or those of a file. A mix is of pairs or of examples."""
    against: str = ""
    """A raw reply that every trace is preferred to, such as a refusal of what should be answered; its thinking stands behind the first sentence of the trace's."""
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
            raise ValueError("pairs: against goes with the reply 'against', and neither without the other")
        return self


class MixDefaults(Strict):
    """Settings of every mix of a study; its arms say how much of each share."""

    shares: dict[str, ShareSettings] = {}
    total: int | None = Field(default=None, ge=1)  # Of the whole mix; needed only where every share is a ratio
    dedupe: Literal["near", "exact", "none"] = "near"
    """Of examples that ask the same in the same wrapper one stays: the same but for letters' case, punctuation and white space (exact), or nearly the same words too (near)."""
    similarity: float = Field(default=0.8, gt=0.4, le=1)  # Estimated Jaccard similarity from which questions are near
    seed: int = 0  # Seed of every draw and of the order


class MixSettings(MixDefaults):
    """A training mix. Of two equal examples one stays: that of a count before that of a ratio, then by the shares' names."""

    shares: dict[str, ShareSettings] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len({share.pairs == "none" for share in self.shares.values()}) > 1:
            raise ValueError("a mix is of preference pairs or of examples; some shares say pairs and some do not")
        if all(share.n == 0 for share in self.shares.values()):
            raise ValueError("every share asks for 0 rows: there would be nothing to train on")
        ratios = [share.ratio for share in self.shares.values() if share.ratio is not None]
        whole = sum(ratios) > 1 - 1e-9
        if sum(ratios) > 1 + 1e-9:
            raise ValueError(f"the ratios add up to {sum(ratios):g}; 1 is the whole")
        if len(ratios) < len(self.shares) and whole:
            raise ValueError("the ratios add up to 1, so that nothing is left for the other shares")
        if ratios and len(ratios) == len(self.shares) and not whole:
            raise ValueError(f"the ratios add up to {sum(ratios):g}; with no other share they must make 1")
        if self.total is not None and len(ratios) < len(self.shares):
            raise ValueError("total goes with ratios alone; counts already say how many there will be")
        return self
