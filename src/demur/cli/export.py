"""`demur export RUN`: a run for other tools."""

from collections.abc import Callable
from pathlib import Path

from demur import bench as benches
from demur.cli import common
from demur.errors import UserError, unknown
from demur.prompts.publish import export_hf
from demur.report import export as exports


@common.verb("json")
def export(run: Path, to: str, flags: common.Flags, out: Path | None = None) -> None:
    """Write the traces and verdicts of a run (inspect, csv) or its training rows (hf) in another form."""
    forms: dict[str, Callable[[Path, Path], Path | list[Path]]] = {"inspect": exports.to_inspect, "csv": exports.to_csv}
    if to not in ("hf", *forms):
        raise unknown("form", to, ("hf", *forms))
    if not run.exists():
        raise UserError(f"{run}: no such run.")
    place = out or run / f"export-{to}"
    if to == "hf":
        known = map(benches.get_bench, benches.names())
        licences = {name: bench.licence for bench in known for name in (bench.name, *bench.files)}
        made: Path | list[Path] = export_hf(run, place, licences=licences)
    else:
        exports.evaluations(run)
        common.writable(place)
        made = forms[to](run, place)
    paths = [str(path) for path in (made if isinstance(made, list) else [made])]
    if flags.json:
        common.print_json({"run": str(run), "to": to, "paths": paths})
    else:
        common.stdout.print("\n".join(paths), soft_wrap=True)
