"""Runs a study or a few stages for the verbs, shows it, and reports the result."""

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
STUDIES = "studies"  # The folder of those that were run here before it, and whose stages are still the run's
ODD = 5  # Rows kept aside that are shown


def run_stages(
    stages: Sequence[Stage[Any]], *, out: Path, cache: Path | None = None, workers: int | None = None, title: str = ""
) -> dict[str, Artifact]:
    """Do some stages and what they read, with their progress shown; returns the artifacts by stage name.

    Raises UserError: something is wrong with them, or missing; nothing was asked then.
    """
    require(needs(stages, Problems(f"demur {title}")))
    common.writable(out)
    return _executed(stages, out=out, title=title, workers=workers or default_workers(), cache=cache)


def _executed(
    stages: Sequence[Stage[Any]], *, out: Path, title: str, workers: int, cache: Path | None, on: str = "local", add: bool = True
) -> dict[str, Artifact]:  # fmt: skip
    """Do stages with their progress shown, and write the command down: as the last where what was before is no more the run's."""
    with Display(common.console, [stage.name for stage in ordered(stages)], title=title, out=out) as display:
        if on == "local":
            done = execute(stages, out=out, cache=cache, workers=workers, watch=display, add=add)
        else:
            from demur.pipeline.ray import ray_pool

            shared = (cache or out / CACHE).resolve()
            with ray_pool(on, cache=shared, watch=display) as pool:
                done = execute(stages, out=out.resolve(), cache=shared, workers=pool, watch=display, add=add)
    line, path = scrubbed(shlex.join(COMMAND)), out / COMMANDS
    before = [one for one in path.read_text().splitlines() if add or one != line] if path.is_file() else []
    if line:
        atomic_write(path, "".join(f"{one}\n" for one in dict.fromkeys((*before, line))))
    return done


def run_stage(stage: Stage[Any], flags: common.Flags, *, workers: int | None = None) -> Artifact:
    """Do a stage and what it reads, and show the report's tables of it, or its summary and the report as JSON."""
    out = flags.out or Path("runs") / stage.kind
    done = run_stages([stage], out=out, cache=flags.cache, workers=workers, title=stage.kind)
    made = done[stage.name]
    odd = {name: list(one.read("odd", Odd)) for name, one in done.items() if one.has("odd")}
    for name, rows in odd.items():
        lines = [f"kept aside: {row.where}: {row.reason}" for row in rows[:ODD]]
        if len(rows) > ODD:
            lines.append(f"{len(rows) - ODD:,} rows more are kept aside: {done[name].folder / 'odd.jsonl'}")
        for line in lines:
            common.console.print(f"{name}: {line}", soft_wrap=True)
    counts = {"odd": {name: len(rows) for name, rows in odd.items()}}
    tell(out, json=flags.json, more={"out": str(out), "stage": str(made.folder)} | made.manifest.summary | counts)
    files = (f"{path.stem}: {made.rows(path.stem):,}" for path in sorted(made.folder.glob("*.jsonl")))
    common.console.print(f"{made.folder}: {', '.join(files)}", soft_wrap=True)
    return made


def reading(file: Path, intent: str | None = None, *, limit: int | None = None, name: str = "import") -> Import:
    """The stage that reads a file of traces, whose prompts want what `intent` says."""
    said = common.given({"intent": intent, "limit": limit})
    return Import(name, validate(ImportSettings, said, where="--intent"), files={"file": file})


def require(missing: Sequence[str], *, hint: str = "") -> None:
    """Refuse to start while something is missing. Raises UserError: all of it, one line each."""
    if missing:
        lines = "\n".join(f"  {line}" for line in missing)
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{plural(len(missing), 'thing')} {verb} missing before this can start; nothing was asked yet:\n{lines}{hint}"
        )


def run_study(
    resolved: Resolved, *, out: Path, cache: Path | None = None, on: str = "local", json: bool = False, add: bool = False,
    hint: str = "",
) -> None:  # fmt: skip
    """Run a study, write its report and print its table; `add` keeps what the folder's report shows already.

    Raises UserError: something is missing, or the folder holds a study file that demur did not write.
    """
    study, stages, missing, notes = resolved
    require(missing, hint=hint)
    common.writable(out)
    for note in notes:
        common.console.print(note)
    if (out / STUDY).exists() and not any((out / mark).exists() for mark in (GRAPH, LOCK)):
        raise UserError(f"{out} is no run of demur and has a {STUDY} of its own: choose another --out.")
    with locked(out):
        add = _saved(study, out, add=add)
    there = {one.manifest.name for one in artifacts(out) if add and one.manifest.kind == "evaluate"}
    if earlier := there - {stage.name for stage in ordered(stages)}:
        many = "other evaluations stay" if len(earlier) > 1 else "other evaluation stays"
        alone = "a mean is over what this command asks alone, no answer and tokens over all. For a table of its own: --out FOLDER"
        common.console.print(f"{out}: {len(earlier)} {many} in the table; {alone}", soft_wrap=True)
    workers = study.workers or default_workers()
    size = f"{plural(len(study.arms), 'arm')} x {plural(len(study.seeds), 'seed')}"
    title = f"{study.name} · {size} · base {', '.join(study.bases) or study.base} · {plural(workers, 'worker')}"
    _executed(stages, out=out, title=title, workers=workers, cache=cache, on=on, add=add)
    tell(out, json=json)


def _saved(study: studies.Study, out: Path, *, add: bool) -> bool:
    """Save a study as the folder's; whether what else is there stays, with its study. A folder's only study replaces itself."""
    path, kept = out / STUDY, out / STUDIES
    before, name = (path.read_text(), read_yaml(path)[0].get("name")) if path.is_file() else ("", None)
    studies.save(study, path)
    add = add or kept.is_dir() or name != study.name
    if add and before and before != path.read_text():
        kept.mkdir(exist_ok=True)
        atomic_write(kept / f"{name}-{digest(before)[:8]}.yaml", before)
    return add or before == path.read_text()


def run_measuring(study: dict[str, Any], flags: common.Flags) -> None:
    """Run a study of one arm, the model `target` as it is; other models that were measured in the folder stay in its table."""
    for key, _, value in (item.partition("=") for item in flags.sets or ()):
        if key in SamplingSettings.model_fields:
            flag = f", or --{key.replace('_', '-')} {value}" * (study["name"] == "eval" and hasattr(flags, key))
            raise UserError(f"--set {key}: a setting of each benchmark: bench.0.sampling.{key}={value}{flag}")
    plain = study | {"base": "target"} | flags.given("data_dir")
    resolved = make(common.apply_sets(plain, flags.sets, studies.Study), where=f"demur {study['name']}")
    folder = flags.out or Path("runs") / study["name"]
    run_study(resolved, out=folder, cache=flags.cache, json=flags.json, add=True)


def tell(*runs: Path, out: Path | None = None, json: bool = False, more: dict[str, Any] | None = None) -> None:
    """Write results, summary and page of a run, or of several side by side, and print their table; as JSON in `more` where given."""
    built = report.build(runs)
    if out:
        common.writable(out)
    paths = report.write(runs, out, built=built)
    if json:
        plain = report.as_json(built)
        common.print_json(more | {"report": plain} if more else plain)
    else:
        common.stdout.print(report.terminal(built))
    common.console.print(f"report: {paths['html']} · look through the traces: demur view {runs[0]}", soft_wrap=True)


def default_workers() -> int:
    """Stages at the same time: one where there is an accelerator, else as many as cores."""
    gpus = Path("/dev/nvidia0").exists() or os.environ.get("CUDA_VISIBLE_DEVICES")
    return 1 if gpus else len(os.sched_getaffinity(0))
