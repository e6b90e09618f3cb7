"""Which of the five failure patterns a trace shows, by rules (offline), by model judges, or in the miniature world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from demur.interfaces import Detector, Model

DETECTORS = {
    "rules": "demur.diagnose.rules:RulesDetector",
    "llm": "demur.diagnose.llm:LLMDetector",
    "mini": "demur.mini.detector:MiniDetector",
}

DECIDERS = {"rules": "demur.diagnose.rules:decides", "mini": "demur.mini.judge:concluded"}
"""Whether a text decides what to do with the request, in the language that a detector reads; other detectors: English."""


def open_detector(name: str, *, model: Model | Sequence[Model] | None = None) -> Detector:
    """A detector by name, or `module:attribute`. With several models, `llm` is a panel that votes.

    Raises:
        UserError: no such detector, or `llm` without a model.
    """
    from demur.errors import UserError
    from demur.registry import resolve

    make: Any = resolve("detector", name, DETECTORS)
    if name != "llm":
        detector: Detector = make()
        return detector
    models = [] if model is None else list(model) if isinstance(model, Sequence) else [model]
    if not models:
        raise UserError("detector 'llm' needs a model that judges: give a role or a URL, or use --detector rules.")
    from demur.diagnose.panel import Panel

    judges: list[Detector] = [make(model=one) for one in models]
    return judges[0] if len(judges) == 1 else Panel(judges)
