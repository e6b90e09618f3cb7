"""Finds the failure patterns in traces: findings.jsonl, measures.jsonl. It streams: no trace stays in memory."""

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice

from demur.diagnose import is_screen
from demur.diagnose.measures import Measures, measured
from demur.errors import UserError
from demur.interfaces import Ask, Detector
from demur.pipeline.stage import Context, Detecting, DetectorSettings
from demur.records import Finding, Trace
from demur.storage.records_file import RecordFile


class Diagnose(Detecting[DetectorSettings]):
    """Inputs: traces."""

    kind = "diagnose"
    version = 3
    Settings = DetectorSettings

    async def run(self, context: Context) -> None:
        source = context.inputs["traces"]
        if not source.rows("traces") and source.manifest.kind == "import":
            raise UserError(f"nothing to diagnose in {self.inputs['traces'].files['file']}: no replies.")
        detector = await self.detector(context)
        findings, measures, total = RecordFile(Finding), RecordFile(Measures), source.rows("traces")
        count = bare = present = flagged = 0
        async for trace, of_trace in paired(detector, islice(source.read("traces", Trace), self.settings.limit)):
            count, bare = count + 1, bare + (not trace.thinking)
            if detector.english:
                measures.append(measured(trace))
            patterns = sum(finding.present is True for finding in of_trace)
            present, flagged = present + patterns, flagged + (patterns > 0)
            findings.extend(of_trace)
            context.progress(count, total, "")
        context.draft.write("findings", findings)
        if detector.english:
            context.draft.write("measures", measures)
        context.draft.summary |= {"traces": count, "detector": detector.name}
        read = f"{count:,} traces{f' ({bare:,} without thinking)' if bare else ''}"
        context.draft.line = f"{read}, patterns in {flagged:,} of them, {present:,} in all"
        if is_screen(self.settings.detector):
            context.draft.line = f"screen: {flagged:,} of {read} flagged; what a screen does not flag is not clean"

    def estimate(self) -> list[Ask]:
        return self.detector_asks(self.size())


async def paired(detector: Detector, traces: Iterable[Trace]) -> AsyncIterator[tuple[Trace, tuple[Finding, ...]]]:
    """Traces with their findings, in the order of the traces; buffered where a detector answers out of order."""
    waiting: deque[Trace] = deque()
    early: dict[str, tuple[Finding, ...]] = {}

    def remembered() -> Iterator[Trace]:
        for trace in traces:
            waiting.append(trace)
            yield trace

    async for findings in detector.findings(remembered()):
        early[findings[0].trace] = findings
        while waiting and waiting[0].id in early:
            trace = waiting.popleft()
            yield trace, early.pop(trace.id)
