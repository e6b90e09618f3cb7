"""Which of the five failure patterns a trace shows: by rules (offline), by model judges, or in the miniature world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from demur.interfaces import Detector, Model

DETECTORS = {
    "rules": "demur.diagnose.rules:RulesDetector",
    "llm": "demur.diagnose.llm:LLMDetector",
    "mini": "demur.mini.detector:MiniDetector",
}


def _class(kind: str) -> Any:
    from demur.registry import resolve

    return resolve("detector", kind, DETECTORS)


def requires_model(kind: str) -> bool:
    """Whether the class of a detector (by name or `module:attribute`) has `requires_model = True`: it asks a model.

    Raises UserError: no such detector.
    """
    return bool(getattr(_class(kind), "requires_model", False))


def is_screen(kind: str) -> bool:
    """Whether the class has `screen = True`: findings select traces to read, and rates need correction by labels."""
    return bool(getattr(_class(kind), "screen", False))


def open_detector(kind: str, *, models: Sequence[Model] = (), instruction: Path | None = None) -> Detector:
    """A detector by name or `module:attribute`. One that asks a model takes the `models` (several vote as a panel) and
    may take a file with another `instruction`.

    Raises UserError: no such detector, or it asks a model and none is given.
    """
    from demur.errors import UserError

    make = _class(kind)
    if not requires_model(kind):
        detector: Detector = make()
        return detector
    if not models:
        raise UserError(f"detector '{kind}' asks a model and none is given: name one, or use the detector 'rules'.")
    from demur.diagnose.llm import Panel

    options = {"instruction": instruction} if instruction else {}
    members: list[Detector] = [make(model=model, **options) for model in models]
    return members[0] if len(members) == 1 else Panel(members)
