"""Judges: a trace goes in, a verdict comes out. They are listed here by name.

    rules              served or refused, offline
    maths, code        graders: correct or wrong
    llama_guard3 …     the format of a guard model, for any model that answers

A judge is a class that takes `query=` and `part=`, or a `Format` that says how a model is asked. It declares the labels
of its verdicts (`labels`) and, where it needs a model, what that model must offer (`requires`); such a class takes
`model=` too. Where a judge cannot decide, its verdict has no label but a reason; it never raises because of what a
model wrote.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demur.errors import UserError
from demur.interfaces import Judge, Model
from demur.judge.model import Format, ModelJudge, Requires, departures
from demur.records import Label, Part, Query
from demur.registry import resolve

JUDGES: dict[str, str] = {  # Name -> `module:attribute`; judges from elsewhere are named in that form
    "rules": "demur.judge.refusal:RulesJudge",
    "maths": "demur.judge.maths:MathsJudge",
    "code": "demur.judge.code:CodeJudge",
    "mini": "demur.mini.judge:MiniJudge",
    "mini-harm": "demur.mini.judge:HarmJudge",
    "mini-arithmetic": "demur.mini.judge:SumJudge",
    "llama_guard3": "demur.judge.guards:LLAMA_GUARD3",
    "llama_guard4": "demur.judge.guards:LLAMA_GUARD4",
    "wildguard": "demur.judge.guards:WILDGUARD",
    "qwen3guard": "demur.judge.guards:QWEN3GUARD",
    "qwen3guard_strict": "demur.judge.guards:QWEN3GUARD_STRICT",
    "qwen3guard_loose": "demur.judge.guards:QWEN3GUARD_LOOSE",
    "gpt_oss_safeguard": "demur.judge.guards:SAFEGUARD",
    "harmbench": "demur.judge.guards:HARMBENCH",
    "reasoning_shield": "demur.judge.guards:REASONING_SHIELD",
    "strongreject": "demur.judge.guards:STRONGREJECT",
    "xstest_llm": "demur.judge.guards:XSTEST",
}


def requires(name: str) -> Requires | None:
    """What a judge's model must offer; `None` if it needs no model. Raises UserError: an unknown judge."""
    needed: Requires | None = getattr(_resolve(name), "requires", None)
    return needed


def requires_model(name: str) -> bool:
    """Whether a judge cannot work without a model."""
    return requires(name) is not None


def missing(name: str) -> list[str]:
    """What a judge needs and this machine lacks, apart from models: one line each."""
    return list(getattr(_resolve(name), "missing", list)())


def labels(name: str) -> tuple[Label, ...]:
    """The labels that the verdicts of a judge may have."""
    judge = _resolve(name)
    return tuple(getattr(getattr(judge, "func", judge), "labels", ()))  # `func`: of a functools.partial


def unreliable_labels(name: str) -> frozenset[str]:
    """Labels that a judge confuses too often for rates of their own, unless labels from people show otherwise."""
    return frozenset(getattr(_resolve(name), "unreliable_labels", ()) if name in JUDGES else ())


def note(name: str) -> str:
    """A caveat to print beside every rate of a judge; empty for most."""
    return str(getattr(_resolve(name), "note", str)())


def open_judge(
    name: str,
    *,
    model: Model | None = None,
    query: Query | None = None,
    part: Part | None = None,
    text: Path | None = None,
    declared: Mapping[str, Any] | None = None,
) -> Judge:
    """A judge by its name or `module:attribute`, ready to use.

    `model` is the model of a judge that needs one. `query` is the form of the request that it is shown, `part` the part
    of the trace that it reads (`None`: its defaults), `text` a file that replaces its rubric, policy or template.
    `declared` is the study's declaration of the model, by which departures from the published set-up are noted.

    Raises UserError: an unknown judge, a missing model, or a query, part or text that the judge does not support.
    """
    form = _resolve(name)
    given = {"query": query, "part": part, "text": text}
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if text is not None:
        replacement_text(name, text)
    if requires(name) is not None:
        if model is None:
            raise UserError(f"judge '{name}' is a model: say which, as --judge {name}=URL, or model: in the study.")
        options["model"] = model
    if not isinstance(form, Format):
        judge: Judge = form(**options)
        return judge
    model_judge = ModelJudge(form, **options)
    model_judge.departs = departures(form, text, declared or {})
    return model_judge


def replacement_text(name: str, path: Path) -> str:
    """A file's content in place of a judge's text. Raises UserError: the judge has none, or the file lacks a slot."""
    form = _resolve(name)
    if not isinstance(form, Format) or not form.text:
        raise UserError(f"judge '{name}' has no text that a file could replace.")
    content = path.read_text(encoding="utf-8")
    if lacking := [slot for slot in ("{question}", "{text}") if slot in form.text and slot not in content]:
        raise UserError(f"{path}: judge '{name}' fills {' and '.join(lacking)}, which the text lacks.")
    return content


def _resolve(name: str) -> Any:
    return resolve("judge", name, JUDGES)
