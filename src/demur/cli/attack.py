"""`demur attack KIND`: attack a model with your own questions, and keep what was found. It runs as a study with one arm."""

from pathlib import Path
from typing import Any

import msgspec

from demur.attack.static import stored
from demur.cli import common
from demur.cli.evaluate import tested
from demur.cli.runner import run_measuring
from demur.errors import UserError
from demur.storage.artifacts import artifacts


@common.verb("attacker judge samples limit seed data data_dir out cache sets json")
def attack(
    kind: str,
    target: str,
    flags: common.Flags,
    run: Path | None = None,
    attack_judge: str | None = None,
    bench: str = "harmful",
) -> None:
    """Attack a model: attacked prompts, the target's replies, verdicts, and for a search every turn of it."""
    use: dict[str, Any] = {"name": bench, "attack": kind} | flags.given("limit", "samples", "data")
    if kind == "replay":
        use |= _as_then(run or flags.data)
    elif run is not None:
        raise UserError(f"'{run}' is one argument too many: only replay takes a run. Questions are given with --data.")
    use["sampling"] = use.get("sampling", {}) | ({"seed": flags.seed} if flags.seed else {})
    name, model = common.judge_of(flags.judge) if flags.judge else ("", "")
    use |= {"judge": name} if name else {}
    # A model without a judge's name rates the attacker's progress, and is the benchmark's judge where that is a model.
    rates = attack_judge or ("" if name else model) or flags.attacker
    arm, models = tested(target, {}, flags, "attacker")
    models |= {part: common.model(text) for part, text in (("judge", model), ("attack_judge", rates)) if text}
    run_measuring({"name": "attack", "models": models, "arms": {arm: {}}, "bench": [use]}, flags)


def _as_then(run: Path | None) -> dict[str, Any]:
    """How the prompts of an earlier run were sent and judged."""
    if run is None:
        raise UserError("which run is replayed? demur attack replay RUN --target OTHER")
    sampling = msgspec.to_builtins(next(stored(run)).sampling)
    use: dict[str, Any] = {"name": "replayed", "data": str(run), "attack": {"name": "replay", "file": str(run)}}
    use["sampling"] = {key: value for key, value in sampling.items() if key not in ("prefill", "seed")}
    for artifact in artifacts(run):
        if artifact.manifest.kind == "evaluate":
            then = artifact.manifest.settings["bench"]
            use |= {key: then[key] for key in ("judge", "part") if then.get(key)}
    return use
