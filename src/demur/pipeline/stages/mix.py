"""Draws a training set from named shares: examples.jsonl, drops.jsonl, held_out.jsonl, odd.jsonl."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from pydantic import Field

from demur.errors import UserError, plural
from demur.judge import open_judge
from demur.mix import example_of, mix, pairs, unfit
from demur.mix.draw import hold_out
from demur.mix.settings import MixSettings, ShareSettings
from demur.pipeline.stage import Context, Lack, Stage, file_needs, hub_needs, kept
from demur.prompts.forms import Odd, load_file
from demur.records import Example, Finding, Pair, Pattern, Trace, Verdict
from demur.settings import Strict
from demur.storage import hub
from demur.storage.artifacts import Artifact
from demur.storage.records_file import RecordFile


class MixStageSettings(Strict):
    """The mix, and which safety rows are left out of it."""

    mix: MixSettings
    held_out: int = Field(default=0, ge=0)  # Safety rows kept out of training to measure learnability on
    without: tuple[Pattern, ...] = ()  # Safety traces with one of these patterns are left out


class Mix(Stage[MixStageSettings]):
    """Inputs and files: one for each share, by its name; findings (for `without`). A share with neither is from the hub."""

    kind = "mix"
    version = 7
    Settings = MixStageSettings

    async def run(self, context: Context) -> None:
        settings, draft = self.settings.mix, context.draft
        pools: dict[str, RecordFile[Any]] = {}
        left_out: dict[str, int] = {}
        odd: list[Odd] = []
        # A record omits a default only if it is the same object, which an unpickled name is not.
        shares = {sys.intern(name): options for name, options in settings.shares.items()}
        for share, options in shares.items():
            source, only = self._source(context, share, options), self._chosen(context, share)
            drawn_from = await pool(source, share=share, options=options, only=only)
            pools[share] = drawn_from.examples
            odd += drawn_from.odd
            left_out |= {f"{share}: {reason}": count for reason, count in sorted(drawn_from.left_out.items())}
        held: RecordFile[Any] = RecordFile(Example)
        if self.settings.held_out and "safety" in pools:
            held, pools["safety"] = hold_out(pools["safety"], self.settings.held_out, shares["safety"])
        shares = {name: share.model_copy(update={"file": None, "hub": ""}) for name, share in shares.items()}
        mixed = mix(pools, settings.model_copy(update={"shares": shares}))
        kind = "examples" if all(share.pairs == "none" for share in shares.values()) else "pairs"
        for name, rows in ((kind, mixed.examples), ("drops", mixed.drops), ("held_out", held), ("odd", odd)):
            draft.write(name, rows)
        draft.summary |= {"table": msgspec.to_builtins(mixed.table), "left_out": left_out}
        draft.line = " + ".join(f"{row.taken:,} {row.share}" for row in mixed.table)
        draft.line += f" ({len(odd):,} odd rows kept aside)" if odd else ""

    def _source(self, context: Context, share: str, options: ShareSettings) -> Path | Artifact:
        """The source of a share: a stage, a local file, or a file that is fetched from the hub."""
        if share in context.inputs:
            return context.inputs[share]
        if share in self.files:
            return self.files[share]
        path = hub.fetch(options.hub)
        context.draft.summary.setdefault("fetched", {}).update(hub.provenance(options.hub))
        return path

    def _chosen(self, context: Context, share: str) -> set[str] | None:
        """The traces that a filter kept and that have no unwanted pattern; `None`: all."""
        if share not in context.inputs:
            return None
        source = context.inputs[share]
        chosen = kept(source)
        if share != "safety" or not self.settings.without:
            return chosen
        findings = context.inputs["findings"].read("findings", Finding)
        unwanted = {f.trace for f in findings if f.present and f.pattern in self.settings.without}
        return (chosen if chosen is not None else {trace.id for trace in source.read("traces", Trace)}) - unwanted

    def needs(self) -> list[Lack]:
        lacks = super().needs()
        for name, share in self.settings.mix.shares.items():
            if name not in self.inputs and name not in self.files and not share.hub:
                lacks.append(Lack(name, f"share '{name}' has no rows: no stage makes them and no file is given.", True))
            elif name in self.files:
                lacks += file_needs(name, self.files[name], share.form)
            elif share.hub:
                lacks += hub_needs(name, share.file, share.hub)
            else:
                lacks += self._out_of_reach(name, share)
        return lacks

    def _out_of_reach(self, name: str, share: ShareSettings) -> list[Lack]:
        """A lack where a share asks for more rows than its prompts can give, even if every reply is kept."""
        source = self.inputs[name]
        while "traces" in source.inputs:  # repaired, or filtered once more
            source = source.inputs["traces"]
        if "prompts" not in source.inputs or share.up_to or share.n is None:
            return []
        prompts, distil, dedupe = source.inputs["prompts"], source.settings.distil, self.settings.mix.dedupe != "none"
        rows, each = prompts.size().rows, 1 if dedupe else distil.until_safe or distil.samples
        most = rows * each
        if not 0 < most < share.n:
            return []
        place = ".".join(map(str, prompts.place))
        why = "; rows with the same question count once (mix.dedupe)" if dedupe else f", {plural(each, 'sample')} each"
        what = f"share '{name}' wants {share.n:,} rows and can have {most:,} at most"
        how = f"Raise {place}.n, or take what there is: {name}: {{n: up to {share.n}}}."
        return [Lack(name, f"{what}: {place} gives {rows:,} prompts{why}. {how}", True)]

    def identity(self) -> dict[str, object]:
        """Without the paths of files."""
        data = super().identity()
        for share in self.files:
            data["mix"]["shares"][share].pop("file", None)
        return data


class Pool(NamedTuple):
    """The rows that a share draws from, and those that are of no use."""

    examples: RecordFile[Any]  # Examples, or pairs where the share asks for pairs
    left_out: Counter[str]  # Reason -> number of traces that cannot be trained on
    odd: list[Odd]  # Rows of a file that could not be read


async def pool(source: Path | Artifact, *, share: str, options: ShareSettings, only: set[str] | None = None) -> Pool:
    """The rows that a share draws from; `only` are the ids of the traces that a filter chose. Raises UserError: no rows."""
    if options.pairs != "none":
        return _pairs(source, share, options)
    examples, traces, odd = _read(source, options)
    if only is not None:
        examples = examples.take(np.flatnonzero([example.origin.trace in only for example in examples]))
        traces = traces.take(np.flatnonzero([trace.id in only for trace in traces]))
    left_out: Counter[str] = Counter()
    if options.grade:
        correct = {v.trace async for v in open_judge("maths").verdicts(traces) if v.label == "correct"}
        left_out["its final answer is not the gold one"] = len(traces) - len(correct)
        traces = traces.take(np.flatnonzero([trace.id in correct for trace in traces]))
    rows = RecordFile(Example, examples)
    for trace in traces:
        if reason := unfit(trace, no_thinking=options.no_thinking):
            left_out[reason] += 1
        else:
            rows.append(example_of(trace, share=share, no_thinking=options.no_thinking))
    if not rows and only is None and options.n != 0:
        where = options.file or (source.folder if isinstance(source, Artifact) else source)
        raise UserError(f"share '{share}': nothing to train on in {where}: {_why_empty(source, +left_out)}.")
    return Pool(rows, +left_out, odd)


def _pairs(source: Path | Artifact, share: str, options: ShareSettings) -> Pool:
    """The preference pairs of a source."""
    odd: list[Odd] = []
    if isinstance(source, Path):
        loaded = load_file(source, form=options.form, intent=options.intent)
        (rows, left_out), odd = pairs.preferred(loaded.pairs, share=share), loaded.odd
    elif options.pairs == "file":
        rows, left_out = list(source.read("pairs", Pair)), Counter()
    elif options.pairs == "against":
        rows, left_out = pairs.against(source.read("traces", Trace), options.against, share=share)
    elif options.pairs == "judged":
        rows, left_out = pairs.judged(source.read("traces", Trace), source.read("verdicts", Verdict), share=share)
    else:
        rows, left_out = pairs.repaired(source.read("originals", Trace), source.read("traces", Trace), share=share)
    if not rows:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in left_out.items()) or "there are none"
        raise UserError(f"share '{share}': no preference pairs ({options.pairs}): {reasons}.")
    return Pool(RecordFile(Pair, rows), left_out, odd)


def _why_empty(source: Path | Artifact, left_out: Counter[str]) -> str:
    """Why there is nothing to train on."""
    paired = source.rows("pairs") if isinstance(source, Artifact) else 0
    otherwise = f"{paired:,} preference pairs (chosen, rejected; pairs: file draws them)" if paired else "no replies"
    return ", ".join(f"{reason} ({count:,})" for reason, count in left_out.items()) or otherwise


def _read(source: Path | Artifact, options: ShareSettings) -> tuple[RecordFile[Example], RecordFile[Trace], list[Odd]]:
    """The examples, traces and odd rows of a share's source."""
    if isinstance(source, Artifact):
        examples = source.table("examples", Example) if source.has("examples") else RecordFile(Example)
        return examples, source.table("traces", Trace) if source.has("traces") else RecordFile(Trace), []
    loaded = load_file(source, form=options.form, intent=options.intent)
    return RecordFile(Example, loaded.examples), RecordFile(Trace, loaded.traces), loaded.odd
