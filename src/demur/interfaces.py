"""Who acts on the records. Stages know each other only through these Protocols, never by import.

Everything streams: a judge starts on the first trace while the model still writes the last. Implementations yield results
in the order in which they become ready; the publisher of an artifact sorts them.
"""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import NamedTuple, Protocol, TypeVar

from demur.records import Failure, Finding, Message, Part, Prompt, Query, Record, Sampling, Trace, Verdict


class Request(Record, frozen=True, kw_only=True):
    """What a model is asked: the conversation, how to sample, and the prompt that it is about."""

    messages: tuple[Message, ...]
    sampling: Sampling
    prompt: Prompt  # Not sent; passed on to the trace
    sample: int = 0


T = TypeVar("T")
Requests = Iterable[Request] | AsyncIterable[Request]
Traces = Iterable[Trace] | AsyncIterable[Trace]


class Ask(NamedTuple):
    """Upper bounds on what a stage asks of one model, for `demur plan`."""

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
        """Hash of weights and template of a loaded model; name and declared revision of a remote one."""

    def check(self, sampling: Sampling) -> None:
        """Raise `UserError` when a field of `sampling` cannot be honoured. Called before the first request."""

    async def answer(self, request: Request, *, fresh: bool = False) -> Trace | Failure:
        """The reply to one request, durable in the cache before it is returned.

        Args:
            request: what is asked. A request is asked once only: a stored reply is returned at once.
            fresh: ask again, and replace the stored reply. For readers that cannot parse a stored reply, such as a judge's
                verdict: they ask, and once more with `fresh` if need be. So nothing unreadable stays in the cache.
        """

    def answers(self, requests: Requests) -> AsyncIterator[Trace | Failure]:
        """One `Trace` or `Failure` for each request, in the order in which they become ready."""


class Judge(Protocol):
    """Something that labels a part of a trace."""

    @property
    def name(self) -> str:
        """Its name in verdicts and tables."""

    @property
    def query(self) -> Query:
        """Whether it sees the original question or the text that was sent."""

    @property
    def part(self) -> Part:
        """The part of the trace that it sees."""

    def verdicts(self, traces: Traces) -> AsyncIterator[Verdict]:
        """Exactly one `Verdict` for each trace. Never raises for what a model wrote."""


class Detector(Protocol):
    """Something that finds failure patterns."""

    @property
    def name(self) -> str:
        """Its name in findings, verdicts and tables."""

    @property
    def english(self) -> bool:
        """Whether it reads English, so that measures of English prose apply to its traces."""

    def decides(self, text: str) -> bool:
        """Whether a reasoning, in the detector's language, decides what to do with the request."""

    def findings(self, traces: Traces) -> AsyncIterator[tuple[Finding, ...]]:
        """For each trace one `Finding` for each pattern, in the order of `records.PATTERNS`."""


Progress = Callable[[int, int | None, str], None]  # How much is done, of how much (`None`: unknown), a remark


def quiet(done: int, total: int | None, remark: str) -> None:
    """A `Progress` that reports nothing."""


async def stream(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """Either kind of iterable as an asynchronous iterator."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def requests_for(prompts: Iterable[Prompt], sampling: Sampling) -> Iterable[Request]:
    """Plain requests for prompts: a system turn if any, then the prompt; `n` samples of each, prompts in order."""
    system = (Message(role="system", content=sampling.system),) if sampling.system is not None else ()
    for prompt in prompts:
        messages = (*system, Message(role="user", content=prompt.text))
        for sample in range(sampling.n):
            yield Request(messages=messages, sampling=sampling, prompt=prompt, sample=sample)
