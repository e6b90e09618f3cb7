"""A stage of somebody else's: it pairs a kept trace with a dropped one for the same prompt, and keeps the base as it is."""

from __future__ import annotations

import shutil
from collections import defaultdict

from demur.mix import example_of, unfit
from demur.pipeline.stage import Context, Stage, kept
from demur.records import Pair, Trace
from demur.settings import Strict


class PreferenceSettings(Strict):
    """How pairs are weighed."""

    beta: float = 0.1
    lr: float = 1e-6
    seed: int = 0


class PreferenceStageSettings(Strict):
    """What every stage that trains an arm is set to."""

    train: PreferenceSettings = PreferenceSettings()
    arm: str = "target"
    seed: int | None = None


class Preference(Stage[PreferenceStageSettings]):
    """Inputs: traces. Models: base. Leaves pairs.jsonl and model/."""

    kind = "preference"
    reads = ("traces",)
    Settings = PreferenceStageSettings

    def run(self, context: Context) -> None:
        source = context.inputs["traces"]
        chosen = kept(source) or set()
        sides: dict[str, dict[bool, Trace]] = defaultdict(dict)
        for trace in source.read("traces", Trace):
            if not unfit(trace):
                sides[trace.prompt.id].setdefault(trace.id in chosen, trace)
        pairs = [
            Pair(
                chosen=example_of(side[True], share="safety"),
                rejected=example_of(side[False], share="safety"),
                reason="kept against dropped",
            )
            for side in sides.values()
            if len(side) == 2
        ]
        count = context.draft.write("pairs", pairs)
        shutil.copytree(self.models["base"].weights_at, context.draft.folder / "model")
        context.draft.line = f"{count} pairs at beta {self.settings.train.beta:g}"
