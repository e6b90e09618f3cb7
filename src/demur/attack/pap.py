"""PAP: the request dressed in a technique of persuasion (Zeng et al. 2024, arXiv 2401.06373).

`pap` reads frozen rewrites, as in the paper's evaluation, from a file that is keyed by the question. `pap-written` has an
attacker write them, one a technique. They are two protocols with two names: neither stands in for the other. The technique
stays on the prompt (`pap:framing`), so that success can be told per technique and as the best of k.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import Field

from demur.attack.base import Attack, AttackSettings, File, Setup, derived, filled, named_text, read_texts
from demur.attack.search import INSTRUCTION, texts
from demur.errors import UserError, WorkError, unknown
from demur.interfaces import Ask, Request
from demur.records import Failure, Message, Prompt, Sampling
from demur.storage import readers

QUESTION = ("query", "question", "goal", "prompt")
REWRITE = ("final_query", "rewrite", "pap", "attacked", "ss_prompt")
TECHNIQUE = ("category", "technique", "ss_technique")


class FrozenSettings(AttackSettings):
    """Which rewrites of the file."""

    techniques: tuple[str, ...] = ()
    """Only these; default: all of the file."""


class FrozenPap(Attack):
    """Rewrites from a file; every question must have one."""

    Settings = FrozenSettings
    files = (
        File("file", "frozen rewrites by question", ("pap_advbench50.jsonl", "pap_advbenchsub.jsonl", "pap.jsonl")),
    )

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._path = setup.files["file"]
        self._rewrites = rewrites(setup)

    @classmethod
    def variants(cls, setup: Setup, questions: int) -> int:
        """As many as the question with most of them has, for each."""
        return questions * max(map(len, rewrites(setup).values()), default=0)

    async def attacked(self, prompts: Iterable[Prompt]) -> AsyncIterator[Prompt]:
        """Questions in order, their rewrites within them.

        Raises:
            UserError: a question without a rewrite, before the first is yielded; a subset would be another benchmark.
        """
        questions = list(prompts)
        without = [prompt for prompt in questions if not self._rewrites.get(_key(prompt.question))]
        if without:
            raise UserError(
                f"{self._path} has no rewrite for {len(without)} of {len(questions)} questions, the first of them {without[0].id} "
                f"of {without[0].source or 'the data'}. It is for other questions; give the right file, or let an attacker "
                "write them with the attack 'pap-written'."
            )
        for prompt in questions:
            for technique, text in self._rewrites[_key(prompt.question)].items():
                yield derived(prompt, text, f"{self.name}:{technique}")


class WrittenSettings(AttackSettings):
    """Which techniques, and how the attacker writes."""

    techniques: tuple[str, ...] = (
        "logical appeal",
        "authority endorsement",
        "misrepresentation",
        "evidence-based persuasion",
        "expert endorsement",
    )
    """Default: the five that are commonly used together (HarmBench's PAP-top5)."""
    tries: int = Field(default=3, ge=1)
    """Times that the attacker is asked for a rewrite in the right form."""
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=0.9, gt=0, le=1)
    max_tokens: int = Field(default=1024, ge=1)


class WrittenPap(Attack):
    """Rewrites by an attacker. One that never comes in the right form is kept in `failures`, and counts as unscored."""

    Settings = WrittenSettings
    parts = ("attacker",)
    files = (texts("pap"),)
    smoke = {"techniques": ("framing",)}

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._words = read_texts(setup.files["texts"], ("instruction", "request", "techniques"))
        known = {_key(name): means for name, means in self._words["techniques"].items()}
        for technique in (wanted := [*map(_key, setup.settings.techniques)]):
            if technique not in known:
                raise unknown("technique", technique, known)
        self._means = {technique: known[technique] for technique in wanted}
        how = setup.settings
        self._sampling = Sampling(temperature=how.temperature, top_p=how.top_p, max_tokens=how.max_tokens)
        self._attacker = setup.models["attacker"]
        self._attacker.check(self._sampling)

    @classmethod
    def variants(cls, setup: Setup, questions: int) -> int:
        """One for each technique."""
        return questions * len(setup.settings.techniques)

    @classmethod
    def estimate(cls, setup: Setup, questions: int, tokens: int) -> list[Ask]:
        """As if every rewrite took the last try."""
        asked = cls.variants(setup, questions) * setup.settings.tries
        return [Ask("attacker", asked, asked * (INSTRUCTION + tokens), asked * setup.settings.max_tokens)]

    async def attacked(self, prompts: Iterable[Prompt]) -> AsyncIterator[Prompt]:
        """As the rewrites come; those without the right form are asked for again, all together.

        Raises:
            WorkError: the attacker gave not one.
        """
        wanted = [derived(prompt, prompt.question, f"{self.name}:{t}") for prompt in prompts for t in self._means]
        last: dict[str, str] = {}
        done, tries = 0, self.setup.settings.tries
        for attempt in range(tries):
            again: set[str] = set()
            async for reply in self._attacker.answers(self._requests(wanted, attempt)):
                text = None if isinstance(reply, Failure) else named_text(reply.answer or "", "prompt")
                if text is not None:
                    done += 1
                    yield derived(reply.prompt, text, reply.prompt.attack)
                else:
                    again.add(reply.prompt.id)
                    last[reply.prompt.id] = reply.detail if isinstance(reply, Failure) else f"no JSON ({reply.outcome})"
            wanted = [prompt for prompt in wanted if prompt.id in again]
        who = self._attacker.identity
        if wanted and not done:
            raise WorkError(
                f"{who} wrote no rewrite for {len(wanted)} questions in {tries} tries each; the last reason: "
                f"{last[wanted[-1].id]}. What came is kept; choose another attacker."
            )
        self.failures += [
            Failure(prompt=p, model=who, kind="unreadable", detail=f"no rewrite by the attacker: {last[p.id]}")
            for p in wanted
        ]

    def _requests(self, wanted: Iterable[Prompt], attempt: int) -> Iterator[Request]:
        for prompt in wanted:
            technique = prompt.attack.partition(":")[2]
            system = filled(self._words["instruction"], technique=technique, means=self._means[technique])
            request = filled(self._words["request"], question=prompt.question)
            turns = (Message(role="system", content=system), Message(role="user", content=request))
            yield Request(messages=turns, sampling=self._sampling, prompt=prompt, sample=attempt)


def rewrites(setup: Setup) -> dict[str, dict[str, str]]:
    """Question -> technique -> rewrite, of the techniques that are wanted.

    Raises:
        UserError: a technique that the file does not have.
    """
    found, path = read_rewrites(setup.files["file"]), setup.files["file"]
    known = {technique for mine in found.values() for technique in mine}
    wanted = set(map(_key, setup.settings.techniques)) or known
    for technique in sorted(wanted - known):
        raise unknown("technique", technique, known, where=f" in {path}")
    return {q: {t: text for t, text in mine.items() if t in wanted} for q, mine in found.items()}


def read_rewrites(path: Path) -> dict[str, dict[str, str]]:
    """Question -> technique -> rewrite; a technique used twice for a question is numbered.

    Raises:
        UserError: a row lacks the question or the rewrite.
    """
    found: dict[str, dict[str, str]] = {}
    for number, row in readers.rows(path):
        question, rewrite = _cell(row, QUESTION), _cell(row, REWRITE)
        if question is None or rewrite is None:
            raise UserError(
                f"{path}:{number}: a row needs the question ({' or '.join(QUESTION)}) and its rewrite ({' or '.join(REWRITE)})."
            )
        mine = found.setdefault(_key(question), {})
        technique = _key(_cell(row, TECHNIQUE) or "rewrite")
        name = technique if technique not in mine else f"{technique} {sum(t.startswith(technique) for t in mine) + 1}"
        mine[name] = rewrite
    return found


def _cell(row: dict[str, object], names: Sequence[str]) -> str | None:
    return next((str(row[name]) for name in names if row.get(name)), None)


def _key(text: str) -> str:
    return " ".join(text.lower().split())
