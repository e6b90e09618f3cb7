"""Cuts a reasoning at a sentence, inserts a text, and lets a model continue: to repair, to intervene, to probe.

After Chain-of-Guardrails, IPO (arXiv 2509.24393), SafeRemind (arXiv 2601.03662) and the probes of the refusal cliff
(arXiv 2510.06036), all without hidden states: the model is given the beginning of its thinking and continues it.
"""

import re
from collections.abc import AsyncIterator, Sequence

import msgspec

from demur import thinking
from demur.interfaces import Model, Request
from demur.models.answering import Answering, answered
from demur.records import Failure, Finding, Sampling, Trace
from demur.repair.settings import Intervention, RepairSettings

SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?](?!\s|$)[^.!?\n]*)*(?:[.!?]+[\"'”’)\]]*)?\s*")
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)  # Where a probe cuts, as shares of the sentences
IN_FLIGHT = 256


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with the white space after it; joined, they are the text."""
    return [match[0] for match in SENTENCE.finditer(text) if match[0]]


def cut_at_share(trace: Trace, share: float) -> str:
    """The first share of the sentences of a reasoning."""
    pieces = sentences(trace.thinking or "")
    return "".join(pieces[: round(share * len(pieces))]).rstrip()


def cut_at_cue(trace: Trace, cue: re.Pattern[str]) -> str | None:
    """A reasoning before its first sentence that `cue` matches; `None` where it matches none."""
    pieces = sentences(trace.thinking or "")
    at = next((place for place, piece in enumerate(pieces) if re.search(cue.pattern, piece, re.IGNORECASE)), None)
    return None if at is None else "".join(pieces[:at]).rstrip()


def cut_for_repair(trace: Trace, findings: Sequence[Finding], settings: RepairSettings) -> str | None:
    """A reasoning up to the cut of a repair; `None` without a place to cut at, such as evidence of a pattern."""
    if settings.cut == "share":
        return cut_at_share(trace, settings.share)
    if settings.cut == "cue":
        return cut_at_cue(trace, settings.cue)
    text = trace.thinking or ""
    starts = [span.start for f in findings if f.present for span in f.spans if span.part == "thinking"]
    places = [match.start() for match in SENTENCE.finditer(text) if match.start() <= min(starts, default=-1)]
    return text[: places[-1]].rstrip() if places else None


def continuation(trace: Trace, begun: str, *, sampling: Sampling, closed: bool = False, sample: int = 0) -> Request:
    """The request to continue a reasoning from its beginning; where `closed`, to answer at once."""
    sampling = msgspec.structs.replace(sampling, prefill=thinking.join(begun, "" if closed else None))
    return Request(messages=trace.sent, sampling=sampling, prompt=trace.prompt, sample=sample)


class Intervened(Answering):
    """A model whose thinking is interrupted once, where it begins to comply; the reply after the reminder counts."""

    def __init__(self, model: Model, settings: Intervention) -> None:
        self.model, self.settings, self.identity, self.check = model, settings, model.identity, model.check

    async def answer(self, request: Request, *, fresh: bool = False) -> Trace | Failure:
        """The reply where the cue matches no sentence; else one that continues the reminder put in its place."""
        first = await self.model.answer(request, fresh=fresh)
        kept = cut_at_cue(first, self.settings.cue) if isinstance(first, Trace) and first.thinking else None
        if kept is None or not isinstance(first, Trace):
            return first
        prefilled = thinking.split(request.sampling.prefill or thinking.OPEN, finish="length")
        if prefilled.answer is not None:
            return first
        # A prefill is kept: the reminder comes after it.
        begun = max(kept, prefilled.thinking or "", key=len)
        text = f"{begun} {self.settings.insert}".strip()
        reply = await self.model.answer(continuation(first, text, sampling=request.sampling, sample=request.sample))
        if isinstance(reply, Failure):
            return reply
        notes = (*reply.notes, f"interrupted after {len(begun)} characters of its thinking")
        return msgspec.structs.replace(reply, sampling=request.sampling, notes=notes, id="")


def probe(
    traces: Sequence[Trace], *, model: Model, shares: Sequence[float] = SHARES, samples: int = 1
) -> AsyncIterator[tuple[str, float, Trace | Failure]]:
    """A model's answers where its thinking ends at each share of a trace's sentences: (id of the trace, share, reply).

    A refusal judge's verdicts on the replies estimate P(refuse | prefix); a fall towards the end is the refusal cliff.
    """

    async def forced(cut: tuple[Trace, float, int]) -> tuple[str, float, Trace | Failure]:
        trace, share, sample = cut
        begun, sampling = cut_at_share(trace, share), msgspec.structs.replace(trace.sampling, n=1)
        request = continuation(trace, begun, sampling=sampling, closed=True, sample=trace.sample * samples + sample)
        reply = await model.answer(request)
        if isinstance(reply, Trace):
            notes = (*reply.notes, f"probe: {share:g} of {trace.id}")
            reply = msgspec.structs.replace(reply, notes=notes, id="")
        return trace.id, share, reply

    cuts = [(t, share, sample) for t in traces if t.thinking for share in shares for sample in range(samples)]
    return answered(cuts, forced, limit=IN_FLIGHT)
