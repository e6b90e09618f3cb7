"""`demur serve MODEL`: start a server for weights or for a script, and stop it at the end."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import sys
from typing import Annotated

import msgspec
import typer

from demur.cli import common
from demur.errors import UserError
from demur.models.config import ModelConfig, parse_model

app = common.app("Start a server for a model or a script.")


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="A folder with weights, a hub id, or script:NAME.")],
    engine: Annotated[str, typer.Option("--with", metavar="ENGINE", help="vllm or transformers.")] = "",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 8000,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    sets: common.Set = None,
    json: common.Json = False,
) -> None:
    """Serve until Ctrl-C. Prints the URL once requests are taken; give it to --target, --teacher or --judge.

    For weights, --set takes what a role takes (device, dtype, memory_share); for a script, how the server behaves
    (latency, tail, faults.NAME=SHARE, reasoning_field, swap_after).

    Examples:

      demur serve runs/mini/stages/train-short-1-0a1b2c3d --with transformers

      demur serve ./Qwen3-8B --with vllm --set device=cuda:0,1

      demur serve script:stand_in --port 8001 --set latency=0.05 --set faults.rate_limited=0.1
    """
    role = parse_model(model)
    if role.script:
        _serve_script(role.script, host, port, sets, json)
    else:
        _serve_weights(model, engine, host, port, sets, json)


def _serve_script(script: str, host: str, port: int, sets: list[str] | None, json: bool) -> None:
    from demur.testing.server import Behaviour, run

    data = common.apply_sets({"script": script, "host": host, "port": port}, sets)
    try:
        behaviour = msgspec.convert(data, Behaviour)
    except msgspec.ValidationError as error:
        fields = ", ".join(field.name for field in msgspec.structs.fields(Behaviour))
        raise UserError(f"--set: {error}. Allowed: {fields}.") from None
    asyncio.run(run(behaviour, announce=lambda url: _announce(url, behaviour.model, json)))


def _serve_weights(model: str, engine: str, host: str, port: int, sets: list[str] | None, json: bool) -> None:
    from demur.models.vllm import served

    if engine not in ("", "vllm", "transformers"):
        raise UserError(f"--with {engine}: no such engine. Allowed: vllm, transformers.")
    if not engine:
        engine = "transformers" if importlib.util.find_spec("transformers") else "vllm"
    plain = parse_model(model).model_dump(exclude_defaults=True) | {"serve": engine}
    role = common.validated(ModelConfig, common.apply_sets(plain, sets))
    common.console.print(f"starting {engine} for {role.where} …")
    with served(role, host=host, port=port) as remote:
        assert remote.url
        _announce(remote.url[0], remote.model, json)
        signal.pause()


def _announce(url: str, name: str, json: bool) -> None:
    if json:
        common.print_json({"url": url, "model": name})
    else:
        common.stdout.print(f"serving {name} at {url}   (--target {url}; Ctrl-C stops it)", soft_wrap=True)
    sys.stdout.flush()
