"""`demur check template`: which tokens of each row would be trained, shown and verified."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group
from rich.text import Text

from demur.errors import CheckFailed
from demur.models.checkpoint import converted
from demur.records import Example, read_jsonl
from demur.train.render import IGNORED, Dropped, Rendered, Renderer
from demur.train.settings import TrainSettings

SHOWN = 3  # Rows that are shown
LONGEST = 400  # Tokens shown of a row; the middle of a longer one is left out


class Token(NamedTuple):
    """A token as text, and whether it is trained."""

    text: str
    trained: bool


class Report(NamedTuple):
    """The result of a check of a base's template."""

    base: str
    template: str
    opened: bool = False  # Whether the inference prompt opens the thinking
    stop: str = ""
    rows: int = 0
    dropped: Sequence[Dropped] = ()
    notes: Sequence[str] = ()  # What is unusual, though no obstacle
    shown: Sequence[list[Token]] = ()
    problem: str = ""  # Why training would be refused; empty: it would not

    @property
    def ok(self) -> bool:
        """Whether every row holds, and none was left out for another reason than its length."""
        return not self.why

    @property
    def why(self) -> str:
        """Why the check fails, in a sentence; empty: it does not."""
        others = Counter(item.reason for item in self.dropped if item.reason != "too_long")
        kinds = ", ".join(f"{count} {reason}" for reason, count in sorted(others.items()))
        return self.problem or (f"{sum(others.values())} rows were left out: {kinds}." if others else "")

    def plain(self) -> dict[str, Any]:
        """The report as plain data."""
        names = ("base", "template", "opened", "stop", "rows", "notes", "problem", "ok")
        return {name: getattr(self, name) for name in names} | {"dropped": Rendered([], [*self.dropped]).counts()}


def samples() -> list[Example]:
    """Rows of what goes wrong elsewhere: empty thinking, other scripts, a system turn, flags per part, an earlier turn.

    The miniature vocabulary has the words of all but the last one, which is for tokenizers that can write anything.
    """
    return list(read_jsonl(Path(__file__).with_name("samples.jsonl"), Example))


def check_template(
    base: Path | str, examples: Sequence[Example] | None = None, *, settings: TrainSettings | None = None
) -> Report:
    """Render every example (default: `samples`) for a base as training would, and verify every row.

    Of the base only tokenizer and generation settings are read, of the settings `template`, `loss` and `max_length`.

    Raises UserError: there is no tokenizer, or none that training can use.
    """
    settings = settings or TrainSettings()
    try:
        folder = converted(Path(base)) if str(base).endswith(".gguf") else base
        renderer = Renderer.of(folder, template=settings.template, loss=settings.loss)
    except CheckFailed as error:
        return Report(str(base), "unknown", problem=str(error))
    chat, problem, rendered = renderer.chat, "", Rendered([], [])
    if examples is None:
        examples = samples() if chat.unknown is None else samples()[:-1]
        if not chat.takes_system:
            examples = [row for row in examples if row.parts[0].role != "system"]
    try:
        rendered = renderer.rows(examples, max_length=settings.max_length)
    except CheckFailed as error:
        problem = str(error)
    decode, head = chat.tokenizer.decode, len(chat.tokenizer.decode([chat.stop]))

    def text(token: int) -> str:
        # Decoded after another token, since by itself a word loses its space; a tokenizer of words has none to lose.
        return decode([chat.stop, token])[head:] if chat.unknown is None else f"{decode([token])} "

    shown = [
        [Token(text(token), label != IGNORED) for token, label in zip(row.ids, row.labels, strict=True)]
        for row in rendered.rows[:SHOWN]
    ]
    stop = chat.tokenizer.convert_ids_to_tokens(chat.stop)
    notes = chat.notes()
    if fault := renderer.template_fault():
        notes.append(f"trainers that let this template render the reply would get it wrong: {fault}")
    figures = (renderer.family, renderer.opened, stop, len(rendered.rows), rendered.dropped)
    return Report(str(base), *figures, notes, shown, problem)


def render_report(report: Report, *, mask: bool = False) -> Group:
    """The report for a terminal: trained tokens green, others dim, control characters visible; `mask` hides words."""
    opened = "the inference prompt opens the thinking" if report.opened else "the model opens the thinking"
    lines = [Text(f"{report.base}: format {report.template}; {opened}; replies end with {report.stop!r}")]
    for number, tokens in enumerate(report.shown, 1):
        trained = sum(token.trained for token in tokens)
        lines.append(Text(f"\nrow {number}: {len(tokens):,} tokens, {trained:,} trained", style="bold"))
        if len(tokens) > LONGEST:
            tokens = [*tokens[: LONGEST // 2], Token(" […] ", False), *tokens[-LONGEST // 2 :]]
        text = Text()
        for token in tokens:
            visible = "".join("⏎\n" if c == "\n" else c if c.isprintable() else "·" for c in token.text)
            text.append(visible, style="green" if token.trained else "dim")
        text.plain = re.sub(r"(<[^<>\s]*>)|(?<=\w\w)\w", lambda m: m[1] or "·", text.plain) if mask else text.plain
        lines.append(text)
    lines += [Text(f"note: {note}", style="cyan") for note in report.notes]
    lines += [Text(f"left out: {d.example} {d.reason}: {d.detail}", style="yellow") for d in report.dropped[:10]]
    lines += [Text(f"and {len(report.dropped) - 10:,} more")] * (len(report.dropped) > 10)
    checks = "context as at inference, one beginning, one thinking block, reasoning inside the labels, stop supervised"
    verdict = f"\n{report.rows:,} rows hold: {checks}, nothing truncated; {len(report.dropped):,} left out"
    lines.append(Text(report.problem, style="red") if report.problem else Text(verdict))
    return Group(*lines)
