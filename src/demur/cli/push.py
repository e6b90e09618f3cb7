"""`demur push DIR`: publish a data set or a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from demur.cli import common
from demur.errors import UserError, unknown
from demur.prompts.publish import plan_push
from demur.prompts.publish import push as send

app = common.app("Publish a data set or a model. Shows what it would do; --yes does it.")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A data set of `demur export --to hf`, or a model's folder.")],
    to: Annotated[str, typer.Option("--to", help="The repository: owner/name.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this nothing is sent.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Visible to everybody; private otherwise.")] = False,
    gate: Annotated[
        str | None, typer.Option("--gate", help="manual, auto or none; default: manual for harmful content.")
    ] = None,
    json: common.Json = False,
) -> None:
    """Publish a data set or a model on the Hugging Face hub. The token comes from HF_TOKEN or the hub's own login.

    Examples:

      demur push runs/m/export-hf --to me/refusals            shows what would be sent

      demur push runs/m/export-hf --to me/refusals --yes      private, gated

      demur push runs/study/stages/train-short-s0-1a2b3c4d/model --to me/safer-7b --yes --public
    """
    if gate not in (None, "manual", "auto", "none"):
        raise unknown("gate", str(gate), ("manual", "auto", "none"))
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder.")
    plan = plan_push(folder, to, public=public, gate=gate)  # type: ignore[arg-type]
    url = send(folder, plan) if yes else None
    names = [path.relative_to(folder).as_posix() for path in plan.files]
    if json:
        common.print_json(plan._asdict() | {"files": names, "sent": yes, "url": url})
        return
    state = "private" if plan.private else "public"
    who = {"none": "open to all who see it", "auto": "gated, granted by itself", "manual": "gated, granted by hand"}
    common.stdout.print(f"{plan.kind} {plan.repo} · {state} · {who[plan.gate]}")
    for path, name in zip(plan.files, names, strict=True):
        common.stdout.print(f"  {path.stat().st_size:>12,}  {name}")
    common.stdout.print(f"sent: {url}" if yes else f"{plan.size:,} bytes; nothing was sent. Add --yes to send it.")
