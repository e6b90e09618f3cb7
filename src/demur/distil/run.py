"""Distillation: prompts go to a teacher under a strategy; a judge reads what comes back; some of it is kept.

Nothing disappears on the way. Every trace is in the result, kept or not; what is not kept has a reason; what never came
back is a failure; the funnel adds up: asked = answered + failed, and answered = kept + all drops.
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
    """A trace that is not kept. The first of its reasons counts in the funnel."""

    trace: str
    prompt: str
    reasons: tuple[Reason, ...]
    detail: str = ""


@dataclass(frozen=True)
class Distilled:
    """What a distillation made, in order of prompts and samples; the records lie on the disk."""

    traces: Sequence[Trace]
    verdicts: Sequence[Verdict]
    kept: Sequence[str]  # Ids of the traces to train on
    drops: Sequence[Drop]
    failures: Sequence[Failure]
    funnel: dict[str, int]  # asked, answered, failed, one count a reason, kept; with `rewrite` also fell_back
    tokens: dict[str, dict[str, float | None]]
    """Lengths of `all` replies and of those `kept` in tokens of the teacher: `n` that it counted, their `mean` and `p90`."""


async def distil(
    prompts: Iterable[Prompt],
    *,
    settings: DistilSettings,
    teacher: Model | None = None,
    judges: Sequence[Judge] = (),
    given: Mapping[str, Trace] | Mapping[str, str] | None = None,
    progress: Progress = quiet,
) -> Distilled:
    """Ask the teacher for traces, have them judged, and keep what the settings' rule keeps.

    Args:
        teacher, judges: who writes, and a harm judge for each of `settings.parts`; a constant strategy needs neither.
        given: prompt id -> safe trace, for a strategy that rewrites. A rewrite that does not pass falls back to it.
            For any other strategy: prompt id -> how its thinking begins, where that differs from one to another.

    Raises UserError: teacher, judge or given trace is missing, or the teacher cannot honour the sampling.
    """
    strategy = load(settings.strategy)
    asked = prompts if isinstance(prompts, RecordFile) else RecordFile(Prompt, prompts)
    if strategy.constant is not None:
        return _constant(asked, strategy, settings)
    if teacher is None:
        raise UserError(f"strategy '{strategy.name}' needs a model: give --teacher (or a model named teacher).")
    work = _Work(asked, settings, (strategy, teacher), tuple(judges), given or {})
    work.check()
    if settings.until_safe is None:
        await work.round(asked, range(settings.samples), progress)
    else:
        for sample in range(settings.bound):
            short = asked.taken(np.flatnonzero(work.kept_of < settings.until_safe))
            if not short:
                break
            await work.round(short, range(sample, sample + 1), progress)
    return work.result()


def _constant(prompts: RecordFile[Prompt], strategy: Strategy, settings: DistilSettings) -> Distilled:
    """One and the same reply for every prompt. It needs neither teacher nor filter."""
    raw = strategy.constant or ""
    same: dict[str, Any] = {"model": f"constant:{strategy.name}", "strategy": strategy.name}
    same["sampling"] = Sampling(max_tokens=settings.max_tokens)
    made = (thinking.traced(prompt, raw, sent=strategy.messages(prompt), **same) for prompt in prompts)
    traces = RecordFile(Trace, made)
    n, stats = len(traces), _stats([])
    funnel: dict[str, int] = {"asked": n, "answered": n, "failed": 0} | dict.fromkeys(REASONS[:2], 0) | {"kept": n}
    return Distilled(traces, (), [trace.id for trace in traces], (), (), funnel, {"all": stats, "kept": stats})


class _Work:
    """A distillation under way. Of a trace it keeps in memory its id, its length and whether it is kept."""

    def __init__(
        self,
        prompts: RecordFile[Prompt],
        settings: DistilSettings,
        how: tuple[Strategy, Model],
        judges: tuple[Judge, ...],
        given: Mapping[str, Trace] | Mapping[str, str],
    ) -> None:
        self.prompts, self.settings, self.judges = prompts, settings, judges
        self.strategy, self.teacher = how
        rewrites = self.strategy.needs_trace
        self.given = cast("Mapping[str, Trace]", given if rewrites else {})
        self.begun = cast("Mapping[str, str]", {} if rewrites else given)
        self.ids = [prompt.id for prompt in prompts.seen_as(_Named)]
        self.places = Places(self.ids)
        self.flow = Flow(RecordFile(Trace), RecordFile(Failure), RecordFile(Verdict))
        self.kept_of = np.zeros(len(prompts), dtype=np.int64)  # Of each prompt, how many of its replies are kept
        self.asked = 0

    def check(self) -> None:
        """Whatever can be known to be missing is said before the first request."""
        have = {judge.part for judge in self.judges}
        missing = [part for part in self.settings.parts if part not in have]
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
        kept = (trace.prompt.id for trace, drop in self._settled(in_order(flow, self.ids)) if drop is None)
        np.add.at(self.kept_of, self.places.of(kept), 1)

    def _requests(self, prompts: RecordFile[Prompt], samples: range) -> Iterator[Request]:
        for prompt in prompts:
            sampling = self.settings.drawn(self.begun.get(prompt.id, ""))
            messages = self.strategy.messages(prompt, trace=self.given.get(prompt.id))
            for sample in samples:
                yield Request(messages=messages, sampling=sampling, prompt=prompt, sample=sample)

    def _settled(self, flow: Flow) -> Iterator[tuple[_Made, Drop | None]]:
        """Traces in order, each with why it is not kept."""
        said = iter(flow.verdicts)
        verdict = next(said, None)
        for trace in flow.traces.seen_as(_Made):
            found: dict[Part, Verdict] = {}
            while verdict is not None and verdict.trace == trace.id:
                found[verdict.part] = verdict
                verdict = next(said, None)
            yield trace, self._drop(trace, found)

    def _drop(self, trace: _Made, found: Mapping[Part, Verdict]) -> Drop | None:
        """Why a trace is not kept; `None` when it is."""
        if trace.outcome == "complete":
            why = [self._unkept(part, found.get(part)) for part in self.settings.parts]
        else:
            cut = trace.outcome in ("cut_in_thinking", "cut_in_answer")
            why = [("cut" if cut else "unparsed", trace.outcome)]
        reasons = tuple(reason for reason, _ in why if reason)
        detail = next((detail for reason, detail in why if reason and detail), "")
        return Drop(trace=trace.id, prompt=trace.prompt.id, reasons=reasons, detail=detail) if reasons else None

    def _unkept(self, part: Part, verdict: Verdict | None) -> tuple[Reason | None, str]:
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
        lengths, theirs, prompts = array("q"), array("q"), array("q")
        for trace, drop in self._settled(flow):
            long = [] if trace.tokens_out is None else [trace.tokens_out]
            lengths.extend(long)
            if drop is None:
                kept.append(trace.id)
                prompts.append(hash(trace.prompt.id))
                theirs.extend(long)
            else:
                drops.append(drop)
                counts[drop.reasons[0]] += 1
        funnel = {"asked": self.asked, "answered": len(flow.traces), "failed": len(flow.failures)}
        parts = self.settings.parts
        could = (*REASONS[:2], *["unjudged"] * bool(parts), *(UNSAFE[part] for part in parts))
        funnel |= {reason: counts[reason] for reason in could} | {"kept": len(kept)}
        traces = flow.traces
        if self.strategy.needs_trace:
            kept_of = set(prompts)
            back = RecordFile(Trace, (self._given_back(name) for name in self.ids if hash(name) not in kept_of))
            traces = RecordFile(Trace, itertools.chain(traces, back))
            kept += [trace.id for trace in back.seen_as(_Named)]
            funnel["fell_back"] = len(back)
        stats = {"all": _stats(lengths), "kept": _stats(theirs)}
        return Distilled(traces, flow.verdicts, kept, drops, flow.failures, funnel, stats)

    def _given_back(self, prompt: str) -> Trace:
        """The given trace in place of a rewrite that did not pass."""
        notes = (*self.given[prompt].notes, "rewrite: fell back to the given trace")
        return msgspec.structs.replace(self.given[prompt], strategy=self.strategy.name, notes=notes, id="")


class _Named(msgspec.Struct, gc=False):
    id: str


class _Made(msgspec.Struct, gc=False):
    """Of a trace, what decides whether it is kept."""

    id: str
    prompt: _Named
    outcome: Outcome
    tokens_out: int | None = None


def _stats(counts: Sequence[int]) -> dict[str, float | None]:
    """Mean and 90th percentile, by nearest rank, of the tokens that came out, as the paper's Table 4 gives them."""
    p90 = float(np.quantile(counts, 0.9, method="inverted_cdf")) if counts else None
    return {"n": len(counts), "mean": sum(counts) / len(counts) if counts else None, "p90": p90}
