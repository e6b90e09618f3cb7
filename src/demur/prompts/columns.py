"""What a cell of people's files says. The names of columns, and of what rows say of themselves, are those of `forms.yaml`.

A cell that is empty, NaN, a list or a mapping never becomes a text in silence, and a label that means nothing is no label.
"""

from __future__ import annotations

import ast
import itertools
import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from demur import thinking
from demur.records import Intent, Message

TABLE: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("forms.yaml").read_text(encoding="utf-8"))
SLOT = {name: (slot, at) for slot, names in TABLE["columns"].items() for at, name in enumerate(names)}
WORDS: dict[str, Intent] = {word: intent for intent, words in TABLE["words"].items() for word in words}
ROLES = {name: role for role, names in TABLE["roles"].items() for name in names}
STATED = {name for says, names in TABLE.items() if isinstance(names, list) for name in names}
FLAGS = {"true": True, "yes": True, "1": True, "1.0": True, "false": False, "no": False, "0": False, "0.0": False}
SWITCH = re.compile(TABLE["switch"])
Row = Mapping[str, Any]


class OddRow(ValueError):
    """A row that is not of the form; the message says why."""


def keyed(row: Row) -> dict[str, Any]:
    """A row by the names of its columns as `forms.yaml` writes them."""
    made = {key(name): value for name, value in row.items()}
    if len(made) < len(row):
        raise OddRow("two columns have one name but for capitals, blanks and hyphens")
    return made


@lru_cache(maxsize=4096)
def key(name: str) -> str:
    """A column's name as `forms.yaml` writes it; what no terminal should get is left out."""
    return "".join(filter(str.isprintable, re.sub(r"[\s-]+", "_", name.strip().lower())))


def empty(value: Any) -> bool:
    """Whether a cell holds nothing: none, NaN, white space, an empty list or mapping."""
    return not value.strip() if isinstance(value, str) else value is None or value != value or value in ([], {})


@lru_cache(maxsize=4096)
def place(name: str) -> tuple[str | None, int]:
    """The slot of a column and its rank there; "": it is of no use; `None`: it says something of the row, or nobody misses it."""
    known = name in STATED or re.fullmatch(TABLE["quiet"], name)
    other = "other reply" if re.fullmatch(TABLE["other reply"], name) else ""
    return SLOT.get(name, (None if known else other, 0))


def slots(row: Row) -> dict[str, list[str]]:
    """The filled columns of a keyed row by slot, the one that counts in front; those of no use are under ""."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name, value in row.items():
        slot, at = place(name)
        # WildGuardMix says by `adversarial` whether it is, Nemotron by `reasoning` whether the model was to think.
        switch = slot in ("attacked", "thinking") and SWITCH.fullmatch(str(value).strip().lower())
        if slot is not None and not empty(value) and not switch:
            found.setdefault("" if slot == "other reply" and not text(value) else slot, []).append((at, name))
    made = {slot: [name for _, name in sorted(columns)] for slot, columns in found.items()}
    for slot in ("context", "attacked"):
        if slot in made and "prompt" not in made:
            made["prompt"] = made.pop(slot)
    return made


def text(value: Any) -> str | None:
    """A cell as text: a text, a number, or a list of one of them; `None` for anything else."""
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, list) and len(value) == 1:
        return text(value[0])
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return str(int(value)) if value == int(value) else str(value)
    return None


def stated(row: Row, says: str, at: int | None = None) -> list[Any]:
    """The filled cells of the columns under a heading of `forms.yaml`, in its order; of a list the entry `at`."""
    cells = [row[name] for name in _headed(tuple(row)).get(says, ())]
    if at is not None:
        cells = [(cell[at] if at < len(cell) else None) if isinstance(cell, list) else cell for cell in cells]
    return [cell for cell in cells if not empty(cell)]


@lru_cache(maxsize=4096)
def _headed(columns: tuple[str, ...]) -> dict[str, list[str]]:
    """The columns under each heading of `forms.yaml`, in its order; headings without any are left out."""
    found = {says: [n for n in names if n in columns] for says, names in TABLE.items() if isinstance(names, list)}
    return {says: names for says, names in found.items() if names}


def truth(value: Any) -> bool | None:
    """A flag; `None`: it is none."""
    return FLAGS.get(str(value).strip().lower())


def meant(value: Any) -> Intent | None:
    """The intent that the words of a label mean, such as `vanilla_benign` or `non-toxic`; `None`: they mean none."""
    value = " ".join(map(str, value)) if isinstance(value, list) else value
    words = re.findall("[a-z]+", value.lower()) if isinstance(value, str) else []
    found = next((WORDS[word] for word in words if word in WORDS), None)
    return "benign" if found == "harmful" and {"not", "non", "no"} & set(words) else found


def intent(row: Row, *, replied: bool) -> Intent | None:
    """What a row says that its prompt wants; `None`: nothing."""
    flags = [truth(cell) for cell in stated(row, "harmful prompt")]
    safe = [truth(cell) for cell in stated(row, "safe prompt") if not replied]
    flagged: Intent | None = (
        "harmful" if True in flags or False in safe else "benign" if {False, True} & {*flags, *safe} else None
    )
    classes: list[Intent] = [
        "benign" for cell in stated(row, "classes") if str(cell).lower() in TABLE["words"]["benign"]
    ]
    return next(filter(None, [*map(meant, stated(row, "labels")), flagged, *classes]), None)


def flaw(row: Row, at: int) -> str:
    """What a row's own flags say against its reply `at`; empty when they say nothing."""
    if not {"whole", "finish", "right"} & _headed(tuple(row)).keys() and "label" not in row:
        return ""
    if False in map(truth, stated(row, "whole", at)) or "length" in stated(row, "finish", at):
        return "is cut"
    flags = [truth(cell) for cell in stated(row, "right", at)]
    # TRL marks an undesirable completion by `label: false`.
    if (False in flags and True not in flags) or row.get("label") is False:
        return "is marked wrong"
    return ""


def unsafe(row: Row) -> bool:
    """Whether a row calls its reply harmful."""
    harmful = [meant(cell) == "harmful" or truth(cell) is True for cell in stated(row, "harmful reply")]
    return any(harmful) or any(truth(cell) is False for cell in stated(row, "safe reply"))


def category(row: Row) -> str:
    """The source's own class; of a mapping to flags the names of those that are true."""
    value = next(iter(stated(row, "classes")), "")
    if isinstance(value, str) and value.startswith("["):  # STAR-1 writes a Python list into a string
        value = listed(value)
    if isinstance(value, Mapping):
        value = [name for name, flag in value.items() if flag is True]
    return ", ".join(filter(None, map(text, value))) if isinstance(value, list) else text(value) or ""


def listed(value: Any) -> Any:
    """A list that a table holds as text, of JSON or of Python; any other cell as it is."""
    if isinstance(value, str) and value.startswith("["):
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(value)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            return found if isinstance(found, list) else value
    return value


def turns(value: Any) -> list[Message]:
    """The turns of a conversation, in the form of chat APIs or of ShareGPT; thinking that stands apart is put into the text."""
    value = listed(value)
    if not isinstance(value, list):
        raise OddRow(f"a conversation is a list of turns, this is {type(value).__name__}")
    if all(isinstance(turn, str) for turn in value):  # LIMA
        value = [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(value)]
    return [_turn(turn) for turn in value]


def _turn(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise OddRow("a turn is no object")
    said = str(turn.get("role") or turn.get("from"))
    role = ROLES.get(said.lower())
    if role is None or turn.get("tool_calls"):
        raise OddRow(f"a turn of role {said!r}{' with tool calls' if role else ''}")
    if turn.get("weight") == 0 or turn.get("train") is False:
        raise OddRow("a turn that is not to be trained on (weight, train)")
    held = [turn[name] for name in ("content", "value", "text") if name in turn]
    if not held:
        raise OddRow(f"a turn without content: {', '.join(map(str, turn))}")
    content = held[0]
    pieces = content if isinstance(content, list) else [content or ""]
    apart = [turn[name] for name in thinking.FIELDS if not empty(turn.get(name))][:1]
    try:
        thought, content, others = thinking.from_parts(pieces)
        before, _, _ = thinking.from_parts([{"type": "thinking", "thinking": apart}])
    except ValueError as error:
        raise OddRow(f"{error}") from None
    if others:
        raise OddRow(f"a part of type {others[0]!r}")
    thought = "\n\n".join(filter(None, (before, thought)))
    return Message(
        role=role, content=thinking.from_fields(thought, content)[0] if role == "assistant" else content or ""
    )


def boxed(solution: str) -> str | None:
    r"""What stands in the last `\boxed` of a worked solution, which may lack its braces."""
    _, box, behind = solution.rpartition("\\boxed")
    behind = behind.lstrip()
    if not behind.startswith("{"):
        return behind[:1] if box and behind else None
    depths = itertools.accumulate((letter == "{") - (letter == "}") for letter in behind)
    end = next((at for at, depth in enumerate(depths) if depth == 0), None)
    return behind[1:end] if end else None
