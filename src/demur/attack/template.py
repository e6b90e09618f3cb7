"""The user's own templates around the question: a text file with one a line (or JSON Lines, CSV … with a column `template`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from demur.attack.base import derived
from demur.prompts.wrappers import fill, read_templates
from demur.records import Prompt


class TemplateAttack:
    """Every question in every template."""

    name = "template"

    def __init__(self, *, data: Path) -> None:
        """Read the templates.

        Raises:
            UserError: there is none, or one has no place for the question.
        """
        self.templates = read_templates(data)

    async def attacked(self, prompts: Iterable[Prompt]) -> AsyncIterator[Prompt]:
        """Questions in order, templates within them; `attack` is `template:NAME`."""
        for prompt in prompts:
            for name, template in self.templates.items():
                yield derived(prompt, fill(template, prompt.text), f"template:{name}")
