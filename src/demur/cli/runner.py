"""Runs a study or a few stages for the verbs, shows it, and tells the result."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from demur.cli import common
from demur.cli.progress import Display
from demur.errors import UserError
from demur.pipeline.run import Node, execute, plan
from demur.pipeline.stages import KINDS
from demur.storage.artifacts import Artifact

if TYPE_CHECKING:
    from demur.pipeline.study import Study


def run_nodes(
    nodes: Sequence[Node], *, out: Path, journal: Path | None = None, workers: int | None = None, title: str = ""
) -> dict[str, Artifact]:
    """Do some stages with their progress shown; gives the artifacts by node name."""
    count = workers or default_workers()
    with Display(common.console, [node.name for node in nodes], title=title) as display:
        return execute(nodes, kinds=KINDS, out=out, journal=journal, workers=count, watch=display)


def run_study(
    study: Study,
    *,
    out: Path,
    journal: Path | None = None,
    on: str = "local",
    stand_in: bool = False,
    json: bool = False,
) -> None:
    """Run a study, write its report and print its table."""
    from demur.pipeline import study as studies
    from demur.pipeline.graph import graph, missing

    if (stand_in or study.stand_in) and "DEMUR_STAND_IN" not in os.environ:
        from demur.testing.stand_in import standing_in

        with standing_in(study, out=out) as small:
            run_study(small, out=out, journal=journal, on=on, json=json)
        return
    if lacks := missing(study):
        lines = "\n".join(f"  {line}" for line in lacks)
        raise UserError(
            f"{len(lacks)} {'thing is' if len(lacks) == 1 else 'things are'} missing before this study can start; "
            f"nothing was asked yet:\n{lines}\n"
            f"To try the whole path here with small stand-ins: add --stand-in"
        )
    nodes = graph(study)
    out.mkdir(parents=True, exist_ok=True)
    studies.save(study, out / "study.yaml")
    workers = study.workers or default_workers()
    seeds = len(study.seeds)
    title = (
        f"{study.name} · {len(study.arms)} {'arm' if len(study.arms) == 1 else 'arms'} x "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'} · base {', '.join(study.bases) or study.base} · {workers} workers"
    )
    if on == "local":
        run_nodes(nodes, out=out, journal=journal, workers=workers, title=title)
    else:
        from demur.pipeline.ray import ray_pool

        with (
            Display(common.console, [node.name for node in nodes], title=title) as display,
            ray_pool(on, journal=(journal or out / "journal").resolve(), say=display) as pool,
        ):
            execute(nodes, kinds=KINDS, out=out.resolve(), journal=journal, workers=pool, watch=display)
    tell(out, json=json)


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


def planned(study: Study, out: Path) -> list[tuple[str, str, bool]]:
    """Name, kind and whether it is there, of every stage of a study in a folder."""
    from demur.pipeline.graph import graph

    return [(item.node.name, item.node.kind, item.done) for item in plan(graph(study), KINDS, out)]
