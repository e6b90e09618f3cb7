"""Mends traces with failure patterns: traces.jsonl to go on with, originals, findings, actions, failures."""

from itertools import islice

from demur.interfaces import Ask
from demur.models.requires import Requires
from demur.pipeline.stage import Context, Detecting, DetectorSettings, Lack, Size, kept
from demur.records import Finding, Trace
from demur.repair.run import ROUNDS, repair
from demur.repair.settings import RepairSettings

WISHES = 300  # Bound on the tokens in which a teacher is told what was wrong


class RepairStageSettings(DetectorSettings):
    """How traces are mended, and by whom what comes out is read."""

    repair: RepairSettings = RepairSettings()


class Repair(Detecting[RepairStageSettings]):
    """Inputs: traces; findings (else they are made). Models: teacher (for `reask`)."""

    kind = "repair"
    version = 3
    Settings = RepairStageSettings

    async def run(self, context: Context) -> None:
        source, draft = context.inputs["traces"], context.draft
        chosen = kept(source)
        traces = islice(source.read("traces", Trace), self.settings.limit)
        given, how = [trace for trace in traces if chosen is None or trace.id in chosen], self.settings.repair
        found = context.inputs["findings"].read("findings", Finding) if "findings" in context.inputs else ()
        by, teacher, say = await self.detector(context), await context.model("teacher"), context.progress
        done = await repair(given, findings=found, settings=how, detector=by, teacher=teacher, progress=say)
        for name in ("traces", "originals", "findings", "actions", "failures"):
            draft.write(name, getattr(done, name))
        draft.summary |= {"counts": done.counts, "patterns": done.patterns}
        draft.line = ", ".join(f"{count:,} {did}" for did, count in done.counts.items())

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
        settings, made = self.settings.repair, self.size()
        again = made.rows * settings.tries * len({"reask", "continue"} & {*settings.means})
        asks = [Ask("teacher", again, again * (made.tokens + WISHES), again * settings.max_tokens)] if again else []
        # Read: each trace, unless its findings are given, and every candidate.
        readings = made.rows * ((0 if "findings" in self.inputs else 1) + ROUNDS + 1) + again
        return asks + self.detecting(made._replace(rows=readings))
