"""Draws a pool of prompts: prompts.jsonl."""

from demur.pipeline.stage import Context, Lack, Size, Stage, size_of
from demur.prompts import PromptsSettings
from demur.prompts.load import load


class Prompts(Stage[PromptsSettings]):
    """Files: source, data, templates."""

    kind = "prompts"
    Settings = PromptsSettings

    def _located(self) -> PromptsSettings:
        """The settings with the paths of the files."""
        paths = {key: str(path) if key == "source" else path for key, path in self.files.items()}
        return self.settings.model_copy(update=paths)

    def run(self, context: Context) -> None:
        count = context.draft.write("prompts", load(self._located()))
        context.draft.line = f"{count:,} {self.name.partition('-')[2]} prompts".replace("  ", " ")

    def needs(self) -> list[Lack]:
        lacks, why = super().needs(), size_of(load, self._located())[1]
        # A missing file is among the lacks; a wrong name of a source, or a wrong number, is not yet.
        return lacks or ([Lack("prompts", why, wrong=not self.files)] if why else [])

    def size(self) -> Size:
        size, why = size_of(load, self._located())
        return size._replace(rows=self.settings.n or 0) if why else size  # which `needs` reports
