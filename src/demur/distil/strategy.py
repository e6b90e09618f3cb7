"""Strategies: how a teacher is asked for a trace. Each is one Markdown file.

The front matter has the instruction's `place` (in the user's turn, in the system turn, or none for a constant reply),
the failure patterns that it targets, and its source. The body is the instruction; `{prompt}` stands for the request,
`{thinking}` and `{answer}` for a trace to be rewritten. Training rows never contain the instruction.
"""

import asyncio
import contextlib
import itertools
import re
from collections.abc import AsyncIterator, Iterable
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec
import yaml

from demur.distil import STRATEGIES
from demur.errors import UserError, unknown
from demur.interfaces import Model, Request
from demur.records import Message, Pattern, Prompt, Record, Sampling, Trace
from demur.untrusted import filled

SHIPPED = Path(__file__).with_name("strategies")
CLASSIFIED = 1024  # Most tokens of a reply that names a prompt's category, thinking included


class Strategy(Record, frozen=True, kw_only=True):
    """A way to ask for a trace."""

    name: str
    place: Literal["user", "system", "none"] = "user"
    targets: tuple[Pattern, ...] = ()  # The failure patterns that the instruction is meant to prevent
    source: str = ""
    constant: str | None = None  # The whole reply, tags included, where no teacher is asked
    instruction: str = ""
    policies: dict[str, str] = {}  # Policy texts for `{policy}` by category, or its beginning; `default`: all others

    @property
    def needs_trace(self) -> bool:
        """Whether it rewrites a given trace."""
        return "{thinking}" in self.instruction or "{answer}" in self.instruction

    def messages(self, prompt: Prompt, *, trace: Trace | None = None) -> tuple[Message, ...]:
        """The messages to the teacher. Raises UserError: the strategy rewrites a trace and none is given."""
        if self.needs_trace and trace is None:
            raise UserError(f"strategy '{self.name}' rewrites given traces; prompt {prompt.id} has none.")
        values = {"prompt": prompt.text}
        if self.policies:
            fitting = (name for name in self.policies if prompt.category.lower().startswith(name.lower()))
            values["policy"] = self.policies[max(fitting, key=len, default="default")]
        if trace is not None:
            values |= {"thinking": trace.thinking or "", "answer": trace.answer or ""}
        # In one pass: a slot inside a prompt or a trace remains text.
        text = filled(self.instruction, **values)
        if self.place == "system":
            return (Message(role="system", content=text), Message(role="user", content=prompt.text))
        if self.place == "user" and "{prompt}" not in self.instruction:
            text = f"{text}\n\n{prompt.text}"
        return (Message(role="user", content=prompt.text if self.place == "none" else text),)


async def classified(prompts: Iterable[Prompt], strategy: Strategy, model: Model) -> AsyncIterator[Prompt]:
    """Prompts with the category that a model names, of those with a policy; without one where it does not name one."""
    names = sorted(strategy.policies.keys() - {"default"})
    question = (
        f"Which of these does the request below belong to: {', '.join(names)}, or none of them? Reply with one name."
    )

    async def classify(prompt: Prompt) -> Prompt:
        messages = (Message(role="user", content=f"{question}\n\nRequest:\n{prompt.text}"),)
        sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=CLASSIFIED)
        reply = await model.answer(Request(messages=messages, sampling=sampling, prompt=prompt))
        answer = (reply.answer or "").lower() if isinstance(reply, Trace) else ""
        named = [name for name in names if re.search(rf"\b{re.escape(name.lower())}\b", answer)]
        return msgspec.structs.replace(prompt, category=named[0] if len(named) == 1 else "")

    remaining = iter(prompts)
    while batch := list(itertools.islice(remaining, 256)):
        for prompt in await asyncio.gather(*map(classify, batch)):
            yield prompt


def load(name: str) -> Strategy:
    """A shipped strategy by name, or that of an `.md` file. Raises UserError: there is none, or it is malformed."""
    path = SHIPPED / f"{name}.md" if name in STRATEGIES else file_of(name)
    if path.suffix != ".md":
        raise unknown("strategy", name, STRATEGIES, where=" (or a path to your own .md file)")
    if not path.is_file():
        raise UserError(f"strategy file {path} does not exist. Shipped strategies: {', '.join(STRATEGIES)}.")
    strategy = parse(path.read_text(encoding="utf-8"), name=path.stem, where=str(path))
    if "{policy}" not in strategy.instruction:
        return strategy
    folder = path.with_suffix("")
    texts = {file.stem: file.read_text(encoding="utf-8").strip() for file in sorted(folder.glob("*.md"))}
    if "default" not in texts:
        raise UserError(f"{path}: its policy texts, CATEGORY.md and default.md, must be in the folder {folder}.")
    return msgspec.structs.replace(strategy, policies=texts)


def file_of(name: str) -> Path:
    """The file of a strategy that is named by a path, or by `package:path` inside a package."""
    package, colon, inside = name.partition(":")
    if colon and re.fullmatch(r"[\w.]+", package):
        with contextlib.suppress(ModuleNotFoundError):
            return Path(str(resources.files(package))) / inside
    return Path(name)


def parse(text: str, *, name: str, where: str) -> Strategy:
    """A strategy from its Markdown; without front matter the whole text precedes the prompt in the user's turn.

    Raises UserError: front matter that is not YAML, has unknown keys or values, or leaves nothing to send.
    """
    front, closed, body = text[4:].partition("\n---\n") if text.startswith("---\n") else ("", "-", text)
    if not closed:
        raise UserError(f"{where}: the front matter begins with --- and never ends.")
    try:
        head = {"name": name, **(yaml.safe_load(front) or {})}
        strategy = msgspec.convert({**head, "instruction": body.strip()}, Strategy)
    except (yaml.YAMLError, msgspec.ValidationError, TypeError) as error:
        allowed = "name, place (user, system, none), targets, source, constant"
        raise UserError(f"{where}: {error}. Front matter may hold: {allowed}.") from None
    if (strategy.place == "none") != (strategy.constant is not None):
        raise UserError(f"{where}: 'constant' and 'place: none' belong together.")
    if strategy.constant is None and not strategy.instruction:
        raise UserError(f"{where}: there is no instruction below the front matter.")
    return strategy
