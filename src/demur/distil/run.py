"""Distillation: a teacher answers prompts under a strategy, judges read the replies, and some of them are kept.

Nothing is lost. Every trace is in the result, kept or not; one that is not kept has a reason; a request without a reply
is a failure. The counts add up: asked = answered + failed, and answered = kept + all drops.
"""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import msgspec
import numpy as np

from demur import thinking
from demur.distil.settings import DistilSettings
from demur.distil.strategy import Strategy, load
from demur.errors import UserError
from demur.generate import Flow, ask_and_judge, in_order
from demur.interfaces import Judge, Model, Progress, Request, quiet
from demur.records import DECLINED, Failure, Outcome, Part, Prompt, Record, Sampling, Trace, Verdict
from demur.storage.records_file import Places, RecordFile

Reason = Literal["cut", "unparsed", "unjudged", "unsafe thinking", "unsafe answer", "unsafe whole"]
REASONS: tuple[Reason, ...] = get_args(Reason)
UNSAFE: dict[Part, Reason] = {"thinking": "unsafe thinking", "answer": "unsafe answer", "whole": "unsafe whole"}


class Drop(Record, frozen=True, kw_only=True):
    """A trace that is not kept. The funnel counts it under its first reason."""

    trace: str
    prompt: str
    reasons: tuple[Reason, ...]
    detail: str = ""


@dataclass(frozen=True)
class Distilled:
    """The outcome of a distillation, in order of prompts and samples; the records are on disk."""

    traces: Sequence[Trace]
    verdicts: Sequence[Verdict]
    kept: Sequence[str]  # Ids of the traces to train on
    drops: Sequence[Drop]
    failures: Sequence[Failure]
    funnel: dict[str, int]  # asked, answered, failed, one count for each reason, kept; with `rewrite` also fell_back
    tokens: dict[str, dict[str, float | None]]  # Lengths of `all` replies and of those `kept`: `n`, `mean`, `p90`


async def distil(
    prompts: Iterable[Prompt],
    *,
    settings: DistilSettings,
    teacher: Model | None = None,
    judges: Sequence[Judge] = (),
    given: Mapping[str, Trace] | Mapping[str, str] | None = None,
    progress: Progress = quiet,
) -> Distilled:
    """Ask the teacher for traces, have them judged, and keep those that `settings.keep` allows.

    Args:
        teacher, judges: a model, and a harm judge for each of `settings.parts`; a constant strategy needs neither.
        given: prompt id -> safe trace, for a strategy that rewrites; a rewrite that does not pass falls back to it.
            For any other strategy: prompt id -> the beginning of its thinking, where beginnings differ.

    Raises UserError: teacher, judge or given trace is missing, or the teacher cannot honour the sampling.
    """
    strategy = load(settings.strategy)
    stored = prompts if isinstance(prompts, RecordFile) else RecordFile(Prompt, prompts)
    if strategy.constant is not None:
        return _constant(stored, strategy, settings)
    if teacher is None:
        raise UserError(f"strategy '{strategy.name}' needs a model: give --teacher (or a model named teacher).")
    work = _Distillation(stored, settings, strategy, teacher, judges, given or {})
    work.check()
    if settings.until_safe is None:
        await work.round(stored, range(settings.samples), progress)
    else:
        for sample in range(settings.bound):
            unfinished = stored.take(np.flatnonzero(work.kept_counts < settings.until_safe))
            if not unfinished:
                break
            await work.round(unfinished, range(sample, sample + 1), progress)
    return work.result()


def _constant(prompts: RecordFile[Prompt], strategy: Strategy, settings: DistilSettings) -> Distilled:
    """The same reply for every prompt, without teacher and filter."""
    raw = strategy.constant or ""
    known: dict[str, Any] = {"model": f"constant:{strategy.name}", "strategy": strategy.name}
    known["sampling"] = Sampling(max_tokens=settings.max_tokens)
    replies = (thinking.traced(prompt, raw, sent=strategy.messages(prompt), **known) for prompt in prompts)
    traces = RecordFile(Trace, replies)
    n, stats = len(traces), _stats([])
    funnel: dict[str, int] = {"asked": n, "answered": n, "failed": 0} | dict.fromkeys(REASONS[:2], 0) | {"kept": n}
    return Distilled(traces, (), [trace.id for trace in traces], (), (), funnel, {"all": stats, "kept": stats})


class _Distillation:
    """A distillation in progress. In memory are the id of a trace, its length, and whether it is kept."""

    def __init__(
        self,
        prompts: RecordFile[Prompt],
        settings: DistilSettings,
        strategy: Strategy,
        teacher: Model,
        judges: Sequence[Judge],
        given: Mapping[str, Trace] | Mapping[str, str],
    ) -> None:
        self.prompts, self.settings, self.strategy, self.teacher = prompts, settings, strategy, teacher
        self.judges = judges
        self.given = cast("Mapping[str, Trace]", given if strategy.needs_trace else {})
        self.begun = cast("Mapping[str, str]", {} if strategy.needs_trace else given)
        self.ids = [prompt.id for prompt in prompts.read_as(_WithId)]
        self.places = Places(self.ids)
        self.flow = Flow(RecordFile(Trace), RecordFile(Failure), RecordFile(Verdict))
        self.kept_counts = np.zeros(len(prompts), dtype=np.int64)  # How many replies of each prompt are kept, [prompts]
        self.asked = 0

    def check(self) -> None:
        """Report what is missing before the first request. Raises UserError."""
        judged = {judge.part for judge in self.judges}
        missing = [part for part in self.settings.parts if part not in judged]
        if missing:
            raise UserError(
                f"keep='{self.settings.keep}' needs a judge of the {' and of the '.join(missing)}; "
                "give --judge, or set keep to 'everything'."
            )
        self.teacher.check(self.settings.drawn())
        for prompt in self.prompts if self.strategy.needs_trace else ():
            self.strategy.messages(prompt, trace=self.given.get(prompt.id))

    async def round(self, prompts: RecordFile[Prompt], samples: range, progress: Progress) -> None:
        """Ask and judge at the same time, then count what is kept."""
        self.asked += len(prompts) * len(samples)
        answered = len(self.flow.traces) + len(self.flow.failures)
        flow = await ask_and_judge(
            self.teacher,
            self._requests(prompts, samples),
            self.judges,
            mark=lambda trace: msgspec.structs.replace(trace, strategy=self.strategy.name, id=""),
            judged=lambda trace: trace.outcome == "complete",
            progress=lambda done, _, __: progress(answered + done, self.asked, self.strategy.name),
        )
        if self.settings.until_safe is None:
            self.flow = flow
            return
        self.flow.traces.extend(flow.traces)
        self.flow.failures.extend(flow.failures)
        self.flow.verdicts.extend(flow.verdicts)
        kept = (trace.prompt.id for trace, drop in self._decided(in_order(flow, self.ids)) if drop is None)
        np.add.at(self.kept_counts, self.places.of(kept), 1)

    def _requests(self, prompts: RecordFile[Prompt], samples: range) -> Iterator[Request]:
        for prompt in prompts:
            sampling = self.settings.drawn(self.begun.get(prompt.id, ""))
            messages = self.strategy.messages(prompt, trace=self.given.get(prompt.id))
            for sample in samples:
                yield Request(messages=messages, sampling=sampling, prompt=prompt, sample=sample)

    def _decided(self, flow: Flow) -> Iterator[tuple[_TraceHead, Drop | None]]:
        """Traces in order, each with the reason why it is not kept."""
        verdicts = iter(flow.verdicts)
        verdict = next(verdicts, None)
        for trace in flow.traces.read_as(_TraceHead):
            by_part: dict[Part, Verdict] = {}
            while verdict is not None and verdict.trace == trace.id:
                by_part[verdict.part] = verdict
                verdict = next(verdicts, None)
            yield trace, self._drop(trace, by_part)

    def _drop(self, trace: _TraceHead, verdicts: Mapping[Part, Verdict]) -> Drop | None:
        """Why a trace is not kept; `None` where it is."""
        if trace.outcome == "complete":
            flaws = [self._flaw(part, verdicts.get(part)) for part in self.settings.parts]
        else:
            cut = trace.outcome in ("cut_in_thinking", "cut_in_answer")
            flaws = [("cut" if cut else "unparsed", trace.outcome)]
        reasons = tuple(reason for reason, _ in flaws if reason)
        detail = next((detail for reason, detail in flaws if reason and detail), "")
        return Drop(trace=trace.id, prompt=trace.prompt.id, reasons=reasons, detail=detail) if reasons else None

    def _flaw(self, part: Part, verdict: Verdict | None) -> tuple[Reason | None, str]:
        """Why a part does not pass the filter, and the detail; the reason is `None` where it passes."""
        if verdict is None:
            return "unjudged", f"no verdict on the {part}"
        threshold = self.settings.threshold
        if threshold is not None and verdict.score is not None:
            return (UNSAFE[part], f"score {verdict.score:g}") if verdict.score > threshold else (None, "")
        if verdict.label is None:
            return "unjudged", verdict.reason
        return (None, "") if verdict.label in DECLINED else (UNSAFE[part], verdict.reason)

    def result(self) -> Distilled:
        """Everything in order of prompts and samples."""
        flow = in_order(self.flow, self.ids)
        drops, kept, counts = RecordFile(Drop), list[str](), Counter[str]()
        lengths, kept_lengths, kept_prompts = array("q"), array("q"), array("q")
        for trace, drop in self._decided(flow):
            length = [] if trace.tokens_out is None else [trace.tokens_out]
            lengths.extend(length)
            if drop is None:
                kept.append(trace.id)
                kept_prompts.append(hash(trace.prompt.id))
                kept_lengths.extend(length)
            else:
                drops.append(drop)
                counts[drop.reasons[0]] += 1
        funnel = {"asked": self.asked, "answered": len(flow.traces), "failed": len(flow.failures)}
        parts = self.settings.parts
        possible = (*REASONS[:2], *["unjudged"] * bool(parts), *(UNSAFE[part] for part in parts))
        funnel |= {reason: counts[reason] for reason in possible} | {"kept": len(kept)}
        traces = flow.traces
        if self.strategy.needs_trace:
            passed = set(kept_prompts)
            fallbacks = RecordFile(Trace, (self._fallback(prompt) for prompt in self.ids if hash(prompt) not in passed))
            traces = RecordFile(Trace, itertools.chain(traces, fallbacks))
            kept += [trace.id for trace in fallbacks.read_as(_WithId)]
            funnel["fell_back"] = len(fallbacks)
        stats = {"all": _stats(lengths), "kept": _stats(kept_lengths)}
        return Distilled(traces, flow.verdicts, kept, drops, flow.failures, funnel, stats)

    def _fallback(self, prompt: str) -> Trace:
        """The given trace in place of a rewrite that did not pass."""
        notes = (*self.given[prompt].notes, "rewrite: fell back to the given trace")
        return msgspec.structs.replace(self.given[prompt], strategy=self.strategy.name, notes=notes, id="")


class _WithId(msgspec.Struct, gc=False):
    id: str


class _TraceHead(msgspec.Struct, gc=False):
    """The fields of a trace that decide whether it is kept."""

    id: str
    prompt: _WithId
    outcome: Outcome
    tokens_out: int | None = None


def _stats(counts: Sequence[int]) -> dict[str, float | None]:
    """Mean and 90th percentile (nearest rank) of the lengths of replies in tokens, as in the paper's Table 4."""
    p90 = float(np.quantile(counts, 0.9, method="inverted_cdf")) if counts else None
    return {"n": len(counts), "mean": sum(counts) / len(counts) if counts else None, "p90": p90}
