"""The report of a run: its numbers (`build`), and how they are shown (`write`, `terminal`)."""

import io
from collections.abc import Sequence
from csv import writer
from pathlib import Path

import msgspec
from rich.console import Group
from rich.text import Text

from demur.errors import UserError
from demur.records import Estimate, encode
from demur.report.data import Report, build
from demur.report.data import plain as as_json
from demur.report.first import first
from demur.report.format import conclusion
from demur.report.sections import sections
from demur.report.tables import STAND_IN, templates
from demur.report.tables import markdown as table_markdown
from demur.storage import readers
from demur.storage.artifacts import atomic_write

UNMEASURED = ("patterns", "data", "learnability", "measured")  # What a terminal shows of a run without evaluations
MARKS = {"results.json": '"stages"', "report.html": "· demur</title>"}  # Text by which demur recognises its own files
SUMMARY = ("measured", "findings", "results", "changes", "comparisons", "patterns", "data", "protocol")


def write(run: Path | Sequence[Path], out: Path | None = None, *, built: Report | None = None) -> dict[str, Path]:
    """Write results.json, results.csv, summary.md and report.html into the first run or `out`; returns their paths.

    `built` is the report, where it exists already. Raises UserError: a file of that name is not demur's.
    """
    from demur.report.page import page

    runs = [run] if isinstance(run, Path) else list(run)
    report, folder = built or build(runs), out or runs[0]
    folder.mkdir(parents=True, exist_ok=True)
    contents: dict[str, tuple[str, bytes | str]] = {
        "json": ("results.json", msgspec.json.format(encode(as_json(report)), indent=1) + b"\n"),
        "csv": ("results.csv", csv(report)),
        "markdown": ("summary.md", markdown(report)),
        "html": ("report.html", page(report, runs)),
    }
    existing = [folder / name for name, _ in contents.values() if (folder / name).is_file()]
    foreign = [path for path in existing if MARKS.get(path.name, "").encode() not in path.read_bytes()]
    if foreign := foreign or existing * (folder / "results.json" not in existing):  # demur writes that file first
        raise UserError(f"{foreign[0]} is not demur's, and would be overwritten. Move it away, or give another --out.")
    for name, content in contents.values():
        atomic_write(folder / name, content)
    return {kind: folder / name for kind, (name, _) in contents.items()}


def terminal(report: Report) -> Group:
    """What a terminal shows: the first table with its notes, or tables of whatever else the run made."""
    banner = [Text(STAND_IN, style="bold red")] if report.stand_in else []
    if not report.arms:
        shown = [section for section in sections(report) if section.id in UNMEASURED]
        return Group(*banner, *(table for section in shown for table in section.tables))
    claims = [Text(conclusion(f), style="bold" if f.outcome == "supported" else "") for f in report.findings]
    (results,) = first(report)
    lines = [Text(note, style="yellow" if "garbled" in note else "dim") for note in results.notes]
    return Group(*banner, *results.tables, *claims, *lines)


def markdown(report: Report) -> str:
    """summary.md: the main tables with their notes."""
    shown = [section for section in sections(report) if section.id in SUMMARY and section.tables]
    template, banner = templates().get_template("summary.md"), STAND_IN if report.stand_in else ""
    return f"{template.render(report=report, sections=shown, banner=banner, markdown=table_markdown).rstrip()}\n"


def csv(report: Report) -> str:
    """results.csv: every number of the run, one a line; text that looks like a formula to a spreadsheet is disarmed."""
    keys, out = ["arm", "seed", "bench", "attack", "metric", "part", "judge", "better", "unit"], io.StringIO()
    rows = writer(out, lineterminator="\n")
    rows.writerow([*keys, *Estimate.__struct_fields__])
    for r in report.results:
        e = msgspec.structs.asdict(r.estimate)
        e["clusters"] = e["clusters"] or e["n"]
        rows.writerow(readers.inert(value) for value in (*(getattr(r, key) for key in keys), *e.values()))
    return out.getvalue()


__all__ = ["Report", "as_json", "build", "markdown", "terminal", "write"]
