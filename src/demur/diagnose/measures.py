"""What can be measured of a reasoning beside the patterns: where it sees, where it decides, what it does afterwards."""

import re
import zlib
from collections import Counter

from demur.diagnose.kinds import read
from demur.records import Record, Trace

REOPENING = re.compile(
    r"^(?:but|wait|however|hmm|actually|then again|on the other hand|alternatively|still|although|yet)\b"
)
FOREIGN = re.compile(r"[\u0370-\u1fff\u2e80-\ud7ff\uf900-\ufaff]+(?:\W+[\u0370-\u1fff\u2e80-\ud7ff\uf900-\ufaff]+)*")
LOOP_TIMES, LOOP_RATIO, LOOP_LENGTH = 3, 0.12, 600
"""A sentence that stands so often is a loop; so is a text of such a length that can be compressed to this share of it: prose
comes to about a half."""


class Measures(Record, frozen=True, kw_only=True):
    """Measures of a reasoning. Positions are shares of its sentences, 0 at the start; `None` where there is no such place."""

    trace: str
    sentences: int
    first_awareness: float | None  # Where harm is first named
    key_sentence: float | None  # Where the decision first falls
    after_decision: int  # Sentences behind it
    reopenings: int  # Sentences behind it that begin with `but`, `wait` and their like
    loop: bool  # Whether the reasoning goes round in circles
    language_switches: int  # Passages in another script than Latin


def measured(trace: Trace) -> Measures:
    """The measures of a trace."""
    thinking = read(trace).thinking
    sentences = [span.text.lower() for span in thinking.spans]
    aware = next(iter(thinking.likely("harm")), None)
    decided = next(iter(thinking.likely("decline") or thinking.likely("comply")), None)
    behind = sentences[decided + 1 :] if decided is not None else []
    text = trace.thinking or ""
    return Measures(
        trace=trace.id,
        sentences=len(sentences),
        first_awareness=aware / len(sentences) if aware is not None else None,
        key_sentence=decided / len(sentences) if decided is not None else None,
        after_decision=len(behind),
        reopenings=sum(REOPENING.match(sentence) is not None for sentence in behind),
        loop=_loops(text, sentences),
        language_switches=sum(1 for _ in FOREIGN.finditer(text)),
    )


def _loops(text: str, sentences: list[str]) -> bool:
    if any(count >= LOOP_TIMES for sentence, count in Counter(sentences).items() if len(sentence) > 20):
        return True
    tail = text[-4000:].encode()
    return len(tail) >= LOOP_LENGTH and len(zlib.compress(tail, 1)) < LOOP_RATIO * len(tail)
