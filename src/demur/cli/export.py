"""`demur export RUN`: a run for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from demur import bench as benches
from demur.cli import common
from demur.errors import UserError, unknown
from demur.prompts.publish import export_hf
from demur.report import export as exports

app = common.app("A run for other tools: hf, inspect, csv, parquet.")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    to: Annotated[str, typer.Option("--to", help="inspect, hf, csv or parquet.")],
    out: Annotated[Path | None, typer.Option("--out", help="Where to; default: RUN/export-FORM.")] = None,
    json: common.Json = False,
) -> None:
    """Write the traces and verdicts of a run (inspect, csv, parquet) or its training rows (hf) in another form.

    Examples:

      demur export runs/mini --to inspect && inspect view --log-dir runs/mini/export-inspect

      demur export runs/mini --to hf

      demur export runs/mini --to parquet --out shared
    """
    if to not in ("inspect", "hf", "csv", "parquet"):
        raise unknown("form", to, ("inspect", "hf", "csv", "parquet"))
    if not run.exists():
        raise UserError(f"{run}: no such run.")
    place = out or run / f"export-{to}"
    if to == "hf":
        licences = {
            name: bench.licence
            for bench in map(benches.get_bench, benches.names())
            for name in (bench.name, *bench.files)
        }
        paths = [export_hf(run, place, licences=licences)]
    else:
        exports.evaluations(run)
        place.mkdir(parents=True, exist_ok=True)
        if to == "inspect":
            paths = exports.to_inspect(run, place)
        else:
            paths = [exports.to_csv(run, place) if to == "csv" else exports.to_parquet(run, place)]
    if json:
        common.print_json({"run": str(run), "to": to, "paths": [str(path) for path in paths]})
        return
    for path in paths:
        typer.echo(str(path))
