"""Plain data to checked settings: what is wrong is said with file, line, the nearest allowed key and all allowed keys."""

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
    """A field that says how something is reached or run, such as a timeout: it changes no result and is in no fingerprint."""
    return Field(default, json_schema_extra={"connection": True, "names": names}, **limits)


def names(kind: str, default: Any = ..., **limits: Any) -> Any:
    """A field that names a thing of a kind, such as a strategy or a model: what a study names is looked up before all else.
    `KIND in place`: a file has the entries of the field beside the settings around it."""
    return Field(default, json_schema_extra={"names": kind}, **limits)


def identity_of(settings: BaseModel) -> dict[str, Any]:
    """The plain data of settings without connection fields, at any depth: what a fingerprint is made of.
    A settings class has the last word where it has a method `identity(fields)`, such as one that knows a better name."""
    fields = {
        name: _identity(getattr(settings, name))
        for name, field in type(settings).model_fields.items()
        if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("connection"))
    }
    last_word = getattr(settings, "identity", None)
    return last_word(fields) if callable(last_word) else fields


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
    """Plain data, of the settings `model`, with one `path.to.key=value` applied, read as YAML. Raises UserError: it is none."""
    path, equals, text = item.partition("=")
    if not equals or not path:
        raise UserError(f"--set {item}: write it as path.to.key=value")
    try:
        value = _value(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"--set {item}: the value is not readable as YAML: {in_words(error)}") from None
    return dict(changed(data, path.split("."), value, f"--set {item}", [model]))


def from_yaml(text: str) -> Any:
    """What a YAML text says, by libyaml where it is there: ten times as fast."""
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def in_words(error: Exception) -> str:
    """What YAML says is wrong and where; it calls every text "<unicode string>"."""
    return str(error).replace('in "<unicode string>", ', "in ")


def _value(text: str) -> Any:
    """A value as YAML reads it, with `1e-3` read as a number too."""
    value = yaml.safe_load(text)
    with contextlib.suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def changed(data: Any, keys: Sequence[str], value: Any, item: str = "", kinds: Sequence[Any] = ()) -> Any:
    """A copy of nested data, which are of one of some `kinds`, with one place changed; `item` is the override that says so."""
    if not keys:
        return value
    (head, *rest), inner = keys, [step for kind in kinds for step in _step(kind, keys[0])]
    if isinstance(data, list) and head.isdigit() and int(head) < len(data):
        return [changed(old, rest, value, item, inner) if i == int(head) else old for i, old in enumerate(data)]
    if isinstance(data, (list, tuple)):
        raise UserError(f"{item}: '{head}' is no place in a list of {len(data)}")
    if data is None or isinstance(data, dict):
        return (data or {}) | {head: changed((data or {}).get(head), rest, value, item, inner)}
    for kind in (one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)):
        try:  # a word that is short for a mapping is written out
            data = kind.model_validate(data).model_dump(mode="json", exclude_defaults=True)
            break
        except pydantic.ValidationError as error:
            if error.errors()[0]["type"] != "model_type":
                return data  # A wrong word, which is reported when the data are read
    return changed(data if isinstance(data, dict) else {}, keys, value, item, kinds)


WANTED = {  # pydantic's kinds of errors that it says in words of Python
    "tuple_type": "a list is wanted, such as [{value}]",
    "list_type": "a list is wanted, such as [{value}]",
    "dict_type": "a mapping of keys to values is wanted",
    "model_type": "a mapping of keys to values is wanted",
    "too_short": "at least one is wanted",
    "literal_error": "no such value",
}


class SettingsError(UserError):
    """What is wrong with some plain data, thing by thing."""

    found: Sequence[tuple[Location, str]] = ()  # Where in the data, and what


class Problems:
    """Everything that is wrong with some plain data, each with its places, gathered to be said at once."""

    def __init__(self, where: str, lines: "LineTable | None" = None) -> None:
        self._where, self._lines = where, lines
        self._left_out: list[Location] = []
        self._wrong: list[tuple[Location, str]] = []
        self._found: dict[str, list[tuple[int, str]]] = {}  # What is wrong -> line and place where the data say it

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, place: Location, message: str) -> None:
        """Take a problem in; `place` is where the data say it."""
        for text in message.splitlines():
            self._take(self._original(place), text, written=False)

    def _take(self, place: Location, text: str, *, written: bool) -> None:
        """Take in what is wrong at a place of the file; `written`: because of what is written there."""
        self._wrong.append((place, text))
        line = self._lines.line(place) if self._lines and place else None
        where = f"{self._where}:{line}" if line else "--set" if text.startswith("--set") else self._where
        if self._lines and place and not self._lines.has(place if written else place[:1]):  # so an override said it
            where = "--set" if written or place[0] in [path[0] for path in self._lines.overridden] else where
        places = self._found.setdefault(text, [])
        places += [(line or 0, where)] if (line or 0, where) not in places else []

    @contextlib.contextmanager
    def at(self, *place: int | str) -> Iterator[None]:
        """Turn a `UserError` of the block into problems of this place, or of places inside it where it knows them."""
        try:
            yield
        except UserError as error:
            for inside, text in getattr(error, "found", [((), str(error))]):
                self.add((*place, *inside), text)

    def within(self, *place: int | str) -> bool:
        """Whether something is wrong at a place or inside it: what follows from that need not be said."""
        return self._is_wrong(self._original(place))

    def lost(self, section: str) -> set[int | str]:
        """The entries of a section in which something is wrong: they may have been left out."""
        return {place[1] for place, _ in self._wrong if place[:1] == (section,) and len(place) > 1}

    def mentions(self, section: str, name: str) -> bool:
        """Whether a name was spoken of because of what is wrong in a section."""
        return any(place[:1] == (section,) and f"'{name}'" in text for place, text in self._wrong)

    def _is_wrong(self, place: Location) -> bool:
        return any(wrong[: len(place)] == place for wrong, _ in self._wrong)

    def read(self, model: type[M], data: Any, *, place: Location = ()) -> M | None:
        """Settings from plain data; what is wrong is taken in and then left out, so that the rest can be looked at too.
        `place` is where the data stand in the file; returns `None` when nothing can be made of what is left."""
        for _ in range(100):
            try:
                return model.model_validate(data)
            except pydantic.ValidationError as error:
                every = error.errors(include_url=False, include_context=True)
                places: dict[Location, Any] = {}  # What to leave out -> what is put there instead
                deep = {at[:depth] for at in (_there(data, p["loc"]) for p in every) for depth in range(len(at))}
                # Of the complaints about a union's members, only those about the member that fits best.
                for problem in [p for p in every if p["type"] == "missing" or _there(data, p["loc"]) not in deep]:
                    absent = problem["loc"][-1:] if problem["type"] == "missing" else ()
                    for inside, text in getattr(problem.get("ctx", {}).get("error"), "found", [((), "")]):
                        out = _there(data, (*problem["loc"], *inside))
                        location = self._original((*place, *out, *absent))
                        if problem["type"] in ("too_short", "missing") and self._is_wrong(location):
                            # What was wrong of it was said and left out.
                            instead = _allowed_at(model, problem["loc"]) if absent else None
                            places[out if instead is None else (*out, *absent)] = instead
                            continue
                        places[out] = None
                        self._take(location, text or _explain(model, problem, location), written=not absent)
                if () in places:
                    return None
                for out in sorted(places, key=lambda one: [(str(type(key)), key) for key in one], reverse=True):
                    gone = places[out] is None
                    data = _without(data, out) if gone else changed(data, [str(key) for key in out], places[out])
                    self._left_out += [(*place, *out)] if gone and isinstance(out[-1], int) else []
        return None

    def _original(self, place: Location) -> Location:
        """A place as the file has it: entries of lists that were left out are counted again."""
        for *above, gone in reversed(self._left_out):
            depth = len(above)
            if list(place[:depth]) == above and len(place) > depth and isinstance(at := place[depth], int):
                place = (*above, at + (at >= int(gone)), *place[depth + 1 :])
        return place

    def join(self, other: "Problems") -> None:
        """Take in what is wrong with the same file, read another way."""
        for text, places in other._found.items():
            self._found[text] = list(dict.fromkeys([*self._found.get(text, ()), *places]))

    def check(self) -> None:
        """Raise what was found. Raises SettingsError: one line a problem."""
        lines = []
        for text, places in sorted(self._found.items(), key=lambda one: min(one[1])[0]):
            first, *others = (where for _, where in sorted(places))
            more = f" (also {', '.join(others)})" if others else ""
            lines.append(f"{'' if text.startswith(self._where) or first in text else f'{first}: '}{text}{more}")
        if lines:
            error = SettingsError("\n".join(lines))
            error.found = [(at, text if self._where in text else f"{self._where}: {text}") for at, text in self._wrong]
            raise error


def validate(model: type[M], data: Any, *, where: str) -> M:
    """Plain data as a checked, frozen settings object. Raises SettingsError: one line for each thing that is wrong."""
    problems = Problems(where)
    settings = problems.read(model, data)
    problems.check()
    return typing.cast(M, settings)


def _there(data: Any, location: Location) -> Location:
    """As much of a location as the data have: some keys are names of a union's members, or of what is missing."""
    place: list[int | str] = []
    for key in location:
        with contextlib.suppress(KeyError, IndexError, TypeError):
            data = ({} if isinstance(data, str) else data)[key]  # a text that is split into entries is one place
            place.append(key)
    return tuple(place)


def _without(data: Any, place: Location) -> Any:
    """A copy of nested data without one place."""
    whole = inner = copy.deepcopy(data)
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    return whole


def _explain(model: type[BaseModel], problem: Any, location: Location) -> str:
    """One complaint in our own words."""
    inside = f" in '{'.'.join(map(str, location[:-1]))}'" if location[:-1] else ""
    key = str(location[-1]) if location else ""
    if problem["type"] == "extra_forbidden":
        fields = [getattr(kind, "model_fields", {}) for kind in _kinds_at(model, problem["loc"][:-1])]
        allowed = {field.alias or name for own in fields for name, field in own.items()}
        return f"unknown key '{key}'{inside}.{nearest(key, allowed)}"
    if problem["type"] == "missing":
        return f"'{key}' is missing{inside}."
    value, message = problem["input"], WANTED.get(problem["type"], "")
    said = "is empty" if value in (None, (), [], {}) else "" if isinstance(value, dict) else f"= {value!r}"
    words = (_words_at(model, (*problem["loc"], 0)) or _words_at(model, problem["loc"])) if message else set()
    if not message or (problem["type"] == "literal_error" and not words):
        message = str(problem["msg"]).removeprefix("Value error, ")
    elif said == "is empty":
        message, value = (message, min(words)) if words else (message.partition(", such as")[0], value)
    hint = f".{nearest(str(problem['input']), words)}" if words else ""
    place = f"'{'.'.join(map(str, location))}' {said}".strip() + ": "
    return f"{place * bool(location)}{message.replace('{value}', str(value))}{hint}"


def _words_at(model: type[BaseModel], location: Location) -> set[str]:
    """The words that are allowed at a place, where it takes words of a list."""
    kinds = (typing.get_args(kind) for kind in _kinds_at(model, location) if typing.get_origin(kind) is Literal)
    return {word for words in kinds for word in words if isinstance(word, str)}


def _allowed_at(model: type[BaseModel], location: Location) -> Any:
    """A word or number that is allowed at a place, where it takes those."""
    words = _words_at(model, location)
    return min(words) if words else 1 if {int, float} & {*_kinds_at(model, location)} else None


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
        return [kind] if str(key) == kind.__name__ else []  # pydantic names the member of a union; that leads nowhere
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (dict, list, tuple, set, frozenset) or (origin and isinstance(key, int)):
        return _members(arguments[-1] if arguments[-1] is not Ellipsis else arguments[0])
    return []


def _members(annotation: Any) -> list[Any]:
    """The members of a union, or the type itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(annotation) for member in _members(part)]
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    return [annotation]


class LineTable:
    """Line numbers of a YAML text by place."""

    def __init__(self, text: str) -> None:
        """Raises YAMLError: it is none, or stands for too much, aliases written out: a few lines of them can stand for billions."""
        self.overridden: list[list[str]] = []  # Places that something else than the text speaks of now
        self.twice: dict[Location, str] = {}  # Keys that a mapping has twice, of which YAML takes the last
        self._lines: dict[tuple[str, ...], int] = {}
        self._count = 0
        if (root := yaml.compose(text, Loader=yaml.SafeLoader)) is not None:
            self._note((), root, root)

    def _note(self, place: tuple[str, ...], named: yaml.Node, value: yaml.Node) -> None:
        """Take in a value, which stands where it is named, and all that is in it."""
        self._lines[place] = named.start_mark.line + 1
        self._count += 1
        if len(place) > DEEPEST:
            raise yaml.YAMLError("values are nested too deeply")
        if self._count > LARGEST:
            raise yaml.YAMLError(f"more than {LARGEST:,} values, aliases written out")
        if isinstance(value, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, inner in value.value:
                there = (*place, key.value if isinstance(key, yaml.ScalarNode) else "")
                if there[-1] in seen and there[-1] not in ("", "<<"):
                    self.twice[there] = f"'{'.'.join(there)}' is given twice, first in line {seen[there[-1]]}."
                seen[there[-1]] = key.start_mark.line + 1
                self._note(there, key, inner)
        elif isinstance(value, yaml.SequenceNode):
            for at, inner in enumerate(value.value):
                self._note((*place, str(at)), inner, inner)

    def move(self, old: tuple[str, ...], new: tuple[str, ...]) -> None:
        """Say of a place, and of all that is in it, the lines of another that stands for it."""
        own = {(*new, *at[len(old) :]): line for at, line in self._lines.items() if at[: len(old)] == old}
        kept = {at: line for at, line in self._lines.items() if at[: len(new)] != new}
        self._lines = {new[:depth]: own.get(new, 1) for depth in range(len(new))} | kept | own

    def _known(self, location: Location) -> tuple[str, ...]:
        """What of a place the text has; names of a union's members, which pydantic adds, are in no text."""
        known: tuple[str, ...] = ()
        for key in map(str, location):
            known = (*known, key) if (*known, key) in self._lines else known
        return known

    def line(self, location: Location) -> int | None:
        """The line, from 1, of a key; of its nearest parent when it is not in the file."""
        return self._lines.get(self._known(location))

    def has(self, location: Location) -> bool:
        """Whether the text itself has a key at this place, and nothing has overridden it."""
        keys = [str(key) for key in location]
        gone = any(keys[: len(path)] == path for path in self.overridden)
        return not gone and (*self._known(location[:-1]), keys[-1]) in self._lines


def read_yaml(path: Path) -> tuple[dict[str, Any], LineTable]:
    """The plain data of a YAML file and its line numbers. Raises UserError: it is not there, no YAML, or no mapping."""
    try:
        text = path.read_text(encoding="utf-8")
        table = LineTable(text)
        data = yaml.safe_load(text)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [one.name for one in path.parent.glob("*.y*ml")], n=1)
        hint = f"Did you mean '{path.with_name(near[0])}'?" if near else "`demur init NAME` writes one to start from."
        raise UserError(f"{path}: no such study file. {hint}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; a study is a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not readable as YAML: {in_words(error)}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a study is a mapping of keys to values.")
    return data, table
