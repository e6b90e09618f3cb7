"""One table, three writers: for a terminal, Markdown, a page."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions
from rich.table import Table as RichTable
from rich.text import Text

from demur.records import Estimate
from demur.report import format

STAND_IN = "smoke run: small local models in every part; these numbers say nothing of any real model"
OPEN, DOUBT = 0.10, "?"  # Above this distance between best and worst case a number is doubtful, and has this behind it


class Cell(NamedTuple):
    """What stands at one place of a table."""

    text: str
    tone: str = ""  # best, warn, soft, or nothing
    about: str = ""  # What a page tells of it on hover or focus
    where: str = ""  # Which traces are behind it, as the viewer's filters: `arm=short&bench=xstest`
    track: tuple[float, float, float] | None = None  # Low, value and high in per cent, drawn as a bar


class Head(NamedTuple):
    """A column's heading; `group` stands over neighbours that have it in common."""

    title: str
    group: str = ""
    number: bool = True  # Set to the right


class Table(NamedTuple):
    """Rows under heads. A cell may be plain text."""

    heads: tuple[Head, ...]
    rows: list[tuple[Cell | str, ...]]
    name: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RichTable | Text | str]:
        """For a terminal, markup in it without effect. Columns that it is too narrow for stand below, behind what names rows."""
        yield from [Text(self.name, style="table.title")] * bool(self.name)
        every = [(at, *_widths(self, at)) for at in range(len(self.heads))]
        alike = len({plain(row[0]) for row in self.rows}) < len(self.rows)
        own = every[: (names := 1 + (alike and sum(least for _, least, _ in every[:2]) < 0.6 * options.max_width))]
        for one in every[names:]:
            if own[names:] and sum(least + 2 for _, least, _ in (*own, one)) > options.max_width + 2:
                yield from (_block(self, own, options.max_width), "")
                own = every[:names]
            own = [*own, one]
        yield _block(self, own, options.max_width)


class Section(NamedTuple):
    """A part of a report: a table or a drawing, with what has to be said about it."""

    id: str
    title: str
    tables: tuple[Table, ...] = ()
    about: str = ""
    notes: tuple[str, ...] = ()
    figures: tuple[tuple[str, Table], ...] = ()  # Drawings, as SVG, each with the table of its values
    fold: bool = False  # Closed until it is wanted


UNBROKEN = 24  # Characters up to which a cell stays on one line
FEW = 10  # Below so many scored replies their number stands beside the rate


def table(titles: Sequence[str], rows: Sequence[tuple[Cell | str, ...]], name: str = "") -> Table:
    """A table; a title that begins with # is of numbers."""
    return Table(tuple(Head(title.removeprefix("#"), number=title[0] == "#") for title in titles), list(rows), name)


def estimate(
    found: Estimate | None, unit: str = "share", *, where: str = "", best: bool = False, asked: int = 0, doubt: bool = False
) -> Cell:  # fmt: skip
    """A number as a cell, with its n where that is small, or less than was asked. Where nothing is scored there is none to show."""
    if found is None:
        return Cell("")
    about = f"{found.how}; n={format.of(found)}, unscored {found.unscored:,}, truncated {found.truncated:,}"
    if found.best is not None and found.worst is not None and found.best != found.worst:
        low, high = sorted((found.best, found.worst))
        about += f"; between {format.number(low)} and {format.number(high)} whatever was truncated or unscored"
    if found.truncated and found.truncated >= found.n + found.unscored:
        return Cell("all truncated", "warn", about, where)
    if found.value is None or found.low is None or found.high is None:
        few = f"{found.n} scored" if found.n else format.NONE
        return Cell(found.how if found.how.startswith("screen:") else few, "soft", about, where)
    track = (100 * found.low, 100 * found.value, 100 * found.high) if unit == "share" else None
    small = found.n < FEW or found.n < (1 - OPEN) * max(asked, found.n + found.unscored)
    beside = f" {DOUBT}" * (doubt := doubt or doubtful(found)) + f" n={found.n:,}" * small + " *" * best
    tone = "warn" if doubt else "best" if best else ""
    return Cell(format.interval(found, unit) + beside, tone, about, where, track)


def doubtful(found: Estimate) -> bool:
    """Whether what was truncated or unscored could make it quite another number."""
    return found.best is not None and found.worst is not None and abs(found.worst - found.best) > OPEN


def plain(cell: Cell | str) -> str:
    """A cell's text."""
    return cell if isinstance(cell, str) else cell.text


def _widths(table: Table, at: int) -> tuple[int, int]:
    """The least that a column needs, so that no number and no word is broken, and the most that it has a use for."""
    head, cells = table.heads[at], [plain(row[at]) for row in table.rows]
    leads = at == 0 or table.heads[at - 1].group != head.group
    lines = [*f"{head.group * leads}\n{head.title}".split("\n"), *cells]
    whole = [cell for cell in cells if len(cell) <= UNBROKEN]
    return max(len(text) for text in (*" ".join(lines).split(), *whole, "")), max(map(len, lines))


def _block(table: Table, shown: Sequence[tuple[int, int, int]], width: int) -> RichTable:
    """Some columns: what is left of the width goes to small wants first."""
    wide, spare = dict[int, int](), max(0, width + 2 - sum(least + 2 for _, least, _ in shown))
    for done, (want, at, least) in enumerate(sorted((most - least, at, least) for at, least, most in shown)):
        wide[at] = least + min(want, spare // (len(shown) - done))
        spare -= wide[at] - least
    made = RichTable(box=None, pad_edge=False)
    for place, (at, *_) in enumerate(shown):
        head = table.heads[at]
        group = head.group if place == 0 or table.heads[shown[place - 1][0]].group != head.group else ""
        title = f"{group}\n{head.title}" if any(one.group for one in table.heads) else head.title
        made.add_column(Text(title), justify="right" if head.number else "left", overflow="fold", width=wide[at])
    styles = {"best": "bold", "warn": "yellow", "soft": "dim", "": ""}
    for row in table.rows:
        made.add_row(*(Text(plain(row[at]), style=styles[getattr(row[at], "tone", "")]) for at, *_ in shown))
    return made


@cache
def templates() -> Any:
    """What a page and its drawings are made of, and notes: in HTML and SVG all that is not marked as ours is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    how: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    made = Environment(loader=PackageLoader("demur.report"), autoescape=select_autoescape(("html", "svg")), **how)
    made.filters["cell"] = lambda cell: cell if isinstance(cell, Cell) else Cell(cell)
    return made


def markdown(table: Table) -> str:
    """A table as Markdown; nothing in it can leave its cell or become markup."""
    safe = str.maketrans({"|": "\\|", "<": "&lt;", "*": "\\*", "\n": " "})
    titles = [": ".join(part for part in (head.group, head.title) if part) for head in table.heads]
    rows = [[cell.translate(safe) for cell in row] for row in (titles, *([plain(c) for c in r] for r in table.rows))]
    rows.insert(1, ["---:" if head.number else "---" for head in table.heads])
    body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"**{table.name}**", "", *body] if table.name else body)
