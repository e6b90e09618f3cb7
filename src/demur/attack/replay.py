"""What an earlier run found, put to another target: whether an attack transfers.

The file is a run, one of its stages, or its `traces.jsonl`: every attacked prompt in it is sent as it was sent then, with the
turns before it and the beginning of the reply that it had.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from demur.attack.base import Attack, File
from demur.errors import UserError
from demur.records import Message, Prompt, Trace, read_jsonl


class ReplayAttack(Attack):
    """Stored prompts, in the place of the questions that they attack."""

    files = (File("file", "the run whose prompts are sent again"),)

    def __init__(self, name: str, settings: Any, files: Mapping[str, Path]) -> None:
        super().__init__(name, settings, files)
        self._stored: dict[str, dict[str, Prompt]] = {}
        self._sent: dict[str, Trace] = {}
        for trace in stored(files["file"]):
            prompt = replace(trace.prompt, attack=f"{self.name}:{trace.prompt.attack}")
            self._stored.setdefault(prompt.parent, {})[prompt.id] = prompt
            self._sent[prompt.id] = trace
        self.each = max(map(len, self._stored.values()))
        self.longer = max(sum(len(turn.content) for turn in trace.sent) for trace in self._sent.values())
        self.begins = any(trace.sampling.prefill for trace in self._sent.values())

    async def attacked(self, prompts: Iterable[Prompt]) -> AsyncIterator[Prompt]:
        """The stored prompts of each question. Raises UserError: a question was not attacked in that run."""
        questions = list(prompts)
        if lacks := [prompt.id for prompt in questions if prompt.id not in self._stored]:
            raise UserError(
                f"{len(lacks)} of {len(questions)} questions were not attacked in that run, such as {lacks[0]}."
            )
        for found in (found for prompt in questions for found in self._stored[prompt.id].values()):
            yield found

    def prefill(self, prompt: Prompt) -> str:
        """How the reply was begun then."""
        return self._sent[prompt.id].sampling.prefill or ""

    def turns(self, prompt: Prompt) -> tuple[Message, ...]:
        """The turns before it; a system turn belongs to the sampling."""
        return tuple(turn for turn in self._sent[prompt.id].sent[:-1] if turn.role != "system")


def stored(path: Path) -> Iterator[Trace]:
    """The traces of attacked prompts under a path. Raises UserError: there are none."""
    files = (
        [path] if path.is_file() else sorted({*path.glob("traces.jsonl"), *path.glob("stages/evaluate-*/traces.jsonl")})
    )
    count = 0
    for trace in (trace for file in files for trace in read_jsonl(file, Trace) if trace.prompt.attack):
        count += 1
        yield trace
    if not count:
        raise UserError(
            f"{path} holds no attacked prompts: give a run of `demur attack` or `demur eval --attack`, or its traces.jsonl."
        )


def read(bench: object, path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """The questions that were attacked in a run, once each, in the order in which they stand there."""
    found: dict[str, Prompt] = {}
    for prompt in (trace.prompt for trace in stored(path)):
        plain = replace(prompt, id=prompt.parent, text=prompt.question, attack="", parent="", cluster=prompt.cluster)
        found.setdefault(prompt.parent, plain)
    return list(found.values())
