"""`demur mix`: draw a training set from several files."""

import re
from pathlib import Path
from typing import Annotated, Any

from demur.cli import common
from demur.cli.runner import run_stage
from demur.errors import UserError
from demur.mix.settings import MixSettings
from demur.pipeline.stages.importing import Import, ImportSettings
from demur.pipeline.stages.mix import Mix, MixStageSettings
from demur.settings import validate

SHARE = re.compile(r"(?P<name>[^=]+)=(?P<file>.+?)(?<!%)(?::(?P<n>\d+)|:(?P<percent>\d+\.?\d*|\.\d+)%)?")


@common.verb("seed out sets json")
def mix(
    flags: common.Flags, share: Annotated[list[str] | None, common.flag("share", metavar="NAME=FILE[:N|:P%]")] = None
) -> None:
    """Draw a training set from named components. The form of each file is recognised (docs/data-forms.md)."""
    plain = common.apply_sets({"shares": shares(share or []), "seed": flags.seed}, flags.sets, MixSettings)
    if not plain["shares"]:
        raise UserError("nothing to mix: --share NAME=FILE names a component; see demur mix --help.")
    settings = validate(MixSettings, plain, where="demur mix")
    inputs: dict[str, Import] = {}
    for name, component in settings.shares.items():
        if component.file is None:
            raise UserError(f"share '{name}' has no file: --share {name}=FILE or --set shares.{name}.file=FILE")
        imported = ImportSettings(form=component.form, intent=component.intent)
        inputs[name] = Import(f"import-{name}", imported, files={"file": Path(component.file)})
    run_stage(Mix("mix", MixStageSettings(mix=settings), inputs=inputs), flags)


def shares(given: list[str]) -> dict[str, Any]:
    """The settings for `--share` options; a repeated name gets a number, as in `safety-2`. Raises UserError: one cannot be read."""
    components: dict[str, Any] = {}
    for item in given:
        match = SHARE.fullmatch(item)
        if match is None:
            raise UserError(f"--share {item}: write NAME=FILE, NAME=FILE:200 (rows) or NAME=FILE:20% (of the mix)")
        name = match["name"]
        if name in components:
            name = next(f"{name}-{i}" for i in range(2, len(given) + 2) if f"{name}-{i}" not in components)
        rows, percent = match["n"], match["percent"]
        sizes: dict[str, float] = {"n": int(rows)} if rows else {"ratio": float(percent) / 100} if percent else {}
        components[name] = {"file": match["file"]} | sizes
    return components
