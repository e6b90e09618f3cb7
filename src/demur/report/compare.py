"""Two arms, of one run or of two, on what both were asked."""

from pathlib import Path
from typing import Any, NamedTuple

from demur import stats
from demur.errors import UserError, unknown
from demur.report import format
from demur.report.metrics import cells, headlines
from demur.report.read import Evaluation, Run, read
from demur.report.tests import LOSS, PairedTest, declared, doubted, incoherent


class Side(NamedTuple):
    """What `RUN:arm/seed` means."""

    run: Path
    arm: str | None
    seed: int | None


def side(text: str) -> Side:
    """Read `RUN`, `RUN:arm` or `RUN:arm/seed`. Raises UserError: the seed is no number."""
    run, colon, arm = text.rpartition(":")
    if not colon or Path(text).is_dir():
        return Side(Path(text), None, None)
    name, slash, seed = arm.partition("/")
    if slash and not seed.lstrip("-").isdigit():
        raise UserError(f"{text}: '{seed}' is no seed. Write RUN:arm or RUN:arm/seed, such as runs/mini:improved/0.")
    return Side(Path(run), name, int(seed) if slash else None)


def compare(a: str, b: str, *, margin: float | None = None) -> list[PairedTest]:
    """Every headline column that two arms share, by paired tests adjusted together.

    A side is `RUN:arm` or `RUN:arm/seed`, or `RUN` of one arm. The margin is by how much A's reasoning may be worse; default:
    what the study of A declares.

    Raises UserError: no such arm or seed, or nothing that both were measured on.
    """
    sides = [side(a), side(b)]
    runs = {s.run: read(s.run) for s in sides}
    chosen = [_chosen(s, runs[s.run]) for s in sides]
    plain = [own[0].arm + ("" if s.seed is None else f"/{s.seed}") for s, own in zip(sides, chosen, strict=True)]
    prefixes = ("", ""), [f"{s.run.name}:" for s in sides], [f"{s.run}:" for s in sides]
    ways = ([head + name for head, name in zip(heads, plain, strict=True)] for heads in prefixes)
    names = next((way for way in ways if way[0] != way[1]), None)
    if names is None:
        example = f"{sides[0].run}:improved {sides[0].run}:short"
        raise UserError(f"{a} and {b} are the same: name two arms, such as {example}.")
    found = {name: cells(own)[own[0].arm] for name, own in zip(names, chosen, strict=True)}
    columns = headlines([e for run in runs.values() for e in run.evaluations], found)
    if margin is None:
        named = runs[sides[0].run].study.get("compare") or []
        margin = next((c.get("margin") for c in named if {c["a"], c["b"]} == {own[0].arm for own in chosen}), None)
    pair = [{"a": names[0], "b": names[1], "margin": margin}]
    tests = doubted(declared(found, columns, pair), incoherent(found))
    if not tests:
        own = [headlines(runs[s.run].evaluations, {n: found[n]}) for s, n in zip(sides, names, strict=True)]
        what = [", ".join(f"{format.place(*c[:3])} by {c.judge} ({c.part})" for c in one) or "nothing" for one in own]
        raise UserError(
            f"nothing to compare: {names[0]} was measured on {what[0]}; {names[1]} on {what[1]}. Evaluate both alike first."
        )
    return tests


def forecast(study: dict[str, Any]) -> list[str]:
    """What the design of a study can show of its claims, before it runs."""
    claims = study.get("findings") or []
    tests = sum(len(claim["evidence"]) for claim in claims)
    seeds, bases = len(study.get("seeds") or (0,)), len(study.get("bases") or ()) or 1
    prompts = [use.get("limit") or 100 for use in study.get("bench") or [] if isinstance(use, dict)]
    least = stats.settles(prompts=min(prompts, default=100), seeds=seeds, bases=bases, tests=max(1, tests))
    shows = f"differences of {format.distance(least, 'share')} or more" if least < 1 else "no difference of two rates"
    of = f"with {format.plural(bases, 'base')}, {format.plural(seeds, 'training')} of each and {format.plural(tests, 'test')} this shows {shows}"
    return [
        f"{claim['claim']} ({test['a']} against {test['b']}): {of}; whether it is less than {format.distance(test['by'], 'share')} it cannot settle"
        for claim in claims
        for test in claim["evidence"]
        if test.get("metric") != LOSS and test["by"] < least
    ]


def _chosen(s: Side, run: Run) -> list[Evaluation]:
    """The evaluations of a side. Raises UserError: none, or several arms of which none is named."""
    arms = list(dict.fromkeys(e.arm for e in run.evaluations))
    if s.arm is None and len(arms) != 1:
        raise UserError(f"{s.run} has {len(arms)} arms: name one, {s.run}:ARM. There are: {', '.join(arms)}.")
    arm = arms[0] if s.arm is None else s.arm
    if arm not in arms:
        raise unknown("arm", arm, arms, where=f" in {s.run}")
    own = [e for e in run.evaluations if e.arm == arm]
    if not (chosen := [e for e in own if s.seed in (None, e.seed)]):
        seeds = sorted({e.seed for e in own if e.seed is not None})
        raise UserError(f"{s.run}:{arm} has no seed {s.seed}. There are: {', '.join(map(str, seeds)) or 'none'}.")
    return chosen
