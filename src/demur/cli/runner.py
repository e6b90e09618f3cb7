"""Runs a study or a few stages for the verbs, shows it, and reports the result."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demur.cli import common
from demur.cli.progress import Display
from demur.errors import UserError
from demur.pipeline import study as studies
from demur.pipeline.dag import ordered
from demur.pipeline.resolve import Resolved, needs
from demur.pipeline.run import CACHE, execute
from demur.settings import Problems
from demur.storage.artifacts import GRAPH, Artifact

if TYPE_CHECKING:
    from demur.pipeline.stage import Stage

STUDY = "study.yaml"


def run_stages(
    stages: Sequence[Stage[Any]], *, out: Path, cache: Path | None = None, workers: int | None = None, title: str = ""
) -> dict[str, Artifact]:
    """Do some stages and what they read, with their progress shown; returns the artifacts by stage name.

    Raises:
        UserError: something is wrong with them, or missing; nothing was asked then.
    """
    problems = Problems(f"demur {title}")
    missing = needs(stages, problems)
    problems.check()
    require(missing)
    with Display(common.console, [stage.name for stage in ordered(stages)], title=title) as display:
        return execute(stages, out=out, cache=cache, workers=workers or default_workers(), watch=display)


def require(missing: Sequence[str], *, hint: str = "") -> None:
    """Refuse to start while something is missing.

    Raises:
        UserError: all of it, one line each.
    """
    if missing:
        count = f"{len(missing)} {'thing is' if len(missing) == 1 else 'things are'}"
        lines = "\n".join(f"  {line}" for line in missing)
        raise UserError(f"{count} missing before this can start; nothing was asked yet:\n{lines}{hint}")


def run_study(
    resolved: Resolved,
    *,
    out: Path,
    cache: Path | None = None,
    on: str = "local",
    json: bool = False,
    add: bool = False,
) -> None:
    """Run a study, write its report and print its table; `add` keeps what the folder's report shows already.

    Raises:
        UserError: something is missing, or the folder holds a study file that demur did not write.
    """
    study, stages, missing, notes = resolved
    require(missing, hint="\nTo try the whole path here with small models: add --stand-in")
    for note in notes:
        common.console.print(note, markup=False)
    if (out / STUDY).exists() and not (out / GRAPH).exists():
        raise UserError(f"{out} is no run of demur and has a {STUDY} of its own: choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    studies.save(study, out / STUDY)
    workers = study.workers or default_workers()
    title = (
        f"{study.name} · {len(study.arms)} {'arm' if len(study.arms) == 1 else 'arms'} x "
        f"{len(study.seeds)} {'seed' if len(study.seeds) == 1 else 'seeds'} · "
        f"base {', '.join(study.bases) or study.base} · {workers} workers"
    )
    with Display(common.console, [stage.name for stage in ordered(stages)], title=title) as display:
        if on == "local":
            execute(stages, out=out, cache=cache, workers=workers, watch=display, add=add)
        else:
            from demur.pipeline.ray import ray_pool

            shared = (cache or out / CACHE).resolve()
            with ray_pool(on, cache=shared, say=display) as pool:
                execute(stages, out=out.resolve(), cache=shared, workers=pool, watch=display, add=add)
    tell(out, json=json)


def run_small(resolved: Resolved, *, out: Path, cache: Path | None, on: str, json: bool) -> None:
    """A smoke run: a study with small local models in place of all of its own."""
    from demur.testing.stand_in import standing_in

    run_study(standing_in(resolved.study, out=out), out=out, cache=cache, on=on, json=json)


def tell(out: Path, *, json: bool = False) -> None:
    """Write results, summary and page of a run, and print its table."""
    from demur import report

    built = report.build(out)
    paths = report.write(out, built=built)
    if json:
        common.print_json(report.as_json(built))
    else:
        common.stdout.print(report.terminal(built))
    common.console.print(f"report: {paths['html']} · look through the traces: demur view {out}")


def default_workers() -> int:
    """Stages at the same time: one where there is an accelerator, else as many as cores."""
    if Path("/dev/nvidia0").exists() or os.environ.get("CUDA_VISIBLE_DEVICES"):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
