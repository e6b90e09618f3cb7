"""Attacks: questions go in, attacked prompts come out. One file an attack, listed here by name.

    none                      the question itself
    pap                       persuasive rewrites: frozen ones from a file, or written by an attacker
    template                  the user's own templates around the question
    pair, pair-adaptive       an attacker refines its prompt against the live target (`pair@paper-v2`: as the paper did)
    prefill, pivot, hijack    made for models that reason: the thinking is begun for them, or led far away first
    replay                    prompts that an earlier run found, against another target

These are the field's standard evaluations; here they measure a defence. A prompt that comes out has the question as its
parent, and its `attack` says how it was made. Some attacks also begin the target's reply: `requests` is how an attacked
prompt is sent.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from msgspec.structs import replace

from demur.attack.settings import AttackSettings
from demur.errors import UserError, unknown
from demur.interfaces import Attack, Model, Progress, Request, quiet, requests_for
from demur.records import Prompt, Sampling
from demur.registry import resolve

ATTACKS: dict[str, str] = {
    "none": "demur.attack.none:NoAttack",
    "pap": "demur.attack.pap:pap",
    "template": "demur.attack.template:TemplateAttack",
    "pair": "demur.attack.pair:PairAttack",
    "pair-adaptive": "demur.attack.pair:PairAttack",
    "pair@paper-v2": "demur.attack.pair:PairAttack",
    "prefill": "demur.attack.prefill:PrefillAttack",
    "pivot": "demur.attack.prefill:PrefillAttack",
    "hijack": "demur.attack.hijack:HijackAttack",
    "replay": "demur.attack.replay:ReplayAttack",
    "mini-seen": "demur.mini.attacks:seen",
    "mini-heldout": "demur.mini.attacks:heldout",
    "mini-adaptive": "demur.mini.attacks:adaptive",
}
"""Name -> `module:attribute`, called with those of settings, target, attacker, judge, data and progress that it takes."""


@runtime_checkable
class Begins(Protocol):
    """An attack that also writes the start of the target's reply."""

    def prefill(self, prompt: Prompt) -> str:
        """Text put at the start of the assistant's turn for this prompt."""
        ...


def open_attack(
    settings: AttackSettings | str,
    *,
    target: Model | None = None,
    attacker: Model | None = None,
    judge: Model | None = None,
    data: Path | None = None,
    progress: Progress = quiet,
) -> Attack:
    """The attack that settings describe, or of a name (an entry of `ATTACKS`, or `module:attribute`), ready to work.

    Args:
        settings: which and how; a name alone means its defaults.
        target: the live target, for those that adapt to it.
        attacker: the model that writes prompts, for those that need one.
        judge: the model that scores the attacker's progress (the role `attack_judge`).
        data: the file that it reads; `settings.local_file()` when left out.
        progress: told how far a long attack is.

    Raises:
        UserError: an unknown attack, or something that it needs was not given.
    """
    if isinstance(settings, str):
        settings = AttackSettings(name=settings)
    name = settings.name
    maker = _maker(name)
    given: dict[str, Any] = {"settings": settings, "target": target, "attacker": attacker, "judge": judge}
    given |= {"data": data or settings.local_file(), "progress": progress}
    taken = {key: found for key, found in inspect.signature(maker).parameters.items() if key in given}
    for key, parameter in taken.items():
        if given[key] is None and parameter.default is inspect.Parameter.empty:
            raise UserError(f"attack '{name}' needs {NEEDS[key]}")
    attack: Attack = maker(**{key: given[key] for key in taken})
    return attack


NEEDS = {
    "target": "a live target: give --target.",
    "attacker": "a model that writes prompts: give --attacker, or the role 'attacker' of the study.",
    "judge": "a model that scores its progress: give --judge, or the role 'attack_judge' of the study.",
    "data": "a file: give it with --data, or as 'file' in the attack's settings.",
}
"""What to say when something is missing."""


def needs(name: str) -> frozenset[str]:
    """Which of target, attacker, judge and data an attack cannot work without."""
    found = inspect.signature(_maker(name)).parameters
    return frozenset(k for k, p in found.items() if k in NEEDS and p.default is inspect.Parameter.empty)


def requests(attack: Attack, prompt: Prompt, sampling: Sampling) -> Iterator[Request]:
    """How an attacked prompt is sent: `sampling.n` plain requests, with the beginning that the attack puts in the reply.

    A beginning that the benchmark itself asks for comes first.
    """
    begun = attack.prefill(prompt) if isinstance(attack, Begins) else ""
    if begun:
        sampling = replace(sampling, prefill=(sampling.prefill or "") + begun)
    yield from requests_for([prompt], sampling)


def _maker(name: str) -> Any:
    if name not in ATTACKS and ":" not in name:
        raise unknown("attack", name, ATTACKS)
    return resolve("attack", name, ATTACKS)
