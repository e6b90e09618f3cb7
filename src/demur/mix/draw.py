"""Named shares to one training set, with an account that adds up.

Every example that comes in goes out or is listed with the reason why not. Pools are sorted by prompt and id before
anything is drawn and every share has a random stream of its own, so that the same seed gives the same rows whatever the order of the
files, and changing one share leaves the others as they were.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from demur.errors import UserError
from demur.mix.settings import By, MixSettings, ShareSettings
from demur.mix.text import asked, normal
from demur.records import Example, Record
from demur.storage.records_file import RecordFile

Reason = Literal["duplicate", "over_cap", "not_drawn"]
Key = int
"""Hash of what two examples have in common when one of them is enough."""


class Drop(Record, frozen=True, kw_only=True):
    """An example that is not in the mix, and why; for a duplicate, which example stands for it."""

    example: str
    share: str
    reason: Reason
    kept: str = ""


class Row(Record, frozen=True, kw_only=True):
    """One line of the account: what came in is what went out and what was dropped."""

    share: str
    given: int
    duplicate: int
    over_cap: int
    not_drawn: int
    taken: int


class Mixed(NamedTuple):
    """A mix: examples in the order of training, the account, and what was dropped; on the disk, but for the account."""

    examples: RecordFile[Example]
    table: list[Row]
    drops: RecordFile[Drop]


class Item(msgspec.Struct, gc=False):
    """What drawing needs of an example; its text stays where it is, since there may be millions."""

    id: str
    share: str
    place: str
    cluster: str
    said: Key
    """Hash of what the user says, normalised."""
    attack: str
    stratum: str
    at: int
    """Its place in the pool."""


def mix(pools: Mapping[str, Sequence[Example]], settings: MixSettings) -> Mixed:
    """Draw the shares from their pools.

    Args:
        pools: name -> examples; a share draws from the pool that its `pool` names, or from its own name.
        settings: shares, their sizes and conditions.

    Raises:
        UserError: a pool is missing, or a share asks for more than there is (with how many there are).
    """
    # By name: a fingerprint does not see the order of keys, so neither may the result.
    names = sorted(settings.shares)
    sources = {name: _source(name, settings.shares[name], pools) for name in names}
    given = {name: _given(name, settings.shares[name], sources[name]) for name in names}
    _cluster(given, sources, settings)
    drops = RecordFile(Drop)
    usable = {name: _capped(name, _unlike(rows, settings, drops), settings, drops) for name, rows in given.items()}
    drawn: dict[str, list[Item]] = {}
    taken: dict[Key, str] = {}
    for name in _counted(settings):
        drawn[name] = _take(name, settings.shares[name].n, usable[name], settings, taken, drops)
    for name, n in _sizes(usable, sum(map(len, drawn.values())), settings).items():
        drawn[name] = _take(name, n, usable[name], settings, taken, drops)
    chosen = [item for name in names for item in drawn[name]]
    random.Random(f"order {settings.seed}").shuffle(chosen)
    made = RecordFile(Example, (_whole(item, sources[item.share]) for item in chosen))
    return Mixed(made, _account(given, chosen, drops), drops)


def _source(name: str, share: ShareSettings, pools: Mapping[str, Sequence[Example]]) -> Sequence[Example]:
    """The pool that a share draws from."""
    pool = share.pool or name
    if pool not in pools:
        raise UserError(f"share '{name}': no pool '{pool}'. Pools: {', '.join(sorted(pools)) or 'none'}.")
    return pools[pool]


def _given(name: str, share: ShareSettings, pool: Sequence[Example]) -> list[Item]:
    """The share's pool in an order of its own, each example under the share's name."""
    by: By = share.balance if share.balance != "none" else share.stratify
    items = [_item(name, example, by, at) for at, example in enumerate(pool)]
    items.sort(key=lambda item: item.place)
    for item in items:
        item.place = ""  # only the order asked for it
    return items


def _item(name: str, example: Example, by: By, at: int) -> Item:
    renamed = _renamed(name, example)
    origin = example.origin
    classes = {
        "none": "",
        "category": origin.category,
        "source": origin.source,
        "template": origin.attack,
        "strategy": origin.strategy,
    }
    said = hash(normal(asked(example)))
    attack, stratum = sys.intern(origin.attack), sys.intern(classes[by])
    # By prompt first: of pools that ask the same, such as two formats, the same prompts are drawn.
    place = f"{origin.prompt} {renamed.id} {origin.trace}"
    return Item(renamed.id, name, place, example.cluster, said, attack, stratum, at)


def _renamed(share: str, example: Example) -> Example:
    return example if example.share == share else msgspec.structs.replace(example, share=share, id="")


def _whole(item: Item, pool: Sequence[Example]) -> Example:
    """The example of an item, in the cluster that was found for it."""
    return msgspec.structs.replace(_renamed(item.share, pool[item.at]), cluster=item.cluster)


def _cluster(given: Mapping[str, list[Item]], sources: Mapping[str, Sequence[Example]], settings: MixSettings) -> None:
    """Make clusters whole over all shares, where clusters are asked for."""
    near = settings.dedupe == "near"
    if not near and not any(share.cap for share in settings.shares.values()):
        return
    from demur.mix.duplicates import clusters

    together = (sources[name][item.at] for name, items in given.items() for item in items)
    found = iter(clusters(together, similarity=settings.similarity if near else 1.0))
    for items in given.values():
        for item in items:
            item.cluster = next(found)


def _unlike(examples: Sequence[Item], settings: MixSettings, drops: RecordFile[Drop]) -> list[Item]:
    """The examples of one share that ask something new."""
    if settings.dedupe == "none":
        return list(examples)
    values, counts = np.unique(
        np.fromiter((key for example in examples for key in _keys(example, settings.dedupe)), dtype=np.int64),
        return_counts=True,
    )
    shared = set(values[counts > 1].tolist())  # most keys are one example's own, and need not be remembered
    seen: dict[Key, str] = {}
    kept = []
    for example in examples:
        keys = [key for key in _keys(example, settings.dedupe) if key in shared]
        first = next((seen[key] for key in keys if key in seen), None)
        if first is None:
            kept.append(example)
            seen.update(dict.fromkeys(keys, example.id))
        else:
            drops.append(Drop(example=example.id, share=example.share, reason="duplicate", kept=first))
    return kept


def _counted(settings: MixSettings) -> list[str]:
    """The shares whose size does not depend on the others; they are drawn first."""
    return sorted(name for name, share in settings.shares.items() if share.ratio is None)


def _take(
    name: str,
    n: int | None,
    usable: list[Item],
    settings: MixSettings,
    taken: dict[Key, str],
    drops: RecordFile[Drop],
) -> list[Item]:
    """Draw `n` (all: `None`) of a share's examples that no share before it has taken.

    Raises:
        UserError: more than there is.
    """
    free = []
    for example in usable:
        keys = _keys(example, settings.dedupe) if taken else ()
        before = next((taken[key] for key in keys if key in taken), None)
        if before is None:
            free.append(example)
        else:
            drops.append(Drop(example=example.id, share=name, reason="duplicate", kept=before))
    if n is not None and n > len(free):
        raise UserError(
            f"too few examples for the mix: '{name}' wants {n}, there are {len(free)} (after duplicates and caps). "
            "Ask for fewer, add data, or set dedupe: exact or none."
        )
    rng = random.Random(f"draw {settings.seed} {name}")
    drawn = _draw(free, len(free) if n is None else n, settings.shares[name], rng)
    if len(drawn) < len(free):
        chosen = {id(example) for example in drawn}
        drops.extend(Drop(example=e.id, share=name, reason="not_drawn") for e in free if id(e) not in chosen)
    if settings.dedupe != "none" and len(settings.shares) > 1:
        taken.update((key, example.id) for example in drawn for key in _keys(example, settings.dedupe))
    return drawn


def _keys(item: Item, dedupe: str) -> tuple[Key, ...]:
    """What an example asks: what the user says, and the question with its wrapper. One in common makes a duplicate."""
    if dedupe == "near" and (not item.attack or item.attack.startswith("template:")):
        return item.said, hash((item.cluster, item.attack))
    return (item.said,)


def _capped(name: str, examples: list[Item], settings: MixSettings, drops: RecordFile[Drop]) -> list[Item]:
    """At most so many of one cluster, drawn by the seed."""
    cap = settings.shares[name].cap
    if cap is None:
        return examples
    seen: dict[str, int] = defaultdict(int)
    over = set()
    order = list(range(len(examples)))
    random.Random(f"cap {settings.seed} {name}").shuffle(order)
    for i in order:
        seen[examples[i].cluster] += 1
        if seen[examples[i].cluster] > cap:
            over.add(i)
    drops.extend(Drop(example=examples[i].id, share=name, reason="over_cap") for i in sorted(over))
    return [example for i, example in enumerate(examples) if i not in over]


def _sizes(usable: Mapping[str, list[Item]], counted: int, settings: MixSettings) -> dict[str, int]:
    """How many of each share that is a ratio of the whole, given how many the others have."""
    ratios = {name: s.ratio for name, s in sorted(settings.shares.items()) if s.ratio is not None}
    if not ratios:
        return {}
    if len(ratios) < len(settings.shares):
        total = round(counted / (1 - sum(ratios.values())))
    else:
        total = settings.total or min(int(len(usable[name]) / ratio + 1e-9) for name, ratio in ratios.items())
    return apportion(total - counted, ratios)


def apportion(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Split a number in proportion to weights, by largest remainders; the parts add up to it."""
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    parts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(weights, key=lambda name: (parts[name] - exact[name], name))
    for name in by_remainder[: total - sum(parts.values())]:
        parts[name] += 1
    return parts


def _draw(examples: list[Item], n: int, share: ShareSettings, rng: random.Random) -> list[Item]:
    """`n` of the examples, by strata when the share says so."""
    strata: dict[str, list[Item]] = defaultdict(list)
    for example in examples:
        strata[example.stratum].append(example)
    there = {name: len(strata[name]) for name in sorted(strata)}
    if share.balance != "none":
        wanted = _levelled(n, there)
    else:
        wanted = apportion(n, there) if there else {}
    return [example for name, k in wanted.items() for example in rng.sample(strata[name], k)]


def _levelled(n: int, there: Mapping[str, int]) -> dict[str, int]:
    """Equal numbers from each class as far as it goes; what small classes lack is drawn from the others."""
    wanted: dict[str, int] = {}
    left = n
    by_size = sorted(there, key=lambda name: (there[name], name))
    for i, name in enumerate(by_size):
        wanted[name] = min(there[name], left // (len(by_size) - i))
        left -= wanted[name]
    return {name: wanted[name] for name in there}


def _account(given: Mapping[str, list[Item]], chosen: list[Item], drops: Iterable[Drop]) -> list[Row]:
    """What became of each share."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for drop in drops:
        counts[drop.share, drop.reason] += 1
    for example in chosen:
        counts[example.share, "taken"] += 1
    columns = ("duplicate", "over_cap", "not_drawn", "taken")
    return [
        Row(share=name, given=len(examples), **{column: counts[name, column] for column in columns})
        for name, examples in given.items()
    ]
