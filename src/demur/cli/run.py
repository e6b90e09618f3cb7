"""`demur run STUDY`: run a study from its first stage to its report, or go on where it stopped."""

from pathlib import Path

from demur.cli import common
from demur.cli.runner import run_study


@common.verb("out sets quick data_dir cache json")
def run(study: Path, flags: common.Flags, stand_in: bool = False, on: str = "local") -> None:
    """Run a study file: distil, diagnose, mix, train, evaluate, report.

    You can stop it at any moment; the same command goes on. Finished stages are reused until their inputs change.
    """
    loaded = common.load_study(study, flags)
    folder = flags.out or Path("runs") / loaded.study.name
    if stand_in:
        from demur.testing.small import standing_in

        loaded = standing_in(loaded.study, out=folder)
    hint = "" if stand_in else "\nTo try the whole path here with small models, add --stand-in"
    run_study(loaded, out=folder, cache=flags.cache, on=on, json=flags.json, hint=hint)
