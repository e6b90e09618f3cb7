"""`demur eval BENCH…`: run benchmarks against a model. It runs as a study with one arm, `target`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from demur.bench import get_bench
from demur.cli import common
from demur.cli.runner import run_study
from demur.errors import UserError
from demur.judge import JUDGES, requires_model
from demur.pipeline.resolve import make

app = common.app("Run benchmarks against a model.")


@app.command()
def evaluate(
    benches: Annotated[list[str], typer.Argument(help="Benchmarks by name: `demur bench list` shows them.")],
    target: common.Target,
    attack: Annotated[
        str, typer.Option("--attack", help="Attack by name, for benchmarks of harmful requests.")
    ] = "none",
    judge: Annotated[
        str | None, typer.Option("--judge", help="Judge by name, a model, or NAME=MODEL such as llama_guard3=URL.")
    ] = None,
    attacker: common.Attacker = None,
    part: Annotated[
        str | None, typer.Option("--part", help="thinking, answer or whole; default: the protocol's.")
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Replies a prompt.")] = None,
    limit: common.Limit = None,
    seed: common.Seed = 0,
    data: common.Data = None,
    data_dir: common.DataDir = None,
    out: common.Out = None,
    journal: common.JournalDir = None,
    sets: common.Set = None,
    json: common.Json = False,
) -> None:
    """Run benchmarks against a model: traces, verdicts and a table with intervals.

    Examples:

      demur eval xstest --target http://127.0.0.1:8000/v1 --data-dir data --limit 20

      demur eval advbench --attack pap --target ./model --data-dir data --judge llama_guard3=http://127.0.0.1:8001/v1

      demur eval math500 --target script:stand_in --data math500.jsonl --samples 4
    """
    roles: dict[str, Any] = {}
    kind = _judge(judge, roles, benches)
    if attacker is not None:
        roles["attacker"] = attacker
    uses = [
        {"name": name, "attack": attack, "judge": kind, "part": part, "limit": limit, "samples": samples}
        | ({"data": str(data)} if data else {})
        | ({"sampling": {"seed": seed}} if seed else {})
        for name in benches
    ]
    plain: dict[str, Any] = {
        "name": "eval",
        "base": target,
        "models": roles,
        "arms": {"target": {}},
        "bench": [{key: value for key, value in use.items() if value is not None} for use in uses],
        "data_dir": str(data_dir) if data_dir else None,
    }
    resolved = make(common.apply_sets(plain, sets), where="demur eval")
    run_study(resolved, out=out or Path("runs/eval"), journal=journal, json=json)


def _judge(text: str | None, roles: dict[str, Any], names: list[str]) -> str | None:
    """The judge's name, and its model among the roles, from what was given.

    Raises:
        UserError: a model without a name, for a benchmark whose own judge is no model.
    """
    if text is None:
        return None
    kind, model = common.judge_of(text)
    plain = [name for name in names if not kind and not requires_model(get_bench(name).judge)]
    if plain:
        raise UserError(
            f"--judge {text}: {', '.join(plain)} is judged offline, so say as what this model judges: "
            f"--judge NAME={text}, with NAME one of {', '.join(filter(requires_model, JUDGES))}."
        )
    if model:
        roles["judge"] = model
    return kind or None
