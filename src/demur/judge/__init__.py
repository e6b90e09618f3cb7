"""Judges: a trace goes in, a verdict comes out. One file a judge, listed here by name.

    rules              refusal in three classes by rules, offline
    maths, code        graders: right or wrong
    llama_guard3 …     a guard model's own format, over any model that answers (`model`)

A judge says which query (the original question or what was sent) and which part (thinking, answer, whole) it saw. What
it cannot tell is a verdict without a label and with a reason; it never raises for what a model wrote.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

from demur.errors import UserError, unknown
from demur.interfaces import Judge, Model
from demur.judge.model import Format, ModelJudge
from demur.records import Part, Query
from demur.registry import resolve

_FORMATS = ("demur.judge.guards", "demur.judge.rubrics")
JUDGES: dict[str, str] = {
    "rules": "demur.judge.refusal:RulesJudge",
    "maths": "demur.judge.maths:MathsJudge",
    "code": "demur.judge.code:CodeJudge",
    "mini": "demur.mini.judge:MiniJudge",
    "mini-harm": "demur.mini.judge:HarmJudge",
    "mini-arithmetic": "demur.mini.judge:SumJudge",
    "llama_guard3": "demur.judge.guards:LLAMA_GUARD3",
    "wildguard": "demur.judge.guards:WILDGUARD",
    "qwen3guard": "demur.judge.guards:QWEN3GUARD",
    "harmbench": "demur.judge.guards:HARMBENCH",
    "reasoning_shield": "demur.judge.guards:REASONING_SHIELD",
    "strongreject": "demur.judge.rubrics:STRONGREJECT",
    "xstest_llm": "demur.judge.rubrics:XSTEST",
}
"""Name -> `module:attribute`: a format that a model is judged by, or what is called with those of `query` and `part` (and
`model`) that it takes."""
MODEL_JUDGES = tuple(name for name, where in JUDGES.items() if where.partition(":")[0] in _FORMATS)
"""Judges that need a model."""


def needs_model(name: str) -> bool:
    """Whether a judge cannot work without a model (the role `judge`)."""
    if name in JUDGES:
        return name in MODEL_JUDGES
    parameters = inspect.signature(_maker(name)).parameters
    return "model" in parameters and parameters["model"].default is inspect.Parameter.empty


def open_judge(name: str, *, model: Model | None = None, query: Query | None = None, part: Part | None = None) -> Judge:
    """The judge of a name, ready to work.

    Args:
        name: an entry of `JUDGES` or `module:attribute`.
        model: who answers for a judge that is a model; others ignore it.
        query: what it is shown as the request; `None`: as the judge declares.
        part: the part of the trace that it sees; `None`: as the judge declares.

    Raises:
        UserError: an unknown judge, no model for one that needs it, or a query or part that it cannot see.
    """
    maker = _maker(name)
    taken = inspect.signature(maker).parameters
    given: dict[str, Any] = {key: value for key, value in {"query": query, "part": part}.items() if value is not None}
    if "model" in taken:
        if model is None and taken["model"].default is inspect.Parameter.empty:
            raise UserError(
                f"judge '{name}' is a model: name it with --judge {name}=URL, or the role 'judge' of the study."
            )
        given["model"] = model
    judge: Judge = maker(**{key: value for key, value in given.items() if key in taken})
    for key, value in (("query", query), ("part", part)):
        if value is not None and getattr(judge, key) != value:
            raise UserError(
                f"judge '{name}' sees the {getattr(judge, key)} and nothing else; {key}={value} was asked for."
            )
    return judge


def _maker(name: str) -> Any:
    if name not in JUDGES and ":" not in name:
        raise unknown("judge", name, JUDGES)
    found = resolve("judge", name, JUDGES)
    return functools.partial(ModelJudge, found) if isinstance(found, Format) else found
