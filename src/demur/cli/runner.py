"""Runs a study or a few stages for a verb, with progress, and prints the report."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demur import report
from demur.cli import COMMAND, common
from demur.cli.progress import Display
from demur.errors import UserError, plural, scrubbed
from demur.models.sampling import SamplingSettings
from demur.pipeline import study as studies
from demur.pipeline.dag import ordered
from demur.pipeline.resolve import Resolved, make, needs
from demur.pipeline.run import CACHE, execute
from demur.pipeline.stage import Stage
from demur.pipeline.stages.importing import Import, ImportSettings
from demur.prompts.forms import Odd
from demur.records import digest
from demur.settings import Problems, read_yaml, validate
from demur.storage.artifacts import COMMANDS, GRAPH, LOCK, Artifact, artifacts, atomic_write, locked

STUDY = "study.yaml"
STUDIES = "studies"  # Folder of the studies that were run here earlier and whose stages still belong to the run
ODD = 5  # Most rows kept aside to print


def run_stages(
    stages: Sequence[Stage[Any]], *, out: Path, cache: Path | None = None, workers: int | None = None, title: str = ""
) -> dict[str, Artifact]:
    """Run stages and their inputs, with progress; returns the artifacts by name. Raises UserError: something is wrong or missing."""
    require(needs(stages, Problems(f"demur {title}")))
    common.writable(out)
    return _executed(stages, out=out, title=title, workers=workers or default_workers(), cache=cache)


def _executed(
    stages: Sequence[Stage[Any]], *, out: Path, title: str, workers: int, cache: Path | None, on: str = "local", add: bool = True
) -> dict[str, Artifact]:  # fmt: skip
    """Run stages with progress, and add the command to commands.txt; with `add` false, these stages replace the run's earlier ones."""
    with Display(common.console, [stage.name for stage in ordered(stages)], title=title, out=out) as display:
        if on == "local":
            done = execute(stages, out=out, cache=cache, workers=workers, watch=display, add=add)
        else:
            from demur.pipeline.ray import ray_pool

            shared = (cache or out / CACHE).resolve()
            with ray_pool(on, cache=shared, watch=display) as pool:
                done = execute(stages, out=out.resolve(), cache=shared, workers=pool, watch=display, add=add)
    command, path = scrubbed(shlex.join(COMMAND)), out / COMMANDS
    before = [line for line in path.read_text().splitlines() if add or line != command] if path.is_file() else []
    if command:
        atomic_write(path, "".join(f"{line}\n" for line in dict.fromkeys((*before, command))))
    return done


def run_stage(stage: Stage[Any], flags: common.Flags, *, workers: int | None = None) -> Artifact:
    """Run a stage and its inputs, and print the report's tables of it (with --json: its summary and the report)."""
    out = flags.out or Path("runs") / stage.kind
    done = run_stages([stage], out=out, cache=flags.cache, workers=workers, title=stage.kind)
    result = done[stage.name]
    odd = {name: list(artifact.read("odd", Odd)) for name, artifact in done.items() if artifact.has("odd")}
    for name, rows in odd.items():
        lines = [f"kept aside: {row.where}: {row.reason}" for row in rows[:ODD]]
        if len(rows) > ODD:
            lines.append(f"{len(rows) - ODD:,} more rows are kept aside: {done[name].folder / 'odd.jsonl'}")
        for line in lines:
            common.console.print(f"{name}: {line}", soft_wrap=True)
    counts = {"odd": {name: len(rows) for name, rows in odd.items()}}
    more = {"out": str(out), "stage": str(result.folder)} | result.manifest.summary | counts
    show_report(out, json=flags.json, more=more)
    files = (f"{path.stem}: {result.rows(path.stem):,}" for path in sorted(result.folder.glob("*.jsonl")))
    common.console.print(f"{result.folder}: {', '.join(files)}", soft_wrap=True)
    return result


def reading(file: Path, intent: str | None = None, *, limit: int | None = None, name: str = "import") -> Import:
    """The stage that reads a file of traces whose prompts have this intent."""
    settings = common.given({"intent": intent, "limit": limit})
    return Import(name, validate(ImportSettings, settings, where="--intent"), files={"file": file})


def require(missing: Sequence[str], *, hint: str = "") -> None:
    """Raises UserError: something is missing; the message lists everything, one line each."""
    if missing:
        lines = "\n".join(f"  {line}" for line in missing)
        things = f"{plural(len(missing), 'thing')} {'is' if len(missing) == 1 else 'are'}"
        raise UserError(f"{things} missing before this can start; nothing was asked yet:\n{lines}{hint}")


def run_study(
    resolved: Resolved, *, out: Path, cache: Path | None = None, on: str = "local", json: bool = False, add: bool = False,
    hint: str = "",
) -> None:  # fmt: skip
    """Run a study, write its report and print the table; with `add`, earlier results in the folder stay in the report.

    Raises UserError: something is missing, or the folder holds a study file that demur did not write.
    """
    study, stages, missing, notes = resolved
    require(missing, hint=hint)
    common.writable(out)
    for note in notes:
        common.console.print(note)
    if (out / STUDY).exists() and not any((out / mark).exists() for mark in (GRAPH, LOCK)):
        raise UserError(f"{out} is not a run of demur and has a {STUDY} of its own: choose another --out.")
    with locked(out):
        add = _saved(study, out, add=add)
    evaluated = {stage.manifest.name for stage in artifacts(out) if add and stage.manifest.kind == "evaluate"}
    if earlier := evaluated - {stage.name for stage in ordered(stages)}:
        others = "other evaluations stay" if len(earlier) > 1 else "other evaluation stays"
        note = "means cover this command alone, 'no answer' and 'tokens' cover all. For a separate table: --out FOLDER"
        common.console.print(f"{out}: {len(earlier)} {others} in the table; {note}", soft_wrap=True)
    workers = study.workers or default_workers()
    size = f"{plural(len(study.arms), 'arm')} x {plural(len(study.seeds), 'seed')}"
    title = f"{study.name} · {size} · base {', '.join(study.bases) or study.base} · {plural(workers, 'worker')}"
    _executed(stages, out=out, title=title, workers=workers, cache=cache, on=on, add=add)
    show_report(out, json=json)


def _saved(study: studies.Study, out: Path, *, add: bool) -> bool:
    """Write a study to the run's folder; returns whether the run's other stages stay. A study that is alone there is replaced."""
    path, earlier = out / STUDY, out / STUDIES
    before, name = (path.read_text(), read_yaml(path)[0].get("name")) if path.is_file() else ("", None)
    studies.save(study, path)
    add = add or earlier.is_dir() or name != study.name
    if add and before and before != path.read_text():
        earlier.mkdir(exist_ok=True)
        atomic_write(earlier / f"{name}-{digest(before)[:8]}.yaml", before)
    return add or before == path.read_text()


def run_measuring(study: dict[str, Any], flags: common.Flags) -> None:
    """Run a study with one arm, the untrained model `target`; other models measured in the same folder stay in its table."""
    for key, _, value in (item.partition("=") for item in flags.sets or ()):
        if key in SamplingSettings.model_fields:
            flag = f", or --{key.replace('_', '-')} {value}" * (study["name"] == "eval" and hasattr(flags, key))
            raise UserError(f"--set {key}: a setting of each benchmark: bench.0.sampling.{key}={value}{flag}")
    plain = study | {"base": "target"} | flags.given("data_dir")
    resolved = make(common.apply_sets(plain, flags.sets, studies.Study), where=f"demur {study['name']}")
    folder = flags.out or Path("runs") / study["name"]
    run_study(resolved, out=folder, cache=flags.cache, json=flags.json, add=True)


def show_report(*runs: Path, out: Path | None = None, json: bool = False, more: dict[str, Any] | None = None) -> None:
    """Write results, summary and page of one or several runs, and print the table or, with `json`, the report as part of `more`."""
    built = report.build(runs)
    if out:
        common.writable(out)
    paths = report.write(runs, out, built=built)
    if json:
        plain = report.as_json(built)
        common.print_json(more | {"report": plain} if more else plain)
    else:
        common.stdout.print(report.terminal(built))
    common.console.print(f"report: {paths['html']} · browse the traces: demur view {runs[0]}", soft_wrap=True)


def default_workers() -> int:
    """How many stages run at the same time: one if there is an accelerator, else one for each core."""
    gpus = Path("/dev/nvidia0").exists() or os.environ.get("CUDA_VISIBLE_DEVICES")
    return 1 if gpus else len(os.sched_getaffinity(0))
