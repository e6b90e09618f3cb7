"""PAP: the request rewritten by a persuasion technique (Zeng et al. 2024, arXiv 2401.06373).

`pap` reads frozen rewrites, as in the paper's evaluation, from a file that is keyed by the question. `pap-written` has
an attacker write them, one for each technique. They are separate protocols: neither falls back on the other. The
technique is part of the prompt's `attack` (`pap:framing`), so that success can be reported per technique and as the
best of k.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from pydantic import Field

from demur.attack import base
from demur.attack.base import Attack, AttackSettings, File, derived, key
from demur.attack.search import INSTRUCTION, WIDEST
from demur.errors import WorkError, unknown
from demur.interfaces import Ask, Request
from demur.models.answering import answered
from demur.records import Failure, Message, Prompt, Sampling
from demur.untrusted import filled

REWRITES = ("pap_advbench50.jsonl", "pap_advbenchsub.jsonl", "pap.jsonl")
REWRITE = ("final_query", "rewrite", "pap", "attacked", "ss_prompt")
TECHNIQUE = ("category", "technique", "ss_technique")


class FrozenSettings(AttackSettings):
    """Which rewrites of the file are used."""

    techniques: tuple[str, ...] = ()  # Only these; default: all of the file


class FrozenPap(Attack):
    """Rewrites from a file; every question must have one."""

    Settings = FrozenSettings
    files = (File("file", "frozen rewrites by question", REWRITES),)
    hint = "Give the file for these questions, or let an attacker write rewrites with the attack 'pap-written'."

    def __init__(self, name: str, settings: Any, files: Mapping[str, Path]) -> None:
        super().__init__(name, settings, files)
        self._rewrites = read_rewrites(files["file"])
        known = {technique for rewrites in self._rewrites.values() for technique in rewrites}
        wanted = _wanted(settings.techniques, known, f" in {files['file']}") or known
        for question, rewrites in self._rewrites.items():
            self._rewrites[question] = {name: text for name, text in rewrites.items() if name in wanted}
        self.max_prompts = max(map(len, self._rewrites.values()), default=0)
        texts = (text for rewrites in self._rewrites.values() for text in rewrites.values())
        self.max_added_chars = max(map(len, texts), default=0)

    def variants(self, prompt: Prompt) -> Iterable[Prompt]:
        """The rewrites of a question; `attack` is `pap:TECHNIQUE`."""
        for technique, text in self._rewrites.get(key(prompt.question), {}).items():
            yield derived(prompt, text, f"{self.name}:{technique}")


class WrittenSettings(AttackSettings):
    """Which techniques are used, and how the attacker samples."""

    techniques: tuple[str, ...] = (  # Default: the five that are commonly used together (HarmBench's PAP-top5)
        "logical appeal",
        "authority endorsement",
        "misrepresentation",
        "evidence-based persuasion",
        "expert endorsement",
    )
    tries: int = Field(default=3, ge=1)  # Requests to the attacker for a rewrite in the right form
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=0.9, gt=0, le=1)
    max_tokens: int = Field(default=1024, ge=1)


class WrittenPap(Attack):
    """Rewrites by an attacker. One that never has the right form becomes one of `failures`, and counts as unscored."""

    Settings = WrittenSettings
    parts = ("attacker",)
    files = (base.texts("pap"),)
    smoke = {"techniques": ("framing",)}

    def __init__(self, name: str, settings: Any, files: Mapping[str, Path]) -> None:
        super().__init__(name, settings, files)
        self._texts = base.read_texts(files["texts"], "pap")
        known = {key(name): description for name, description in self._texts["techniques"].items()}
        self._techniques = {name: known[name] for name in _wanted(settings.techniques, known)}
        self.max_prompts = len(self._techniques)
        self.max_added_chars = WIDEST * settings.max_tokens
        sampling = {name: getattr(settings, name) for name in ("temperature", "top_p", "max_tokens")}
        self.sampling["attacker"] = Sampling(**sampling)

    def estimate(self, questions: int, tokens: int) -> list[Ask]:
        """As if every rewrite took the last try."""
        asked = questions * self.max_prompts * self.settings.tries
        return [Ask("attacker", asked, asked * (INSTRUCTION + tokens), asked * self.settings.max_tokens)]

    async def attacked(self, prompts: Iterable[Prompt]) -> AsyncIterator[Prompt]:
        """The rewrites, as they are written. Raises WorkError: the attacker wrote none."""
        wanted = [derived(prompt, prompt.question, f"{self.name}:{t}") for prompt in prompts for t in self._techniques]
        async with aclosing(answered(wanted, self._rewrite, limit=256)) as results:
            async for result in results:
                if isinstance(result, Prompt):
                    yield result
                else:
                    self.failures.append(result)
        if wanted and len(self.failures) == len(wanted):
            last = self.failures[-1]
            raise WorkError(
                f"{last.model} wrote no rewrite for {len(wanted)} questions in {self.settings.tries} tries each; "
                f"the last reason: {last.detail}. All replies are kept; choose another attacker."
            )

    async def _rewrite(self, prompt: Prompt) -> Prompt | Failure:
        """The rewrite, requested until it has the right form, or why there is none."""
        attacker, technique, why = self.models["attacker"], prompt.attack.partition(":")[2], ""
        system = filled(self._texts["instruction"], technique=technique, means=self._techniques[technique])
        user = filled(self._texts["request"], question=prompt.question)
        messages = (Message(role="system", content=system), Message(role="user", content=user))
        for sample in range(self.settings.tries):
            request = Request(messages=messages, sampling=self.sampling["attacker"], prompt=prompt, sample=sample)
            reply = await attacker.answer(request)
            if isinstance(reply, Failure):
                why = reply.detail
            elif (text := base.named_text(reply.answer or "", "prompt")) is None:
                why = f"no JSON ({reply.outcome})"
            else:
                return derived(prompt, text, prompt.attack)
        why = f"no rewrite by the attacker: {why}"
        return Failure(prompt=prompt, model=attacker.identity, kind="unreadable", detail=why)


def _wanted(techniques: Iterable[str], known: Iterable[str], where: str = "") -> list[str]:
    """Normalised names of techniques. Raises UserError: one is not among the known ones."""
    names, known = [key(technique) for technique in techniques], set(known)
    for name in names:
        if name not in known:
            raise unknown("technique", name, known, where=where)
    return names


def read_rewrites(path: Path) -> dict[str, dict[str, str]]:
    """Question -> technique -> rewrite; a technique that occurs again for a question gets a number."""
    table: dict[str, dict[str, str]] = {}
    for question, rewrite, technique in base.by_question(path, REWRITE, TECHNIQUE):
        rewrites, name = table.setdefault(question, {}), key(technique or "rewrite")
        again = sum(other == name or other.startswith(f"{name} ") for other in rewrites)
        rewrites[f"{name} {again + 1}" if again else name] = rewrite
    return table
