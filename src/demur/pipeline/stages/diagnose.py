"""Finds the failure patterns in traces: findings.jsonl, measures.jsonl.

It streams: of a trace nothing stays in memory, so that millions fit.
"""

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
        async for trace, found in paired(detector, islice(source.read("traces", Trace), self.settings.limit)):
            count, bare = count + 1, bare + (not trace.thinking)
            if detector.english:
                measures.append(measured(trace))
            there = sum(finding.present is True for finding in found)
            present, flagged = present + there, flagged + (there > 0)
            findings.extend(found)
            context.progress(count, total, "")
        context.draft.write("findings", findings)
        if detector.english:
            context.draft.write("measures", measures)
        context.draft.summary |= {"traces": count, "detector": detector.name}
        of = f"{count:,} traces{f' ({bare:,} without thinking)' if bare else ''}"
        screen = f"screen: {flagged:,} of {of} flagged; what a screen does not flag is not clean"
        counted = f"{of}, patterns in {flagged:,} of them, {present:,} in all"
        context.draft.line = screen if is_screen(self.settings.detector) else counted

    def estimate(self) -> list[Ask]:
        return self.detecting(self.size())


async def paired(detector: Detector, traces: Iterable[Trace]) -> AsyncIterator[tuple[Trace, tuple[Finding, ...]]]:
    """Traces with their findings, in the order of the traces; held back only where a detector answers out of order."""
    waiting: deque[Trace] = deque()
    early: dict[str, tuple[Finding, ...]] = {}

    def passing() -> Iterator[Trace]:
        for trace in traces:
            waiting.append(trace)
            yield trace

    async for found in detector.findings(passing()):
        early[found[0].trace] = found
        while waiting and waiting[0].id in early:
            trace = waiting.popleft()
            yield trace, early.pop(trace.id)
