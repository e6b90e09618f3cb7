"""`demur attack KIND`: attack a model with your own questions, and keep what was found. It runs as a study with one arm."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from demur.attack.static import stored
from demur.cli import common
from demur.cli.evaluate import tested
from demur.cli.runner import run_measuring
from demur.errors import UserError
from demur.storage.artifacts import artifacts

app = common.app("Attack a model and keep what was found.")
Kind = Annotated[str, typer.Argument(help="pap, template=FILE, prefill=FILE, pair, tap, crescendo, hijack, replay …")]
Run = Annotated[Path | None, typer.Argument(help="replay: the run whose prompts are sent again.")]
Scorer = Annotated[str | None, common.flag("attack-judge")]
Questions = Annotated[str, typer.Option("--bench", help="Whose questions; default: those of --data.")]


@app.command()
def attack(
    kind: Kind,
    target: common.Target,
    run: Run = None,
    attacker: common.Attacker = None,
    judge: common.JudgeModel = None,
    attack_judge: Scorer = None,
    bench: Questions = "harmful",
    samples: common.Samples = None,
    limit: common.Limit = None,
    seed: common.Seed = 0,
    data: common.Data = None,
    data_dir: common.DataDir = None,
    out: common.Out = None,
    cache: common.CacheDir = None,
    sets: common.Set = None,
    json: common.Json = False,
) -> None:
    """Attack a model: attacked prompts, the target's replies, verdicts, and for a search every turn of it.

    Examples:
      demur attack pair --data advbench50.jsonl --target URL --attacker URL --judge llama_guard3=URL --attack-judge URL
      demur attack pap --bench advbench --data-dir data --target ./model
      demur attack tap --data goals.csv --target URL --attacker URL --set bench.0.attack.width=5
      demur attack replay runs/attack --target ./other-model
    """
    use: dict[str, Any] = common.given({"name": bench, "limit": limit, "samples": samples}) | {"attack": kind}
    use |= {"data": str(data)} if data else {}
    if kind == "replay":
        use |= _as_then(run or data)
    elif run is not None:
        raise UserError(f"'{run}' is one argument too many: only replay takes a run. Questions are given with --data.")
    use["sampling"] = use.get("sampling", {}) | ({"seed": seed} if seed else {})
    name, model = common.judge_of(judge) if judge else ("", "")
    use |= {"judge": name} if name else {}
    # A model without a judge's name rates the attacker's progress, and is the benchmark's judge where that is a model.
    rates = attack_judge or ("" if name else model) or attacker
    players = {"attacker": attacker, "judge": model, "attack_judge": rates}
    arm, tested_model = tested(target, {}, sets)
    models = {part: common.model(text) for part, text in players.items() if text} | {"target": tested_model}
    study = {"name": "attack", "models": models, "arms": {arm: {}}, "bench": [use]}
    run_measuring(study, sets=sets, data_dir=data_dir, out=out, cache=cache, json=json)


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
