"""Two arms, of one run or of two, on what both were asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from demur.errors import UserError, unknown
from demur.report import words
from demur.report.metrics import Cell, Cells, Column, cells
from demur.report.read import Run, read
from demur.report.tests import HEADLINES, PairedTest, every_column

if TYPE_CHECKING:
    from rich.table import Table


class Side(NamedTuple):
    """What `RUN:arm/seed` means."""

    run: Path
    arm: str | None
    seed: int | None


def side(text: str) -> Side:
    """Read `RUN`, `RUN:arm` or `RUN:arm/seed`.

    Raises:
        UserError: the seed is no number.
    """
    run, colon, arm = text.rpartition(":")
    if not colon or Path(text).is_dir():
        return Side(Path(text), None, None)
    name, slash, seed = arm.partition("/")
    if slash and not seed.lstrip("-").isdigit():
        raise UserError(f"{text}: '{seed}' is no seed. Write RUN:arm or RUN:arm/seed, such as runs/mini:improved/0.")
    return Side(Path(run), name, int(seed) if slash else None)


def compare(a: str, b: str, *, margin: float | None = None) -> list[PairedTest]:
    """Every headline column that two arms share, by paired tests adjusted together.

    Args:
        a: `RUN:arm` or `RUN:arm/seed`; the arm may be left out where a run has only one.
        b: the other.
        margin: how much worse A's reasoning may be; default: what the study of A declares.

    Raises:
        UserError: no such arm or seed, or nothing that both were measured on.
    """
    sides = [side(a), side(b)]
    folders = {s.run: read(s.run) for s in sides}
    arms = [_arm(s, folders[s.run]) for s in sides]
    names = [arm if s.seed is None else f"{arm}/{s.seed}" for s, arm in zip(sides, arms, strict=True)]
    if names[0] == names[1]:
        names = [f"{s.run.name}:{name}" for s, name in zip(sides, names, strict=True)]
    if names[0] == names[1]:
        names = [f"{s.run}:{name}" for s, name in zip(sides, names, strict=True)]
    if names[0] == names[1]:
        raise UserError(
            f"{a} and {b} are the same: name two arms, such as {sides[0].run}:improved {sides[0].run}:short."
        )
    found: Cells = {name: _cells(folders[s.run], arm, s) for name, arm, s in zip(names, arms, sides, strict=True)}
    if margin is None:
        declared = folders[sides[0].run].study.get("compare") or []
        margin = next((c.get("margin") for c in declared if {c["a"], c["b"]} == set(arms)), None)
    claims = every_column(found, names[0], names[1], margin)
    if not claims:
        raise UserError(_nothing_shared(found, names))
    return claims


def _arm(s: Side, run: Run) -> str:
    arms = list(dict.fromkeys(e.arm for e in run.evaluations))
    if s.arm is None and len(arms) == 1:
        return arms[0]
    if s.arm is None:
        raise UserError(f"{s.run} has {len(arms)} arms: name one, {s.run}:ARM. There are: {', '.join(arms)}.")
    if s.arm not in arms:
        raise unknown("arm", s.arm, arms, where=f" in {s.run}")
    return s.arm


def _cells(run: Run, arm: str, s: Side) -> dict[Column, Cell]:
    chosen = [e for e in run.evaluations if e.arm == arm and s.seed in (None, e.seed)]
    if not chosen:
        seeds = sorted({e.seed for e in run.evaluations if e.arm == arm and e.seed is not None})
        raise UserError(f"{s.run}:{arm} has no seed {s.seed}. There are: {', '.join(map(str, seeds)) or 'none'}.")
    return cells(chosen)[arm]


def _nothing_shared(found: Cells, names: list[str]) -> str:
    what = [
        ", ".join(f"{c.bench} under {c.attack} by {c.judge}" for c in found[name] if c.metric in HEADLINES) or "nothing"
        for name in names
    ]
    return (
        f"nothing to compare: {names[0]} was measured on {what[0]}; {names[1]} on {what[1]}. Evaluate both alike first."
    )


def table(claims: list[PairedTest]) -> Table:
    """Comparisons for a terminal."""
    from rich.table import Table
    from rich.text import Text

    first = claims[0]
    made = Table(box=None, pad_edge=False)
    for title in ("benchmark", first.a, first.b, "difference", "p (Holm)"):
        made.add_column(Text(title), justify="left" if title == "benchmark" else "right", no_wrap=title != "benchmark")
    made.add_column("in words")
    several = {c.bench for c in claims if len({o.metric for o in claims if o.bench == c.bench}) > 1}
    for claim in claims:
        metric = claim.metric if claim.bench in several else ""
        title = f"{words.column_title(claim.bench, claim.attack, metric)}, n={claim.difference.clusters}"
        cells = words.interval(claim.estimate_a), words.interval(claim.estimate_b), words.spread(claim.difference)
        style = "bold" if claim.winner else ""
        made.add_row(Text(title), *cells, words.p_value(claim.p_holm), Text(words.verdict(claim), style=style))
    return made
