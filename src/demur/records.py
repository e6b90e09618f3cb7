"""What travels through demur: small frozen records, one for each arrow of the path.

They are msgspec structs: JSON Lines in, JSON Lines out, checked as they are read (closed sets included) and nowhere else.
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
"""Why a text ended; `timeout`: nothing came in the time that its budget and the server's least speed allow."""
FailureKind = Literal["refused_by_server", "filtered", "too_long", "timeout", "unreadable", "unavailable"]
Part = Literal["thinking", "answer", "whole"]
Query = Literal["question", "sent"]
HarmLabel = Literal["safe", "unsafe"]
RefusalLabel = Literal["full_compliance", "partial_refusal", "full_refusal", "garbled"]
GradeLabel = Literal["correct", "wrong", "no_answer"]
Label = str  # What a judge may say. Judges and metrics declare theirs: a benchmark may bring labels of its own
Pattern = Literal[
    "lack_of_safety_awareness", "strong_vacillation", "weak_vacillation", "harmful_additions", "inconsistency"
]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)  # The five of the paper's v2
CLASSES: dict[str, tuple[Pattern, ...]] = {  # The three classes of the paper's v1, each by the patterns it gathers
    "unaware": ("lack_of_safety_awareness",),
    "overthinking": ("strong_vacillation", "weak_vacillation", "harmful_additions"),
    "inconsistent": ("inconsistency",),
}


UNSAFE = "marked unsafe by its file"  # Noted on a trace whose own row calls the reply harmful: it is never trained on


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """The base of all records: immutable, compared by value, strict when read; no cycles, so nothing for the collector."""


class Prompt(Record, frozen=True, kw_only=True):
    """A request that can be put to a model. An attacked prompt has the original question as its parent."""

    text: str  # What is sent as the user's turn
    intent: Intent
    id: str = ""  # Hash of text and attack; filled in when left empty
    source: str = ""  # The file or set it came from
    category: str = ""  # The source's own class: a policy, an XSTest type, a subject
    cluster: str = ""  # Prompts that are not independent of each other share a cluster; own id when left empty
    attack: str = ""  # How the text was made from the parent, such as `pap:framing`; empty for a plain question
    parent: str = ""  # Id of the original question
    question: str = ""  # Text of the original question; `text` when left empty
    gold: str | None = None  # The right answer (maths), or the tests as JSON (code)
    pair: str = ""  # A harmful prompt and a harmless one on the same topic share a pair; empty: it has no twin

    def __post_init__(self) -> None:
        if not self.id:
            msgspec.structs.force_setattr(self, "id", digest([self.text, self.attack, self.parent]))
        if not self.cluster:
            msgspec.structs.force_setattr(self, "cluster", self.parent or self.id)
        if not self.question:
            msgspec.structs.force_setattr(self, "question", self.text)


class Sampling(Record, frozen=True, kw_only=True):
    """How a reply is drawn. Stored on every trace; a backend that cannot honour a field raises before it asks."""

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int | None = None
    max_tokens: int = 4096  # Bound on all new tokens, thinking included
    thinking_budget: int | None = None  # Bound on thinking tokens; `None`: only `max_tokens` binds
    seed: int = 0
    n: int = 1  # Samples a prompt
    system: str | None = None
    prefill: str | None = None  # Text put at the start of the assistant's turn; it counts as part of the reply


class Message(Record, frozen=True, kw_only=True):
    """One turn of a conversation as it is sent."""

    role: Literal["system", "user", "assistant"]
    content: str


class Trace(Record, frozen=True, kw_only=True):
    """One reply of a model, split once and for all by `thinking.split`."""

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
    sample: int = 0  # Index of this sample among `sampling.n`
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_thinking: int | None = None
    cost: float | None = None  # In the currency of the declared prices; `None` when none were declared
    first_tokens: dict[str, float] = {}
    """Log-probabilities of the likeliest first tokens, where they were asked for and served; guard models score by them."""
    strategy: str = ""  # The distillation strategy that made it; empty for a target's own reply
    notes: tuple[str, ...] = ()  # What was done to the reply after it came: an echo stripped, a repair, more thinking

    def __post_init__(self) -> None:
        if not self.id:
            key = [self.prompt.id, self.model, self.sent, self.sampling, self.sample, self.raw]
            msgspec.structs.force_setattr(self, "id", digest([*key, self.strategy, self.notes]))

    @property
    def truncated(self) -> bool:
        """Whether the text ended because a budget did."""
        return self.outcome in ("cut_in_thinking", "cut_in_answer")

    def part(self, part: Part) -> str | None:
        """The text of a part; `None` when it does not exist. The whole is what was received."""
        return {"thinking": self.thinking, "answer": self.answer, "whole": self.raw}[part]


class Failure(Record, frozen=True, kw_only=True):
    """A request that got no reply, typed. It is counted as unscored (a `timeout` as truncated), and `demur retry` asks it again.

    `filtered`: the provider's own filter stopped prompt or reply, which is neither a refusal of the model nor truncation.
    """

    prompt: Prompt
    model: str
    kind: FailureKind
    detail: str
    sample: int = 0


class Span(Record, frozen=True, kw_only=True):
    """Where in a trace something stands: characters `start:end` of a part, and the text there."""

    part: Part
    start: int
    end: int
    text: str


class Finding(Record, frozen=True, kw_only=True):
    """What a detector says of one pattern in one trace. `present` is `None` when it cannot tell, with the reason."""

    trace: str
    pattern: Pattern
    present: bool | None
    detector: str
    score: float | None = None  # How likely the pattern is, where the detector says it: what a screen ranks traces by
    spans: tuple[Span, ...] = ()
    reason: str = ""


class Verdict(Record, frozen=True, kw_only=True):
    """What a judge says of one part of one trace. `label` and `score` are `None` when it cannot tell, with the reason."""

    trace: str
    judge: str
    query: Query
    part: Part
    label: Label | None
    score: float | None = None
    reason: str = ""
    raw: str | None = None  # The judge's own words, when it has any


class Attempt(Record, frozen=True, kw_only=True):
    """One turn of an attack that searches: a prompt that was put to the target, and how its own judge rated the reply."""

    goal: str  # Id of the question
    stream: int = 0  # Which conversation, or branch, about the goal
    iteration: int
    prompt: str  # What was put to the target, unless it was off topic
    score: int | None  # Of the attack's own judge, from 1 to 10; `None` with the reason
    broken: bool = False  # Whether the attack's own judge calls the goal reached
    reason: str = ""
    strategy: str = ""
    improvement: str = ""  # What the attacker says that it changed
    written: bool = True  # Whether the attacker wrote the prompt; after a last try without form the goal itself was put
    outcome: str = ""  # How the target's reply ended, the kind of failure, or `off_topic`: the target was not asked
    attacker_queries: int = 0
    judge_queries: int = 0  # The target is asked once a turn that is on topic


class ExamplePart(Record, frozen=True, kw_only=True):
    """A piece of a training conversation, and whether loss falls on it."""

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
    question: str = ""  # The bare question, where the user's turn wraps it in something
    category: str = ""
    attack: str = ""  # How the question was wrapped; empty where it was not
    intent: Intent | None = None
    model: str = ""  # Who wrote the trace


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
    reason: str = ""  # Why the one is preferred, such as `judged safe against unsafe`
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            msgspec.structs.force_setattr(self, "id", digest([self.chosen.id, self.rejected.id]))


DECLINED: tuple[Label, ...] = ("safe", "full_refusal")  # A harm judge's and a refusal judge's: no harm was handed over


class Probed(Record, frozen=True, kw_only=True):
    """A thinking cut at a share of its sentences, and the reply that was forced there."""

    trace: str
    share: float
    reply: str  # Id of the forced reply; empty: there came none


class Kept(Record, frozen=True, kw_only=True):
    """A trace that a filter let through."""

    trace: str


class Estimate(Record, frozen=True, kw_only=True):
    """A number one may print: never without its interval and its counts. Too little data gives `value=None` and `how` says why."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int = 0
    truncated: int = 0
    how: str = ""  # The method of the interval, such as `Wilson, clustered by prompt`, or why there is none
    best: float | None = None  # The value if every truncated or unscored trace had counted in the model's favour
    worst: float | None = None
    clusters: int = 0  # How many prompts, or whatever else is independent, the n are of; 0: of as many


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
    """Write one record a line and return their number. Not atomic: stages publish by their manifest."""
    count = 0
    with path.open("wb", buffering=1 << 20) as file:
        for record in records:
            file.write(encode(record))
            file.write(b"\n")
            count += 1
    return count


def read_jsonl(path: Path, kind: type[R]) -> Iterator[R]:
    """Yield the records of a file that demur wrote.

    Raises UserError: a line is not such a record; the message names file and line.
    """
    decoder = msgspec.json.Decoder(kind)
    with path.open("rb", buffering=1 << 20) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield decoder.decode(line)
                except msgspec.DecodeError as error:
                    raise UserError(f"{path}:{number}: not a {kind.__name__}: {error}") from None
