"""Attacks: questions go in, attacked prompts come out. They are listed here by name; docs/attacks.md explains them.

These are the field's standard evaluations; here they measure a defence. An attacked prompt has the question as its
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
PLAYED_BY = {"judge": "attack_judge"}  # Part -> the study's model for it by default; others: the model of that name


def attack_class(name: str) -> type[Attack]:
    """The class of an attack, by name or `module:class`. Raises UserError: it is unknown, or not an attack."""
    found = resolve("attack", name, ATTACKS)
    if not (isinstance(found, type) and issubclass(found, Attack)):
        raise UserError(f"attack '{name}' is no subclass of demur.attack.base.Attack.")
    return found


def title(name: str) -> str:
    """The title of an attack in tables; the name itself where it has none or is unknown."""
    return (attack_class(name).title if name in ATTACKS else "") or name


class AttackUse(Strict):
    """An attack as a study uses it. In YAML the settings, the models of the parts and the files share one level:

    `{name: pair, streams: 3, attacker: gpt, judge: gpt, texts: pair.yaml}`; `pair` is short for `{name: pair}`, and
    `template=FILE` for `{name: template, file: FILE}`.
    """

    name: str
    settings: BaseModel
    models: dict[str, str] = names("model in place")  # Part -> name of a model, for parts that the study names one for
    paths: dict[str, str]  # Key of a file -> its path, for files that the study names

    @model_validator(mode="before")
    @classmethod
    def _sorted(cls, value: Any) -> Any:
        return value if isinstance(value, dict) and isinstance(value.get("settings"), BaseModel) else _split(value)

    @model_serializer
    def _plain(self, info: SerializationInfo) -> dict[str, Any]:
        settings = self.settings.model_dump(mode="json", exclude_defaults=info.exclude_defaults)
        return {"name": self.name} | settings | self.models | self.paths

    @property
    def parts(self) -> dict[str, str]:
        """Every part of the attack -> the name of its model."""
        return {part: self.models.get(part) or PLAYED_BY.get(part, part) for part in attack_class(self.name).parts}

    def files(self, data_dir: Path | None = None) -> dict[str, Path]:
        """Key -> path of each file that it reads. Raises UserError: a file that is named or required does not exist."""
        files = {}
        for file in attack_class(self.name).files:
            named = self.paths.get(file.key)
            candidates = [Path(named)] if named else []
            candidates += [data_dir / name for name in ([named] if named else file.names)] if data_dir else []
            path = next((path for path in candidates if path.exists()), None if named else file.default)
            if path is not None:
                files[file.key] = path
            elif named or file.required:
                why = f"{named}: no such file" if named else f"name the file with '{file.key}'"
                where = f", or put {' or '.join(file.names)} into the data folder" if file.names else ""
                raise UserError(f"attack '{self.name}' needs {file.about}: {why}{where}.")
        return files


NO_ATTACK = AttackUse(name="none", settings=AttackSettings(), models={}, paths={})


def parse(value: str | Mapping[str, Any]) -> AttackUse:
    """An attack as a study or the command line writes it. Raises UserError: an unknown attack or setting."""
    return AttackUse(**_split(value))


def make(use: AttackUse | str, files: Mapping[str, Path] | None = None) -> Attack:
    """An attack without models; `files` is by default what `use.files()` finds. Raises UserError: one is unusable."""
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
    """An attack with the live target and a model for each part. Raises UserError: a model or a file is missing."""
    attack, models = make(use, files), models or {}
    if lacking := [part for part in attack.parts if part not in models]:
        raise UserError(f"attack '{attack.name}' needs a model for the part '{lacking[0]}'.")
    attack.connect(target, models, progress)
    return attack


def requests(attack: Attack, prompt: Prompt, sampling: Sampling) -> Iterator[Request]:
    """The `sampling.n` requests of an attacked prompt, with the turns before it and the beginning of the reply.

    A beginning that the benchmark's own sampling has comes first.
    """
    if prefill := attack.prefill(prompt):
        sampling = replace(sampling, prefill=(sampling.prefill or "") + prefill)
    for request in requests_for([prompt], sampling):
        *system, user = request.messages
        yield replace(request, messages=(*system, *attack.turns(prompt), user))


def _split(value: Any) -> dict[str, Any]:
    """The fields of an `AttackUse` from a name, `NAME=FILE`, or a mapping of settings, models and files."""
    if isinstance(value, str):
        name, _, file = value.partition("=")
        value = {"name": name} | ({"file": file} if file else {})
    if not isinstance(value, Mapping) or not isinstance(value.get("name", None if value else "none"), str):
        raise UserError(f"an attack is a name, or a mapping with one: {{name: pair, streams: 3}}; given: {value!r}")
    name, rest = value.get("name", "none"), {k: v for k, v in value.items() if k != "name" and v is not None}
    kind, problems = attack_class(name), Problems(f"attack '{name}'")
    files = [file.key for file in kind.files]
    keys = {*kind.Settings.model_fields, *kind.parts, *files}
    for key in sorted(rest.keys() - keys):
        problems.add((key,), str(unknown("setting", key, keys or {"none"}, where=f" of attack '{name}'")))
    models = {key: str(rest.pop(key)) for key in kind.parts if key in rest}
    paths = {key: str(rest.pop(key)) for key in files if key in rest}
    settings = problems.read(kind.Settings, {key: rest[key] for key in rest.keys() & keys})
    problems.check()
    return {"name": name, "settings": settings, "models": models, "paths": paths}
