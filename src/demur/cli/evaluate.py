"""`demur eval BENCH…`: run benchmarks against a model. It runs as a study with one arm, named after the model."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from demur.bench import get_bench
from demur.cli import common
from demur.cli.runner import run_study
from demur.errors import UserError, unknown
from demur.judge import JUDGES, requires_model
from demur.models.config import ModelConfig, as_model
from demur.models.open import open_model
from demur.pipeline.resolve import make
from demur.storage.artifacts import present

Named = Annotated[
    list[str] | None, typer.Argument(metavar="BENCH…", help="Benchmarks by name: `demur bench list` shows them.")
]
Benches = Annotated[
    list[str] | None,
    typer.Option("--bench", help="The same; harmful=FILE and benign=FILE take any table of prompts."),
]
app = common.app("Run benchmarks against a model.")


@app.command()
def evaluate(
    target: common.Target,
    named: Named = None,
    bench: Benches = None,
    attack: common.AttackName = "none",
    judge: common.JudgeModel = None,
    attacker: common.Attacker = None,
    model: common.ServedName = None,
    key_env: common.KeyEnv = None,
    concurrency: common.Concurrency = None,
    temperature: common.Temperature = None,
    max_tokens: common.MaxTokens = None,
    part: common.PartName = None,
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
    """Run benchmarks against a model: traces, verdicts and a table with intervals.

    The table has a row for every model that was measured in the folder; a model is known by its name and address, a
    folder by its weights. --set takes the paths of a study file: models.target.timeout=60, bench.0.sampling.top_p=0.9.

    Examples:

      demur eval xstest --target http://127.0.0.1:8000/v1 --data-dir data --limit 20

      demur eval xstest advbench --target https://api.example.com/v1 --model some-model --key-env API_KEY --data-dir data

      demur eval advbench --attack pap --target ./model --data-dir data --judge llama_guard3=http://127.0.0.1:8001/v1

      demur eval --bench harmful=requests.csv --bench benign=instructions.jsonl --target ./model

      demur eval math500 --target script:stand_in --data math500.jsonl --samples 4
    """
    if not (benches := [*(named or ()), *(bench or ())]):
        raise UserError("which benchmarks? `demur bench list` shows them; harmful=FILE takes a file of yours.")
    own = {"model": model, "key_env": key_env, "in_flight": concurrency}
    models: dict[str, Any] = {"target": common.model(target) | common.given(own)}
    if (
        "url" in models["target"]
        and not model
        and not any(item.startswith("models.target.model=") for item in sets or ())
    ):
        model = models["target"]["model"] = asyncio.run(_served(as_model(models["target"])))
    if attacker is not None:
        models["attacker"] = common.model(attacker)
    use: dict[str, Any] = {"attack": attack, "judge": _judge(judge, models, benches), "part": part, "limit": limit}
    use |= {"samples": samples, "data": str(data) if data else None}
    sampling = common.given({"seed": seed or None, "temperature": temperature, "max_tokens": max_tokens})
    use |= {"sampling": sampling or None}
    plain: dict[str, Any] = {
        "name": "eval",
        "base": "target",
        "models": models,
        "arms": {name_of(target, model): {}},
        "bench": [{"name": name} | common.given(use) for name in benches],
        "data_dir": str(data_dir) if data_dir else None,
    }
    resolved, folder = make(common.apply_sets(plain, sets), where="demur eval"), out or Path("runs/eval")
    if earlier := present(folder).keys() - {stage.name for stage in resolved.stages}:
        common.console.print(
            f"{folder} holds {len(earlier)} other evaluation{'s' * (len(earlier) > 1)}, which stay in the table; a mean is over "
            "what this command asks alone. For a table of its own: --out FOLDER",
            soft_wrap=True,
        )
    run_study(resolved, out=folder, cache=cache, json=json, add=True)


async def _served(config: ModelConfig) -> str:
    """The name that a server gives its only model."""
    async with open_model(config) as model:
        return model.identity.partition(" at ")[0]


def name_of(target: str, model: str | None = None) -> str:
    """What a measured model is called in tables: its name and its server's, or the end of its path."""
    text = target.removeprefix("script:")
    if "://" in text:
        text = text.partition("://")[2].partition("/")[0].rpartition("@")[-1]
        text = f"{model} at {text}" if model else text
    elif model:
        text = model
    elif Path(text).exists():
        text = Path(text).resolve().name
    return re.sub(r"[^\w.-]+", "-", text).strip("-._") or "target"


def _judge(text: str | None, models: dict[str, Any], names: list[str]) -> dict[str, Any] | None:
    """The judge as a study names it, and its model among the models, from what was given.

    Raises:
        UserError: a model without a name, for a benchmark whose own judge is no model.
    """
    if text is None:
        return None
    kind, model = common.judge_of(text)
    if "=" in text and not kind and re.fullmatch(r"[\w-]+", text.partition("=")[0]):
        raise unknown("judge", text.partition("=")[0], JUDGES)
    plain = [name for name in names if not kind and not requires_model(get_bench(name).judge)]
    if plain:
        raise UserError(
            f"--judge {text}: {', '.join(plain)} is judged offline, so say as what this model judges: "
            f"--judge NAME={text}, with NAME one of {', '.join(filter(requires_model, JUDGES))}."
        )
    if model:
        models["judge"] = common.model(model)
    return {"kind": kind} if kind else None
