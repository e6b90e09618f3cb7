"""A RecordFile behaves like a list of the same records, and hold no text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur.errors import UserError
from demur.records import Prompt, encode, write_jsonl
from demur.storage.records_file import Places, RecordFile

TEXTS = st.lists(st.text(max_size=20), max_size=12)


def prompt(text: str) -> Prompt:
    return Prompt(text=text, intent="harmful")


@given(TEXTS, st.data())
def test_rows_are_a_list(texts: list[str], data: st.DataObject) -> None:
    there = [prompt(text) for text in texts]
    rows = RecordFile(Prompt)
    for count, one in enumerate(there, 1):
        rows.append(one)
        assert rows[-1] == one, "what was appended can be read at once"
        assert len(rows) == count
    assert list(rows) == there
    order = data.draw(st.permutations(range(len(there))))
    turned = rows.take(order)
    assert list(turned) == [there[at] for at in order]
    assert list(turned[1:]) == [there[at] for at in order][1:], "a view of a view"
    assert [bytes(line) for line in turned.lines()] == [encode(there[at]) for at in order]
    with pytest.raises(IndexError):
        rows[len(there)]


def test_a_file_is_rows_and_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, [prompt("a"), prompt("b")])
    with path.open("a") as file:
        file.write("\n\n" + encode(prompt("c")).decode() + "\nnot a prompt\n")
    rows = RecordFile(Prompt, path=path)
    assert [one.text for one in rows[:3]] == ["a", "b", "c"], "empty lines are none"
    assert [bytes(line) for line in rows[2:3].lines()] == [encode(prompt("c"))]
    with pytest.raises(UserError, match=r"prompts\.jsonl:6: not a Prompt"):
        list(rows)


@given(st.lists(st.sampled_from("abcdef")), st.lists(st.sampled_from("abcdefgh")))
def test_places_are_those_of_first_occurrences(names: list[str], wanted: list[str]) -> None:
    found = Places(names).of(wanted).tolist()
    assert found == [names.index(name) if name in names else -1 for name in wanted]
