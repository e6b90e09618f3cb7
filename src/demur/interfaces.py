"""Who acts on the records. Stages know each other only through these Protocols, never by import.

Everything streams: a judge starts on the first trace while the model still writes the last. An implementation yields in
whatever order results become ready; whoever publishes an artifact sorts.
"""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import NamedTuple, Protocol, TypeVar

from demur.records import Failure, Finding, Message, Part, Prompt, Query, Record, Sampling, Trace, Verdict


class Request(Record, frozen=True, kw_only=True):
    """What a model is asked: the conversation, how to sample, and what it is about."""

    messages: tuple[Message, ...]
    sampling: Sampling
    prompt: Prompt  # Not sent; it travels on to the trace
    sample: int = 0


T = TypeVar("T")
Requests = Iterable[Request] | AsyncIterable[Request]
Traces = Iterable[Trace] | AsyncIterable[Trace]


class Ask(NamedTuple):
    """What a stage may ask of one model at most: upper bounds, for `demur plan`."""

    part: str  # target, teacher, attacker, judge …
    requests: int
    tokens_in: int
    tokens_out: int


class Model(Protocol):
    """Something that answers: a teacher, a target, an attacker, the model of a judge.

    `answer` is the primitive; `models.answering.Answering` makes `answers` of it.
    """

    @property
    def identity(self) -> str:
        """Hash of weights and template for what we load, name and declared revision for what is remote."""

    def check(self, sampling: Sampling) -> None:
        """Raise `UserError` when a field of `sampling` cannot be honoured. Called before the first request."""

    async def answer(self, request: Request, *, fresh: bool = False) -> Trace | Failure:
        """The reply to one request, durable in the cache before it is returned.

        Args:
            request: what is asked. The same request is asked once, ever: a stored reply is returned at once.
            fresh: ask again, and put the new reply in the place of the stored one. For a reader that can make nothing of
                a stored reply, such as a judge whose verdict is unreadable: it asks, and once more with `fresh` where that
                cannot be read. So a judge that was mended is heard by the next run, and nothing unreadable is frozen.
        """

    def answers(self, requests: Requests) -> AsyncIterator[Trace | Failure]:
        """One `Trace` or `Failure` a request, in the order in which they become ready."""


class Judge(Protocol):
    """Something that labels a part of a trace."""

    @property
    def name(self) -> str:
        """How it is called in verdicts and tables."""

    @property
    def query(self) -> Query:
        """Whether it sees the original question or what was sent."""

    @property
    def part(self) -> Part:
        """The part of the trace that it sees."""

    def verdicts(self, traces: Traces) -> AsyncIterator[Verdict]:
        """Exactly one `Verdict` a trace; it never raises for what a model wrote."""


class Detector(Protocol):
    """Something that finds failure patterns."""

    @property
    def name(self) -> str:
        """How it is called in findings, verdicts and tables."""

    @property
    def english(self) -> bool:
        """Whether it reads English, so that the measures of English prose apply to its traces."""

    def decides(self, text: str) -> bool:
        """Whether a reasoning, in the language that it reads, decides what to do with the request."""

    def findings(self, traces: Traces) -> AsyncIterator[tuple[Finding, ...]]:
        """For each trace exactly one `Finding` a pattern, in the order of `records.PATTERNS`."""


Progress = Callable[[int, int | None, str], None]  # How much is done, how much there is (`None`: unknown), a remark


def quiet(done: int, total: int | None, remark: str) -> None:
    """A `Progress` for those who do not look."""


async def stream(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """Either kind of iterable, read as an asynchronous one."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def requests_for(prompts: Iterable[Prompt], sampling: Sampling) -> Iterable[Request]:
    """The plain requests for prompts: system turn if any, then the prompt; `n` samples each, prompts in order."""
    system = (Message(role="system", content=sampling.system),) if sampling.system is not None else ()
    for prompt in prompts:
        messages = (*system, Message(role="user", content=prompt.text))
        for sample in range(sampling.n):
            yield Request(messages=messages, sampling=sampling, prompt=prompt, sample=sample)
