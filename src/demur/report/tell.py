"""A report as a terminal table, as Markdown, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from demur.bench.metrics import SUCCESS
from demur.records import Estimate, encode
from demur.report import words
from demur.report.data import Report, plain
from demur.report.metrics import Column

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


OPEN = 0.10
"""Above this distance between best and worst case a number carries a warning."""


class Head(NamedTuple):
    """A column of the first table as readers see it."""

    group: str
    title: str
    column: Column


class Line(NamedTuple):
    """A row of the first table: estimates by column, and which of them are the best beyond doubt."""

    arm: str
    cells: tuple[Estimate | None, ...]
    best: tuple[bool, ...]
    tokens: Estimate | None


def heads(report: Report) -> list[Head]:
    """The columns with short titles: an attack's name under its benchmark's, where there are several benchmarks."""
    columns = report.columns
    benches = {metric: {c.bench for c in columns if c.metric == metric} for metric in {c.metric for c in columns}}
    found = []
    for column in columns:
        several = len(benches[column.metric]) > 1
        attacked = column.metric in SUCCESS
        title = words.attack(column.attack) if attacked or column.attack != "none" else ""
        parts = [column.bench if several else "", title]
        found.append(Head(words.name(column.metric), " ".join(part for part in parts if part), column))
    return found


def lines(report: Report) -> list[Line]:
    """The rows of the first table."""
    columns = [head.column for head in heads(report)]
    best = {(b.bench, b.attack, b.metric, b.arm) for b in report.best}
    rows = []
    for arm in report.arms:
        cells = tuple(report.find(arm, column) for column in columns)
        marks = tuple((c.bench, c.attack, c.metric, arm) in best for c in columns)
        rows.append(Line(arm, cells, marks, _tokens(report, arm)))
    return rows


def _tokens(report: Report, arm: str) -> Estimate | None:
    """Thinking tokens on plain harmful questions, or on the first benchmark that counts them."""
    counted = [r for r in report.results if r.arm == arm and r.metric == "thinking_tokens" and r.seed is None]
    harmful = {(c.bench, c.attack) for c in report.columns if c.metric in SUCCESS}
    chosen = [r for r in counted if (r.bench, r.attack) in harmful and r.attack == "none"] or counted
    return chosen[0].estimate if chosen else None


def notes(report: Report) -> list[str]:
    """What stands under the table: how far it can be trusted."""
    cells = [cell for line in lines(report) for cell in line.cells if cell is not None]
    replies = sum(cell.n + cell.unscored for cell in cells)
    cut, unscored = sum(cell.truncated for cell in cells), sum(cell.unscored for cell in cells)
    seeds = max((protocol.seeds for protocol in report.protocols), default=1)
    asked = sorted({p.prompts for p in report.protocols})
    prompts = f"{asked[0]:,}" if len(asked) == 1 else f"{asked[0]:,} to {asked[-1]:,}" if asked else "no"
    judges = dict.fromkeys(f"{c.judge} ({c.part})" for c in report.columns)
    text = [
        f"{seeds} seed{'' if seeds == 1 else 's'}, {prompts} prompts a column; 95 % intervals, clustered by prompt"
        f"{', seeds as their own level' if seeds > 1 else ''}"
        f"{f', and {len(report.bases)} bases as theirs' if len(report.bases) > 1 else ''}; "
        f"truncated {_share(cut, replies)}, unscored {_share(unscored, replies)}; "
        f"judge{'' if len(judges) == 1 else 's'}: {', '.join(judges) or 'none'}"
    ]
    text += [
        f"{arm} is garbled in {words.interval(e)} % of replies: read its row with that in mind, it does not speak coherently"
        for arm, e in report.incoherent.items()
    ]
    text += _cut(report)
    if report.best:
        text.append("* better than every other arm, paired, after Holm")
    shown = [claim for claim in report.claims if claim.winner or claim.margin is not None]
    text += [words.sentence(claim) for claim in shown]
    if left := len(report.claims) - len(shown):
        others = f"{left} other comparison{'' if left == 1 else 's'}" if shown else f"{left} comparisons"
        text.append(f"no difference could be seen in {others}; the report says how many prompts would settle each")
    return text


def _cut(report: Report) -> list[str]:
    """Where so much was cut or unscored that the number could be quite another one."""
    found = []
    for line in lines(report):
        for head, cell in zip(heads(report), line.cells, strict=True):
            if cell is None or cell.best is None or cell.worst is None or abs(cell.worst - cell.best) <= OPEN:
                continue
            place = words.column_title(head.column.bench, head.column.attack, head.column.metric)
            low, high = sorted((cell.best, cell.worst))
            found.append(
                f"{line.arm}, {place}: {cell.truncated + cell.unscored} of {cell.n + cell.unscored} replies were cut or "
                f"unscored; the rate lies between {words.number(low)} and {words.number(high)} whatever they held"
            )
    return found


def _share(part: int, whole: int) -> str:
    return "0" if not part or not whole else f"{100 * part / whole:.1f} %"


def terminal(report: Report) -> Group:
    """The table for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if not report.arms:
        return Group(_pattern_table(report))
    columns = heads(report)
    title = "stand-in: small local models in every part; these numbers say nothing of any real model"
    table = Table(box=None, pad_edge=False, title=Text(title, style="bold red") if report.stand_in else None)
    table.add_column("arm", no_wrap=True)
    for place, head in enumerate(columns):
        first = place == 0 or columns[place - 1].group != head.group
        group = f"{head.group}, %" if first else ""
        table.add_column(Text(f"{group}\n{head.title}"), justify="right")
    table.add_column("thinking\ntokens", justify="right")
    for line in lines(report):
        cells = [
            Text((words.interval(cell) if cell else "") + (" *" if mark else ""), style="bold" if mark else "")
            for cell, mark in zip(line.cells, line.best, strict=True)
        ]
        style = "yellow" if line.arm in report.incoherent else ""
        table.add_row(
            Text(line.arm, style=style), *cells, words.number(line.tokens.value, "tokens") if line.tokens else ""
        )
    told = [Text(words.conclusion(one), style="bold" if one.outcome == "seen" else "") for one in report.findings]
    return Group(table, *told, *(Text(note, style="yellow" if "garbled" in note else "dim") for note in notes(report)))


def _pattern_table(report: Report) -> Table:
    """For a run without evaluations: what was found in its traces."""
    from rich.table import Table

    table = Table("traces", "pattern", "before the filter, %", "after, %", "detector", box=None, pad_edge=False)
    for row in _pattern_rows(report):
        table.add_row(*row)
    return table


def _pattern_rows(report: Report) -> list[list[str]]:
    """Traces, pattern, rate before the filter and after it, detector."""
    shown = [(r, words.interval(r.before), words.interval(r.after) if r.after else "") for r in report.patterns]
    return [[r.traces, r.pattern.replace("_", " "), before, after, r.detector] for r, before, after in shown]


def markdown(report: Report) -> str:
    """summary.md: the first table and what stands under it, then patterns and protocols."""
    out = [f"# {report.name}", ""]
    if report.stand_in:
        out += ["**stand-in**: small local models in every part; these numbers say nothing of any real model.", ""]
    if report.question:
        out += [report.question, ""]
    if report.findings:
        out += [*_table(words.FINDING, [list(row) for row in words.findings(report.findings)]), ""]
    if report.arms:
        out += [*_first_table(report), "", *(f"- {_escaped(note)}" for note in notes(report))]
    if report.claims:
        out += ["", "## Comparisons", ""]
        body = [
            [
                words.column_title(c.bench, c.attack, c.metric),
                f"{c.a} − {c.b}",
                words.spread(c.difference),
                words.p_value(c.p_holm),
                words.verdict(c),
            ]
            for c in report.claims
        ]
        out += _table(["benchmark", "arms", "difference [95 %]", "p (Holm)", "in words"], body)
    if report.patterns:
        out += ["", "## Failure patterns in the traces, %", ""]
        out += _table(["traces", "pattern", "before the filter", "after", "detector"], _pattern_rows(report))
    if report.funnels:
        keys = list(dict.fromkeys(key for funnel in report.funnels.values() for key in funnel))
        out += ["", "## What became of the teacher's replies", ""]
        out += _table(["strategy", *keys], [[n, *(str(f.get(k, "")) for k in keys)] for n, f in report.funnels.items()])
    out += ["", "## Protocols", ""]
    body = [
        [p.bench, str(p.version or ""), p.attack, ", ".join(p.judges), str(p.prompts), str(p.replies)]
        for p in report.protocols
    ]
    out += _table(["benchmark", "version", "attack", "judges", "prompts", "replies"], body)
    return "\n".join(out) + "\n"


def _first_table(report: Report) -> list[str]:
    """The first table as Markdown."""
    titles = ["arm", *(f"{h.group}{': ' if h.title else ''}{h.title}, %" for h in heads(report)), "thinking tokens"]
    rows = []
    for line in lines(report):
        cells = zip(line.cells, line.best, strict=True)
        tokens = words.number(line.tokens.value, "tokens") if line.tokens else ""
        rows.append([line.arm, *((words.interval(c) if c else "") + (" \\*" if m else "") for c, m in cells), tokens])
    return _table(titles, rows)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    body = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in body]


def _escaped(text: str) -> str:
    """Text that cannot leave its cell or become markup."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def as_csv(report: Report) -> str:
    """results.csv: every number of the run, one a line."""
    out = io.StringIO()
    estimate = [field.name for field in msgspec.structs.fields(Estimate)]
    own = ["arm", "seed", "bench", "attack", "metric", "part", "judge", "better", "unit"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*own, *estimate])
    for result in report.results:
        values = [*(getattr(result, key) for key in own), *(getattr(result.estimate, key) for key in estimate)]
        writer.writerow(["" if value is None else value for value in values])
    return out.getvalue()


def json_bytes(report: Report) -> bytes:
    """results.json: canonical, indented."""
    return msgspec.json.format(encode(plain(report)), indent=1) + b"\n"
