"""Judges: a trace goes in, a verdict comes out. One file a judge, listed here by name.

    rules              served or refused, offline
    maths, code        graders: right or wrong
    llama_guard3 …     a guard model's own format, over any model that answers

A judge is a class, made with `query=` and `part=`, or a `Format` that a model is judged by. It declares the labels of its
verdicts (`labels`) and, where it needs a model, what that model must offer (`requires`); a class that does is made with
`model=`, too. What it cannot tell is a verdict without a label and with a reason; it never raises for what a model wrote.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demur.errors import UserError
from demur.interfaces import Judge, Model
from demur.judge.model import Format, ModelJudge, Requires, departures
from demur.records import Label, Part, Query
from demur.registry import resolve

JUDGES: dict[str, str] = {  # Name -> `module:attribute`; what lives elsewhere is named so itself
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
    """What the model of a judge must offer; `None` for a judge that needs no model.

    Raises UserError: an unknown judge.
    """
    found: Requires | None = getattr(_found(name), "requires", None)
    return found


def requires_model(name: str) -> bool:
    """Whether a judge cannot work without a model."""
    return requires(name) is not None


def missing(name: str) -> list[str]:
    """What this machine lacks for a judge that is no model: one line each."""
    return list(getattr(_found(name), "missing", list)())


def labels(name: str) -> tuple[Label, ...]:
    """What the verdicts of a judge may say."""
    found = _found(name)
    return tuple(getattr(getattr(found, "func", found), "labels", ()))


def unreliable_labels(name: str) -> frozenset[str]:
    """Labels that a judge does not tell apart well enough for rates of their own, unless labels of people show that it does."""
    return frozenset(getattr(_found(name), "unreliable_labels", ()) if name in JUDGES else ())


def note(name: str) -> str:
    """What must stand beside every rate of a judge; empty for most."""
    found = getattr(_found(name), "note", None)
    return "" if found is None else str(found())


def open_judge(
    name: str,
    *,
    model: Model | None = None,
    query: Query | None = None,
    part: Part | None = None,
    text: Path | None = None,
    declared: Mapping[str, Any] | None = None,
) -> Judge:
    """The judge of a name, ready to work.

    A judge that is a model is played by `model`; others ignore it. `query` is what it is shown as the request and `part` what it
    sees of the trace (`None`: as it declares), `text` a file in the place of its rubric, policy or template. By `declared`, what
    the study says of the model, it is told whether the judge is set up as its makers published it.

    Raises UserError: an unknown judge, no model for one that needs it, or a query, part or text that it cannot take.
    """
    found = _found(name)
    own = (("query", query), ("part", part), ("text", text))
    given: dict[str, Any] = {key: value for key, value in own if value is not None}
    if text is not None:
        replacement_text(name, text)
    if requires(name) is not None:
        if model is None:
            raise UserError(f"judge '{name}' is a model: say which, as --judge {name}=URL, or model: in the study.")
        given["model"] = model
    if not isinstance(found, Format):
        judge: Judge = found(**given)
        return judge
    played = ModelJudge(found, **given)
    played.departs = departures(found, text, declared or {})
    return played


def replacement_text(name: str, path: Path) -> str:
    """The content of a file in the place of a judge's text.

    Raises UserError: the judge has no text that a file could replace, or the file lacks the places that it fills.
    """
    form = _found(name)
    if not isinstance(form, Format) or not form.text:
        raise UserError(f"judge '{name}' has no text that a file could replace.")
    content = path.read_text(encoding="utf-8")
    if lacking := [place for place in ("{question}", "{text}") if place in form.text and place not in content]:
        raise UserError(f"{path}: judge '{name}' fills {' and '.join(lacking)}, which the text lacks.")
    return content


def _found(name: str) -> Any:
    return resolve("judge", name, JUDGES)
