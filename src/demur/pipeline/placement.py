"""Which models are up when, on which accelerators: a schedule of phases, which `plan` prints and `run` follows.

Consecutive stages share a phase as long as all models that they need fit side by side, and targets have cards of their own; a server
is started once for its phases and stopped before the first that does not need it. Training has the machine for itself.
A model takes its weights and the cache of keys and values. Real use depends on lengths; what is said here is what is out of the question.
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
"""Bytes a parameter to answer in bfloat16; replies of full length that a cache must hold at least; what a server needs besides; the part of a card
that is given out."""
WORTH = 32  # Requests that make another server of the same model worth its start


class Need(NamedTuple):
    """A model that must be up for a stage, and how much of a card it takes at least."""

    part: str
    model: Served | Local
    gigabytes: float
    length: int  # Tokens of the longest exchange
    requests: int = 1  # Of the stage that asks most, and the tokens of all stages' replies
    tokens: int = 1

    @property
    def key(self) -> str:
        """Equal for two needs that one server meets."""
        return key_of(self.model)


class Place(NamedTuple):
    """Where a model is put."""

    need: Need
    devices: tuple[int, ...]
    share: float  # Of each of these cards
    copies: int = 1  # Servers of the same, each on its part of the devices, where cards are free


class Phase(NamedTuple):
    """Stages that are done with the same models up."""

    stages: tuple[Planned, ...]
    places: tuple[Place, ...] = ()
    problem: str = ""  # Why this does not fit, with the smallest change that would; empty: it does
    training: bool = False
    generating: bool = False  # The stages only ask: what reads the answers follows in the next phase


def key_of(model: ModelConfig) -> str:
    """Equal for two models that are played by the same weights."""
    return digest([type(model).__name__, model.weights_at, identity_of(model)])


def need_of(part: str, model: ModelConfig, ask: Ask, *, like: ModelConfig) -> Need | None:
    """What a model takes to answer; `None` where it answers elsewhere or is small. `like` has its size: it may yet be trained."""
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
    played, models = item.stage.played(item.folders), item.stage.models
    asks = [ask for ask in item.stage.estimate() if ask.part in played]
    found = (need_of(ask.part, played[ask.part], ask, like=models[ask.part]) for ask in asks)
    return list(_merged({}, (need for need in found if need is not None)).values())


def schedule(planned: Sequence[Planned], *, there: Sequence[Device] | None = None) -> list[Phase]:
    """The phases of what is not done yet, in the order of the stages."""
    cards = devices() if there is None else there
    phases: list[Phase] = []
    wanted: dict[str, Need] = {}
    for item in [item for item in planned if not item.done]:
        if item.stage.trains:
            lack = next((lack.message for lack in item.stage.needs() if lack.what == "train"), "")
            phases.append(Phase((item,), problem=lack, training=True))
            wanted = {}
            continue
        # Without accelerators a model of this process needs no place.
        needs = {need.key: need for need in needs_of(item) if cards or isinstance(need.model, Served)}
        both = _merged(wanted, needs.values())
        places, problem = place(both.values(), cards)
        targets = [{key for key, need in some.items() if need.part == "target"} for some in (needs, wanted)]
        alike = not wanted or needs.keys() <= wanted.keys() or all(targets)
        if phases and not phases[-1].training and alike and not problem and _apart(places):
            phases[-1], wanted = Phase((*phases[-1].stages, item), places), both
        else:
            _append(phases, item, needs, cards)
            wanted = needs
    return phases


def _apart(places: Sequence[Place]) -> bool:
    """Whether several targets may be asked at once: on cards of their own, and of others only servers, which they can share."""
    targets = [place for place in places if place.need.part == "target"]
    cards = [card for place in targets for card in place.devices or (-1,)]
    shared = all(isinstance(place.need.model, Served) for place in places if place not in targets)
    return len(targets) < 2 or (shared and len(cards) == len(set(cards)))


def _append(phases: list[Phase], item: Planned, needs: Mapping[str, Need], cards: Sequence[Device]) -> None:
    """A phase for a stage; or two where its models do not fit side by side: one asks, one reads. Those split alike share both."""
    places, problem = place(needs.values(), cards)
    last = [need for need in needs.values() if need.part in item.stage.readers()]
    first = [need for need in needs.values() if need not in last]
    if problem and last and first and all(isinstance(need.model, Served) for need in first):
        asking, reading = place(first, cards), place(last, cards)
        if not asking[1] and not reading[1]:
            both = [{one.need.key: one.need for one in phase.places} for phase in phases[-2:]]
            same = len(phases) > 1 and phases[-2].generating and both[1].keys() == {need.key for need in last}
            # What another of them makes is not there before both are over.
            if same := same and not {s.name for s in item.stage.inputs.values()} & {s.name for s in phases[-1].stages}:
                wider = [place(_merged(b, more).values(), cards) for b, more in zip(both, (first, last), strict=True)]
                alike = both[0].keys() == {n.key for n in first} or any(n.part == "target" for n in first)
                same = alike and not any(lack for _, lack in wider) and _apart(wider[0][0])
                asking, reading = wider if same else (asking, reading)
            before = (phases.pop(-2).stages, phases.pop().stages) if same else ((), ())
            phases.append(Phase((*before[0], item), *asking, generating=True))
            phases.append(Phase((*before[1], item), *reading))
            return
    phases.append(Phase((item,), places, problem))


def _merged(wanted: Mapping[str, Need], more: Iterable[Need]) -> dict[str, Need]:
    """Needs by server; the longest exchange counts, the stage that asks most, all tokens, and another part than target."""
    found = dict(wanted)
    for need in more:
        if (known := found.get(need.key)) is not None:
            part = known.part if known.part != "target" else need.part
            most, tokens = max(known.requests, need.requests), known.tokens + need.tokens
            need = max(known, need, key=lambda one: one.length)._replace(part=part, requests=most, tokens=tokens)
        found[need.key] = need
    return found


def place(needs: Iterable[Need], cards: Sequence[Device]) -> tuple[tuple[Place, ...], str]:
    """Where models are put, the largest first, each on the card with most room, a target on one without; or why they do not fit.

    One that no card holds is spread over two, four, eight. What a card has left is shared by those on it.
    """
    needs = sorted(needs, key=lambda need: -need.gigabytes)
    if not cards:
        return tuple(Place(need, _fixed(need), USABLE) for need in needs), ""
    room = {card.number: card.gigabytes * USABLE for card in cards}
    chosen: list[tuple[Need, tuple[int, ...]]] = []
    for need in needs:
        widths = [len(_fixed(need))] if _fixed(need) else [n for n in (1, 2, 4, 8) if n <= len(cards)]
        for width in widths:
            used = {number for other, on in chosen if need.part == other.part == "target" for number in on}
            most = _fixed(need) or tuple(sorted(room, key=lambda number: (number in used, -room[number]))[:width])
            if all(room.get(number, 0.0) >= need.gigabytes / width for number in most):
                break
        else:
            have = ", ".join(f"{card.gigabytes:.0f}" for card in cards)
            up = ", ".join(f"{other.part} ({other.gigabytes:.0f} GB)" for other, _ in chosen) or "nothing"
            return (), (
                f"{need.part}: {need.model.where} needs about {need.gigabytes:.0f} GB beside {up}, on cards of {have} GB: "
                f"answer it by a url, or shorten its replies (now {need.length:,} tokens an exchange)"
            )
        for number in most:
            room[number] -= need.gigabytes / width
        chosen.append((need, most))
    full = {card.number: card.gigabytes for card in cards}
    free = [number for number, left in room.items() if left == full[number] * USABLE]
    copies = _copies(chosen, free)
    made = []
    for need, on in chosen:
        # What those on a card leave of it is theirs in proportion.
        share = min(USABLE * need.gigabytes / len(on) / (full[n] * USABLE - room[n]) for n in on)
        more = copies.get(need.key, ())
        made.append(Place(need, (*on, *more), round(share, 3), 1 + len(more)))
    return tuple(made), ""


def _copies(chosen: Sequence[tuple[Need, tuple[int, ...]]], free: Iterable[int]) -> dict[str, list[int]]:
    """Free cards, one after the other to the server that has most to write, where another is worth its start."""
    alone = [need for need, on in chosen if isinstance(need.model, Served) and len(on) == 1 and not _fixed(need)]
    copies: dict[str, list[int]] = {need.key: [] for need in alone}
    for card in free:
        servers = {key: 1 + len(cards) for key, cards in copies.items()}
        busy = [need for need in alone if need.requests > WORTH * servers[need.key]]
        if busy:
            copies[max(busy, key=lambda need: need.tokens / servers[need.key]).key].append(card)
    return copies


def _fixed(need: Need) -> tuple[int, ...]:
    """The devices that the study itself names."""
    if isinstance(need.model, Served):
        return need.model.devices
    kind, _, number = need.model.device.partition(":")
    return (int(number or 0),) if kind == "cuda" and (number or "0").isdecimal() else ()


class Servers:
    """The servers of this process: started for a phase, kept while phases need them, never beyond. `close` ends all."""

    def __init__(self) -> None:
        self._up: dict[str, tuple[Place, contextlib.ExitStack, Remote]] = {}
        self._gone: dict[str, ModelConfig] = {}  # How to ask what was stopped: its answers are in the cache

    def move_to(self, phase: Phase) -> Callable[[ModelConfig], ModelConfig]:
        """Stop what the phase does not need, or needs elsewhere or for longer exchanges, then start what it needs and is not up.

        Returns how models are asked then, to be sent to workers. Raises WorkError: a server does not start; its log says why.
        """
        wanted = {place.need.key: place for place in phase.places}
        up = {key: place for key, (place, _, _) in self._up.items()}
        same = {key for key in up.keys() & wanted.keys() if wanted[key][1:] == up[key][1:]}
        gone = [key for key, one in up.items() if key not in same or wanted[key].need.length > one.need.length]
        with ThreadPoolExecutor(len(gone) + 1) as ending:  # at once: a server may take seconds
            list(ending.map(lambda key: self._up[key][1].close(), gone))
        self._gone |= {key: self._up.pop(key)[2] for key in gone}
        new = {key: one for key, one in wanted.items() if isinstance(one.need.model, Served) and key not in self._up}
        opened = {key: contextlib.ExitStack() for key in new}
        with contextlib.ExitStack() as all_of_them:  # what has started is stopped when another does not
            for stack in opened.values():
                all_of_them.enter_context(stack)
            for key, remotes in _together(new, opened).items():
                several = {"url": tuple(url for one in remotes for url in one.url)} if len(remotes) > 1 else {}
                self._up[key] = (new[key], opened[key], remotes[0].model_copy(update=several))
            all_of_them.pop_all()
        local = [(key, one) for key, one in wanted.items() if key not in self._up and one.devices]
        here = {key: one.need.model.model_copy(update={"device": f"cuda:{one.devices[0]}"}) for key, one in local}
        ways = self._gone | here | {key: remote for key, (_, _, remote) in self._up.items()}
        lanes = {key for key, one in wanted.items() if one.need.part == "target"}
        own = {key_of(model) for item in phase.stages for part, model in item.stage.models.items() if part == "target"}
        return partial(_asked, ways, lanes | own, max(1, len(lanes)))

    def close(self) -> None:
        """End all servers."""
        self.move_to(Phase(()))


def _asked(ways: Mapping[str, ModelConfig], own: set[str], lanes: int, model: ModelConfig) -> ModelConfig:
    """A model behind its server, or on its card; the requests in flight to one that several processes ask are divided among them."""
    way = ways.get(key_of(model), model) if getattr(model, "device", "auto") == "auto" else model
    if lanes == 1 or key_of(model) in own or isinstance(way, (Local, Served, Custom)):
        return way
    return way.model_copy(update={"in_flight": max(1, way.in_flight // lanes)})


def _together(new: Mapping[str, Place], opened: Mapping[str, contextlib.ExitStack]) -> dict[str, list[Remote]]:
    """Start servers, at once all that share no card: one that measures a card must find it still. Returns how each is asked."""
    from demur.models.vllm import started

    waiting = [(key, one) for key, place in new.items() for one in _settled(place)]
    found: dict[str, list[Remote]] = {key: [] for key in new}
    while waiting:
        taken: set[int] = set()
        begun, later = [], []
        for key, one in waiting:
            if taken & set(one.devices):
                later.append((key, one))
                continue
            taken |= set(one.devices)
            running, remote = opened[key].enter_context(started(one))
            found[key].append(remote)
            begun.append((running, one.start_within))
        for running, seconds in begun:
            running.wait(seconds)
        waiting = later
    return found


def _settled(place: Place) -> list[Served]:
    """A model as each of its servers is started: on these devices, with this share of them."""
    model = place.need.model
    assert isinstance(model, Served)
    if not place.devices:
        return [model]
    width = len(place.devices) // place.copies
    usual = {"memory": place.share, "tensor_parallel": width, "max_model_len": place.need.length}
    changes: dict[str, Any] = {key: value for key, value in usual.items() if key not in model.model_fields_set}
    groups = [place.devices[at : at + width] for at in range(0, len(place.devices), width)]
    return [model.model_copy(update=changes | {"devices": group}) for group in groups]
