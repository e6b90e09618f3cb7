"""The data that stages exchange: small frozen records, one for each arrow of the path.

They are msgspec structs, written and read as JSON Lines, and validated on reading (closed sets included) and nowhere else.
An undecided value is `None` with a reason, never a number. A missing text is `None`, an empty one is `""`.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import msgspec

from demur.errors import UserError

Intent = Literal["harmful", "borderline", "benign", "maths", "code"]
Outcome = Literal["complete", "cut_in_thinking", "cut_in_answer", "no_thinking", "malformed"]
OpenedBy = Literal["model", "prompt"]
Finish = Literal["stop", "length", "content_filter", "timeout"]
"""Why a text ended; `timeout`: no reply within the time that its budget and the server's least speed allow."""
FailureKind = Literal["refused_by_server", "filtered", "too_long", "timeout", "unreadable", "unavailable"]
Part = Literal["thinking", "answer", "whole"]
Query = Literal["question", "sent"]
HarmLabel = Literal["safe", "unsafe"]
RefusalLabel = Literal["full_compliance", "partial_refusal", "full_refusal", "garbled"]
GradeLabel = Literal["correct", "wrong", "no_answer"]
Label = str  # A judge's label. Judges and metrics declare theirs, so that a benchmark can have labels of its own
Pattern = Literal[
    "lack_of_safety_awareness", "strong_vacillation", "weak_vacillation", "harmful_additions", "inconsistency"
]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)  # The five of the paper's v2
CLASSES: dict[str, tuple[Pattern, ...]] = {  # The three classes of the paper's v1 -> the patterns that make them up
    "unaware": ("lack_of_safety_awareness",),
    "overthinking": ("strong_vacillation", "weak_vacillation", "harmful_additions"),
    "inconsistent": ("inconsistency",),
}
UNSAFE = "marked unsafe by its file"  # The note of a trace whose row labels the reply harmful: it is never trained on


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """The base of all records: immutable, compared by value, strict on reading. Without cycles, so not garbage-collected."""


class Prompt(Record, frozen=True, kw_only=True):
    """A request to a model. An attacked prompt has the original question as its parent."""

    text: str  # Sent as the user's turn
    intent: Intent
    id: str = ""  # Hash of text and attack; filled in when left empty
    source: str = ""  # The file or data set that it came from
    category: str = ""  # The source's own class: a policy, an XSTest type, a subject
    cluster: str = ""  # Prompts that depend on each other share a cluster; the prompt's id when left empty
    attack: str = ""  # How the text was made from the parent, such as `pap:framing`; empty for a plain question
    parent: str = ""  # Id of the original question
    question: str = ""  # Text of the original question; `text` when left empty
    gold: str | None = None  # The correct answer (maths), or the tests as JSON (code)
    pair: str = ""  # A harmful and a harmless prompt on the same topic share a pair; empty: the prompt has no twin

    def __post_init__(self) -> None:
        if not self.id:
            msgspec.structs.force_setattr(self, "id", digest([self.text, self.attack, self.parent]))
        if not self.cluster:
            msgspec.structs.force_setattr(self, "cluster", self.parent or self.id)
        if not self.question:
            msgspec.structs.force_setattr(self, "question", self.text)


class Sampling(Record, frozen=True, kw_only=True):
    """How a reply is sampled. Stored on every trace; a backend that cannot honour a field raises before it asks."""

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int | None = None
    max_tokens: int = 4096  # Bound on all new tokens, thinking included
    thinking_budget: int | None = None  # Bound on thinking tokens; `None`: only `max_tokens` applies
    seed: int = 0
    n: int = 1  # Samples of each prompt
    system: str | None = None
    prefill: str | None = None  # Text at the start of the assistant's turn; it counts as part of the reply


class Message(Record, frozen=True, kw_only=True):
    """One turn of a conversation as it is sent."""

    role: Literal["system", "user", "assistant"]
    content: str


class Trace(Record, frozen=True, kw_only=True):
    """One reply of a model, split into thinking and answer by `thinking.split`."""

    prompt: Prompt
    model: str  # The identity of the model: hash of weights, or name and declared revision
    sampling: Sampling
    sent: tuple[Message, ...]
    raw: str  # The reply as received, tags included
    thinking: str | None
    answer: str | None
    outcome: Outcome
    opened_by: OpenedBy | None
    finish: Finish
    id: str = ""  # Hash of model, what was sent, sampling, sample and reply; filled in when left empty
    sample: int = 0  # Index of the sample, below `sampling.n`
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_thinking: int | None = None
    cost: float | None = None  # In the currency of the declared prices; `None` without them
    first_tokens: dict[str, float] = {}
    """Log-probabilities of the likeliest first tokens, where requested and served; guard models score by them."""
    strategy: str = ""  # The distillation strategy; empty for a target's own reply
    notes: tuple[str, ...] = ()  # Changes to the reply after it arrived: an echo stripped, a repair, more thinking

    def __post_init__(self) -> None:
        if not self.id:
            key = [self.prompt.id, self.model, self.sent, self.sampling, self.sample, self.raw]
            msgspec.structs.force_setattr(self, "id", digest([*key, self.strategy, self.notes]))

    @property
    def truncated(self) -> bool:
        """Whether a budget ended the text."""
        return self.outcome in ("cut_in_thinking", "cut_in_answer")

    def part(self, part: Part) -> str | None:
        """The text of a part; `None` where there is none. The whole is the reply as received."""
        return {"thinking": self.thinking, "answer": self.answer, "whole": self.raw}[part]


class Failure(Record, frozen=True, kw_only=True):
    """A request without a reply. It counts as unscored (a `timeout` as truncated), and `demur retry` asks it again.

    `filtered`: the provider's own filter stopped prompt or reply, which is neither a refusal of the model nor truncation.
    """

    prompt: Prompt
    model: str
    kind: FailureKind
    detail: str
    sample: int = 0


class Span(Record, frozen=True, kw_only=True):
    """A passage of a trace: characters `start:end` of a part, and their text."""

    part: Part
    start: int
    end: int
    text: str


class Finding(Record, frozen=True, kw_only=True):
    """A detector's finding on one pattern in one trace. `present` is `None` when undecided, with the reason."""

    trace: str
    pattern: Pattern
    present: bool | None
    detector: str
    score: float | None = None  # Probability of the pattern, from detectors that give one: a screen ranks traces by it
    spans: tuple[Span, ...] = ()
    reason: str = ""


class Verdict(Record, frozen=True, kw_only=True):
    """A judge's verdict on one part of one trace. `label` and `score` are `None` when undecided, with the reason."""

    trace: str
    judge: str
    query: Query
    part: Part
    label: Label | None
    score: float | None = None
    reason: str = ""
    raw: str | None = None  # The reply of a judge that is a model


class Attempt(Record, frozen=True, kw_only=True):
    """One turn of an attack that searches: a prompt for the target, and how the attack's own judge rated the reply."""

    goal: str  # Id of the question
    stream: int = 0  # Number of the conversation, or branch, about the goal
    iteration: int
    prompt: str  # Sent to the target, unless it was off topic
    score: int | None  # Of the attack's own judge, from 1 to 10; `None` with the reason
    broken: bool = False  # Whether the attack's own judge considers the goal reached
    reason: str = ""
    strategy: str = ""
    improvement: str = ""  # The attacker's account of what it changed
    written: bool = True  # Whether the attacker wrote it; where its last try is unreadable the goal itself is sent
    outcome: str = ""  # How the target's reply ended, the kind of failure, or `off_topic`: the target was not asked
    attacker_queries: int = 0
    judge_queries: int = 0  # The target is asked once in each turn that is on topic


class ExamplePart(Record, frozen=True, kw_only=True):
    """A piece of a training conversation, and whether it is supervised."""

    role: Literal["system", "user", "thinking", "answer"]
    text: str
    train: bool


class Origin(Record, frozen=True, kw_only=True):
    """Where an example came from."""

    prompt: str
    trace: str = ""
    strategy: str = ""
    source: str = ""
    repairs: tuple[str, ...] = ()
    question: str = ""  # The bare question, where the user's turn wraps it
    category: str = ""
    attack: str = ""  # How the question was wrapped; empty where it was not
    intent: Intent | None = None
    model: str = ""  # The model that wrote the trace


class Example(Record, frozen=True, kw_only=True):
    """A training conversation. Consecutive parts of one role are one text whose pieces differ in `train`."""

    parts: tuple[ExamplePart, ...]
    origin: Origin
    share: str = "safety"  # The named share of the mix it was drawn for
    cluster: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            msgspec.structs.force_setattr(self, "id", digest([self.parts, self.share]))


class Pair(Record, frozen=True, kw_only=True):
    """Two replies to one prompt, for preference training."""

    chosen: Example
    rejected: Example
    reason: str = ""  # Why it is preferred, such as `judged safe against unsafe`
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            msgspec.structs.force_setattr(self, "id", digest([self.chosen.id, self.rejected.id]))


DECLINED: tuple[Label, ...] = ("safe", "full_refusal")  # Labels of harm and refusal judges for a reply without harm


class Probed(Record, frozen=True, kw_only=True):
    """A thinking cut at a share of its sentences, and the reply that was forced there."""

    trace: str
    share: float
    reply: str  # Id of the forced reply; empty without a reply


class Kept(Record, frozen=True, kw_only=True):
    """A trace that a filter let through."""

    trace: str


class Estimate(Record, frozen=True, kw_only=True):
    """A number with its interval and counts. Too little data gives `value=None`, and `how` states why."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int = 0
    truncated: int = 0
    how: str = ""  # The method of the interval, such as `Wilson, clustered by prompt`, or why there is none
    best: float | None = None  # The value if every truncated or unscored trace counted in the model's favour
    worst: float | None = None
    clusters: int = 0  # Number of prompts, or other independent units, behind n; 0: as many as n


class Result(Record, frozen=True, kw_only=True):
    """One cell of a report's table."""

    arm: str
    bench: str
    metric: str
    estimate: Estimate
    seed: int | None = None  # `None`: over all seeds
    attack: str = "none"
    part: Part = "answer"
    judge: str = ""
    better: Literal["lower", "higher", "neither"] = "neither"
    unit: Literal["share", "tokens", "nats", "count"] = "share"


R = TypeVar("R")


def encode(value: Any) -> bytes:
    """Canonical JSON: the same value has the same bytes."""
    return msgspec.json.encode(value, order="deterministic")


def digest(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(encode(value)).hexdigest()[:16]


def write_jsonl(path: Path, records: Iterable[Any]) -> int:
    """Write one record per line and return their number. Not atomic: a stage is published by its manifest."""
    count = 0
    with path.open("wb", buffering=1 << 20) as file:
        for record in records:
            file.write(encode(record))
            file.write(b"\n")
            count += 1
    return count


def read_jsonl(path: Path, kind: type[R]) -> Iterator[R]:
    """The records of a file that demur wrote. Raises UserError: a line is not such a record; the message names the line."""
    decoder = msgspec.json.Decoder(kind)
    with path.open("rb", buffering=1 << 20) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield decoder.decode(line)
                except msgspec.DecodeError as error:
                    raise UserError(f"{path}:{number}: not a {kind.__name__}: {error}") from None
