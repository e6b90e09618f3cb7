"""`demur export RUN`: write a run for other tools."""

from pathlib import Path

from demur import bench as benches
from demur.cli import common
from demur.errors import UserError, unknown
from demur.prompts.publish import export_hf
from demur.report import export as exports

FORMS = ("hf", "inspect", "csv")


@common.verb("json")
def export(run: Path, to: str, flags: common.Flags, out: Path | None = None) -> None:
    """Write the traces and verdicts of a run (inspect, csv), or its training rows (hf), for other tools."""
    if to not in FORMS:
        raise unknown("form", to, FORMS)
    if not run.exists():
        raise UserError(f"{run}: no such run.")
    folder = out or run / f"export-{to}"
    if to == "hf":
        every = map(benches.get_bench, benches.names())
        licences = {name: bench.licence for bench in every for name in (bench.name, *bench.files)}
        paths = [export_hf(run, folder, licences=licences)]
    else:
        exports.evaluations(run)  # raises before the folder is created
        common.writable(folder)
        paths = exports.to_inspect(run, folder) if to == "inspect" else [exports.to_csv(run, folder)]
    if flags.json:
        common.print_json({"run": str(run), "to": to, "paths": [str(path) for path in paths]})
    else:
        common.stdout.print("\n".join(map(str, paths)), soft_wrap=True)
