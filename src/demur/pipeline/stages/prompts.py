"""Draws a pool of prompts: prompts.jsonl."""

import functools

from demur.errors import UserError
from demur.pipeline.stage import UNKNOWN_PROMPT, Context, Lack, Size, Stage, size_of
from demur.prompts import PromptsSettings
from demur.prompts.load import load


class Prompts(Stage[PromptsSettings]):
    """Files: source, data, templates, each where it was found."""

    kind = "prompts"
    Settings = PromptsSettings

    def _moved(self) -> PromptsSettings:
        """The settings with the files where they are."""
        moved = {key: str(path) if key == "source" else path for key, path in self.files.items()}
        return self.settings.model_copy(update=moved)

    def run(self, context: Context) -> None:
        count = context.draft.write("prompts", load(self._moved()))
        context.draft.line = f"{count:,} {self.name.partition('-')[2]} prompts".replace("  ", " ")

    def needs(self) -> list[Lack]:
        lacks = super().needs()
        try:
            _size(self._moved())
        except UserError as error:
            # A file that is not here was told already; a source's name or a number that is wrong was not.
            lacks += [] if lacks else [Lack("prompts", str(error), wrong=not self.files)]
        return lacks

    def size(self) -> Size:
        try:
            return _size(self._moved())
        except UserError:  # said by `needs`
            return Size(self.settings.n or 0, UNKNOWN_PROMPT)


@functools.lru_cache(maxsize=64)
def _size(settings: PromptsSettings) -> Size:
    return size_of(load(settings))
