"""PAP: the request dressed in a technique of persuasion (Zeng et al. 2024, arXiv 2401.06373).

`pap` reads frozen rewrites, as in the paper's evaluation, from a file that is keyed by the question. `pap-written` has an
attacker write them, one a technique. They are two protocols with two names: neither stands in for the other. The technique
stays on the prompt (`pap:framing`), so that success can be told per technique and as the best of k.
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
    """Which rewrites of the file."""

    techniques: tuple[str, ...] = ()  # Only these; default: all of the file


class FrozenPap(Attack):
    """Rewrites from a file; every question must have one."""

    Settings = FrozenSettings
    files = (File("file", "frozen rewrites by question", REWRITES),)
    instead = "Give the file for these questions, or let an attacker write rewrites with the attack 'pap-written'."

    def __init__(self, name: str, settings: Any, files: Mapping[str, Path]) -> None:
        super().__init__(name, settings, files)
        found = read_rewrites(files["file"])
        known = {technique for mine in found.values() for technique in mine}
        wanted = _wanted(settings.techniques, known, f" in {files['file']}") or known
        self._rewrites = {q: {t: text for t, text in mine.items() if t in wanted} for q, mine in found.items()}
        self.max_prompts = max(map(len, self._rewrites.values()), default=0)
        self.max_added_chars = max((len(text) for mine in self._rewrites.values() for text in mine.values()), default=0)

    def variants(self, prompt: Prompt) -> Iterable[Prompt]:
        """The rewrites of a question; `attack` is `pap:TECHNIQUE`."""
        for technique, text in self._rewrites.get(key(prompt.question), {}).items():
            yield derived(prompt, text, f"{self.name}:{technique}")


class WrittenSettings(AttackSettings):
    """Which techniques, and how the attacker writes."""

    techniques: tuple[str, ...] = (  # Default: the five that are commonly used together (HarmBench's PAP-top5)
        "logical appeal",
        "authority endorsement",
        "misrepresentation",
        "evidence-based persuasion",
        "expert endorsement",
    )
    tries: int = Field(default=3, ge=1)  # Times that the attacker is asked for a rewrite in the right form
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=0.9, gt=0, le=1)
    max_tokens: int = Field(default=1024, ge=1)


class WrittenPap(Attack):
    """Rewrites by an attacker. One that never comes in the right form is kept in `failures`, and counts as unscored."""

    Settings = WrittenSettings
    parts = ("attacker",)
    files = (base.texts("pap"),)
    smoke = {"techniques": ("framing",)}

    def __init__(self, name: str, settings: Any, files: Mapping[str, Path]) -> None:
        super().__init__(name, settings, files)
        self._words = base.read_texts(files["texts"], "pap")
        known = {key(name): means for name, means in self._words["techniques"].items()}
        self._means = {technique: known[technique] for technique in _wanted(settings.techniques, known)}
        self.max_prompts, how = len(self._means), settings
        self.max_added_chars = WIDEST * how.max_tokens
        self.sampling["attacker"] = Sampling(temperature=how.temperature, top_p=how.top_p, max_tokens=how.max_tokens)

    def estimate(self, questions: int, tokens: int) -> list[Ask]:
        """As if every rewrite took the last try."""
        asked = questions * self.max_prompts * self.settings.tries
        return [Ask("attacker", asked, asked * (INSTRUCTION + tokens), asked * self.settings.max_tokens)]

    async def attacked(self, prompts: Iterable[Prompt]) -> AsyncIterator[Prompt]:
        """As the rewrites come. Raises WorkError: the attacker gave not one."""
        wanted = [derived(prompt, prompt.question, f"{self.name}:{t}") for prompt in prompts for t in self._means]
        async with aclosing(answered(wanted, self._written, limit=256)) as found:
            async for one in found:
                if isinstance(one, Prompt):
                    yield one
                else:
                    self.failures.append(one)
        if wanted and len(self.failures) == len(wanted):
            last = self.failures[-1]
            raise WorkError(
                f"{last.model} wrote no rewrite for {len(wanted)} questions in {self.settings.tries} tries each; the last "
                f"reason: {last.detail}. What came is kept; choose another attacker."
            )

    async def _written(self, prompt: Prompt) -> Prompt | Failure:
        """The rewrite, asked for again until it has the right form, or why there is none."""
        who, technique, why = self.models["attacker"], prompt.attack.partition(":")[2], ""
        system = filled(self._words["instruction"], technique=technique, means=self._means[technique])
        request = filled(self._words["request"], question=prompt.question)
        turns = (Message(role="system", content=system), Message(role="user", content=request))
        for attempt in range(self.settings.tries):
            asked = Request(messages=turns, sampling=self.sampling["attacker"], prompt=prompt, sample=attempt)
            reply = await who.answer(asked)
            text = None if isinstance(reply, Failure) else base.named_text(reply.answer or "", "prompt")
            if text is not None:
                return derived(prompt, text, prompt.attack)
            why = reply.detail if isinstance(reply, Failure) else f"no JSON ({reply.outcome})"
        why = f"no rewrite by the attacker: {why}"
        return Failure(prompt=prompt, model=who.identity, kind="unreadable", detail=why)


def _wanted(techniques: Iterable[str], known: Iterable[str], where: str = "") -> list[str]:
    """Techniques as they are compared, all of them known."""
    found, known = [key(technique) for technique in techniques], set(known)
    for technique in found:
        if technique not in known:
            raise unknown("technique", technique, known, where=where)
    return found


def read_rewrites(path: Path) -> dict[str, dict[str, str]]:
    """Question -> technique -> rewrite; a technique used twice for a question is numbered."""
    found: dict[str, dict[str, str]] = {}
    for question, rewrite, technique in base.by_question(path, REWRITE, TECHNIQUE):
        mine, name = found.setdefault(question, {}), key(technique or "rewrite")
        again = sum(other == name or other.startswith(f"{name} ") for other in mine)
        mine[f"{name} {again + 1}" if again else name] = rewrite
    return found
