"""The table that README.md prints is the program's, of the miniature study's own results."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from demur import report, stats
from demur.report.first import columns, first
from demur.report.tables import plain, table

ROOT = Path(__file__).parents[2]
WIDTH = 156
"""Of the command line's output where it is no terminal."""


@pytest.fixture(scope="module")
def mini() -> report.Report:
    """The results of `make demo`, what its first table shows and no more."""
    return msgspec.json.decode((ROOT / "tests/assets/mini_results.json").read_bytes(), type=report.Report)


def printed(built: report.Report, width: int) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(report.terminal(built))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_readmes_table_is_what_the_program_prints(mini: report.Report) -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    first = next(place for place, line in enumerate(lines) if line.split() == ["pairs", "told"])
    last = next(place for place in range(first, len(lines)) if lines[place].startswith("`seen`"))
    block = [line[4:].rstrip() for line in lines[first:last]]
    end = block.index("")
    ours = printed(mini, WIDTH)
    assert block[:end] == ours[:end], "the table, line by line"
    notes = printed(mini, 1_000)
    for line in filter(None, block[end:]):
        start = line.rstrip("… ")
        assert any(note == line or (line != start and note.startswith(start)) for note in notes), line


@pytest.mark.parametrize("width", [40, 80, 110])
def test_no_number_and_no_word_is_broken_in_a_narrow_terminal(mini: report.Report, width: int) -> None:
    """What a line is too short for stands below, behind the arms' names again."""
    lines = printed(mini, width)
    table = lines[: next(place for place, line in enumerate(lines) if line.startswith("1 seed"))]
    assert max(map(len, table)) <= width
    own = [line for line in table if line.startswith("improved ")]
    (section,) = first(mini)
    (row,) = [row for row in section.tables[0].rows if row[0].text == "improved"]  # type: ignore[union-attr]
    assert len(own) > 1
    assert " ".join(" ".join(own).replace("improved", "").split()) == " ".join(plain(cell) for cell in row[1:])
    assert all(
        word in " ".join(table).split() for word in ("mini_arithmetic", "over-refusal,", "benchmarks", "adaptive")
    )


def test_what_tells_rows_apart_stands_before_every_block_of_a_narrow_table() -> None:
    rows = [("target", "one", "20", "240"), ("target", "two", "20", "164")]
    console = Console(width=30, record=True, file=io.StringIO())
    console.print(table(("part", "stage", "#requests", "#tokens"), rows))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines == [
        ["part", "stage", "requests"], ["target", "one", "20"], ["target", "two", "20"], [],
        ["part", "stage", "tokens"], ["target", "one", "240"], ["target", "two", "164"],
    ]  # fmt: skip


def test_a_tables_name_stands_above_it_once_and_on_one_line() -> None:
    console = Console(width=50, record=True, file=io.StringIO())
    name = "replies that people labelled, judge by judge"
    console.print(table(("judge", *(f"#column {at}" for at in range(9))), [("rules", *map(str, range(9)))], name))
    lines = console.export_text().splitlines()
    assert (lines[0].rstrip(), sum("people" in line for line in lines)) == (name, 1)
    assert sum(line.startswith("judge") for line in lines) > 1, "columns that find no room stand below"


def test_its_intervals_are_those_of_its_counts(mini: report.Report) -> None:
    """With one seed and one reply a prompt nothing else enters; so the file cannot be older than the statistics."""
    shares = [c for c in mini.columns if c.unit == "share"]
    assert len(shares) == 7
    for arm in mini.arms:
        for column in shares:
            e = mini.find(arm, column)
            assert e is not None
            hits = round((e.value or 0) * e.n)
            again = stats.rate([place < hits for place in range(e.n)], clusters=list(map(str, range(e.n))))
            assert (e.value, e.low, e.high) == pytest.approx((again.value, again.low, again.high), abs=1e-9), (
                arm,
                column,
            )
    assert {c.bench for c in columns(mini)} == {
        "mini_harm",
        "mini_benign",
        "mini_harm + mini_benign",
        "mini_arithmetic",
        "all",
    }
