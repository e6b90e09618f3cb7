"""Named components to one training set, of examples or of preference pairs, with an account that adds up.

Every row that comes in goes out or is listed with the reason why not. Pools are sorted by prompt and id before anything is drawn and
every component has a random stream of its own, so that the same seed gives the same rows whatever the order of the files, and
changing one component leaves the others as they were. A pair is drawn as its chosen side.
"""

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace

from demur.errors import UserError
from demur.mix.duplicates import asked, clusters, normal
from demur.mix.settings import MixSettings, ShareSettings
from demur.records import Example, Pair, Record
from demur.storage.records_file import RecordFile

Reason = Literal["duplicate", "over_cap", "not_drawn"]
Pool = Sequence[Example] | Sequence[Pair]


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
    """A mix: examples or pairs in the order of training, the account, and what was dropped; on the disk, but for the account."""

    examples: RecordFile[Any]
    table: list[Row]
    drops: RecordFile[Drop]


class Item(msgspec.Struct, gc=False):
    """What drawing needs of an example; its text stays where it is, since there may be millions."""

    id: str
    share: str
    place: str
    cluster: str
    said: int  # Hash of what the user says, normalised
    attack: str
    stratum: str
    at: int  # Its place in the pool


def mix(pools: Mapping[str, Pool], settings: MixSettings) -> Mixed:
    """Draw the components from their pools: name -> examples or pairs.

    Raises UserError: a pool is missing, or a component asks for more than there is (with how many there are).
    """
    # By name: a fingerprint does not see the order of keys, so neither may the result.
    shares = {name: settings.shares[name] for name in sorted(settings.shares)}
    if lacks := sorted(shares.keys() - pools.keys()):
        raise UserError(f"share '{lacks[0]}': no pool '{lacks[0]}'. Pools: {', '.join(sorted(pools)) or 'none'}.")
    sources = {name: pools[name] for name in shares}
    given = {name: _items(name, share, sources[name]) for name, share in shares.items()}
    _cluster(given, sources, settings)
    drops = RecordFile(Drop)
    usable = {name: _capped(name, _unlike(own, settings.dedupe, drops), settings, drops) for name, own in given.items()}
    drawn: dict[str, list[Item]] = {}
    taken: dict[int, str] = {}
    short: list[str] = []

    def draw(name: str, n: int | None) -> None:
        drawn[name] = _take(name, n, usable[name], settings, taken, drops)
        if n is not None and n > len(drawn[name]) and not shares[name].up_to:
            short.append(f"'{name}' wants {n:,}, there are {len(drawn[name]):,}")

    for name in (name for name, share in shares.items() if share.ratio is None):
        draw(name, shares[name].n)
    for name, n in _sizes(usable, sum(map(len, drawn.values())), settings).items():
        draw(name, n)
    if short:
        raise UserError(
            f"too few examples for the mix: {'; '.join(short)} (after duplicates and caps). "
            "Ask for fewer, write 'n: up to N' (--set 'shares.NAME.n=up to N'), add data, or set dedupe: exact or none."
        )
    chosen = [item for name in shares for item in drawn[name]]
    random.Random(f"order {settings.seed}").shuffle(chosen)
    paired = any(isinstance(row, Pair) for source in sources.values() for row in source[:1])
    rows = (_whole(item, sources[item.share]) for item in chosen)
    made: RecordFile[Any] = RecordFile(Pair if paired else Example, rows)
    counts = Counter((drop.share, drop.reason) for drop in drops) + Counter((item.share, "taken") for item in chosen)
    columns = ("duplicate", "over_cap", "not_drawn", "taken")
    table = [Row(share=n, given=len(items), **{c: counts[n, c] for c in columns}) for n, items in given.items()]
    return Mixed(made, table, drops)


def hold_out(rows: RecordFile[Any], count: int, share: ShareSettings) -> tuple[RecordFile[Any], RecordFile[Any]]:
    """Some rows kept out of training, whole clusters, and the others; never so many that what is asked for cannot be drawn.

    The last by prompt are taken: what is then drawn of the rest is about the same prompts in every format.
    """
    names = [(example.cluster, example.origin.prompt, example.id) for example in map(_side, rows)]
    order = sorted(range(len(rows)), key=names.__getitem__)
    sizes = Counter(cluster for cluster, _, _ in names)
    room = len(rows) - share.n if share.n is not None and not share.up_to else len(rows)
    held: set[str] = set()
    for cluster in dict.fromkeys(names[at][0] for at in reversed(order[len(order) - count :])):
        if sizes[cluster] <= room:
            held.add(cluster)
            room -= sizes[cluster]
    out = [[at for at in order if (names[at][0] in held) is wanted] for wanted in (True, False)]
    return rows.taken(out[0]), rows.taken(out[1])


def _side(row: Example | Pair) -> Example:
    return row.chosen if isinstance(row, Pair) else row


def _items(name: str, share: ShareSettings, pool: Pool) -> list[Item]:
    """The pool of a component in an order of its own, each example under the component's name."""
    by, items = share.balance, []
    for at, example in enumerate(map(_side, pool)):
        origin = example.origin
        stratum = "" if by == "none" else origin.attack if by == "template" else str(getattr(origin, by))
        renamed = _renamed(name, example).id
        # By prompt first: of pools that ask the same, such as two formats, the same prompts are drawn.
        place = f"{origin.prompt} {renamed} {origin.trace}"
        said, words = hash(normal(asked(example))), (sys.intern(origin.attack), sys.intern(stratum))
        items.append(Item(renamed, name, place, example.cluster, said, *words, at))
    items.sort(key=lambda item: item.place)
    for item in items:
        item.place = ""  # only the order asked for it
    return items


def _renamed(share: str, example: Example) -> Example:
    return example if example.share == share else replace(example, share=share, id="")


def _whole(item: Item, pool: Pool) -> Example | Pair:
    """The row of an item, in the cluster that was found for it."""
    row = pool[item.at]
    sides = (row.chosen, row.rejected) if isinstance(row, Pair) else (row,)
    made = [replace(_renamed(item.share, side), cluster=item.cluster) for side in sides]
    return Pair(chosen=made[0], rejected=made[1], reason=row.reason) if isinstance(row, Pair) else made[0]


def _cluster(given: Mapping[str, list[Item]], sources: Mapping[str, Pool], settings: MixSettings) -> None:
    """Make clusters whole over all components, where clusters are asked for."""
    near = settings.dedupe == "near"
    if not near and not any(share.cap for share in settings.shares.values()):
        return
    together = (_side(sources[name][item.at]) for name, items in given.items() for item in items)
    found = iter(clusters(together, similarity=settings.similarity if near else 1.0))
    for items in given.values():
        for item in items:
            item.cluster = next(found)


def _keys(item: Item, dedupe: str) -> tuple[int, ...]:
    """What an example asks: what the user says, and the question with its wrapper. One in common makes a duplicate."""
    if dedupe == "near" and (not item.attack or item.attack.startswith("template:")):
        return item.said, hash((item.cluster, item.attack))
    return (item.said,) if dedupe != "none" else ()


def _unlike(
    items: Sequence[Item], dedupe: str, drops: RecordFile[Drop], seen: dict[int, str] | None = None
) -> list[Item]:
    """The examples that ask something new: unlike those before them or, where they are given, unlike those seen."""
    own = seen is None
    shared: set[int] = set()
    if own:
        values, counts = np.unique([key for item in items for key in _keys(item, dedupe)], return_counts=True)
        shared = set(values[counts > 1].tolist())  # most keys are one example's own, and need not be remembered
    known, kept = seen or {}, []
    for item in items:
        first = next((known[key] for key in _keys(item, dedupe) if key in known), None)
        if first is None:
            kept.append(item)
            known.update((key, item.id) for key in _keys(item, dedupe) if key in shared)
        else:
            drops.append(Drop(example=item.id, share=item.share, reason="duplicate", kept=first))
    return kept


def _take(
    name: str, n: int | None, usable: list[Item], settings: MixSettings, taken: dict[int, str], drops: RecordFile[Drop]
) -> list[Item]:
    """Draw `n` (all: `None`), as far as there are so many, of a component's examples that no component before it has taken."""
    free = _unlike(usable, settings.dedupe, drops, taken) if taken else usable
    most = len(free) if n is None else min(n, len(free))
    drawn = _draw(free, most, random.Random(f"draw {settings.seed} {name}"))
    if len(drawn) < len(free):
        chosen = {id(item) for item in drawn}
        drops.extend(Drop(example=e.id, share=name, reason="not_drawn") for e in free if id(e) not in chosen)
    if len(settings.shares) > 1:
        taken.update((key, item.id) for item in drawn for key in _keys(item, settings.dedupe))
    return drawn


def _capped(name: str, items: list[Item], settings: MixSettings, drops: RecordFile[Drop]) -> list[Item]:
    """At most so many of one cluster, drawn by the seed."""
    cap = settings.shares[name].cap
    if cap is None:
        return items
    order, seen, over = list(range(len(items))), Counter[str](), set()
    random.Random(f"cap {settings.seed} {name}").shuffle(order)
    for i in order:
        seen[items[i].cluster] += 1
        if seen[items[i].cluster] > cap:
            over.add(i)
    drops.extend(Drop(example=items[i].id, share=name, reason="over_cap") for i in sorted(over))
    return [item for i, item in enumerate(items) if i not in over]


def _sizes(usable: Mapping[str, list[Item]], counted: int, settings: MixSettings) -> dict[str, int]:
    """How many of each component that is a ratio of the whole, given how many the others have."""
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


def _draw(items: list[Item], n: int, rng: random.Random) -> list[Item]:
    """`n` of the examples, of each class the same number as far as it goes."""
    strata: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        strata[item.stratum].append(item)
    wanted = {}
    by_size = sorted(strata, key=lambda name: (len(strata[name]), name))
    for i, name in enumerate(by_size):  # what small classes lack is drawn from the others
        wanted[name] = min(len(strata[name]), n // (len(by_size) - i))
        n -= wanted[name]
    return [item for name in sorted(strata) for item in rng.sample(strata[name], wanted[name])]
