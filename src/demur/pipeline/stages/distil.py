"""A teacher answers a pool of prompts under a strategy, a judge filters: traces, verdicts, drops, failures, kept."""

import random
from collections.abc import Iterable

from demur.distil.run import Drop, distil
from demur.distil.settings import DistilSettings
from demur.distil.strategy import CLASSIFIED, Strategy, classified, load
from demur.errors import UserError
from demur.interfaces import Ask
from demur.models.requires import Requires
from demur.pipeline.stage import Context, Lack, Size, Stage, judge_asks, kept_traces, tokens
from demur.records import Kept, Part, Prompt, Trace
from demur.repair.cut import cut_at_share
from demur.settings import Strict
from demur.storage import readers
from demur.storage.records_file import RecordFile
from demur.thinking import OPEN

TEACHERLESS = (
    "no model writes the traces: give --teacher, or call one of a study's models 'teacher' (distil.teacher: another)."
)


class DistilStageSettings(Strict):
    """How traces are made, and which judge filters them."""

    distil: DistilSettings = DistilSettings()
    filter: str = "rules"  # Kind of the judge that decides which traces are kept


class Distil(Stage[DistilStageSettings]):
    """Inputs: prompts; given (traces to rewrite); begun (traces to begin with); teacher (a stage that trains it). Models: teacher;
    filter; classifier (of prompts, by policy). Files: strategy, begin."""

    kind = "distil"
    Settings = DistilStageSettings

    @property
    def strategy(self) -> Strategy:
        return load(str(self.files.get("strategy", self.settings.distil.strategy)))

    async def run(self, context: Context) -> None:
        settings, draft = self.settings.distil, context.draft
        if "strategy" in self.files:
            settings = settings.model_copy(update={"strategy": str(self.files["strategy"])})
        asked = context.inputs["prompts"].table("prompts", Prompt)
        given: dict[str, Trace] = {}  # Id of a prompt -> the first of its traces
        if "given" in context.inputs:
            given = {trace.prompt.id: trace for trace in reversed([*kept_traces(context.inputs["given"])])}
            asked = asked.take([at for at, prompt in enumerate(asked) if prompt.id in given])
        if (classifier := await context.model("classifier")) is not None:
            asked = RecordFile(Prompt, [prompt async for prompt in classified(asked, self.strategy, classifier)])
        begun = self._begun(context, asked)
        if "begun" in context.inputs:
            asked = asked.take([at for at, prompt in enumerate(asked) if begun.get(prompt.id)])
        if context.generating:
            settings = settings.model_copy(update={"keep": "everything"})
        parts = () if context.generating else self._parts
        judges = [await context.judge(self.settings.filter, player="filter", part=part) for part in parts]
        teacher = await context.model("teacher")
        distilled = await distil(
            asked, settings=settings, teacher=teacher, judges=judges, given=given or begun, progress=context.progress
        )
        for name in ("traces", "verdicts", "drops", "failures"):
            draft.write(name, getattr(distilled, name))
        draft.write("kept", (Kept(trace=trace) for trace in distilled.kept))
        draft.summary |= {"strategy": settings.strategy, "funnel": distilled.funnel, "tokens": distilled.tokens}
        draft.line = f"{distilled.funnel['asked']:,} asked → {distilled.funnel['kept']:,} kept"

    def _begun(self, context: Context, asked: Iterable[Prompt]) -> dict[str, str]:
        """Id of a prompt -> how its thinking begins, where the beginnings come from a file or from traces."""
        if "begin" in self.files:
            rows = [str(row.get("begin") or row.get("prompt") or "") for _, row in readers.rows(self.files["begin"])]
            if not any(rows):
                raise UserError(f"{self.files['begin']}: no beginnings in it (one a line, or a column 'begin').")
            return {prompt.id: random.Random(f"begin {prompt.id}").choice(rows) for prompt in asked}
        if "begun" not in context.inputs:
            return {}
        source, share = context.inputs["begun"], self.settings.distil.begin.share
        unsafe = {drop.trace for drop in source.read("drops", Drop) if drop.reasons[0].startswith("unsafe")}
        judged = bool(source.rows("verdicts"))
        traces = (t for t in source.read("traces", Trace) if t.thinking and (t.id in unsafe or not judged))
        return {trace.prompt.id: cut_at_share(trace, share) for trace in traces}

    @property
    def _parts(self) -> tuple[Part, ...]:
        """The parts that are judged: none of a constant reply."""
        return () if self.strategy.constant is not None else self.settings.distil.parts

    def needs(self) -> list[Lack]:
        lacks = super().needs()
        strategy = self.strategy
        if strategy.constant is None and "teacher" not in self.models:
            lacks.append(Lack("teacher", TEACHERLESS, True))
        if strategy.needs_trace and "given" not in self.inputs:
            lacks.append(Lack("given", f"strategy '{strategy.name}' rewrites traces, and none are given.", True))
        if OPEN in strategy.instruction and "teacher" in self.models:
            lacks += self._unmet("teacher", Requires(own_thinking=False), f"strategy '{strategy.name}'")
        begin = self.settings.distil.begin
        if (begin.traces and "begun" not in self.inputs) or (begin.file and "begin" not in self.files):
            lacks.append(Lack("begin", "there are no traces, or no file, to begin a thinking with.", True))
        if begin.given and "teacher" in self.models:
            lacks += self._unmet("teacher", Requires(prefill=True), "distil with 'begin'")
        return lacks + (self.judge_needs(self.settings.filter, "filter") if self._parts else [])

    def readers(self) -> tuple[str, ...]:
        return () if self.settings.distil.until_safe else ("filter",)

    def size(self) -> Size:
        """Upper bound on the traces: every prompt asked as often, and every reply as long, as the settings allow."""
        settings, asked = self.settings.distil, self.inputs["prompts"].size()
        replies = settings.bound if settings.until_safe else settings.samples
        if self.strategy.constant is not None:
            return Size(asked.rows, asked.tokens + tokens(self.strategy.constant))
        given = self.inputs["given"].size().tokens if "given" in self.inputs else 0
        return Size(asked.rows * replies + (asked.rows if given else 0), asked.tokens + given + settings.max_tokens)

    def estimate(self) -> list[Ask]:
        if self.strategy.constant is not None:
            return []
        traces, most = self.size(), self.settings.distil.max_tokens
        sent = traces.tokens - most + tokens(self.strategy.instruction)
        judged = Size(traces.rows * len(self._parts), traces.tokens)
        asks = [Ask("teacher", traces.rows, traces.rows * sent, traces.rows * most)]
        if "classifier" in self.models:
            rows = self.inputs["prompts"].size().rows
            asks.append(Ask("classifier", rows, rows * sent, rows * CLASSIFIED))
        return asks + judge_asks(self, self.settings.filter, judged, "filter", readers=len(self._parts))

    def identity(self) -> dict[str, object]:
        data = super().identity()
        if not self.settings.distil.begin.given:
            data["distil"].pop("begin")
        if "begin" in self.files:
            data["distil"]["begin"].pop("file")
        if "strategy" in self.files:
            data["distil"] |= {"strategy": self.files["strategy"].name}
        if self.strategy.policies:
            data["policies"] = self.strategy.policies
        return data
