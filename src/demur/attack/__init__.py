"""Attacks: questions go in, attacked prompts come out. One class an attack, listed here by name; docs/attacks.md explains them.

These are the field's standard evaluations; here they measure a defence. A prompt that comes out has the question as its
parent, and its `attack` says how it was made.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from pydantic import BaseModel, SerializationInfo, model_serializer, model_validator

from demur.attack.base import Attack, AttackSettings
from demur.errors import UserError, unknown
from demur.interfaces import Model, Progress, Request, quiet, requests_for
from demur.records import Prompt, Sampling
from demur.registry import resolve
from demur.settings import Problems, Strict, names

ATTACKS: dict[str, str] = {  # Name -> `module:class`, a subclass of `base.Attack`
    "none": "demur.attack.static:NoAttack",
    "pap": "demur.attack.pap:FrozenPap",
    "pap-written": "demur.attack.pap:WrittenPap",
    "template": "demur.attack.static:TemplateAttack",
    "pair": "demur.attack.pair:Pair",
    "pair@paper-v1": "demur.attack.pair:PairPaperV1",
    "pair@paper-v2": "demur.attack.pair:PairPaperV2",
    "tap": "demur.attack.pair:Tap",
    "crescendo": "demur.attack.pair:Crescendo",
    "prefill": "demur.attack.static:PrefillAttack",
    "pivot": "demur.attack.static:PivotAttack",
    "hijack": "demur.attack.static:HijackAttack",
    "tokens": "demur.attack.static:TokensAttack",
    "replay": "demur.attack.static:ReplayAttack",
    "mini-seen": "demur.mini.attacks:Seen",
    "mini-heldout": "demur.mini.attacks:HeldOut",
    "mini-adaptive": "demur.mini.attacks:Adaptive",
}
PLAYED_BY = {"judge": "attack_judge"}  # Part -> the study's model that plays it when none is named; else its namesake


def attack_class(name: str) -> type[Attack]:
    """The class behind a name, or a `module:class`.

    Raises UserError: there is none; the nearest name and all names are given.
    """
    found = resolve("attack", name, ATTACKS)
    if not (isinstance(found, type) and issubclass(found, Attack)):
        raise UserError(f"attack '{name}' is no subclass of demur.attack.base.Attack.")
    return found


def title(name: str) -> str:
    """How tables call an attack; the name itself for what is none."""
    return (attack_class(name).title if name in ATTACKS else "") or name


class AttackUse(Strict):
    """An attack as a study uses it. In a file its settings, the models of its parts and its files stand side by side:

    `{name: pair, streams: 3, attacker: gpt, judge: gpt, texts: pair.yaml}`; `pair` is short for `{name: pair}`, and
    `template=FILE` for `{name: template, file: FILE}`.
    """

    name: str
    settings: BaseModel
    models: dict[str, str] = names("model in place")  # Part -> name of a model, where the study says so
    given: dict[str, str]  # Key of a file -> where it is, where the study says so

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
        return {part: self.models.get(part) or PLAYED_BY.get(part, part) for part in attack_class(self.name).parts}

    def files(self, data_dir: Path | None = None) -> dict[str, Path]:
        """Key -> path of everything that it reads: inputs of its stage.

        Raises UserError: a file that was named or that it cannot do without is not there.
        """
        found = {}
        for file in attack_class(self.name).files:
            named = self.given.get(file.key)
            places = [Path(named)] if named else []
            places += [data_dir / name for name in ([named] if named else file.names)] if data_dir else []
            path = next((place for place in places if place.exists()), None if named else file.default)
            if path is not None:
                found[file.key] = path
            elif named or file.required:
                why = f"{named}: no such file" if named else f"name the file with '{file.key}'"
                there = f", or put {' or '.join(file.names)} into the data folder" if file.names else ""
                raise UserError(f"attack '{self.name}' needs {file.about}: {why}{there}.")
        return found


NO_ATTACK = AttackUse(name="none", settings=AttackSettings(), models={}, given={})


def parse(value: str | Mapping[str, Any]) -> AttackUse:
    """An attack as a study or the command line writes it. Raises UserError: no such attack, or a setting that it has not."""
    return AttackUse(**_split(value))


def make(use: AttackUse | str, files: Mapping[str, Path] | None = None) -> Attack:
    """An attack that can be asked what it needs; `files` are what `use.files` found, and looked for when left out.

    Raises UserError: something is wrong with its files.
    """
    use = parse(use) if isinstance(use, str) else use
    return attack_class(use.name)(use.name, use.settings, use.files() if files is None else files)


def open_attack(
    use: AttackUse | str,
    *,
    files: Mapping[str, Path] | None = None,
    target: Model,
    models: Mapping[str, Model] | None = None,
    progress: Progress = quiet,
) -> Attack:
    """An attack, ready to work: with the live target and, in `models`, a model for each of its parts.

    Raises UserError: something that it needs was not given.
    """
    attack, models = make(use, files), models or {}
    if lacks := [part for part in attack.parts if part not in models]:
        raise UserError(f"attack '{attack.name}' needs a model for the part '{lacks[0]}'.")
    attack.connect(target, models, progress)
    return attack


def requests(attack: Attack, prompt: Prompt, sampling: Sampling) -> Iterator[Request]:
    """How an attacked prompt is sent: `sampling.n` requests with the turns before it and the beginning of the reply.

    A beginning that the benchmark itself asks for comes first.
    """
    if begun := attack.prefill(prompt):
        sampling = replace(sampling, prefill=(sampling.prefill or "") + begun)
    for request in requests_for([prompt], sampling):
        *system, asked = request.messages
        yield replace(request, messages=(*system, *attack.turns(prompt), asked))


def _split(value: Any) -> dict[str, Any]:
    """The fields of an `AttackUse` from what a study says."""
    if isinstance(value, str):
        name, _, file = value.partition("=")
        value = {"name": name} | ({"file": file} if file else {})
    if not isinstance(value, Mapping) or not isinstance(value.get("name", None if value else "none"), str):
        raise UserError(f"an attack is a name, or a mapping with one: {{name: pair, streams: 3}}; given: {value!r}")
    name, rest = value.get("name", "none"), {k: v for k, v in value.items() if k != "name" and v is not None}
    kind, problems = attack_class(name), Problems(f"attack '{name}'")
    keys = {*kind.Settings.model_fields, *kind.parts, *(files := [file.key for file in kind.files])}
    for key in sorted(rest.keys() - keys):
        problems.add((key,), str(unknown("setting", key, keys or {"none"}, where=f" of attack '{name}'")))
    models, given = ({key: str(rest.pop(key)) for key in keys if key in rest} for keys in (kind.parts, files))
    settings = problems.read(kind.Settings, {key: rest[key] for key in rest.keys() & keys})
    problems.check()
    return {"name": name, "settings": settings, "models": models, "given": given}
