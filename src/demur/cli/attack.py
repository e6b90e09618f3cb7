"""`demur attack KIND`: attack a model with your own questions, and keep what was found. It runs as a study with one arm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from demur.attack.replay import stored
from demur.cli import common
from demur.cli.runner import run_study
from demur.errors import UserError
from demur.pipeline.resolve import make
from demur.storage.artifacts import artifacts

app = common.app("Attack a model and keep what was found.")


@app.command()
def attack(
    kind: Annotated[
        str, typer.Argument(help="none, pap, template, pair, pair-adaptive, prefill, pivot, hijack, replay …")
    ],
    target: common.Target,
    run: Annotated[Path | None, typer.Argument(help="replay: the run whose prompts are sent again.")] = None,
    attacker: common.Attacker = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge", help="A judge by name, NAME=MODEL, or a model: then it also scores the attacker's progress."
        ),
    ] = None,
    attack_judge: Annotated[
        str | None,
        typer.Option(
            "--attack-judge", help="pair: the model that scores; default: that of --judge, else the attacker."
        ),
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", help="pap: rewrites; template: templates with {question}; hijack: puzzles.")
    ] = None,
    bench: Annotated[
        str, typer.Option("--bench", help="Whose questions and sampling; default: the questions of --data.")
    ] = "harmful",
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Replies an attacked prompt.")] = None,
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

      demur attack pair --data goals.csv --target URL --attacker URL --set bench.0.attack.streams=20

      demur attack replay runs/attack --target ./other-model
    """
    use: dict[str, Any] = {
        "name": bench,
        "attack": {"name": kind} | ({"file": file} if file else {}),
        "limit": limit,
        "samples": samples,
    }
    use["sampling"] = {"seed": seed} if seed else {}
    plain = _plain(kind, use, run=run, data=data, data_dir=data_dir)
    plain |= {"base": target, "models": _roles(use, attacker=attacker, judge=judge, attack_judge=attack_judge)}
    resolved = make(common.apply_sets(plain, sets), where="demur attack")
    run_study(resolved, out=out or Path("runs/attack"), cache=cache, json=json)


def _plain(
    kind: str, use: dict[str, Any], *, run: Path | None, data: Path | None, data_dir: Path | None
) -> dict[str, Any]:
    """The study, but for its roles; where the questions come from goes into `use`."""
    if kind == "replay":
        then = _as_then(run or data)
        use |= then | {"sampling": then["sampling"] | use["sampling"]}
    elif run is not None:
        raise UserError(f"'{run}' is one argument too many: only replay takes a run. Questions are given with --data.")
    elif data is not None:
        use["data"] = str(data)
    where = str(data_dir) if data_dir else None
    return {"name": "attack", "arms": {"target": {}}, "bench": [use], "data_dir": where}


def _roles(use: dict[str, Any], *, attacker: str | None, judge: str | None, attack_judge: str | None) -> dict[str, Any]:
    """Who attacks, scores and judges; the judge's name goes into `use`.

    A model without a judge's name scores the attacker's progress, and is the benchmark's judge where that is a model.
    """
    roles: dict[str, Any] = {"attacker": attacker} if attacker else {}
    name, model = common.judge_of(judge) if judge else ("", "")
    if name:
        use["judge"] = name
    if model:
        roles["judge"] = model
    scorer = attack_judge or ("" if name else model) or attacker
    return roles | ({"attack_judge": scorer} if scorer else {})


def _as_then(run: Path | None) -> dict[str, Any]:
    """How the prompts of an earlier run were sent and judged."""
    if run is None:
        raise UserError("which run is replayed? demur attack replay RUN --target OTHER")
    trace = next(stored(run))
    sampling = {
        key: value for key, value in msgspec.to_builtins(trace.sampling).items() if key not in ("prefill", "seed")
    }
    use: dict[str, Any] = {"name": "replayed", "data": str(run), "sampling": sampling}
    use["attack"] = {"name": "replay", "file": str(run)}
    for artifact in artifacts(run):
        if artifact.manifest.kind == "evaluate":
            then = artifact.manifest.settings["bench"]
            use |= {key: then[key] for key in ("judge", "part") if then.get(key)}
    return use
