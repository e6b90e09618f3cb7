"""Tables, and how they are written: for a terminal, as Markdown, on a page."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions
from rich.table import Table as RichTable
from rich.text import Text

from demur.records import Estimate
from demur.report import format

STAND_IN = "smoke run: small local models in every part; these numbers say nothing about any real model"
OPEN, DOUBT = 0.10, "?"  # Above this distance between best and worst case a number is doubtful, and is marked so


class Cell(NamedTuple):
    """One place of a table."""

    text: str
    tone: str = ""  # best, warn, soft, or nothing
    about: str = ""  # Shown on a page on hover or focus
    where: str = ""  # The traces behind it, as the viewer's filters: `arm=short&bench=xstest`
    track: tuple[float, float, float] | None = None  # Low, value and high in per cent, drawn as a bar


class Head(NamedTuple):
    """A column's heading; `group` is printed once above neighbours that share it."""

    title: str
    group: str = ""
    number: bool = True  # Aligned to the right


class Table(NamedTuple):
    """Rows under heads. A cell may be plain text."""

    heads: tuple[Head, ...]
    rows: list[tuple[Cell | str, ...]]
    name: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RichTable | Text | str]:
        """For a terminal, without markup. Columns that do not fit stand below, each block after the rows' names."""
        yield from [Text(self.name, style="table.title")] * bool(self.name)
        columns = [(at, *_widths(self, at)) for at in range(len(self.heads))]
        ambiguous = len({plain(row[0]) for row in self.rows}) < len(self.rows)
        names = 1 + (ambiguous and sum(least for _, least, _ in columns[:2]) < 0.6 * options.max_width)
        block = columns[:names]
        for column in columns[names:]:
            if block[names:] and sum(least + 2 for _, least, _ in (*block, column)) > options.max_width + 2:
                yield from (_block(self, block, options.max_width), "")
                block = columns[:names]
            block = [*block, column]
        yield _block(self, block, options.max_width)


class Section(NamedTuple):
    """A part of a report: tables and figures with their introduction and notes."""

    id: str
    title: str
    tables: tuple[Table, ...] = ()
    about: str = ""
    notes: tuple[str, ...] = ()
    figures: tuple[tuple[str, Table], ...] = ()  # SVG, each with the table of its values
    fold: bool = False  # Closed at first on a page


UNBROKEN = 24  # Characters up to which a cell stays on one line
FEW = 10  # Below so many scored replies n is shown beside the rate


def table(titles: Sequence[str], rows: Sequence[tuple[Cell | str, ...]], name: str = "") -> Table:
    """A table; a title that begins with # is of numbers."""
    return Table(tuple(Head(title.removeprefix("#"), number=title[0] == "#") for title in titles), list(rows), name)


def estimate(
    e: Estimate | None, unit: str = "share", *, where: str = "", best: bool = False, asked: int = 0, doubt: bool = False
) -> Cell:
    """A number as a cell, with its n where that is small, or less than was asked; without scored replies the reason."""
    if e is None:
        return Cell("")
    about = f"{e.how}; n={format.of(e)}, unscored {e.unscored:,}, truncated {e.truncated:,}"
    if e.best is not None and e.worst is not None and e.best != e.worst:
        low, high = sorted((e.best, e.worst))
        about += f"; between {format.number(low)} and {format.number(high)} whatever was truncated or unscored"
    if e.truncated and e.truncated >= e.n + e.unscored:
        return Cell("all truncated", "warn", about, where)
    if e.value is None or e.low is None or e.high is None:
        few = f"{e.n} scored" if e.n else format.NONE
        return Cell(e.how if e.how.startswith("screen:") else few, "soft", about, where)
    track = (100 * e.low, 100 * e.value, 100 * e.high) if unit == "share" else None
    small, doubt = e.n < FEW or e.n < (1 - OPEN) * max(asked, e.n + e.unscored), doubt or doubtful(e)
    marks = f" {DOUBT}" * doubt + f" n={e.n:,}" * small + " *" * best
    tone = "warn" if doubt else "best" if best else ""
    return Cell(format.interval(e, unit) + marks, tone, about, where, track)


def doubtful(e: Estimate) -> bool:
    """Whether truncated and unscored replies leave its value wide open."""
    return e.best is not None and e.worst is not None and abs(e.worst - e.best) > OPEN


def plain(cell: Cell | str) -> str:
    """A cell's text."""
    return cell if isinstance(cell, str) else cell.text


def _widths(table: Table, at: int) -> tuple[int, int]:
    """The least width of a column that breaks no number and no word, and the most that it can use."""
    head, cells = table.heads[at], [plain(row[at]) for row in table.rows]
    leads = at == 0 or table.heads[at - 1].group != head.group
    lines = [*f"{head.group * leads}\n{head.title}".split("\n"), *cells]
    unbroken = [cell for cell in cells if len(cell) <= UNBROKEN]
    return max(len(text) for text in (*" ".join(lines).split(), *unbroken, "")), max(map(len, lines))


def _block(table: Table, columns: Sequence[tuple[int, int, int]], width: int) -> RichTable:
    """Some columns, as place, least and most width. Spare width goes first to columns that want little of it."""
    widths, spare = dict[int, int](), max(0, width + 2 - sum(least + 2 for _, least, _ in columns))
    for done, (want, at, least) in enumerate(sorted((most - least, at, least) for at, least, most in columns)):
        widths[at] = least + min(want, spare // (len(columns) - done))
        spare -= widths[at] - least
    result = RichTable(box=None, pad_edge=False)
    for place, (at, *_) in enumerate(columns):
        head = table.heads[at]
        group = head.group if place == 0 or table.heads[columns[place - 1][0]].group != head.group else ""
        title = f"{group}\n{head.title}" if any(h.group for h in table.heads) else head.title
        result.add_column(Text(title), justify="right" if head.number else "left", overflow="fold", width=widths[at])
    styles = {"best": "bold", "warn": "yellow", "soft": "dim", "": ""}
    for row in table.rows:
        result.add_row(*(Text(plain(row[at]), style=styles[getattr(row[at], "tone", "")]) for at, *_ in columns))
    return result


@cache
def templates() -> Any:
    """The environment of the templates. In HTML and SVG all that is not marked as safe is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    options: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    escape = select_autoescape(("html", "svg"))
    environment = Environment(loader=PackageLoader("demur.report"), autoescape=escape, **options)
    environment.filters["cell"] = lambda cell: cell if isinstance(cell, Cell) else Cell(cell)
    return environment


def markdown(table: Table) -> str:
    """A table as Markdown; no text in it can leave its cell or become markup."""
    safe = str.maketrans({"|": "\\|", "<": "&lt;", "*": "\\*", "\n": " "})
    titles = [": ".join(part for part in (head.group, head.title) if part) for head in table.heads]
    rows = [[cell.translate(safe) for cell in row] for row in (titles, *([plain(c) for c in r] for r in table.rows))]
    rows.insert(1, ["---:" if head.number else "---" for head in table.heads])
    body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"**{table.name}**", "", *body] if table.name else body)
