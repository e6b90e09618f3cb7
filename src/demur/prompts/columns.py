"""What the cells of people's files mean, by the names of columns in `forms.yaml`.

An empty cell, NaN, a list or a mapping never silently becomes text, and a label that cannot be understood is ignored.
"""

import ast
import contextlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from demur import thinking
from demur.records import Intent
from demur.settings import from_yaml

TABLE: dict[str, Any] = from_yaml(Path(__file__).with_name("forms.yaml").read_text(encoding="utf-8"))
SLOT = {name: (slot, rank) for slot, names in TABLE["columns"].items() for rank, name in enumerate(names)}
WORDS: dict[str, Intent] = {word: intent for intent, words in TABLE["words"].items() for word in words}
CLASSES: dict[str, Intent] = {name: intent for intent, names in TABLE["types"].items() for name in names}
ROLES = {name: role for role, names in TABLE["roles"].items() for name in names}
HEADINGS: dict[str, list[str]] = {heading: names for heading, names in TABLE.items() if isinstance(names, list)}
STATED = {name for names in HEADINGS.values() for name in names}  # Columns that describe their row
FLAGS = {"true": True, "yes": True, "1": True, "1.0": True, "false": False, "no": False, "0": False, "0.0": False}
SWITCH, SWITCHES = re.compile(TABLE["switch"]), {*TABLE["columns"]["attacked"], *TABLE["columns"]["thinking"]}
Row = Mapping[str, Any]
Shape = tuple[tuple[str, str], ...]  # The columns of a row, each with the kind of its cell; see `shape`
Statements = Mapping[str, list[Any]]  # What a row states about itself, by heading; see `stated`


class OddRow(ValueError):
    """A row that does not fit the form; the message gives the reason."""


def keyed(row: Row) -> dict[str, Any]:
    """A row with the names of its columns as `forms.yaml` writes them."""
    return dict(zip(_keys(tuple(row)), row.values(), strict=True))


@lru_cache(maxsize=4096)
def _keys(columns: tuple[str, ...]) -> list[str]:
    """Names of columns as `forms.yaml` writes them, without characters that a terminal must not receive."""
    plain = (re.sub(r"[\s-]+", "_", name.strip().lower()) for name in columns)
    keys = ["".join(filter(str.isprintable, name)) for name in plain]
    if len({*keys}) < len(keys):
        raise OddRow("two columns have one name but for capitals, blanks and hyphens")
    return keys


def empty(value: Any) -> bool:
    """Whether a cell holds nothing: none, NaN, white space, an empty list or mapping."""
    return not value.strip() if isinstance(value, str) else value is None or value != value or value in ([], {})


@lru_cache(maxsize=4096)
def slot_of(name: str) -> tuple[str | None, int]:
    """The slot of a column and its rank there; "": no use; `None`: it describes the row, or nobody misses it."""
    known = name in STATED or re.fullmatch(TABLE["quiet"], name)
    other = "other reply" if re.fullmatch(TABLE["other reply"], name) else ""
    return SLOT.get(name, (None if known else other, 0))


def shape(row: Row) -> Shape:
    """The columns of a keyed row, each with the kind of its cell: `text`, `other`, `switch`, `blank` or nothing."""
    return tuple([(name, _kind(name, value)) for name, value in row.items()])


def _kind(name: str, value: Any) -> str:
    if empty(value):
        return "blank" if value == "" else ""
    # WildGuardMix's `adversarial` is a flag, and so is Nemotron's `reasoning`: whether the model was to think.
    if name in SWITCHES and SWITCH.fullmatch(str(value).strip().lower()):
        return "switch"
    return "text" if type(value) in (str, int) or text(value) else "other"


def slots(columns: Shape) -> dict[str, list[str]]:
    """The filled columns by slot, the preferred one first; columns of no use are under ""."""
    ranked: dict[str, list[tuple[int, str]]] = {}
    for name, kind in columns:
        slot, rank = slot_of(name)
        if slot is not None and kind in ("text", "other"):
            ranked.setdefault("" if slot == "other reply" and kind == "other" else slot, []).append((rank, name))
    found = {slot: [name for _, name in sorted(names)] for slot, names in ranked.items()}
    for slot in ("context", "attacked"):  # which are the prompt where nothing else is
        if slot in found and "prompt" not in found:
            found["prompt"] = found.pop(slot)
    return found


def text(value: Any) -> str | None:
    """A cell as text: a text, a number, or a list of one of them; `None` for anything else."""
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, list) and len(value) == 1:
        return text(value[0])
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return str(int(value)) if value == int(value) else str(value)
    return None


def stated(row: Row) -> dict[str, list[Any]]:
    """What a row states about itself: its filled cells by heading of `forms.yaml`, in that order."""
    headed = _headed(tuple(row))
    filled = ((heading, [row[name] for name in names if not empty(row[name])]) for heading, names in headed)
    return {heading: cells for heading, cells in filled if cells}


@lru_cache(maxsize=4096)
def _headed(columns: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """The columns under each heading of `forms.yaml`, without headings that have none."""
    headed = [(heading, [name for name in names if name in columns]) for heading, names in HEADINGS.items()]
    return [(heading, names) for heading, names in headed if names]


def truth(value: Any) -> bool | None:
    """The value of a flag; `None` for anything else."""
    return FLAGS.get(str(value).strip().lower())


def label_intent(label: Any) -> Intent | None:
    """The intent in the words of a label, such as `vanilla_benign` or `non-toxic`; `None` without one."""
    label = " ".join(map(str, label)) if isinstance(label, list) else label
    words = re.findall("[a-z]+", label.lower()) if isinstance(label, str) else []
    found = next((WORDS[word] for word in words if word in WORDS), None)
    return "benign" if found == "harmful" and {"not", "non", "no"} & set(words) else found


def intent(statements: Statements, *, replied: bool) -> Intent | None:
    """The intent that a row states by a label, else a flag, else a class; `None` where it states none."""
    # In a row with a reply, flags of safety are about the reply.
    safe = [truth(cell) for cell in statements.get("safe prompt", ()) if not replied]
    harmful = [*map(truth, statements.get("harmful prompt", ())), *(not flag for flag in safe if flag is not None)]
    flagged: Intent | None = "harmful" if True in harmful else "benign" if False in harmful else None
    labelled = map(label_intent, statements.get("labels", ()))
    classed = (CLASSES.get(str(cell).lower()) for cell in statements.get("classes", ()))
    return next(filter(None, (*labelled, flagged, *classed)), None)


def flaw(statements: Statements, at: int) -> str:
    """What is wrong with reply number `at` by its row's own flags; empty where they report nothing."""

    def cells(heading: str) -> Iterator[Any]:
        for cell in statements.get(heading, ()):
            yield from cell[at : at + 1] if isinstance(cell, list) else [cell]

    if False in map(truth, cells("whole")) or "length" in cells("finish"):
        return "is cut"
    graded = [truth(cell) for cell in cells("right") if not empty(cell)]
    wrong = (False in graded and True not in graded) or any(cell is False for cell in statements.get("desired", ()))
    return "is marked wrong" if wrong else ""


def unsafe(statements: Statements) -> bool:
    """Whether a row marks its reply as harmful."""
    harmful = [label_intent(cell) == "harmful" or truth(cell) is True for cell in statements.get("harmful reply", ())]
    return any(harmful) or any(truth(cell) is False for cell in statements.get("safe reply", ()))


def category(statements: Statements) -> str:
    """The source's own class; of a mapping to flags, the names of those that are true."""
    value: Any = parsed(next(iter(statements.get("classes", ())), ""))  # STAR-1 writes a Python list into a string
    if isinstance(value, Mapping):
        value = [name for name, flag in value.items() if flag is True]
    return ", ".join(filter(None, map(text, value))) if isinstance(value, list) else text(value) or ""


def parsed(value: Any) -> Any:
    """A list that a table holds as text, in JSON or Python; any other cell as it is."""
    if isinstance(value, str) and value.startswith("["):
        for parse in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                result = parse(value)
                return result if isinstance(result, list) else value
    return value


def turns(value: Any) -> list[tuple[str, str]]:
    """The turns of a conversation, as of chat APIs or ShareGPT, as (role, text); separate thinking is put into it."""
    value = parsed(value)
    if not isinstance(value, list):
        raise OddRow(f"a conversation is a list of turns, this is {type(value).__name__}")
    if all(isinstance(turn, str) for turn in value):  # LIMA
        value = [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(value)]
    return [_turn(turn) for turn in value]


def _turn(turn: Any) -> tuple[str, str]:
    if not isinstance(turn, Mapping):
        raise OddRow("a turn is not an object")
    name = str(turn.get("role") or turn.get("from"))
    role = ROLES.get(name.lower())
    if role is None or turn.get("tool_calls"):
        raise OddRow(f"a turn of role {name!r}{' with tool calls' if role else ''}")
    if role == "assistant" and (turn.get("weight") == 0 or turn.get("train") is False):
        raise OddRow("a turn that is not to be trained on (weight, train)")
    key = next((key for key in ("content", "value", "text") if key in turn), None)
    if key is None:
        raise OddRow(f"a turn without content: {', '.join(map(str, turn))}")
    parts = turn[key] if isinstance(turn[key], list) else [turn[key] or ""]
    separate = [turn[field] for field in thinking.FIELDS if not empty(turn.get(field))][:1]
    try:
        thought, content, others = thinking.from_parts(parts)
        before, _, _ = thinking.from_parts([{"type": "thinking", "thinking": separate}])
    except ValueError as error:
        raise OddRow(f"{error}") from None
    if others:
        raise OddRow(f"a part of type {others[0]!r}")
    thought = "\n\n".join(filter(None, (before, thought)))
    return role, thinking.from_fields(thought, content)[0] if role == "assistant" else content or ""


def boxed(solution: str) -> str | None:
    r"""The content of the last `\boxed` of a worked solution; its next character where braces are missing."""
    _, box, rest = solution.rpartition("\\boxed")
    rest = rest.lstrip()
    if not rest.startswith("{"):
        return rest[:1] if box and rest else None
    depths = itertools.accumulate((character == "{") - (character == "}") for character in rest)
    end = next((at for at, depth in enumerate(depths) if depth == 0), None)
    return rest[1:end] if end else None
