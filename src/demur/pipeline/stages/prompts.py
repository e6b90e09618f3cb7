"""Draws a pool of prompts: prompts.jsonl."""

from demur.pipeline.stage import Context, Lack, Size, Stage, sized
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
        lacks, why = super().needs(), sized(load, self._moved())[1]
        # A file that is not here was told already; a source's name or a number that is wrong was not.
        return lacks or ([Lack("prompts", why, wrong=not self.files)] if why else [])

    def size(self) -> Size:
        size, why = sized(load, self._moved())
        return size._replace(rows=self.settings.n or 0) if why else size  # said by `needs`
