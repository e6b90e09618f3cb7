"""Numbers of one form of benchmark, attack or stage alone: options of multiple choice, turns of a conversation, depth.

`chosen/X` and `right/X` are the shares of replies that chose option X, and of questions whose right option it is; their
distance is a bias. `turn/N` is the share of replies at turn N whose thinking, or answer, gave way to the attack, and
`turn/N/NAME` of those in the cell NAME of `agreement.NAMES`. `declined_at/SHARE` is the share of replies that decline
when so much of a thinking is given. `METRIC/after/ROWS/STEPS` is a metric after fine-tuning on other rows, of the same
seeds; step 0 is before it.
"""

import json
from collections.abc import Iterator
from itertools import product

from msgspec.structs import replace

from demur.bench.choice import ChoiceJudge
from demur.bench.metrics import SUCCESS
from demur.records import DECLINED, Part, Probed, Result, Trace, Verdict
from demur.report.agreement import NAMES, SIDES
from demur.report.metrics import Cell, Column, Values, cells, results
from demur.report.read import PROMPT, Evaluation, Row, Run, bench_name, evaluations, family, row_of
from demur.storage.artifacts import Artifact
from demur.storage.records_file import project

AT, AFTER = "declined_at/", "/after/"


def details(run: Run) -> Iterator[Result]:
    """All of them, by arm. The run must not be pooled over bases."""
    table: dict[tuple[str, Column], Cell] = {}
    for stage in run.of_kind("probe"):
        (arm, base), seed = run.split(str(stage.manifest.settings["arm"])), stage.manifest.settings.get("seed")
        for column, row, value in _probed(stage) if bench_name(stage) else ():
            table.setdefault((arm, column), Cell()).add(row, value, (base, seed))
    for e in run.pooled().evaluations:
        for column, row, value in (*_options(e), *_turns(e)):
            table.setdefault((e.arm, column), Cell()).add(row, value, (e.base, e.seed))
    yield from (Result(arm=a, estimate=cell.estimate(c), **c._asdict()) for (a, c), cell in table.items())
    yield from _tampered(run)


def _options(e: Evaluation) -> Values:
    """For every reply and option: whether it was chosen, and whether it is right."""
    by = (ChoiceJudge.name, "answer")
    if e.stage is None or by not in e.judges:
        return
    chosen = dict(project(e.stage.path("verdicts"), Verdict, "trace", "raw"))
    golds = {id_: json.loads(gold) for id_, gold in project(e.stage.path("traces"), Trace, "id", "prompt.gold") if gold}
    letters = sorted({chr(ord("A") + place) for gold in golds.values() for place in range(len(gold["options"]))})
    blank = Column(e.bench, e.attack, "", *by)
    for row in e.rows:
        for letter in letters if row.id in golds else ():
            choice = chosen.get(row.id)
            yield blank._replace(metric=f"chosen/{letter}"), row, None if choice is None else choice == letter
            yield blank._replace(metric=f"right/{letter}"), row, golds[row.id]["answer"] == letter


def _turns(e: Evaluation) -> Values:
    """For every turn of a conversation: whether thinking and answer gave way, and the cell of the two."""
    if e.stage is None or not e.stage.has("turns"):
        return
    verdicts: dict[tuple[str, str], dict[Part, str | None]] = {}
    for name, judge, part, label in project(e.stage.path("turn_verdicts"), Verdict, "trace", "judge", "part", "label"):
        verdicts.setdefault((name, judge), {})[part] = SIDES.get(label or "")
    judges = {judge for _, judge in verdicts}
    for *prompt, name, sample in project(e.stage.path("turns"), Trace, *PROMPT, "id", "sample"):
        row = row_of(*prompt, name, sample)
        for judge in judges if family(row.attack) == e.attack else ():
            sides = verdicts.get((name, judge), {})
            blank = Column(e.bench, e.attack, f"turn/{row.category.removeprefix('turn ')}", judge, "answer", "lower")
            for part, side in sides.items():
                yield blank._replace(part=part), row, None if side is None else side in ("unsafe", "serves")
            pair = sides.get("thinking"), sides.get("answer")
            axis = ("safe", "unsafe") if {"safe", "unsafe"} & {*pair} else ("serves", "refuses")
            for cell in product(axis, axis) if len(sides) == 2 else ():
                column = blank._replace(metric=f"{blank.metric}/{NAMES[cell]}", part="whole", better="neither")
                yield column, row, None if None in pair else pair == cell


def _probed(stage: Artifact) -> Values:
    """For every reply to a partly given thinking: whether it declines. Requests that got no reply are unscored."""
    verdicts = list(project(stage.path("verdicts"), Verdict, "trace", "label", "judge"))
    labels = {trace: label for trace, label, _ in verdicts}
    places = list(project(stage.path("places"), Probed, "reply", "share", "trace"))
    shares = {reply: share for reply, share, _ in places}
    blank = Column(bench_name(stage), "none", "", verdicts[0][2] if verdicts else "", "answer", "higher")
    for *prompt, name, sample, outcome in project(stage.path("forced"), Trace, *PROMPT, "id", "sample", "outcome"):
        row, label = row_of(*prompt, name, sample), labels.get(name)
        row.outcome, blank = outcome, blank._replace(attack=family(row.attack))
        yield blank._replace(metric=f"{AT}{shares[name]:g}"), row, None if label is None else label in DECLINED
    for reply, share, trace in places:
        if not reply:
            yield blank._replace(metric=f"{AT}{share:g}"), Row(trace, trace, trace, "harmful"), None


def _tampered(run: Run) -> Iterator[Result]:
    """Attack success after steps of fine-tuning, for every arm and kind of rows."""
    groups: dict[str, dict[int, list[Evaluation]]] = {}
    for stage in run.of_kind("evaluate"):
        if how := stage.manifest.settings.get("tampered"):
            groups.setdefault(str(how["rows"]), {}).setdefault(int(how["steps"]), []).extend(evaluations(stage))
    for rows, after in groups.items():
        keys = {(e.arm, e.seed, e.bench, e.attack) for group in after.values() for e in group}
        before = [e for e in run.evaluations if (e.arm, e.seed, e.bench, e.attack) in keys]
        for steps, group in sorted({0: before, **after}.items()):
            for r in results(cells(run._replace(evaluations=group).pooled().evaluations)):
                if r.metric in SUCCESS and r.seed is None:
                    yield replace(r, metric=f"{r.metric}{AFTER}{rows}/{steps}")
