"""Settings of a distillation: how often the teacher is asked, and what is kept."""

from typing import Any, Literal, Self

from msgspec.structs import replace
from pydantic import Field, model_validator

from demur import thinking
from demur.models.sampling import TeacherSampling
from demur.records import Part, Sampling
from demur.settings import Strict, names

Keep = Literal["everything", "answer safe", "thinking and answer safe", "whole safe"]
PARTS: dict[Keep, tuple[Part, ...]] = {  # The parts of a trace that a keep rule has judged
    "everything": (),
    "answer safe": ("answer",),
    "thinking and answer safe": ("thinking", "answer"),
    "whole safe": ("whole",),
}


class Begin(Strict):
    """The beginning of a thinking, which the model continues; a plain text is short for `{text: …}`."""

    text: str = ""
    file: str | None = None  # Beginnings, one a line or in a column `begin`; each prompt gets one
    traces: str | None = names("strategy", None)  # A strategy: its unsafe traces of the same prompts, cut
    share: float = Field(default=0.5, ge=0, le=1)  # Where they are cut, as a share of the thinking's sentences

    @model_validator(mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if sum(map(bool, (self.text, self.file, self.traces))) > 1:
            raise ValueError("text, file and traces exclude each other; give one")
        return self

    @property
    def given(self) -> bool:
        """Whether there is a beginning."""
        return bool(self.text or self.file or self.traces)


class DistilSettings(TeacherSampling):
    """How safety traces are made."""

    strategy: str = "improved"  # A shipped strategy by name, or a path to one's own .md file
    samples: int = Field(default=1, ge=1)  # Replies for each prompt
    until_safe: int | None = Field(default=None, ge=1)  # Ask until so many replies are kept, in place of `samples`
    bound: int = Field(default=8, ge=1)  # With `until_safe`: the most replies for each prompt
    begin: Begin = Begin()
    """What the thinking begins with, such as a flaw to recover from (RECAP, arXiv 2510.00938): the model continues it,
    and there is no loss on it. Judge the answer alone then: `keep: answer safe`."""
    keep: Keep = "whole safe"  # Which parts the judge must find safe. The paper's filter reads both together
    threshold: float | None = Field(default=None, ge=0)  # Keep what scores at most this; `None`: the label decides

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.until_safe is not None and self.until_safe > self.bound:
            raise ValueError(f"until_safe={self.until_safe} cannot be reached within bound={self.bound} replies")
        return self

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that need a judge."""
        return PARTS[self.keep]

    def drawn(self, begun: str = "") -> Sampling:
        """How the teacher samples, with the beginning of a thinking as prefill."""
        begun = begun or self.begin.text
        samples, prefill = self.samples if self.until_safe is None else 1, thinking.join(begun, None) if begun else None
        return replace(super().drawn(), n=samples, prefill=prefill)
