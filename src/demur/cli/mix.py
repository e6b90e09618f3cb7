"""`demur mix`: draw a training set from named shares."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from demur.cli import common
from demur.cli.runner import run_stages
from demur.errors import UserError
from demur.mix.settings import MixSettings
from demur.pipeline.stages.importing import Import, ImportSettings
from demur.pipeline.stages.mix import Mix, MixStageSettings
from demur.prompts.forms import Odd
from demur.storage.artifacts import Artifact

app = common.app("Draw a training set from named shares.")
SHARE = re.compile(r"(?P<name>[^=]+)=(?P<file>.+?)(?::(?P<n>\d+)|:(?P<percent>[\d.]+)%)?")
ODD_SHOWN = 5


@app.command()
def mix(
    share: Annotated[
        list[str] | None,
        typer.Option("--share", metavar="NAME=FILE[:N|:P%]", help="A share: all of a file, N rows, or P % of the mix."),
    ] = None,
    seed: common.Seed = 0,
    out: common.Out = None,
    sets: common.Set = None,
    json: common.Json = False,
) -> None:
    """Draw a training set from named shares. Files are recognised: see docs/data-forms.md.

    Examples:

      demur mix --share safety=star1.json:200 --share maths=math500.jsonl:300 --out runs/m

      demur mix --share safety=runs/d:1000 --share benign=chat.jsonl:10% --set shares.safety.cap=5

      demur mix --set 'shares.safety={file: a.jsonl, n: 1000, balance: category}' --set dedupe=exact
    """
    plain = common.apply_sets({"shares": shares(share or []), "seed": seed}, sets)
    settings: MixSettings = common.validated(MixSettings, plain, where="demur mix")
    inputs: dict[str, Import] = {}
    for name, one in settings.shares.items():
        if one.file is None:
            raise UserError(f"share '{name}' has no file: --share {name}=FILE or --set shares.{name}.file=FILE")
        inputs[name] = Import(
            f"import-{name}", ImportSettings(form=one.form, intent=one.intent), files={"file": Path(one.file)}
        )
    where = out or Path("runs/mix")
    done = run_stages([Mix("mix", MixStageSettings(mix=settings), inputs=inputs)], out=where, title="mix")
    odd = {name: _odd(done[stage.name]) for name, stage in inputs.items()}
    notes = {name: done[stage.name].manifest.summary.get("notes", []) for name, stage in inputs.items()}
    _tell(done["mix"], odd, notes, json=json)


def shares(given: list[str]) -> dict[str, Any]:
    """The shares that `--share` options mean; a name that comes again gets a number.

    Raises:
        UserError: an option that is no share.
    """
    found: dict[str, Any] = {}
    for item in given:
        match = SHARE.fullmatch(item)
        if match is None:
            raise UserError(f"--share {item}: write NAME=FILE, NAME=FILE:200 (rows) or NAME=FILE:20% (of the mix)")
        name = match["name"]
        if name in found:
            name = next(f"{name}-{i}" for i in range(2, len(given) + 2) if f"{name}-{i}" not in found)
        found[name] = {"file": match["file"]}
        if match["n"]:
            found[name]["n"] = int(match["n"])
        if match["percent"]:
            found[name]["ratio"] = float(match["percent"]) / 100
    return found


def _odd(imported: Artifact) -> list[Any]:
    return list(imported.read("odd", Odd)) if imported.has("odd") else []


def _tell(mixed: Artifact, odd: dict[str, list[Any]], notes: dict[str, list[str]], *, json: bool) -> None:
    """The account of the mix, and what was kept aside."""
    summary, made = mixed.manifest.summary, "examples" if mixed.has("examples") else "pairs"
    rows: list[dict[str, Any]] = summary["table"]
    for name, rest in odd.items():
        for note in notes[name]:
            common.console.print(f"{name}: {escape(note)}")
        for one in rest[:ODD_SHOWN]:
            common.console.print(f"kept aside: {escape(one.where)}: {escape(one.reason)}")
        if len(rest) > ODD_SHOWN:
            common.console.print(f"  and {len(rest) - ODD_SHOWN:,} more of share '{name}' (odd.jsonl of its import)")
    if json:
        counts = {name: len(rest) for name, rest in odd.items()}
        left = summary.get("left_out", {})
        found = {"stage": str(mixed.folder), made: mixed.rows(made), "table": rows}
        common.print_json(found | {"left_out": left, "odd": counts, "notes": notes})
        return
    columns = ("given", "duplicate", "over_cap", "not_drawn", "taken")
    cells = [(row["share"], *(row.get(c, 0) for c in columns)) for row in rows]
    if len(rows) > 1:
        cells.append(("all", *(sum(row.get(c, 0) for row in rows) for c in columns)))
    common.stdout.print(common.table(("share", *(c.replace("_", " ") for c in columns)), cells))
    for reason, count in summary.get("left_out", {}).items():
        if count:
            common.console.print(f"left out before: {count:,} · {escape(str(reason))}")
    common.console.print(f"{made}: {mixed.folder}/{made}.jsonl")
