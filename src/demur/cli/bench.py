"""`demur bench list`: what benchmarks there are, and which of them lie here."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from demur.bench import get_bench, names
from demur.cli import common

app = common.app("What benchmarks there are.")


@app.callback()
def benches() -> None:
    """What benchmarks there are. `demur check bench NAME` verifies a copy.

    Examples:

      demur bench list --data-dir data

      demur bench show xstest@paper-v2
    """


@app.command("list")
def show_all(data_dir: common.DataDir = None, json: common.Json = False) -> None:
    """All benchmarks with their prompts, judge, attacks and licence; with --data-dir, which copies were found.

    Examples:

      demur bench list

      demur bench list --data-dir data --json
    """
    rows = []
    for name in names():
        bench = get_bench(name)
        here = next((file for file in bench.files if data_dir is not None and (data_dir / file).exists()), None)
        rows.append((bench, here))
    if json:
        common.print_json({"benches": [{"bench": bench, "here": here} for bench, here in rows]})
        return
    columns = ("name", "prompts", "judge", "part", "attacks", "licence", "copy", "about")
    cells = []
    for bench, here in rows:
        copy = here or ("generated" if bench.generated else "hub" if bench.hub else "–")
        count = "any" if bench.count is None else bench.count
        attacks = ", ".join(bench.attacks)
        cells.append((bench.name, count, bench.judge, bench.part, attacks, bench.licence, copy, bench.about))
    common.stdout.print(common.table(columns, cells, left=len(columns)))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A benchmark: `demur bench list` shows them.")],
    json: common.Json = False,
) -> None:
    """One benchmark's whole protocol: source, sampling, judge, query and part, metrics, version.

    Examples:

      demur bench show advbench@paper-v2 --json
    """
    bench = get_bench(name)
    if json:
        common.print_json(bench)
        return
    for key, value in msgspec.to_builtins(bench).items():
        common.stdout.print(f"{key:10} {value}", markup=False, soft_wrap=True)
