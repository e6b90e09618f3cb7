"""Numbers that one form of benchmark or attack has alone: options of multiple choice, turns of a conversation.

`chosen/X` and `right/X` are the shares of replies that chose option X, and of questions whose right option it is: how far they
are apart is a bias. `turn/N` is the share of replies at turn N that an attack got through to, in thinking and in answer, and
`turn/N/NAME` of those whose thinking and answer make the cell NAME of `agreement.NAMES`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import product

from demur.bench.choice import ChoiceJudge
from demur.records import Result, Trace, Verdict
from demur.report.agreement import NAMES, SIDES
from demur.report.metrics import Cell, Column, Values, result
from demur.report.read import PROMPT, Evaluation, family, row_of
from demur.storage.records_file import project


def details(evaluations: Sequence[Evaluation]) -> Iterator[Result]:
    """All of them, by arm."""
    found: dict[tuple[str, Column], Cell] = {}
    for e in evaluations:
        for column, row, value in (*_options(e), *_turns(e)):
            found.setdefault((e.arm, column), Cell()).add(row, value, (e.base, e.seed))
    for (arm, column), cell in found.items():
        yield result(arm, column, cell.estimate(column))


def _options(e: Evaluation) -> Values:
    """Of every reply whether it chose an option, and whether that option is right."""
    by = (ChoiceJudge.name, "answer")
    if e.stage is None or by not in e.judges:
        return
    chosen = dict(project(e.stage.path("verdicts"), Verdict, "trace", "raw"))
    golds = {
        name: json.loads(gold) for name, gold in project(e.stage.path("traces"), Trace, "id", "prompt.gold") if gold
    }
    letters = sorted({chr(ord("A") + place) for gold in golds.values() for place in range(len(gold["options"]))})
    blank = Column(e.bench, e.attack, "", *by)
    for row in e.rows:
        for letter in letters if row.id in golds else ():
            own = chosen.get(row.id)
            yield blank._replace(metric=f"chosen/{letter}"), row, None if own is None else own == letter
            yield blank._replace(metric=f"right/{letter}"), row, golds[row.id]["answer"] == letter


def _turns(e: Evaluation) -> Values:
    """Of every reply in a conversation, in which turn it was given, what was got out of its thinking and its answer."""
    if e.stage is None or not e.stage.has("turns"):
        return
    sides: dict[tuple[str, str], dict[str, str | None]] = {}
    for name, judge, part, label in project(e.stage.path("turn_verdicts"), Verdict, "trace", "judge", "part", "label"):
        sides.setdefault((name, judge), {})[part] = SIDES.get(label or "")
    judges = {judge for _, judge in sides}
    for *prompt, name, sample in project(e.stage.path("turns"), Trace, *PROMPT, "id", "sample"):
        row = row_of(*prompt, name, sample)
        for judge in judges if family(row.attack) == e.attack else ():
            own = sides.get((name, judge), {})
            blank = Column(e.bench, e.attack, f"turn/{row.category.removeprefix('turn ')}", judge, "answer", "lower")
            for part, side in own.items():
                got = None if side is None else side in ("unsafe", "serves")
                yield blank._replace(part="thinking" if part == "thinking" else "answer"), row, got
            pair = own.get("thinking"), own.get("answer")
            axis = ("safe", "unsafe") if {"safe", "unsafe"} & {*pair} else ("serves", "refuses")
            for cell in product(axis, axis) if len(own) == 2 else ():
                column = blank._replace(metric=f"{blank.metric}/{NAMES[cell]}", part="whole", better="neither")
                yield column, row, None if None in pair else pair == cell
