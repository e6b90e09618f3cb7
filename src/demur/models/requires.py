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
"""Name of a guard's weights, reduced to letters and digits -> the kind of judge that uses its format."""

REASONS = re.compile(r"(?<![a-z0-9])(r1|reasoner|qwq|o[134]|gpt-5)(?![a-z0-9])", re.IGNORECASE)
"""Names of models that always think, whatever the request."""
NO_TEMPERATURE = re.compile(r"(o[134]|gpt-5)(?![a-z0-9])", re.IGNORECASE)  # OpenAI models that refuse a temperature
RETIRED = {  # Names that no longer serve the model they are known for
    "deepseek-reasoner": "has been V3.1 and later models since August 2025, and is no longer served: name open weights"
}


class Requires(NamedTuple):
    """What a part requires of the model that plays it."""

    api: Literal["", "chat", "completions"] = ""
    system: bool = False  # A system turn
    logprobs: bool = False  # Log-probabilities of the first token
    prefill: bool = False  # A reply whose beginning is given
    own_thinking: bool | None = None  # Whether the model must think by itself, or must not
    temperature: bool = False  # The temperature is honoured
    family: str = ""  # The kind of guard whose format is used; empty: a model that follows instructions

    def unmet(self, config: Any) -> list[str]:
        """What a model, as declared, cannot do: one line for each unmet requirement, with what to do."""
        api, forbidden = getattr(config, "api", self.api), getattr(config, "forbidden", ())
        name, thinking = getattr(config, "model", ""), getattr(config, "thinking", "")
        names = [getattr(config, field, "") or "" for field in ("model", "weights", "path", "hub")]
        guard = guard_of(*names)
        prefills = api == "completions" or getattr(config, "prefill", "plain") != "no"
        thinks = thinking not in ("", "none") or (not thinking and any(REASONS.search(Path(n).name) for n in names))
        sends_temperature = not {"temperature", "top_p"} <= set(forbidden)
        problems = {
            RETIRED.get(name, ""): name in RETIRED,
            "takes no temperature: forbidden: [temperature, top_p]": NO_TEMPERATURE.match(name) and sends_temperature,
            f"is a guard and can only play a judge of kind {guard}: name another model": guard not in ("", self.family),
            f"must be asked by api: {self.api}": self.api and api != self.api,
            "refuses a system turn (forbidden)": self.system and "system" in forbidden,
            "refuses a temperature (forbidden)": self.temperature and "temperature" in forbidden,
            "must give log-probabilities: first_tokens: 20": self.logprobs and not getattr(config, "first_tokens", 1),
            "must take prefilled replies: prefill: vllm or plain, or api: completions": self.prefill and not prefills,
            "must think by itself, and is declared not to (thinking: none)": self.own_thinking and thinking == "none",
            "thinks by itself: name a model that does not, or declare thinking: none": (
                self.own_thinking is False and thinks
            ),
        }
        return [line for line, holds in problems.items() if holds]


def guard_of(*names: str) -> str:
    """The kind of guard that a model is, by the names of its weights; empty: not a known guard."""
    plain = [re.sub(r"[^a-z0-9]", "", Path(name).name.lower()) for name in names]
    return next((kind for known, kind in GUARDS.items() if any(known in name for name in plain)), "")
