"""Judges stored traces again without asking the model: traces (unchanged), verdicts."""

from demur.errors import plural
from demur.generate import Flow, in_order
from demur.interfaces import Ask
from demur.judge.base import require, setup_of
from demur.pipeline.stage import Context, Lack, Size, Stage, judge_asks, tokens
from demur.records import Failure, Part, Query, Trace, Verdict
from demur.settings import Strict
from demur.storage.records_file import RecordFile


class RejudgeSettings(Strict):
    """Which judge reads what, and whose traces they are."""

    judge: str  # Kind of judge
    part: Part | None = None  # The part that it reads; `None`: its default
    query: Query | None = None  # What it sees as the request; `None`: its default
    arm: str = "target"
    seed: int | None = None
    bench: str = "demur.bench.metrics:STORED"  # The benchmark whose metrics the verdicts serve


class Rejudge(Stage[RejudgeSettings]):
    """Inputs or files: traces. Models: judge."""

    kind = "judge"
    Settings = RejudgeSettings

    async def run(self, context: Context) -> None:
        settings = self.settings
        if "traces" in context.inputs:
            traces = context.inputs["traces"].table("traces", Trace)
        else:
            traces = RecordFile(Trace, path=self.files["traces"])
        judge = await context.judge(settings.judge, part=settings.part, query=settings.query)
        verdicts = RecordFile(Verdict)
        async for verdict in judge.verdicts(traces):
            verdicts.append(verdict)
            context.progress(len(verdicts), len(traces), settings.judge)
        flow = in_order(Flow(traces, RecordFile(Failure), verdicts), (trace.prompt.id for trace in traces))
        context.draft.write("traces", flow.traces)
        context.draft.write("verdicts", flow.verdicts)
        context.draft.write("judges", [setup_of(judge)])
        context.draft.line = plural(len(traces), "trace")
        require(verdicts, who=f"judge '{settings.judge}'")

    def needs(self) -> list[Lack]:
        return super().needs() + self.judge_needs(self.settings.judge)

    def size(self) -> Size:
        if "traces" in self.inputs:
            return self.inputs["traces"].size()
        sizes = [tokens(t.prompt.text) + tokens(t.raw) for t in RecordFile(Trace, path=self.files["traces"])]
        return Size(len(sizes), max(sizes, default=0))

    def estimate(self) -> list[Ask]:
        return judge_asks(self, self.settings.judge, self.size())
