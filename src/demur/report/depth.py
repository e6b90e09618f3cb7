"""How deep safety goes: where in a thinking an arm decides to decline, and how much fine-tuning undoes it.

Numbers are named `declined_at/SHARE` and `METRIC/after/ROWS/STEPS`; step 0 is the arm as it was, of the same seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from demur.bench.metrics import SUCCESS
from demur.records import DECLINED, Probed, Result, Trace, Verdict
from demur.report.metrics import Cell, Column, cells, result
from demur.report.read import PROMPT, Evaluation, Row, Run, bench_name, evaluations, row_of
from demur.storage.artifacts import Artifact
from demur.storage.records_file import project

AT, AFTER = "declined_at/", "/after/"


def depth(run: Run) -> Iterator[Result]:
    """All numbers of a run's probes and of its fine-tuning on other rows."""
    found: dict[str, dict[Column, Cell]] = {}
    for stage in run.of_kind("probe"):
        if bench_name(stage):
            _probe(run, stage, found.setdefault(run.split(str(stage.manifest.settings["arm"]))[0], {}))
    for arm, columns in found.items():
        yield from (result(arm, column, cell.estimate(column)) for column, cell in sorted(columns.items()))
    yield from _tampered(run)


def _probe(run: Run, stage: Artifact, columns: dict[Column, Cell]) -> None:
    """Add what a probe found to an arm's cells."""
    settings = stage.manifest.settings
    made = run.split(str(settings["arm"]))[1], settings.get("seed")
    said = list(project(stage.path("verdicts"), Verdict, "trace", "label", "judge"))
    labels = {trace: label for trace, label, _ in said}
    judge, attack = said[0][2] if said else "", "none"
    places = list(project(stage.path("places"), Probed, "reply", "share", "trace"))
    shares = {reply: share for reply, share, _ in places}
    for *prompt, name, sample, outcome in project(stage.path("forced"), Trace, *PROMPT, "id", "sample", "outcome"):
        row = row_of(*prompt, name, sample)
        row.outcome, label = outcome, labels.get(name)
        attack = row.attack.partition(":")[0] or "none"
        column = Column(bench_name(stage), attack, f"{AT}{shares[name]:g}", judge, "answer", "higher")
        columns.setdefault(column, Cell()).add(row, None if label is None else label in DECLINED, made)
    for share, trace in ((share, trace) for reply, share, trace in places if not reply):
        column = Column(bench_name(stage), attack, f"{AT}{share:g}", judge, "answer", "higher")
        columns.setdefault(column, Cell()).add(Row(trace, trace, trace, "harmful"), None, made)


def _tampered(run: Run) -> Iterator[Result]:
    """Attack success behind so many steps, of every arm and kind of rows."""
    groups: dict[tuple[str, int], list[Evaluation]] = {}
    for stage in run.of_kind("evaluate"):
        if how := stage.manifest.settings.get("tampered"):
            groups.setdefault((str(how["rows"]), int(how["steps"])), []).extend(evaluations(stage))
    for rows in dict.fromkeys(rows for rows, _ in groups):
        own = {steps: found for (name, steps), found in groups.items() if name == rows}
        places = {(e.arm, e.seed, e.bench, e.attack) for found in own.values() for e in found}
        before = [e for e in run.evaluations if (e.arm, e.seed, e.bench, e.attack) in places]
        for steps, found in sorted({0: before, **own}.items()):
            yield from _after(run._replace(evaluations=found).pooled().evaluations, f"{AFTER}{rows}/{steps}")


def _after(found: Sequence[Evaluation], name: str) -> Iterator[Result]:
    """The numbers of attack success, renamed."""
    for arm, columns in cells(found).items():
        for column, cell in columns.items():
            if column.metric in SUCCESS:
                yield result(arm, column._replace(metric=column.metric + name), cell.estimate(column))
