"""Everything about a study that is wrong or missing, found before anything is asked; and its stages, which `build.py` makes.

`check study`, `plan` and `run` go through `resolve`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from demur.pipeline.build import Builder
from demur.pipeline.checks import check_study
from demur.pipeline.dag import ordered
from demur.pipeline.stage import Stage
from demur.pipeline.study import Loaded, Study
from demur.settings import Problems


class Resolved(NamedTuple):
    """A study that is sound, its stages, and what is missing on this machine."""

    study: Study
    stages: list[Stage[Any]]
    missing: list[str]
    """One line each: the part, and how to give it."""
    notes: list[str]


def resolve(loaded: Loaded) -> Resolved:
    """The stages of a study, everything about it looked up.

    Raises:
        UserError: all that is wrong with it, one line each.
    """
    study, problems = loaded.study, loaded.problems
    if study is None:
        problems.check()
    assert study is not None
    check_study(study, problems)
    builder = Builder(study, problems)
    stages = builder.all()
    missing = dict.fromkeys([*builder.missing, *needs(stages, problems)])
    problems.check()
    return Resolved(study, stages, list(missing), loaded.notes)


def make(data: dict[str, Any], *, where: str) -> Resolved:
    """A study of plain data, resolved."""
    problems = Problems(where)
    return resolve(Loaded(problems.read(Study, data), problems, []))


def needs(stages: Iterable[Stage[Any]], problems: Problems) -> list[str]:
    """What stages and all that they read lack on this machine; what is wrong with them is added to `problems`."""
    missing: dict[str, None] = {}
    for stage in ordered(stages):
        with problems.at(*stage.place):
            for lack in stage.needs():
                if lack.wrong:
                    problems.add(stage.place, lack.message)
                else:
                    missing[f"{lack.what:<10} {lack.message}"] = None
    return list(missing)
