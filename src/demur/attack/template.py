"""The user's own templates around the question: a text file with one a line (or JSON Lines, CSV … with a column `template`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from demur.attack.base import Attack, File, Setup, derived
from demur.prompts.wrappers import fill, read_templates
from demur.records import Prompt


class TemplateAttack(Attack):
    """Every question in every template."""

    files = (File("file", "templates with {question}, one a line"),)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.templates = read_templates(setup.files["file"])

    @classmethod
    def variants(cls, setup: Setup, questions: int) -> int:
        """One for each template."""
        return questions * len(read_templates(setup.files["file"]))

    async def attacked(self, prompts: Iterable[Prompt]) -> AsyncIterator[Prompt]:
        """Questions in order, templates within them; `attack` is `template:NAME`."""
        for prompt in prompts:
            for name, template in self.templates.items():
                yield derived(prompt, fill(template, prompt.text), f"{self.name}:{name}")
