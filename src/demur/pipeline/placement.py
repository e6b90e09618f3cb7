"""Which models are up when, on which accelerators: a schedule of phases, which `plan` prints and `run` follows.

Consecutive stages share a phase while all models that they need fit side by side, and each target has its own cards. A server
is started once for its phases and stopped before the first that does not need it. Training has the machine for itself.
A model takes memory for its weights and its cache of keys and values. These are lower bounds: real use depends on lengths.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from demur.interfaces import Ask
from demur.models.config import Custom, Local, ModelConfig, Remote, Served
from demur.pipeline.dag import Planned
from demur.pipeline.sizes import SMALL, Device, Shape, devices, shape
from demur.records import digest
from demur.settings import identity_of

ANSWER_BYTES, FULL_REPLIES, OVERHEAD_GB, USABLE = 2.1, 4, 2.0, 0.92
"""Bytes per parameter for inference in bfloat16; replies of full length that the cache must hold; gigabytes that a server
needs besides; the part of a card that is given out."""
WORTH = 32  # Requests for which another server of the same model is worth its start


class Need(NamedTuple):
    """A model that must be up for a stage, and how much of a card it takes at least."""

    part: str
    model: Served | Local
    gigabytes: float
    length: int  # Tokens of the longest exchange
    requests: int = 1  # Of the stage that asks most
    tokens: int = 1  # Of all stages' replies

    @property
    def key(self) -> str:
        """Equal for two needs that one server can meet."""
        return key_of(self.model)


class Place(NamedTuple):
    """The cards of a model."""

    need: Need
    devices: tuple[int, ...]
    share: float  # Of each of these cards
    copies: int = 1  # Servers of this model, each on its part of the devices


class Phase(NamedTuple):
    """Stages that run with the same models up."""

    stages: tuple[Planned, ...]
    places: tuple[Place, ...] = ()
    problem: str = ""  # Why the models do not fit, with the smallest change that would help; empty: they fit
    training: bool = False
    generating: bool = False  # The stages only ask; the models that read the answers are up in the next phase


def key_of(model: ModelConfig) -> str:
    """Equal for two models with the same weights."""
    return digest([type(model).__name__, model.weights_at, identity_of(model)])


def need_of(part: str, model: ModelConfig, ask: Ask, *, like: ModelConfig) -> Need | None:
    """What a model takes to answer; `None` if it is small or runs elsewhere. `like` has its size, since it may not exist yet."""
    if not isinstance(model, (Served, Local)):
        return None
    size = shape(like.weights_at, getattr(like, "revision", "")) or shape(model.weights_at) or Shape(0.0, 0.0)
    if isinstance(model, Local) and (size.parameters <= SMALL or model.device == "cpu"):
        return None
    length = -(-(ask.tokens_in + ask.tokens_out) // max(1, ask.requests))
    length = max(length, getattr(model, "max_model_len", None) or 0)
    length = min(length, size.positions or length)
    cache = size.token * length * FULL_REPLIES
    gigabytes = (size.parameters * ANSWER_BYTES + cache) / 1e9 + OVERHEAD_GB
    return Need(part, model, gigabytes, length, ask.requests, ask.tokens_out)


def needs_of(item: Planned) -> list[Need]:
    """The models that must be up on this machine for a stage, each once."""
    players, models = item.stage.players(item.folders), item.stage.models
    asks = [ask for ask in item.stage.estimate() if ask.part in players]
    needs = (need_of(ask.part, players[ask.part], ask, like=models[ask.part]) for ask in asks)
    return list(_merged({}, filter(None, needs)).values())


def schedule(planned: Sequence[Planned], *, cards: Sequence[Device] | None = None) -> list[Phase]:
    """The phases of the stages that are not done yet, in their order; `cards` default to those of this machine."""
    cards = devices() if cards is None else cards
    phases: list[Phase] = []
    wanted: dict[str, Need] = {}
    for item in [item for item in planned if not item.done]:
        if item.stage.trains:
            problem = next((lack.message for lack in item.stage.needs() if lack.what == "train"), "")
            phases.append(Phase((item,), problem=problem, training=True))
            wanted = {}
            continue
        # Without cards only servers are placed.
        needs = {need.key: need for need in needs_of(item) if cards or isinstance(need.model, Served)}
        both = _merged(wanted, needs.values())
        places, problem = place(both.values(), cards)
        have_targets = all(any(need.part == "target" for need in some.values()) for some in (needs, wanted))
        alike = not wanted or needs.keys() <= wanted.keys() or have_targets
        if phases and not phases[-1].training and alike and not problem and _apart(places):
            phases[-1], wanted = Phase((*phases[-1].stages, item), places), both
        else:
            _append(phases, item, needs, cards)
            wanted = needs
    return phases


def _apart(places: Sequence[Place]) -> bool:
    """Whether all targets can be asked at once: each has its own cards, and all other models are servers, which they share."""
    targets = [place for place in places if place.need.part == "target"]
    cards = [card for place in targets for card in place.devices or (-1,)]
    shared = all(isinstance(place.need.model, Served) for place in places if place not in targets)
    return len(targets) < 2 or (shared and len(cards) == len(set(cards)))


def _append(phases: list[Phase], item: Planned, needs: Mapping[str, Need], cards: Sequence[Device]) -> None:
    """Add a phase for a stage, or two where its models do not fit side by side: one asks, the next reads the answers.
    A stage that is split like the one before it shares its two phases."""
    places, problem = place(needs.values(), cards)
    readers = [need for need in needs.values() if need.part in item.stage.readers()]
    asked = [need for need in needs.values() if need not in readers]
    if problem and readers and asked and all(isinstance(need.model, Served) for need in asked):
        asking, reading = place(asked, cards), place(readers, cards)
        if not asking[1] and not reading[1]:
            earlier: list[tuple[Planned, ...]] = [(), ()]
            if wider := _widened(phases, item, [asked, readers], cards):
                asking, reading = wider
                earlier = [phases.pop(-2).stages, phases.pop().stages]
            phases.append(Phase((*earlier[0], item), *asking, generating=True))
            phases.append(Phase((*earlier[1], item), *reading))
            return
    phases.append(Phase((item,), places, problem))


def _widened(
    phases: Sequence[Phase], item: Planned, needs: Sequence[Sequence[Need]], cards: Sequence[Device]
) -> list[tuple[tuple[Place, ...], str]]:
    """New places for the last two phases if they are a split that a stage with these needs can share; else none."""
    # What another stage of these phases writes is not there before both are over.
    reads_them = phases and {stage.name for stage in item.stage.inputs.values()} & {s.name for s in phases[-1].stages}
    if len(phases) < 2 or not phases[-2].generating or reads_them:
        return []
    up = [{placed.need.key: placed.need for placed in phase.places} for phase in phases[-2:]]
    same = [known.keys() == {need.key for need in new} for known, new in zip(up, needs, strict=True)]
    wider = [place(_merged(known, new).values(), cards) for known, new in zip(up, needs, strict=True)]
    alike = same[1] and (same[0] or any(need.part == "target" for need in needs[0]))
    return wider if alike and not any(problem for _, problem in wider) and _apart(wider[0][0]) else []


def _merged(wanted: Mapping[str, Need], more: Iterable[Need]) -> dict[str, Need]:
    """Needs by server: the longest exchange, the most requests of a stage, all tokens, and another part than target."""
    merged = dict(wanted)
    for need in more:
        if (known := merged.get(need.key)) is not None:
            part = known.part if known.part != "target" else need.part
            most, tokens = max(known.requests, need.requests), known.tokens + need.tokens
            need = max(known, need, key=lambda one: one.length)._replace(part=part, requests=most, tokens=tokens)
        merged[need.key] = need
    return merged


def place(needs: Iterable[Need], cards: Sequence[Device]) -> tuple[tuple[Place, ...], str]:
    """Places for models, or why they do not fit: the largest first, on the card with most room, targets on separate cards.
    A model that no card holds is spread over two, four or eight. The models on a card share what is left of it."""
    needs = sorted(needs, key=lambda need: -need.gigabytes)
    if not cards:
        return tuple(Place(need, _fixed(need), USABLE) for need in needs), ""
    room = {card.number: card.gigabytes * USABLE for card in cards}
    chosen: list[tuple[Need, tuple[int, ...]]] = []
    for need in needs:
        used = {number for other, on in chosen if need.part == other.part == "target" for number in on}
        best = sorted(room, key=lambda number: (number in used, -room[number]))
        for width in [len(_fixed(need))] if _fixed(need) else [n for n in (1, 2, 4, 8) if n <= len(cards)]:
            numbers = _fixed(need) or tuple(best[:width])
            if all(room.get(number, 0.0) >= need.gigabytes / width for number in numbers):
                break
        else:
            have = ", ".join(f"{card.gigabytes:.0f}" for card in cards)
            up = ", ".join(f"{other.part} ({other.gigabytes:.0f} GB)" for other, _ in chosen) or "nothing"
            return (), (
                f"{need.part}: {need.model.where} needs about {need.gigabytes:.0f} GB beside {up}, on cards of {have} GB: "
                f"answer it by a url, or shorten its replies (now {need.length:,} tokens an exchange)"
            )
        for number in numbers:
            room[number] -= need.gigabytes / width
        chosen.append((need, numbers))
    full = {card.number: card.gigabytes * USABLE for card in cards}
    copies = _copies(chosen, [number for number, left in room.items() if left == full[number]])
    places = []
    for need, on in chosen:
        # What the models on a card leave free is theirs in proportion.
        share = min(USABLE * need.gigabytes / len(on) / (full[number] - room[number]) for number in on)
        more = copies.get(need.key, ())
        places.append(Place(need, (*on, *more), round(share, 3), 1 + len(more)))
    return tuple(places), ""


def _copies(chosen: Sequence[tuple[Need, tuple[int, ...]]], free: Iterable[int]) -> dict[str, list[int]]:
    """Free cards for more servers of a model, each to the one with most tokens per server, if another is worth its start."""
    alone = [need for need, on in chosen if isinstance(need.model, Served) and len(on) == 1 and not _fixed(need)]
    copies: dict[str, list[int]] = {need.key: [] for need in alone}
    for card in free:
        servers = {key: 1 + len(cards) for key, cards in copies.items()}
        busy = [need for need in alone if need.requests > WORTH * servers[need.key]]
        if busy:
            copies[max(busy, key=lambda need: need.tokens / servers[need.key]).key].append(card)
    return copies


def _fixed(need: Need) -> tuple[int, ...]:
    """The devices that the study names."""
    if isinstance(need.model, Served):
        return need.model.devices
    kind, _, number = need.model.device.partition(":")
    return (int(number or 0),) if kind == "cuda" and (number or "0").isdecimal() else ()


class Servers:
    """The servers of this process: started for a phase and kept while phases need them. `close` ends all."""

    def __init__(self) -> None:
        self._up: dict[str, tuple[Place, contextlib.ExitStack, Remote]] = {}
        self._stopped: dict[str, ModelConfig] = {}  # How to ask for what is in the cache of a stopped server

    def move_to(self, phase: Phase) -> Callable[[ModelConfig], ModelConfig]:
        """Stop servers that the phase does not need, or needs elsewhere or for longer exchanges; then start what is not up.
        Returns a function from a model to how it is asked; it can be pickled. Raises WorkError: a server does not start."""
        wanted = {place.need.key: place for place in phase.places}
        up = {key: place for key, (place, _, _) in self._up.items()}
        same = {key for key in up.keys() & wanted.keys() if wanted[key][1:] == up[key][1:]}
        gone = [key for key, old in up.items() if key not in same or wanted[key].need.length > old.need.length]
        with ThreadPoolExecutor(len(gone) + 1) as ending:  # at once: a server may take seconds
            list(ending.map(lambda key: self._up[key][1].close(), gone))
        self._stopped |= {key: self._up.pop(key)[2] for key in gone}
        new = {key: p for key, p in wanted.items() if isinstance(p.need.model, Served) and key not in self._up}
        stacks = {key: contextlib.ExitStack() for key in new}
        with contextlib.ExitStack() as started:  # if one does not start, the others are stopped
            for stack in stacks.values():
                started.enter_context(stack)
            for key, remotes in _start(new, stacks).items():
                urls = {"url": tuple(url for remote in remotes for url in remote.url)} if len(remotes) > 1 else {}
                self._up[key] = (new[key], stacks[key], remotes[0].model_copy(update=urls))
            started.pop_all()
        local = [(key, place) for key, place in wanted.items() if key not in self._up and place.devices]
        here = {key: p.need.model.model_copy(update={"device": f"cuda:{p.devices[0]}"}) for key, p in local}
        routes = self._stopped | here | {key: remote for key, (_, _, remote) in self._up.items()}
        targets = {key for key, place in wanted.items() if place.need.part == "target"}
        tested = (item.stage.models["target"] for item in phase.stages if "target" in item.stage.models)
        return partial(_reached, routes, targets | {key_of(model) for model in tested}, max(1, len(targets)))

    def close(self) -> None:
        """End all servers."""
        self.move_to(Phase(()))


def _reached(routes: Mapping[str, ModelConfig], targets: set[str], processes: int, model: ModelConfig) -> ModelConfig:
    """A model behind its server or on its card. Where several processes ask it, they divide its requests in flight."""
    asked = routes.get(key_of(model), model) if getattr(model, "device", "auto") == "auto" else model
    if processes == 1 or key_of(model) in targets or isinstance(asked, (Local, Served, Custom)):
        return asked
    return asked.model_copy(update={"in_flight": max(1, asked.in_flight // processes)})


def _start(new: Mapping[str, Place], stacks: Mapping[str, contextlib.ExitStack]) -> dict[str, list[Remote]]:
    """Start servers, at once those that share no card, since a server measures free memory. Returns how each is asked."""
    from demur.models.vllm import started

    waiting = [(key, model) for key, place in new.items() for model in _server_settings(place)]
    remotes: dict[str, list[Remote]] = {key: [] for key in new}
    while waiting:
        taken: set[int] = set()
        begun, later = [], []
        for key, model in waiting:
            if taken & set(model.devices):
                later.append((key, model))
                continue
            taken |= set(model.devices)
            running, remote = stacks[key].enter_context(started(model))
            remotes[key].append(remote)
            begun.append((running, model.start_within))
        for running, seconds in begun:
            running.wait(seconds)
        waiting = later
    return remotes


def _server_settings(place: Place) -> list[Served]:
    """The settings of each server of a model, with its devices and its share of them."""
    model = place.need.model
    assert isinstance(model, Served)
    if not place.devices:
        return [model]
    width = len(place.devices) // place.copies
    defaults = {"memory": place.share, "tensor_parallel": width, "max_model_len": place.need.length}
    changes: dict[str, Any] = {key: value for key, value in defaults.items() if key not in model.model_fields_set}
    groups = [place.devices[at : at + width] for at in range(0, len(place.devices), width)]
    return [model.model_copy(update=changes | {"devices": group}) for group in groups]
