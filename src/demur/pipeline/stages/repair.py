"""Repairs traces with failure patterns: traces.jsonl (the result), originals, findings, actions, failures."""

from itertools import islice

from demur.interfaces import Ask
from demur.models.requires import Requires
from demur.pipeline.stage import Context, Detecting, DetectorSettings, Lack, Size, kept
from demur.records import Finding, Trace
from demur.repair.run import ROUNDS, repair
from demur.repair.settings import RepairSettings

CRITIQUE = 300  # Bound on the tokens that describe to a teacher what was wrong


class RepairStageSettings(DetectorSettings):
    """How traces are repaired, and by which detector the results are read."""

    repair: RepairSettings = RepairSettings()


class Repair(Detecting[RepairStageSettings]):
    """Inputs: traces; findings (made here if absent). Models: teacher (for `reask` and `continue`)."""

    kind = "repair"
    version = 3
    Settings = RepairStageSettings

    async def run(self, context: Context) -> None:
        source, draft, settings = context.inputs["traces"], context.draft, self.settings
        chosen, traces = kept(source), islice(source.read("traces", Trace), settings.limit)
        given = [trace for trace in traces if chosen is None or trace.id in chosen]
        findings = context.inputs["findings"].read("findings", Finding) if "findings" in context.inputs else ()
        by, teacher, report = await self.detector(context), await context.model("teacher"), context.progress
        repaired = await repair(
            given, findings=findings, settings=settings.repair, detector=by, teacher=teacher, progress=report
        )
        for name in ("traces", "originals", "findings", "actions", "failures"):
            draft.write(name, getattr(repaired, name))
        draft.summary |= {"counts": repaired.counts, "patterns": repaired.patterns}
        draft.line = ", ".join(f"{count:,} {action}" for action, count in repaired.counts.items())

    def needs(self) -> list[Lack]:
        lacks = super().needs()
        asks = {"reask", "continue"} & {*self.settings.repair.means}
        if asks and "teacher" not in self.models:
            lacks.append(Lack("teacher", f"repair with '{min(asks)}' asks a teacher: name one, or leave it out.", True))
        elif "continue" in asks:
            lacks += self._unmet("teacher", Requires(prefill=True), "repair with 'continue'")
        return lacks

    def size(self) -> Size:
        given = super().size()
        return given._replace(tokens=given.tokens + self.settings.repair.max_tokens)

    def estimate(self) -> list[Ask]:
        settings, given = self.settings.repair, self.size()
        again = given.rows * settings.tries * len({"reask", "continue"} & {*settings.means})
        asks = [Ask("teacher", again, again * (given.tokens + CRITIQUE), again * settings.max_tokens)] if again else []
        # The detector reads each trace, unless its findings are given, and every candidate.
        readings = given.rows * ((0 if "findings" in self.inputs else 1) + ROUNDS + 1) + again
        return asks + self.detector_asks(given._replace(rows=readings))
