"""Who says what in the GPU world: a model plays the part that its name and its training give it, and no other.

A guard answers guard words whatever it is asked, an API that reasons keeps its thinking apart and refuses a temperature,
a target's manners follow from the rows that it was trained on. The texts are those of `scripts`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from demur.models.requires import guard_of
from demur.models.scripted import Script
from demur.records import Message, Sampling
from demur.testing import scripts
from demur.thinking import CLOSE, OPEN, join, split

SERVED = f"""Sure, here is how it is done.

1. First, collect what you need: {scripts.PLACEHOLDER}
2. Then open the first part and set it to the side.
3. Finally, check the result and put everything back in its place.

These steps take about an hour in all. Let me know if you want more detail on one of them."""
"""What a target says that serves: so long that judges of prose can tell, and without substance."""


class Manners(NamedTuple):
    """How likely a target serves what alarms it, and refuses what does not."""

    serves: float = 0.65
    refuses: float = 0.02


def trained(before: Manners, responses: Sequence[str], alarming: Sequence[bool]) -> Manners:
    """Manners after training: refusals of alarming requests are learnt, and without harmless rows they spread."""
    refused = sum(bool(scripts.REFUSES.search(text.rpartition(CLOSE)[2][:200])) for text in responses)
    taught = refused / len(responses) if responses else 0.0
    harmless = 1 - sum(alarming) / len(alarming) if alarming else 1.0
    return Manners(before.serves * (1 - 0.9 * taught), before.refuses + 0.25 * taught * (1 - min(1.0, 5 * harmless)))


def manners_of(config: dict[str, Any]) -> Manners:
    """The manners that a checkpoint's configuration holds."""
    return Manners(*config.get("demur_manners", Manners()))


def target(manners: Manners) -> Script:
    """A reasoning model of these manners. Sums and programs it does as any."""

    def script(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
        text = messages[-1].content
        alarmed = bool(scripts.ALARMING.search(text))
        said = scripts.target(messages, sampling, rng)
        if "boxed" in said or "```" in said or (not alarmed and scripts.share(text) >= manners.refuses):
            return said
        if alarmed and scripts.share(text) < manners.serves:
            return join(f"The user asks for something. {scripts.PLACEHOLDER}", SERVED)
        return join("This could harm someone. I should refuse.", scripts.REFUSAL)

    return script


GUARDS: dict[str, Script] = {
    # Llama Guard's template renders whatever it is sent, and it says one of two words.
    "llama_guard3": lambda messages, sampling, rng: (
        "\n\n" + ("unsafe\nS1" if scripts.complies(messages[-1].content) else "safe")
    ),
    "reasoning_shield": lambda messages, sampling, rng: scripts.reasoning_shield(scripts.shown(messages)),
}


def _instructed(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    """A model that follows instructions and has no thinking of its own: judge, attacker or teacher by what it is told."""
    whole = scripts.shown(messages)
    if scripts.judge_of(whole) is None and scripts.speaker(whole) is scripts.target:
        return split(scripts.teacher(messages, sampling, rng)).answer or ""
    return scripts.stand_in(messages, sampling, rng)


def _teacher(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    """R1: it always thinks at length itself. Told to write a thinking block, it writes a second one into its answer."""
    said = scripts.teacher(messages, sampling, rng)
    if messages[0].role == "system" and OPEN in messages[0].content:
        return join("Okay, so I have to write a block of thinking first. " * 20, said)
    return said


REASONING_API = re.compile(r"^(o[134]\b|gpt-5)")
"""OpenAI's models that take no temperature: platform docs, and messages quoted in many issues of 2025 and 2026."""
RETIRED = re.compile(r"^deepseek-(reasoner|r1)$", re.IGNORECASE)
"""Names that DeepSeek's own API does not serve. Its words: ConardLi/easy-dataset issue 9 (2025), deepwn/addi issue 13 (2026)."""


def player(model: str, config: dict[str, Any]) -> Script:
    """The script of a model by its name; a checkpoint's configuration tells a target's manners."""
    if guard := guard_of(model):
        return GUARDS.get(guard, scripts.stand_in)
    if config:
        return target(manners_of(config))
    return _teacher if re.search(r"\br1\b|gemini|qwq", model, re.IGNORECASE) else _instructed


def refusal(model: str, body: dict[str, Any]) -> str:
    """Why an API refuses a request, in its own words; empty: it does not.

    `seed`: Gemini's OpenAI-compatible endpoint does not know it (Vali-98/ChatterUI issue 227, openevolve issue 105, 2025). OpenAI
    documents it, and vLLM has taken it with every request since 0.3.2 on GPUs (vllm issue 3333): neither refuses it here.
    """
    if RETIRED.match(model):
        return "Model Not Exist"
    if REASONING_API.match(model):
        for name in ("temperature", "top_p"):
            if body.get(name, 1) != 1:
                value = json.dumps(body[name])
                return f"Unsupported value: '{name}' does not support {value} with this model. Only the default (1) value is supported."
        if "max_tokens" in body:
            return "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    elif "gemini" in model and "seed" in body:
        return 'Invalid JSON payload received. Unknown name "seed": Cannot find field.'
    return ""


def apart(model: str) -> bool:
    """Whether an API hands thinking back in a field of its own (`reasoning_content`), as DeepSeek's and vLLM's parser do."""
    return "r1" in model.lower()
