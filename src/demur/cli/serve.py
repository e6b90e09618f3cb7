"""`demur serve MODEL`: start a server for weights or for a script."""

import asyncio
import signal
import sys
from typing import Annotated

import msgspec

from demur.cli import common
from demur.errors import UserError
from demur.models.config import Local, Scripted, Served, as_model, parse_model


@common.verb("sets json")
def serve(
    model: str,
    flags: common.Flags,
    port: Annotated[int, common.flag("port", min=0, max=65535)] = 8000,
    host: str = "127.0.0.1",
) -> None:
    """Serve a model until Ctrl-C. Prints the URL when the server is ready; give it to --target, --teacher or --judge.

    Weights are served by vLLM; --set takes the settings of a served model (devices, dtype, memory, max_model_len). For a
    script, --set says how the server behaves (latency, tail, faults.NAME=SHARE, reasoning_field, swap_after).
    """
    config = parse_model(model)
    common.free_port(port, host)
    if isinstance(config, Scripted):
        from demur.testing.server import Behaviour, run

        data = common.apply_sets({"script": config.script, "host": host, "port": port}, flags.sets)
        try:
            behaviour = msgspec.convert(data, Behaviour)
        except msgspec.ValidationError as error:
            fields = ", ".join(field.name for field in msgspec.structs.fields(Behaviour))
            raise UserError(f"--set: {error}. Allowed: {fields}.") from None
        asyncio.run(run(behaviour, announce=lambda url: _announce(url, behaviour.model, flags)))
        return
    from demur.models.vllm import served

    if not isinstance(config, Local):
        raise UserError(f"{config.where}: only weights and scripts can be served; this model answers already.")
    plain = {"engine": "vllm", **config.model_dump(exclude_unset=True)}
    weights = as_model(common.apply_sets(plain, flags.sets), where="--set")
    assert isinstance(weights, Served)
    if lines := weights.missing():
        raise UserError("\n".join(lines))
    common.console.print(f"starting {weights.engine} for {weights.where} …")
    with served(weights, host=host, port=port) as remote:
        _announce(remote.url[0], remote.model, flags)
        signal.pause()


def _announce(url: str, name: str, flags: common.Flags) -> None:
    if flags.json:
        common.print_json({"url": url, "model": name})
    else:
        common.stdout.print(f"serving {name} at {url}   (--target {url}; Ctrl-C stops it)", soft_wrap=True)
    sys.stdout.flush()
