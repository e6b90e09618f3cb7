"""Attacks: questions go in, attacked prompts come out. One file an attack, listed here by name.

    none                      the question itself
    pap, pap-written          persuasive rewrites: frozen ones from a file, or written by an attacker
    template                  the user's own templates around the question
    pair, pair-adaptive       an attacker refines its prompt against the live target (`pair@paper-v2`: as the paper did)
    prefill, pivot, hijack    made for models that reason: the thinking is begun for them, or led far away first
    replay                    prompts that an earlier run found, against another target

These are the field's standard evaluations; here they measure a defence. A prompt that comes out has the question as its
parent, and its `attack` says how it was made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from pydantic import BaseModel, ConfigDict, SerializationInfo, model_serializer, model_validator

from demur.attack.base import Attack, AttackSettings, File, Setup
from demur.errors import UserError, unknown
from demur.interfaces import Ask, Model, Progress, Request, quiet
from demur.records import Message, Prompt, Sampling
from demur.registry import resolve
from demur.settings import validate

ATTACKS: dict[str, str] = {
    "none": "demur.attack.none:NoAttack",
    "pap": "demur.attack.pap:FrozenPap",
    "pap-written": "demur.attack.pap:WrittenPap",
    "template": "demur.attack.template:TemplateAttack",
    "pair": "demur.attack.pair:Pair",
    "pair-adaptive": "demur.attack.pair:PairAdaptive",
    "pair@paper-v2": "demur.attack.pair:PairPaperV2",
    "prefill": "demur.attack.prefill:PrefillAttack",
    "pivot": "demur.attack.prefill:PivotAttack",
    "hijack": "demur.attack.hijack:HijackAttack",
    "replay": "demur.attack.replay:ReplayAttack",
    "mini-seen": "demur.mini.attacks:Seen",
    "mini-heldout": "demur.mini.attacks:HeldOut",
    "mini-adaptive": "demur.mini.attacks:Adaptive",
}
"""Name -> `module:class`, a subclass of `base.Attack`."""
PLAYED_BY = {"judge": "attack_judge"}
"""Part -> the model of a study that plays it when none is named, where that is not the part's own name."""


def attack_class(name: str) -> type[Attack]:
    """The class behind a name, or a `module:class`.

    Raises:
        UserError: there is none; the nearest name and all names are given.
    """
    if name not in ATTACKS and ":" not in name:
        raise unknown("attack", name, ATTACKS)
    found = resolve("attack", name, ATTACKS)
    if not (isinstance(found, type) and issubclass(found, Attack)):
        raise UserError(f"attack '{name}' is no subclass of demur.attack.base.Attack.")
    return found


def title(name: str) -> str:
    """How tables call an attack; the name itself for what is none."""
    return (attack_class(name).title if name in ATTACKS else "") or name


class AttackUse(BaseModel):
    """An attack as a study uses it. In a file its settings, the models of its parts and its files stand side by side:

    `{name: pair, streams: 3, attacker: gpt, judge: gpt, texts: pair.yaml}`; `pair` is short for `{name: pair}`, and
    `template=FILE` for `{name: template, file: FILE}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    settings: BaseModel
    models: dict[str, str]
    """Part -> name of a model, where the study says so."""
    given: dict[str, str]
    """Key of a file -> where it is, where the study says so."""

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        return value if isinstance(value, dict) and isinstance(value.get("settings"), BaseModel) else _split(value)

    @model_serializer
    def _plain(self, info: SerializationInfo) -> dict[str, Any]:
        settings = self.settings.model_dump(mode="json", exclude_defaults=info.exclude_defaults)
        return {"name": self.name} | settings | self.models | self.given

    @property
    def parts(self) -> dict[str, str]:
        """Every part that the attack needs -> the name of the model that plays it."""
        parts = attack_class(self.name).parts
        return {part: self.models.get(part) or PLAYED_BY.get(part, part) for part in parts}

    def files(self, data_dir: Path | None = None) -> dict[str, Path]:
        """Key -> path of everything that it reads: inputs of its stage.

        Raises:
            UserError: a file that was named or that it cannot do without is not there.
        """
        found = {}
        for file in attack_class(self.name).files:
            named = self.given.get(file.key)
            path = _find(file, named, data_dir)
            if path is not None:
                found[file.key] = path
            elif named or file.required:
                raise UserError(f"attack '{self.name}' needs {_wanted(file, named, data_dir)}")
        return found

    def missing(self, models: Collection[str], data_dir: Path | None = None) -> list[str]:
        """What it cannot do without and does not have, given the names of a study's models: one line each."""
        lines = [
            f"attack '{self.name}' needs a model for the part '{part}', and there is no model '{model}': name one with "
            f"'{part}' in the attack's settings, or give the study a model of this name"
            for part, model in self.parts.items()
            if model not in models
        ]
        try:
            self.files(data_dir)
        except UserError as error:
            lines.append(str(error))
        return lines


NO_ATTACK = AttackUse(name="none", settings=AttackSettings(), models={}, given={})


def parse(value: str | Mapping[str, Any]) -> AttackUse:
    """An attack as it is written in a study or on the command line, checked against its own settings.

    Raises:
        UserError: no such attack, or a key that it does not know; the nearest and the allowed ones are given.
    """
    return AttackUse(**_split(value))


def open_attack(
    use: AttackUse | str,
    *,
    files: Mapping[str, Path] | None = None,
    target: Model | None = None,
    models: Mapping[str, Model] | None = None,
    progress: Progress = quiet,
) -> Attack:
    """An attack, ready to work.

    Args:
        use: which and how; a name alone means its defaults.
        files: what `use.files` found; looked for again when left out.
        target: the live target, for those that ask it.
        models: part -> model, for every part that it has.
        progress: told how far a long attack is.

    Raises:
        UserError: an unknown attack, or something that it needs was not given.
    """
    use = parse(use) if isinstance(use, str) else use
    kind, models = attack_class(use.name), models or {}
    if kind.live and target is None:
        raise UserError(f"attack '{use.name}' needs a live target: give --target.")
    for part in kind.parts:
        if part not in models:
            raise UserError(f"attack '{use.name}' needs a model for the part '{part}'.")
    files = use.files() if files is None else files
    return kind(Setup(use.name, use.settings, files, target, models, progress))


def variants(use: AttackUse, questions: int, files: Mapping[str, Path]) -> int:
    """How many attacked prompts at most come out of so many questions."""
    return attack_class(use.name).variants(Setup(use.name, use.settings, files), questions)


def estimate(use: AttackUse, questions: int, tokens: int, files: Mapping[str, Path]) -> list[Ask]:
    """What it asks by itself at most, for `questions` of `tokens` tokens each; parts by the names of their models."""
    asks = attack_class(use.name).estimate(Setup(use.name, use.settings, files), questions, tokens)
    return [ask._replace(part=use.parts.get(ask.part, ask.part)) for ask in asks]


def requests(attack: Attack, prompt: Prompt, sampling: Sampling) -> Iterator[Request]:
    """How an attacked prompt is sent: `sampling.n` requests with the turns before it and the beginning of the reply.

    A beginning that the benchmark itself asks for comes first.
    """
    if begun := attack.prefill(prompt):
        sampling = replace(sampling, prefill=(sampling.prefill or "") + begun)
    system = () if sampling.system is None else (Message(role="system", content=sampling.system),)
    messages = (*system, *attack.turns(prompt), Message(role="user", content=prompt.text))
    for sample in range(sampling.n):
        yield Request(messages=messages, sampling=sampling, prompt=prompt, sample=sample)


def _split(value: Any) -> dict[str, Any]:
    """The fields of an `AttackUse` from what a study says."""
    if isinstance(value, str):
        name, _, file = value.partition("=")
        value = {"name": name} | ({"file": file} if file else {})
    if not isinstance(value, Mapping) or not isinstance(value.get("name", "none"), str):
        raise UserError(f"an attack is a name, or a mapping with one: {{name: pair, streams: 3}}; given: {value!r}")
    rest = {key: entry for key, entry in value.items() if key != "name" and entry is not None}
    name = value.get("name", "none")
    kind = attack_class(name)
    keys = {*kind.Settings.model_fields, *kind.parts, *(file.key for file in kind.files)}
    for key in rest.keys() - keys:
        if not keys:
            raise UserError(f"attack '{name}' has no settings; '{key}' is unknown.")
        raise unknown("setting", key, keys, where=f" of attack '{name}'")
    models = {part: str(rest.pop(part)) for part in kind.parts if part in rest}
    given = {file.key: str(rest.pop(file.key)) for file in kind.files if file.key in rest}
    settings = validate(kind.Settings, rest, where=f"attack '{name}'")
    return {"name": name, "settings": settings, "models": models, "given": given}


def _find(file: File, named: str | None, data_dir: Path | None) -> Path | None:
    """Where a file is: as it was named, there or in the data folder; else under one of its own names, else its default."""
    folders = [data_dir] if data_dir else []
    places = [Path(named), *(d / named for d in folders)] if named else [d / n for d in folders for n in file.names]
    return next((place for place in places if place.exists()), None if named else file.default)


def _wanted(file: File, named: str | None, data_dir: Path | None) -> str:
    if named:
        return f"{file.about}: {named}: no such file{f', nor in {data_dir}' if data_dir else ''}."
    found = f", or put {' or '.join(file.names)} into the data folder" if file.names else ""
    return f"{file.about}: name the file with '{file.key}' in its settings{found}."
