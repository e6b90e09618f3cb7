"""Plain data to checked settings. A problem is reported with file, line, the nearest allowed key and all allowed keys."""

import contextlib
import copy
import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from demur.errors import UserError, nearest

M = typing.TypeVar("M", bound=BaseModel)
Location = tuple[int | str, ...]
LARGEST, DEEPEST = 100_000, 50  # Values of a study file, and how deep they may be nested
PLAIN = pydantic.TypeAdapter(Any)  # Made once: it takes longer than its work


class Strict(BaseModel):
    """The base of all settings: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def connection(default: Any = ..., *, names: str = "", **limits: Any) -> Any:
    """A field about how something is reached or run, such as a timeout: it changes no result and is in no fingerprint."""
    return Field(default, json_schema_extra={"connection": True, "names": names}, **limits)


def names(kind: str, default: Any = ..., **limits: Any) -> Any:
    """A field that names a thing of a kind. `KIND in place`: in a file its entries stand beside the settings around it."""
    return Field(default, json_schema_extra={"names": kind}, **limits)


def identity_of(settings: BaseModel) -> dict[str, Any]:
    """What fingerprints are made of: settings without connection fields, or what their own `identity(fields)` returns."""
    fields = {
        name: _identity(getattr(settings, name))
        for name, field in type(settings).model_fields.items()
        if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("connection"))
    }
    decide = getattr(settings, "identity", None)
    return decide(fields) if callable(decide) else fields


def _identity(value: Any) -> Any:
    """A field's value as plain data, settings inside it reduced to their identity."""
    if isinstance(value, BaseModel):
        return identity_of(value)
    if isinstance(value, dict):
        return {key: _identity(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_identity(item) for item in value]
    return PLAIN.dump_python(value, mode="json")


def override(data: dict[str, Any], item: str, model: type[BaseModel] | None = None) -> dict[str, Any]:
    """Plain data of the settings `model` with one `path.to.key=value` applied, read as YAML. Raises UserError: another form."""
    path, equals, text = item.partition("=")
    if not equals or not path:
        raise UserError(f"--set {item}: write it as path.to.key=value")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"--set {item}: the value is not readable as YAML: {in_words(error)}") from None
    with contextlib.suppress(ValueError):  # YAML reads `1e-3` as text
        value = float(value) if isinstance(value, str) else value
    return dict(changed(data, path.split("."), value, f"--set {item}", [model]))


def from_yaml(text: str) -> Any:
    """The data of a YAML text, read by libyaml where it is installed: ten times as fast."""
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def in_words(error: Exception) -> str:
    """A YAML error as text, without the "<unicode string>" that YAML calls every text."""
    return str(error).replace('in "<unicode string>", ', "in ")


def changed(data: Any, keys: Sequence[str], value: Any, item: str = "", kinds: Sequence[Any] = ()) -> Any:
    """A copy of nested data, whose type is one of `kinds`, with one place changed; `item` is the override, for errors."""
    if not keys:
        return value
    (head, *rest), inner = keys, [step for kind in kinds for step in _step(kind, keys[0])]
    if isinstance(data, list) and head.isdigit() and int(head) < len(data):
        return [changed(old, rest, value, item, inner) if i == int(head) else old for i, old in enumerate(data)]
    if isinstance(data, (list, tuple)):
        raise UserError(f"{item}: '{head}' is not a place in a list of {len(data)}")
    data = {} if data is None or data is True else data  # true: with the usual settings
    if isinstance(data, dict):
        return data | {head: changed(data.get(head), rest, value, item, inner)}
    for kind in (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)):
        try:  # a word that is short for a mapping is written out
            written_out = kind.model_validate(data).model_dump(mode="json", exclude_defaults=True)
            return changed(written_out, keys, value, item, kinds)
        except pydantic.ValidationError as error:
            if error.errors()[0]["type"] != "model_type":
                return data  # a wrong word, which is reported when the data are read
    raise UserError(f"{item}: what is there, {data!r}, has no '{head}'. Give a mapping in its place.")


WANTED = {  # Messages for those of pydantic's error types whose own messages speak of Python
    "tuple_type": "a list is wanted, such as [{value}]",
    "list_type": "a list is wanted, such as [{value}]",
    "dict_type": "a mapping of keys to values is wanted",
    "model_type": "a mapping of keys to values is wanted",
    "too_short": "at least one is wanted",
    "literal_error": "no such value",
}


class SettingsError(UserError):
    """Problems of some plain data."""

    details: Sequence[tuple[Location, str]] = ()  # The place in the data and the message of each


class Problems:
    """All problems of some plain data, collected with their places so that they can be reported together."""

    def __init__(self, where: str, lines: "LineTable | None" = None) -> None:
        self._where, self._lines = where, lines
        self._left_out: list[Location] = []  # Entries of lists that `read` left out
        self._details: list[tuple[Location, str]] = []
        self._places: dict[str, dict[tuple[int, str], None]] = {}  # Message -> lines: the number, and what a user reads

    def __bool__(self) -> bool:
        return bool(self._places)

    def add(self, place: Location, message: str, *, written: bool = False) -> None:
        """Add problems of a place in the data, one a line; `written`: what is written there causes them."""
        place, line = self._original(place), None
        for text in message.splitlines():
            where = "--set" if text.startswith("--set") else self._where
            if self._lines and place:
                line = self._lines.line(place)
                where = f"{self._where}:{line}" if line else where
                where = "--set" if self._lines.from_override(place, written=written) else where
            self._details.append((place, text))
            self._places.setdefault(text, {})[line or 0, where] = None

    @contextlib.contextmanager
    def at(self, *place: int | str) -> Iterator[None]:
        """Turn a `UserError` of the block into problems of this place, or of places inside it where it names them."""
        try:
            yield
        except UserError as error:
            for inside, text in error.details if isinstance(error, SettingsError) else [((), str(error))]:
                self.add((*place, *inside), text)

    def within(self, *place: int | str) -> bool:
        """Whether there is a problem at a place or inside it, so that what follows from it need not be reported."""
        place = self._original(place)
        return any(known[: len(place)] == place for known, _ in self._details)

    def faulty(self, section: str) -> set[int | str]:
        """The entries of a section that have problems; `read` may have left them out."""
        return {place[1] for place, _ in self._details if place[:1] == (section,) and len(place) > 1}

    def mentions(self, section: str, name: str) -> bool:
        """Whether a problem of a section mentions a name."""
        return any(place[:1] == (section,) and f"'{name}'" in text for place, text in self._details)

    def read(self, model: type[M], data: Any, *, place: Location = ()) -> M | None:
        """Settings from plain data that stand at `place` in the file; `None` where too little of the data is valid. What has
        a problem is left out or replaced by a valid value and the rest read again, so that all problems are found."""
        for _ in range(100):
            try:
                return model.model_validate(data)
            except pydantic.ValidationError as error:
                repairs = dict(self._repair(model, *complaint, place) for complaint in _complaints(data, error))
            if () in repairs:
                return None
            data = self._repaired(data, repairs, place)
        return None

    def _repair(
        self, model: type[BaseModel], problem: Any, at: Location, message: str, place: Location
    ) -> tuple[Location, Any]:
        """Add a problem of data that stand at `place`. Returns how to go on: where in the data to put a valid value, and
        that value, or `None` to leave out what is there."""
        absent = problem["loc"][-1:] if problem["type"] == "missing" else ()
        whole = (*place, *at, *absent)
        if problem["type"] in ("too_short", "missing") and self.within(*whole):  # what was there has been left out
            words, kinds = _words_at(model, problem["loc"]), _kinds_at(model, problem["loc"])
            valid = min(words) if words else 1 if {int, float} & {*kinds} else None
            return ((*at, *absent), valid) if absent and valid is not None else (at, None)
        self.add(whole, message or _explain(model, problem, self._original(whole)), written=not absent)
        return at, None

    def _repaired(self, data: Any, repairs: dict[Location, Any], place: Location) -> Any:
        """A copy of data that stand at `place` in the file, with the repairs made, the last entries of lists first."""
        data = copy.deepcopy(data)
        for at in sorted(repairs, key=lambda at: [(str(type(key)), key) for key in at], reverse=True):
            if repairs[at] is not None:
                data = changed(data, [str(key) for key in at], repairs[at])
                continue
            inner = data
            for key in at[:-1]:
                inner = inner[key]
            del inner[at[-1]]
            if isinstance(at[-1], int):
                self._left_out.append((*place, *at))
        return data

    def _original(self, place: Location) -> Location:
        """A place as the file has it: entries of lists that were left out are counted again."""
        for *above, gone in reversed(self._left_out):
            depth = len(above)
            if list(place[:depth]) == above and len(place) > depth and isinstance(at := place[depth], int):
                place = (*above, at + (at >= int(gone)), *place[depth + 1 :])
        return place

    def join(self, other: "Problems") -> None:
        """Add the problems of the same file, read in another way."""
        for text, places in other._places.items():
            self._places[text] = self._places.get(text, {}) | places

    def check(self) -> None:
        """Raise SettingsError where there are problems: one line for each."""
        lines = []
        for text, places in sorted(self._places.items(), key=lambda item: min(item[1])[0]):
            first, *others = (where for _, where in sorted(places))
            more = f" (also {', '.join(others)})" if others else ""
            lines.append(f"{'' if text.startswith(self._where) or first in text else f'{first}: '}{text}{more}")
        if lines:
            error = SettingsError("\n".join(lines))
            error.details = [(at, t if self._where in t else f"{self._where}: {t}") for at, t in self._details]
            raise error


def validate(model: type[M], data: Any, *, where: str) -> M:
    """Plain data as a checked, frozen settings object. Raises SettingsError: one line for each problem."""
    problems = Problems(where)
    settings = problems.read(model, data)
    problems.check()
    return typing.cast(M, settings)


def _complaints(data: Any, error: pydantic.ValidationError) -> Iterator[tuple[Any, Location, str]]:
    """pydantic's errors, each with its place in the data, and with a message where a `SettingsError` caused it.
    Of a union's members only the one that fits best counts: an error at a place gives way to errors inside it."""
    every = [(one, _present(data, one["loc"])) for one in error.errors(include_url=False, include_context=True)]
    around = {place[:depth] for _, place in every for depth in range(len(place))}
    for problem, place in every:
        if problem["type"] == "missing" or place not in around:
            cause = problem.get("ctx", {}).get("error")
            for inside, text in cause.details if isinstance(cause, SettingsError) else [((), "")]:
                yield problem, _present(data, (*problem["loc"], *inside)), text


def _present(data: Any, location: Location) -> Location:
    """What the data have of a location: some of its keys name a union's members, or what is missing."""
    place: Location = ()
    for key in location:
        with contextlib.suppress(KeyError, IndexError, TypeError):
            data, place = ({} if isinstance(data, str) else data)[key], (*place, key)  # a text has no places inside
    return place


def _explain(model: type[BaseModel], problem: Any, location: Location) -> str:
    """A message for one of pydantic's errors."""
    inside = f" in '{'.'.join(map(str, location[:-1]))}'" if location[:-1] else ""
    key = str(location[-1]) if location else ""
    if problem["type"] == "extra_forbidden":
        models = [getattr(kind, "model_fields", {}) for kind in _kinds_at(model, problem["loc"][:-1])]
        allowed = {field.alias or name for fields in models for name, field in fields.items()}
        return f"unknown key '{key}'{inside}.{nearest(key, allowed)}"
    if problem["type"] == "missing":
        return f"'{key}' is missing{inside}."
    value, message = problem["input"], WANTED.get(problem["type"], "")
    stated = "is empty" if value in (None, (), [], {}) else "" if isinstance(value, dict) else f"= {value!r}"
    words = (_words_at(model, (*problem["loc"], 0)) or _words_at(model, problem["loc"])) if message else set()
    if not message or (problem["type"] == "literal_error" and not words):
        message = str(problem["msg"]).removeprefix("Value error, ")
    elif stated == "is empty":
        message, value = (message, min(words)) if words else (message.partition(", such as")[0], value)
    hint = f".{nearest(str(problem['input']), words)}" if words else ""
    place = f"'{'.'.join(map(str, location))}' {stated}".strip() + ": " if location else ""
    return f"{place}{message.replace('{value}', ' '.join(str(value).split()))}{hint}"


def _words_at(model: type[BaseModel], location: Location) -> set[str]:
    """The words that a place of a settings model allows, where it takes words from a list."""
    kinds = (typing.get_args(kind) for kind in _kinds_at(model, location) if typing.get_origin(kind) is Literal)
    return {word for words in kinds for word in words if isinstance(word, str)}


def _kinds_at(model: type[BaseModel], location: Location) -> list[Any]:
    """The types that a place of a settings model may have."""
    kinds: list[Any] = [model]
    for key in location:
        kinds = [step for kind in kinds for step in _step(kind, key)]
    return kinds


def _step(kind: Any, key: int | str) -> list[Any]:
    """The types behind one key of a type: a field's, a mapping's values', a list's items'."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = kind.model_fields | {field.alias: field for field in kind.model_fields.values() if field.alias}
        if str(key) in fields:
            return _members(fields[str(key)].annotation)
        return [kind] if str(key) == kind.__name__ else []  # pydantic puts the name of a union's member into a location
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (dict, list, tuple, set, frozenset) or (origin and isinstance(key, int)):
        return _members(arguments[-1] if arguments[-1] is not Ellipsis else arguments[0])
    return []


def _members(annotation: Any) -> list[Any]:
    """The members of a union, or the type itself."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        return [member for part in parts[: 1 if origin is typing.Annotated else None] for member in _members(part)]
    return [annotation]


class LineTable:
    """The line numbers of a YAML text by place."""

    def __init__(self, text: str) -> None:
        """Raises YAMLError: not YAML, or too much with aliases written out: a few lines of them can stand for billions."""
        self.overridden: list[list[str]] = []  # Places that overrides have set since
        self.duplicates: dict[Location, str] = {}  # Keys that a mapping has twice (YAML takes the last) -> message
        self._lines: dict[tuple[str, ...], int] = {}
        self._count = 0
        if (root := yaml.compose(text, Loader=yaml.SafeLoader)) is not None:
            self._note((), root, root)

    def _note(self, place: tuple[str, ...], named: yaml.Node, value: yaml.Node) -> None:
        """Note the lines of a value, by the node that names it, and of all inside it."""
        self._lines[place] = named.start_mark.line + 1
        self._count += 1
        if len(place) > DEEPEST:
            raise yaml.YAMLError("values are nested too deeply")
        if self._count > LARGEST:
            raise yaml.YAMLError(f"more than {LARGEST:,} values, aliases written out")
        if isinstance(value, yaml.MappingNode):
            seen: dict[str, int] = {}
            for node, inner in value.value:
                key = node.value if isinstance(node, yaml.ScalarNode) else ""
                if key in seen and key not in ("", "<<"):
                    name = ".".join((*place, key))
                    self.duplicates[*place, key] = f"'{name}' is given twice, first in line {seen[key]}."
                seen[key] = node.start_mark.line + 1
                self._note((*place, key), node, inner)
        elif isinstance(value, yaml.SequenceNode):
            for at, inner in enumerate(value.value):
                self._note((*place, str(at)), inner, inner)

    def move(self, old: tuple[str, ...], new: tuple[str, ...]) -> None:
        """Give a place, and all inside it, the lines of another place whose value it has taken."""
        moved = {(*new, *at[len(old) :]): line for at, line in self._lines.items() if at[: len(old)] == old}
        kept = {at: line for at, line in self._lines.items() if at[: len(new)] != new}
        self._lines = {new[:depth]: moved.get(new, 1) for depth in range(len(new))} | kept | moved

    def _known(self, location: Location) -> tuple[str, ...]:
        """What the text has of a location, without the names of a union's members that pydantic adds."""
        known: tuple[str, ...] = ()
        for key in map(str, location):
            known = (*known, key) if (*known, key) in self._lines else known
        return known

    def line(self, location: Location) -> int | None:
        """The line, from 1, of a key; of its nearest parent where the file lacks the key."""
        return self._lines.get(self._known(location))

    def from_override(self, location: Location, *, written: bool) -> bool:
        """Whether an override, not the text, causes a problem of a place; `written`: what is written there causes it."""
        keys = [str(key) for key in (location if written else location[:1])]
        hidden = any(keys[: len(path)] == path for path in self.overridden)
        if not hidden and (*self._known(tuple(keys[:-1])), keys[-1]) in self._lines:
            return False
        return written or keys[0] in {path[0] for path in self.overridden}


def read_yaml(path: Path) -> tuple[dict[str, Any], LineTable]:
    """The plain data of a YAML file and its line numbers. Raises UserError: the file is missing, or not a YAML mapping."""
    try:
        text = path.read_text(encoding="utf-8")
        table = LineTable(text)
        data = yaml.safe_load(text)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.y*ml")], n=1)
        hint = f"Did you mean '{path.with_name(near[0])}'?" if near else "`demur init NAME` writes one to start from."
        raise UserError(f"{path}: no such study file. {hint}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; a study is a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not readable as YAML: {in_words(error)}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a study is a mapping of keys to values.")
    return data, table
