"""Attacks without an attacker model: they change the text, begin the reply, or send an earlier run's prompts again.

Attacks that begin the thinking need a server that continues a begun assistant turn; with open weights anybody can do
that.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from msgspec.structs import replace
from pydantic import Field

from demur import thinking
from demur.attack.base import TEXTS, Attack, AttackSettings, File, by_question, derived, key
from demur.errors import UserError
from demur.prompts.wrappers import fill, read_templates
from demur.records import Message, Prompt, Trace, read_jsonl
from demur.settings import from_yaml
from demur.storage import readers
from demur.untrusted import filled

WORDS: dict[str, Any] = from_yaml((TEXTS / "static.yaml").read_text(encoding="utf-8"))
OPENINGS = ("prefill", "prefilling", "opening", "target")  # Names of the column with the beginning of a reply


class NoAttack(Attack):
    """The question as it is: `attack` of the prompts stays empty."""

    def variants(self, prompt: Prompt) -> Iterable[Prompt]:
        """The question, unchanged."""
        return (prompt,)


class TemplateAttack(Attack):
    """Every question in every template of a file."""

    files = (File("file", "templates with {question}, one a line or in a column 'template'"),)

    def __init__(self, name: str, settings: Any, files: Mapping[str, Path]) -> None:
        super().__init__(name, settings, files)
        self.templates = read_templates(files["file"])
        self.max_prompts, self.max_added_chars = len(self.templates), max(map(len, self.templates.values()))

    def variants(self, prompt: Prompt) -> Iterable[Prompt]:
        """The question in each template; `attack` is `template:NAME`."""
        for name, template in self.templates.items():
            yield derived(prompt, fill(template, prompt.text), f"{self.name}:{name}")


class PrefillSettings(AttackSettings):
    """How the reply begins; `{question}` is the bare question."""

    prefill: str = WORDS["prefill"]
    begin: Literal["thinking", "answer"] = "thinking"  # Which part is begun; before an answer the thinking is empty


class PrefillAttack(Attack):
    """The question unchanged; the reply begins with one text for all questions, or with a file's text for each."""

    Settings: ClassVar[type[PrefillSettings]] = PrefillSettings
    files = (File("file", "openings by question, in columns 'prompt' and 'prefill'", required=False),)

    def __init__(self, name: str, settings: Any, files: Mapping[str, Path]) -> None:
        super().__init__(name, settings, files)
        self._openings = {row[0]: row[1] for row in by_question(files["file"], OPENINGS)} if "file" in files else None
        self.begins_reply = bool(settings.prefill or self._openings)
        self.max_added_chars = max(map(len, (self._openings or {"": settings.prefill}).values()), default=0)

    def variants(self, prompt: Prompt) -> Iterable[Prompt]:
        """The question; the beginning of the reply is part of its requests' sampling."""
        known = self._openings is None or key(prompt.question) in self._openings
        return (derived(prompt, self.user_text(prompt), self.name),) if known else ()

    def user_text(self, prompt: Prompt) -> str:
        """The text of the user turn."""
        return prompt.text

    def prefill(self, prompt: Prompt) -> str:
        """The beginning of the reply, with its tags."""
        common = filled(self.settings.prefill, question=prompt.question)
        start = common if self._openings is None else self._openings[key(prompt.question)]
        begun = thinking.join(start, None) if self.settings.begin == "thinking" else thinking.join("", start)
        return begun if start else ""


class PivotSettings(PrefillSettings):
    """A thinking that recognises the harm and then complies. It works on models that only learned to say so."""

    prefill: str = WORDS["pivot"]


class PivotAttack(PrefillAttack):
    """A begun thinking that recognises the harm and then complies."""

    Settings = PivotSettings


class HijackSettings(PrefillSettings):
    """Puzzles before the request; with `prefill` the thinking is begun as well."""

    prefill: str = ""
    puzzles: int = Field(default=3, ge=1)  # Harmless puzzles before the request


class HijackAttack(PrefillAttack):
    """Chain-of-thought hijacking (arXiv 2510.26418): puzzles that need long reasoning, and the request as last step.

    Refusal weakens as the harmless thinking before it grows. The same question always gets the same puzzles.
    """

    Settings = HijackSettings
    files = (File("file", "puzzles, one a line or in a column 'puzzle'", default=TEXTS / "puzzles.txt"),)

    def __init__(self, name: str, settings: Any, files: Mapping[str, Path]) -> None:
        super().__init__(name, settings, {})
        self._puzzles = [str(row.get("puzzle") or row.get("prompt") or "") for _, row in readers.rows(files["file"])]
        if not any(self._puzzles):
            raise UserError(f"{files['file']}: no puzzles in it (one a line, or a column 'puzzle').")
        self.max_added_chars += len(WORDS["hijack"]) + (20 + max(map(len, self._puzzles))) * settings.puzzles

    def user_text(self, prompt: Prompt) -> str:
        """The request behind its puzzles."""
        count = min(self.settings.puzzles, len(self._puzzles))
        chosen = random.Random(f"puzzles {prompt.question}").sample(self._puzzles, count)
        lines = "\n\n".join(f"Puzzle {number}. {text}" for number, text in enumerate(chosen, 1))
        return filled(WORDS["hijack"], puzzles=lines, request=prompt.text)


class TokensSettings(AttackSettings):
    """The family of chat templates whose tokens are sent."""

    family: Literal["chatml", "r1", "llama3", "gemma"] = "chatml"


class TokensAttack(Attack):
    """Template-token bypass (arXiv 2510.11570): the user's text ends its turn and opens a reply with empty thinking.

    It works where a server treats chat-template tokens in a user's text as part of the template.
    """

    Settings = TokensSettings

    def __init__(self, name: str, settings: Any, files: Mapping[str, Path]) -> None:
        super().__init__(name, settings, files)
        self._tokens = WORDS["assistant"][settings.family] + thinking.join("", "")
        self.max_added_chars = len(self._tokens)

    def variants(self, prompt: Prompt) -> Iterable[Prompt]:
        """The question with the tokens behind it."""
        return (derived(prompt, prompt.text + self._tokens, self.name),)


class ReplayAttack(Attack):
    """The attacked prompts of an earlier run, sent to another target: does an attack transfer?

    Each is sent as it was then, behind the same turns and with the same beginning of the reply.
    """

    files = (File("file", "the run whose prompts are sent again"),)
    hint = "They were not attacked in that run."

    def __init__(self, name: str, settings: Any, files: Mapping[str, Path]) -> None:
        super().__init__(name, settings, files)
        self._stored: dict[str, dict[str, Prompt]] = {}
        self._sent: dict[str, Trace] = {}
        for trace in stored(files["file"]):
            prompt = replace(trace.prompt, attack=f"{self.name}:{trace.prompt.attack}")
            self._stored.setdefault(prompt.parent, {})[prompt.id] = prompt
            self._sent[prompt.id] = trace
        self.max_prompts = max(map(len, self._stored.values()))
        self.max_added_chars = max(sum(len(turn.content) for turn in trace.sent) for trace in self._sent.values())
        self.begins_reply = any(trace.sampling.prefill for trace in self._sent.values())

    def variants(self, prompt: Prompt) -> Iterable[Prompt]:
        """The stored prompts of a question."""
        return self._stored.get(prompt.id, {}).values()

    def prefill(self, prompt: Prompt) -> str:
        """The beginning of the reply in that run."""
        return self._sent[prompt.id].sampling.prefill or ""

    def turns(self, prompt: Prompt) -> tuple[Message, ...]:
        """The turns before it, without the system turn, which is part of the sampling."""
        return tuple(turn for turn in self._sent[prompt.id].sent[:-1] if turn.role != "system")


def stored(path: Path) -> Iterator[Trace]:
    """The traces of attacked prompts in a run or a file. Raises UserError: there are none."""
    inside = [*path.glob("traces.jsonl"), *path.glob("stages/evaluate-*/traces.jsonl")]
    files = [path] if path.is_file() else sorted(inside)
    traces = (trace for file in files for trace in read_jsonl(file, Trace) if trace.prompt.attack)
    first = next(traces, None)
    if first is None:
        how = "give a run of `demur attack` or `demur eval --attack`, or its traces.jsonl"
        raise UserError(f"{path} holds no attacked prompts: {how}.")
    yield first
    yield from traces


def read(bench: object, path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """The questions that were attacked in a run, once each, in the order of its traces."""
    questions: dict[str, Prompt] = {}
    for prompt in (trace.prompt for trace in stored(path)):
        question = replace(prompt, id=prompt.parent, text=prompt.question, attack="", parent="")
        questions.setdefault(prompt.parent, question)
    return list(questions.values())
