"""What a part (teacher, judge, attacker …) requires of the model that plays it."""

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

GUARDS: dict[str, str] = {
    "llamaguard3": "llama_guard3",
    "wildguard": "wildguard",
    "qwen3guard": "qwen3guard",
    "reasoningshield": "reasoning_shield",
    "harmbenchllama213bcls": "harmbench",
    "harmbenchmistral7bvalcls": "harmbench",
    "llamaguard": "llama_guard",
    "shieldgemma": "shieldgemma",
    "graniteguardian": "granite_guardian",
}
"""Guards by the name of their weights (letters and digits alone) -> the kind of judge that speaks their format."""


REASONS = re.compile(r"(?<![a-z0-9])(r1|reasoner|qwq|o[134]|gpt-5)(?![a-z0-9])", re.IGNORECASE)
"""Models that think by themselves whatever they are told, by name."""
NO_TEMPERATURE = re.compile(r"(o[134]|gpt-5)(?![a-z0-9])", re.IGNORECASE)  # OpenAI's, which refuse a temperature
RETIRED = {  # Names behind which the model is no longer the one that they are known for
    "deepseek-reasoner": "has been V3.1 and later models since August 2025, and is no longer served: name open weights"
}


class Requires(NamedTuple):
    """What a part requires of the model that plays it."""

    api: Literal["", "chat", "completions"] = ""
    system: bool = False  # A system turn
    logprobs: bool = False  # Log-probabilities of the first token
    prefill: bool = False  # A reply that is begun for the model
    own_thinking: bool | None = None  # Whether the model must think by itself, or must not
    temperature: bool = False  # The temperature is honoured
    family: str = ""  # The kind of guard whose format is spoken; empty: a model that follows instructions

    def unmet(self, config: Any) -> list[str]:
        """What a configuration, as declared, cannot do: one line each, with what to do."""
        api, forbidden = getattr(config, "api", self.api), getattr(config, "forbidden", ())
        thinks = getattr(config, "thinking", "")
        begins = api == "completions" or getattr(config, "prefill", "plain") != "no"
        names = [getattr(config, name, "") or "" for name in ("model", "weights", "path", "hub")]
        guard = guard_of(*names)
        asked, free = getattr(config, "model", ""), {"temperature", "top_p"} <= set(forbidden)
        reasons = any(REASONS.search(Path(name).name) for name in names) and thinks != "none"
        lines: list[tuple[Any, str]] = [
            (asked not in RETIRED, RETIRED.get(asked, "")),
            (free or not NO_TEMPERATURE.match(asked), "takes no temperature: forbidden: [temperature, top_p]"),
            (guard in ("", self.family), f"is a guard and can only play a judge of kind {guard}: name another model"),
            (not self.api or api == self.api, f"must be asked by api: {self.api}"),
            (not self.system or "system" not in forbidden, "refuses a system turn (forbidden)"),
            (not self.temperature or "temperature" not in forbidden, "refuses a temperature (forbidden)"),
            (not self.logprobs or getattr(config, "first_tokens", 1), "must tell log-probabilities: first_tokens: 20"),
            (not self.prefill or begins, "must take a begun reply: prefill: vllm, prefill: plain, or api: completions"),
            (
                not self.own_thinking or thinks != "none",
                "must think by itself, and is declared not to (thinking: none)",
            ),
            (
                self.own_thinking is not False or not (reasons or thinks not in ("", "none")),
                "thinks by itself: name a model that does not, or declare thinking: none",
            ),
        ]
        return [line for met, line in lines if not met]


def guard_of(*names: str) -> str:
    """The kind of guard that the name of its weights says a model is; empty: none."""
    plain = [re.sub(r"[^a-z0-9]", "", Path(name).name.lower()) for name in names]
    return next((kind for known, kind in GUARDS.items() if any(known in name for name in plain)), "")
