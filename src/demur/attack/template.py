"""The user's own templates around the question: a text file with one a line (or JSON Lines, CSV … with a column `template`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from demur.attack.base import derived, filled
from demur.errors import UserError
from demur.records import Prompt
from demur.storage import readers as tables


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
                yield derived(prompt, filled(template, prompt.text), f"template:{name}")


def read_templates(path: Path) -> dict[str, str]:
    """Name -> template. A row's name is its column `name`; rows without one are numbered.

    Raises:
        UserError: no templates, two of one name, or one without `{question}`.
    """
    found: dict[str, str] = {}
    for number, row in tables.rows(path):
        text = str(row.get("template") or row.get("text") or row.get("prompt") or "")
        name = str(row.get("name") or len(found) + 1)
        try:
            filled(text, "")
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        if name in found:
            raise UserError(f"{path}:{number}: a second template named '{name}'.")
        found[name] = text
    if not found:
        raise UserError(f"{path}: no templates in it.")
    return found
