"""`demur eval BENCH…`: run benchmarks against a model. It runs as a study with one arm, named after the model."""

import asyncio
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from demur.bench import get_bench
from demur.cli import common
from demur.cli.runner import run_measuring
from demur.errors import UserError, unknown
from demur.judge import JUDGES, requires_model
from demur.models.config import as_model
from demur.models.open import open_model
from demur.pipeline.study import LONGEST
from demur.records import digest

Named = Annotated[list[str] | None, typer.Argument(metavar="BENCH", help="Benchmarks: `demur bench list` shows them.")]
Benches = Annotated[
    list[str] | None, typer.Option("--bench", help="The same; harmful=FILE and benign=FILE take any table of prompts.")
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
    arm, tested_model = tested(target, common.given(own), sets)
    models = {"target": tested_model} | ({"attacker": common.model(attacker)} if attacker else {})
    sampling = common.given({"seed": seed or None, "temperature": temperature, "max_tokens": max_tokens})
    use = {"attack": attack, "judge": _judge(judge, models, benches), "part": part, "limit": limit, "samples": samples}
    use |= {"data": str(data) if data else None, "sampling": sampling or None}
    uses = [{"name": name} | common.given(use) for name in benches]
    study = {"name": "eval", "models": models, "arms": {arm: {}}, "bench": uses}
    run_measuring(study, sets=sets, data_dir=data_dir, out=out, cache=cache, json=json)


def tested(target: str, own: dict[str, Any], sets: list[str] | None) -> tuple[str, dict[str, Any]]:
    """What the measured model is called in tables, and the model; a server says what its only model is called."""
    model = common.model(target) | own

    async def served() -> str:
        async with open_model(as_model(model)) as opened:
            return opened.identity.partition(" at ")[0]

    said = "model" in model or any(item.startswith("models.target.model=") for item in sets or ())
    if "url" in model and not said:
        model["model"] = asyncio.run(served())
    return name_of(target, model.get("model")), model


def name_of(target: str, model: str | None = None) -> str:
    """What a measured model is called in tables: its name and its server's, or the end of its path; long ones end in a hash."""
    text = target.removeprefix("script:")
    model = Path(model).name if model and Path(model).is_absolute() else model  # llama.cpp names its file
    if "://" in text:
        text = text.partition("://")[2].partition("/")[0].rpartition("@")[-1]
        text = f"{model} at {text}" if model else text
    elif model:
        text = model
    elif Path(text).exists():
        text = Path(text).resolve().name
    name = re.sub(r"[^\w.-]+", "-", text).strip("-._") or "target"
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{digest(text)[:8]}"


def _judge(text: str | None, models: dict[str, Any], names: list[str]) -> dict[str, Any] | None:
    """The judge as a study names it, and its model among the models, from what was given.

    Raises UserError: a model without a name, for a benchmark whose own judge is no model.
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
