"""What a cell of people's files says. The names of columns, and of what rows say of themselves, are those of `forms.yaml`.

A cell that is empty, NaN, a list or a mapping never becomes a text in silence, and a label that means nothing is no label.
"""

import ast
import itertools
import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from demur import thinking
from demur.records import Intent
from demur.settings import from_yaml

TABLE: dict[str, Any] = from_yaml(Path(__file__).with_name("forms.yaml").read_text(encoding="utf-8"))
SLOT = {name: (slot, at) for slot, names in TABLE["columns"].items() for at, name in enumerate(names)}
WORDS: dict[str, Intent] = {word: intent for intent, words in TABLE["words"].items() for word in words}
CLASSES: dict[str, Intent] = {name: intent for intent, names in TABLE["types"].items() for name in names}
ROLES = {name: role for role, names in TABLE["roles"].items() for name in names}
STATED = {name for says, names in TABLE.items() if isinstance(names, list) for name in names}
FLAGS = {"true": True, "yes": True, "1": True, "1.0": True, "false": False, "no": False, "0": False, "0.0": False}
OF_REPLY = ("whole", "finish", "right")
SWITCH, SWITCHES = re.compile(TABLE["switch"]), {*TABLE["columns"]["attacked"], *TABLE["columns"]["thinking"]}
Row = Mapping[str, Any]
Said = Mapping[str, list[Any]]  # What a row says of itself, by heading; see `stated`


class OddRow(ValueError):
    """A row that is not of the form; the message says why."""


def keyed(row: Row) -> dict[str, Any]:
    """A row by the names of its columns as `forms.yaml` writes them."""
    return dict(zip(_keys(tuple(row)), row.values(), strict=True))


@lru_cache(maxsize=4096)
def _keys(columns: tuple[str, ...]) -> list[str]:
    """Names of columns as `forms.yaml` writes them; what no terminal should get is left out."""
    plain = (re.sub(r"[\s-]+", "_", name.strip().lower()) for name in columns)
    made = ["".join(filter(str.isprintable, name)) for name in plain]
    if len({*made}) < len(made):
        raise OddRow("two columns have one name but for capitals, blanks and hyphens")
    return made


def empty(value: Any) -> bool:
    """Whether a cell holds nothing: none, NaN, white space, an empty list or mapping."""
    return not value.strip() if isinstance(value, str) else value is None or value != value or value in ([], {})


@lru_cache(maxsize=4096)
def place(name: str) -> tuple[str | None, int]:
    """The slot of a column and its rank there; "": it is of no use; `None`: it says something of the row, or nobody misses it."""
    known = name in STATED or re.fullmatch(TABLE["quiet"], name)
    other = "other reply" if re.fullmatch(TABLE["other reply"], name) else ""
    return SLOT.get(name, (None if known else other, 0))


def filling(row: Row) -> tuple[tuple[str, str], ...]:
    """The columns of a keyed row, each with what fills it: `text`, `other`, `switch`, `blank` or nothing. Equal rows of a file share it."""
    return tuple([(name, _fills(name, value)) for name, value in row.items()])


def _fills(name: str, value: Any) -> str:
    if empty(value):
        return "blank" if value == "" else ""
    # WildGuardMix says by `adversarial` whether it is, Nemotron by `reasoning` whether the model was to think.
    if name in SWITCHES and SWITCH.fullmatch(str(value).strip().lower()):
        return "switch"
    return "text" if type(value) in (str, int) or text(value) else "other"


def slots(columns: tuple[tuple[str, str], ...]) -> dict[str, list[str]]:
    """The filled columns by slot, the one that counts in front; those of no use are under ""."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name, fills in columns:
        slot, at = place(name)
        if slot is not None and fills in ("text", "other"):
            found.setdefault("" if slot == "other reply" and fills == "other" else slot, []).append((at, name))
    made = {slot: [name for _, name in sorted(names)] for slot, names in found.items()}
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


def stated(row: Row) -> dict[str, list[Any]]:
    """What a row says of itself: the filled cells by heading of `forms.yaml`, in its order."""
    headed = _headed(tuple(row))
    return {says: cells for says, names in headed if (cells := [row[name] for name in names if not empty(row[name])])}


@lru_cache(maxsize=4096)
def _headed(columns: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """The columns under each heading of `forms.yaml`; headings without any are left out."""
    headings = {says: names for says, names in TABLE.items() if isinstance(names, list)}
    return [(says, own) for says, names in headings.items() if (own := [name for name in names if name in columns])]


def truth(value: Any) -> bool | None:
    """A flag; `None`: it is none."""
    return FLAGS.get(str(value).strip().lower())


def meant(value: Any) -> Intent | None:
    """The intent that the words of a label mean, such as `vanilla_benign` or `non-toxic`; `None`: they mean none."""
    value = " ".join(map(str, value)) if isinstance(value, list) else value
    words = re.findall("[a-z]+", value.lower()) if isinstance(value, str) else []
    found = next((WORDS[word] for word in words if word in WORDS), None)
    return "benign" if found == "harmful" and {"not", "non", "no"} & set(words) else found


def intent(said: Said, *, replied: bool) -> Intent | None:
    """What a row says that its prompt wants; `None`: nothing."""
    flags = [truth(cell) for cell in said.get("harmful prompt", ())]
    safe = [truth(cell) for cell in said.get("safe prompt", ()) if not replied]
    flagged: Intent | None = (
        "harmful" if True in flags or False in safe else "benign" if {False, True} & {*flags, *safe} else None
    )
    classed = [CLASSES.get(str(one).lower()) for one in said.get("classes", ())]
    return next(filter(None, [*map(meant, said.get("labels", ())), flagged, *classed]), None)


def flaw(said: Said, at: int) -> str:
    """What a row's own flags say against its reply `at`; empty when they say nothing."""
    whole, finish, right = (
        [one for cell in said.get(says, ()) for one in (cell[at : at + 1] if isinstance(cell, list) else [cell])]
        for says in OF_REPLY
    )
    if False in map(truth, whole) or "length" in finish:
        return "is cut"
    flags = [truth(cell) for cell in right if not empty(cell)]
    wrong = (False in flags and True not in flags) or any(cell is False for cell in said.get("desired", ()))
    return "is marked wrong" if wrong else ""


def unsafe(said: Said) -> bool:
    """Whether a row calls its reply harmful."""
    harmful = [meant(cell) == "harmful" or truth(cell) is True for cell in said.get("harmful reply", ())]
    return any(harmful) or any(truth(cell) is False for cell in said.get("safe reply", ()))


def category(said: Said) -> str:
    """The source's own class; of a mapping to flags the names of those that are true."""
    value: Any = listed(next(iter(said.get("classes", ())), ""))  # STAR-1 writes a Python list into a string
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


def turns(value: Any) -> list[tuple[str, str]]:
    """The turns of a conversation as (role, text), in the form of chat APIs or of ShareGPT; thinking that stands apart is put into the text."""
    value = listed(value)
    if not isinstance(value, list):
        raise OddRow(f"a conversation is a list of turns, this is {type(value).__name__}")
    if all(isinstance(turn, str) for turn in value):  # LIMA
        value = [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(value)]
    return [_turn(turn) for turn in value]


def _turn(turn: Any) -> tuple[str, str]:
    if not isinstance(turn, Mapping):
        raise OddRow("a turn is no object")
    said = str(turn.get("role") or turn.get("from"))
    role = ROLES.get(said.lower())
    if role is None or turn.get("tool_calls"):
        raise OddRow(f"a turn of role {said!r}{' with tool calls' if role else ''}")
    if role == "assistant" and (turn.get("weight") == 0 or turn.get("train") is False):
        raise OddRow("a turn that is not to be trained on (weight, train)")
    held = next((turn[name] for name in ("content", "value", "text") if name in turn), turn)
    if held is turn:
        raise OddRow(f"a turn without content: {', '.join(map(str, turn))}")
    pieces = held if isinstance(held, list) else [held or ""]
    apart = [turn[name] for name in thinking.FIELDS if not empty(turn.get(name))][:1]
    try:
        thought, content, others = thinking.from_parts(pieces)
        before, _, _ = thinking.from_parts([{"type": "thinking", "thinking": apart}])
    except ValueError as error:
        raise OddRow(f"{error}") from None
    if others:
        raise OddRow(f"a part of type {others[0]!r}")
    thought = "\n\n".join(filter(None, (before, thought)))
    return role, thinking.from_fields(thought, content)[0] if role == "assistant" else content or ""


def boxed(solution: str) -> str | None:
    r"""What stands in the last `\boxed` of a worked solution, which may lack its braces."""
    _, box, behind = solution.rpartition("\\boxed")
    behind = behind.lstrip()
    if not behind.startswith("{"):
        return behind[:1] if box and behind else None
    depths = itertools.accumulate((letter == "{") - (letter == "}") for letter in behind)
    end = next((at for at, depth in enumerate(depths) if depth == 0), None)
    return behind[1:end] if end else None
