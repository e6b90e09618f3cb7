"""`demur attack KIND`: attack a model with your own questions. It runs as a study with one arm."""

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
    """Attack a model with harmful requests. Stores attacked prompts, replies, verdicts and every turn of a search."""
    use: dict[str, Any] = {"name": bench, "attack": kind} | flags.given("limit", "samples", "data")
    if kind == "replay":
        use |= _replayed(run or flags.data)
    elif run is not None:
        raise UserError(f"'{run}' is one argument too many: only replay takes a run. Give questions with --data.")
    use["sampling"] = use.get("sampling", {}) | ({"seed": flags.seed} if flags.seed else {})
    name, model = common.judge_of(flags.judge) if flags.judge else ("", "")
    use |= {"judge": name} if name else {}
    # `--judge MODEL`, without a judge's name, also rates the attempts, and plays the benchmark's judge if that is a model.
    rater = attack_judge or ("" if name else model) or flags.attacker
    arm, models = tested(target, {}, flags, "attacker")
    models |= {part: common.model(text) for part, text in (("judge", model), ("attack_judge", rater)) if text}
    run_measuring({"name": "attack", "models": models, "arms": {arm: {}}, "bench": [use]}, flags)


def _replayed(run: Path | None) -> dict[str, Any]:
    """Settings of the benchmark that send and judge the prompts of an earlier run as that run did."""
    if run is None:
        raise UserError("replay needs a run: demur attack replay RUN --target OTHER")
    sampling = msgspec.to_builtins(next(stored(run)).sampling)
    use: dict[str, Any] = {"name": "replayed", "data": str(run), "attack": {"name": "replay", "file": str(run)}}
    use["sampling"] = {key: value for key, value in sampling.items() if key not in ("prefill", "seed")}
    for artifact in artifacts(run):
        if artifact.manifest.kind == "evaluate":
            before = artifact.manifest.settings["bench"]
            use |= {key: before[key] for key in ("judge", "part") if before.get(key)}
    return use
