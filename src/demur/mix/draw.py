"""Draws named components into one training set, of examples or of preference pairs, with counts that add up.

Every input row is drawn, or listed with the reason why not. Pools are sorted by prompt and id before anything is drawn,
and every component has its own random stream: the same seed draws the same rows whatever the order of the files, and
changing one component leaves the others as they were. A pair is drawn by its chosen side.
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
from demur.mix.duplicates import clusters, normal, user_text
from demur.mix.settings import MixSettings, ShareSettings
from demur.records import Example, Pair, Record
from demur.storage.records_file import RecordFile

Reason = Literal["duplicate", "over_cap", "not_drawn"]
Pool = Sequence[Example] | Sequence[Pair]


class Drop(Record, frozen=True, kw_only=True):
    """An example that is not in the mix, and why; for a duplicate, the example that was kept instead."""

    example: str
    share: str
    reason: Reason
    kept: str = ""


class Row(Record, frozen=True, kw_only=True):
    """The counts of one component: `given` is the sum of the others."""

    share: str
    given: int
    duplicate: int
    over_cap: int
    not_drawn: int
    taken: int


class Mixed(NamedTuple):
    """A mix: examples or pairs in the order of training, the counts, and what was dropped. The records are on disk."""

    examples: RecordFile[Any]
    table: list[Row]
    drops: RecordFile[Drop]


class Item(msgspec.Struct, gc=False):
    """What drawing needs to know of an example, without its text: there may be millions."""

    id: str
    share: str
    sort_key: str
    cluster: str
    text_hash: int  # Of the user's text, normalised
    attack: str
    stratum: str
    place: int  # In the pool


def mix(pools: Mapping[str, Pool], settings: MixSettings) -> Mixed:
    """Draw the components from their pools, by name. Raises UserError: a pool is missing, or has too few examples."""
    # Sorted, since a fingerprint does not depend on the order of keys, and the result may not either.
    shares = {name: settings.shares[name] for name in sorted(settings.shares)}
    if missing := sorted(shares.keys() - pools.keys()):
        raise UserError(f"share '{missing[0]}': no pool '{missing[0]}'. Pools: {', '.join(sorted(pools)) or 'none'}.")
    given = {name: _items(name, share, pools[name]) for name, share in shares.items()}
    _cluster(given, pools, settings)
    drops = RecordFile(Drop)
    usable = {name: _capped(name, _new(pool, settings.dedupe, drops), settings, drops) for name, pool in given.items()}
    drawn: dict[str, list[Item]] = {}
    taken: dict[int, str] = {}  # What drawn examples ask (`_keys`) -> id
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
    paired = any(isinstance(row, Pair) for name in shares for row in pools[name][:1])
    rows: RecordFile[Any] = RecordFile(Pair if paired else Example, (_row(item, pools[item.share]) for item in chosen))
    counts = Counter((drop.share, drop.reason) for drop in drops) + Counter((item.share, "taken") for item in chosen)
    columns = ("duplicate", "over_cap", "not_drawn", "taken")
    table = [Row(share=n, given=len(items), **{c: counts[n, c] for c in columns}) for n, items in given.items()]
    return Mixed(rows, table, drops)


def hold_out(rows: RecordFile[Any], count: int, share: ShareSettings) -> tuple[RecordFile[Any], RecordFile[Any]]:
    """Rows to keep out of training, in whole clusters, and the other rows, of which enough for the share are left.

    The last by prompt are held out: what is then drawn of the rest has about the same prompts in every format.
    """
    keys = [(example.cluster, example.origin.prompt, example.id) for example in map(_side, rows)]
    order = sorted(range(len(rows)), key=keys.__getitem__)
    sizes = Counter(cluster for cluster, _, _ in keys)
    room = len(rows) - share.n if share.n is not None and not share.up_to else len(rows)
    held: set[str] = set()
    for cluster in dict.fromkeys(keys[at][0] for at in reversed(order[len(order) - count :])):
        if sizes[cluster] <= room:
            held.add(cluster)
            room -= sizes[cluster]
    held_out, others = ([at for at in order if (keys[at][0] in held) is wanted] for wanted in (True, False))
    return rows.take(held_out), rows.take(others)


def _side(row: Example | Pair) -> Example:
    return row.chosen if isinstance(row, Pair) else row


def _items(name: str, share: ShareSettings, pool: Pool) -> list[Item]:
    """The pool of a component, sorted, each example under the component's name."""
    by, items = share.balance, []
    for place, example in enumerate(map(_side, pool)):
        origin = example.origin
        stratum = "" if by == "none" else origin.attack if by == "template" else str(getattr(origin, by))
        key = example.id if example.share == name else _moved(example, name, example.cluster).id
        # By prompt first: of pools with the same prompts, such as two formats, the same prompts are drawn.
        sort_key = f"{origin.prompt} {key} {origin.trace}"
        text_hash, words = hash(normal(user_text(example))), (sys.intern(origin.attack), sys.intern(stratum))
        items.append(Item(key, name, sort_key, example.cluster, text_hash, *words, place))
    items.sort(key=lambda item: item.sort_key)
    for item in items:
        item.sort_key = ""  # frees its memory
    return items


def _moved(example: Example, share: str, cluster: str) -> Example:
    """An example under a share's name, which its id covers, and in a cluster."""
    return replace(example, share=share, cluster=cluster, id=example.id if example.share == share else "")


def _row(item: Item, pool: Pool) -> Example | Pair:
    row = pool[item.place]
    if isinstance(row, Pair):
        chosen, rejected = (_moved(side, item.share, item.cluster) for side in (row.chosen, row.rejected))
        return Pair(chosen=chosen, rejected=rejected, reason=row.reason)
    return _moved(row, item.share, item.cluster)


def _cluster(given: Mapping[str, list[Item]], pools: Mapping[str, Pool], settings: MixSettings) -> None:
    """Join clusters over all components, where clusters are needed."""
    near = settings.dedupe == "near"
    if not near and not any(share.cap for share in settings.shares.values()):
        return
    every = [item for items in given.values() for item in items]
    examples = (_side(pools[item.share][item.place]) for item in every)
    joined = clusters(examples, similarity=settings.similarity if near else 1.0)
    for item, cluster in zip(every, joined, strict=True):
        item.cluster = cluster


def _keys(item: Item, dedupe: str) -> tuple[int, ...]:
    """What an example asks: its text, and its question in its wrapper. Having one in common makes a duplicate."""
    if dedupe == "near" and (not item.attack or item.attack.startswith("template:")):
        return item.text_hash, hash((item.cluster, item.attack))
    return (item.text_hash,) if dedupe != "none" else ()


def _new(
    items: Sequence[Item], dedupe: str, drops: RecordFile[Drop], known: dict[int, str] | None = None
) -> list[Item]:
    """The examples that are no duplicates of those before them or, where given, of the `known` ones (key -> id)."""
    repeated: set[int] = set()
    if known is None:
        values, counts = np.unique([key for item in items for key in _keys(item, dedupe)], return_counts=True)
        repeated = set(values[counts > 1].tolist())  # most keys occur once, and need not be remembered
    known, kept = known or {}, []
    for item in items:
        first = next((known[key] for key in _keys(item, dedupe) if key in known), None)
        if first is None:
            kept.append(item)
            known.update((key, item.id) for key in _keys(item, dedupe) if key in repeated)
        else:
            drops.append(Drop(example=item.id, share=item.share, reason="duplicate", kept=first))
    return kept


def _take(
    name: str, n: int | None, usable: list[Item], settings: MixSettings, taken: dict[int, str], drops: RecordFile[Drop]
) -> list[Item]:
    """Draw at most `n` (`None`: all) of a component's examples, none a duplicate of what other components took."""
    free = _new(usable, settings.dedupe, drops, taken) if taken else usable
    most = len(free) if n is None else min(n, len(free))
    drawn = _draw(free, most, random.Random(f"draw {settings.seed} {name}"))
    if len(drawn) < len(free):
        chosen = {id(item) for item in drawn}
        drops.extend(Drop(example=e.id, share=name, reason="not_drawn") for e in free if id(e) not in chosen)
    if len(settings.shares) > 1:
        taken.update((key, item.id) for item in drawn for key in _keys(item, settings.dedupe))
    return drawn


def _capped(name: str, items: list[Item], settings: MixSettings, drops: RecordFile[Drop]) -> list[Item]:
    """The examples within the component's cap on each cluster, drawn by the seed."""
    cap = settings.shares[name].cap
    if cap is None:
        return items
    order, sizes, over = list(range(len(items))), Counter[str](), set()
    random.Random(f"cap {settings.seed} {name}").shuffle(order)
    for i in order:
        sizes[items[i].cluster] += 1
        if sizes[items[i].cluster] > cap:
            over.add(i)
    drops.extend(Drop(example=items[i].id, share=name, reason="over_cap") for i in sorted(over))
    return [item for i, item in enumerate(items) if i not in over]


def _sizes(usable: Mapping[str, list[Item]], counted: int, settings: MixSettings) -> dict[str, int]:
    """The sizes of components that are a ratio of the whole, where the others have `counted` examples."""
    ratios = {name: s.ratio for name, s in sorted(settings.shares.items()) if s.ratio is not None}
    if not ratios:
        return {}
    if len(ratios) < len(settings.shares):
        total = round(counted / (1 - sum(ratios.values())))
    else:
        total = settings.total or min(int(len(usable[name]) / ratio + 1e-9) for name, ratio in ratios.items())
    return apportion(total - counted, ratios)


def apportion(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Split a number in proportion to weights by the largest remainders; the parts add up to it."""
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    parts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(weights, key=lambda name: (parts[name] - exact[name], name))
    for name in by_remainder[: total - sum(parts.values())]:
        parts[name] += 1
    return parts


def _draw(items: list[Item], n: int, rng: random.Random) -> list[Item]:
    """`n` of the examples, as nearly as possible the same number of each class."""
    strata: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        strata[item.stratum].append(item)
    wanted = {}
    by_size = sorted(strata, key=lambda name: (len(strata[name]), name))
    for i, name in enumerate(by_size):  # what small classes lack, the larger ones fill up
        wanted[name] = min(len(strata[name]), n // (len(by_size) - i))
        n -= wanted[name]
    return [item for name in sorted(strata) for item in rng.sample(strata[name], wanted[name])]
