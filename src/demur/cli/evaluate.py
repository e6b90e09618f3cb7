"""`demur eval BENCH…`: run benchmarks against a model. This is a study with one arm, named after the model."""

import asyncio
import re
from pathlib import Path
from typing import Annotated, Any

from demur.bench import get_bench
from demur.cli import common
from demur.cli.runner import run_measuring
from demur.errors import UserError
from demur.judge import requires_model
from demur.models.config import as_model
from demur.models.open import open_model
from demur.pipeline.study import LONGEST
from demur.records import digest


@common.verb(
    "judge attacker model key_env concurrency temperature max_tokens part samples limit seed data data_dir out cache sets json"
)
def evaluate(
    target: str,
    flags: common.Flags,
    bench: list[str] | None = None,
    more: Annotated[list[str] | None, common.flag("bench", "tables")] = None,
    attack: str = "none",
) -> None:
    """Run benchmarks against a model and print a table with intervals.

    The table has one row for each model that was measured with the same --out. Settings for --set are those of a study
    file, such as models.target.timeout=60 or bench.0.sampling.top_p=0.9.
    """
    if not (benches := [*(bench or ()), *(more or ())]):
        raise UserError("no benchmark: `demur bench list` shows all, and harmful=FILE takes a file of your own.")
    connection = flags.given("model", "key_env") | common.given({"in_flight": flags.concurrency})
    arm, models = tested(target, connection, flags, "attacker")
    sampling = common.given({"seed": flags.seed or None}) | flags.given("temperature", "max_tokens")
    use: dict[str, Any] = {"attack": attack, "sampling": sampling or None}
    if flags.judge:
        offline = [name for name in benches if not requires_model(get_bench(name).judge)]
        unnamed = f"{', '.join(offline)} is judged offline" if offline else ""
        kind, judge = common.judge_of(flags.judge, unnamed=unnamed)
        use |= {"judge": {"kind": kind}} if kind else {}
        models |= {"judge": common.model(judge)} if judge else {}
    use = common.given(use) | flags.given("part", "limit", "samples", "data")
    uses = [{"name": name} | use for name in benches]
    run_measuring({"name": "eval", "models": models, "arms": {arm: {}}, "bench": uses}, flags)


def tested(target: str, settings: dict[str, Any], flags: common.Flags, *parts: str) -> tuple[str, dict[str, Any]]:
    """The arm's name, and the models by part: the target with more `settings`, and those of `parts` whose flag is given.

    If no name of the model is given, the server is asked for that of its only model.
    """
    model = common.model(target) | settings

    async def served() -> str:
        async with open_model(as_model(model)) as opened:
            return opened.identity.partition(" at ")[0]

    named = "model" in model or any(item.startswith("models.target.model=") for item in flags.sets or ())
    if "url" in model and not named:
        model["model"] = asyncio.run(served())
    players = {part: common.model(text) for part, text in flags.given(*parts).items()}
    return name_of(target, model.get("model")), {"target": model} | players


def name_of(target: str, model: str | None = None) -> str:
    """The name of a measured model in tables: MODEL-at-SERVER, or the last part of a path; a long one is cut and ends in a hash."""
    text = target.removeprefix("script:")
    model = Path(model).name if model and Path(model).is_absolute() else model  # llama.cpp reports the path of its file
    if "://" in text:
        text = text.partition("://")[2].partition("/")[0].rpartition("@")[-1]
        text = f"{model} at {text}" if model else text
    elif model:
        text = model
    elif Path(text).exists():
        text = Path(text).resolve().name
    name = re.sub(r"[^\w.-]+", "-", text).strip("-._") or "target"
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{digest(text)[:8]}"
