"""Two arms, of one run or of two, on what both were asked."""

from pathlib import Path
from typing import Any, NamedTuple

from demur import stats
from demur.errors import UserError, plural, unknown
from demur.report import format
from demur.report.metrics import cells, headlines
from demur.report.read import Evaluation, Run, read
from demur.report.tests import LOSS, PairedTest, declared, doubted, incoherent


class Side(NamedTuple):
    """One side of a comparison: `RUN:arm/seed`, taken apart."""

    run: Path
    arm: str | None
    seed: int | None


def side(text: str) -> Side:
    """Read `RUN`, `RUN:arm` or `RUN:arm/seed`. Raises UserError: the seed is not a number."""
    run, colon, arm = text.rpartition(":")
    if not colon or Path(text).is_dir():
        return Side(Path(text), None, None)
    name, slash, seed = arm.partition("/")
    if slash and not seed.lstrip("-").isdigit():
        raise UserError(f"{text}: '{seed}' is no seed. Write RUN:arm or RUN:arm/seed, such as runs/mini:improved/0.")
    return Side(Path(run), name, int(seed) if slash else None)


def compare(a: str, b: str, *, margin: float | None = None) -> list[PairedTest]:
    """Every headline column that two arms share, by paired tests adjusted together.

    A side is `RUN:arm` or `RUN:arm/seed`, or `RUN` where it has one arm. `margin`: how much worse A's reasoning may be;
    default: what the study of A declares. Raises UserError: no such arm or seed, or nothing that both were measured on.
    """
    sides = [side(a), side(b)]
    runs = {s.run: read(s.run) for s in sides}
    chosen = [_chosen(s, runs[s.run]) for s in sides]
    arms = [evaluations[0].arm for evaluations in chosen]
    plain = [arm if s.seed is None else f"{arm}/{s.seed}" for s, arm in zip(sides, arms, strict=True)]
    prefixes = ("", ""), [f"{s.run.name}:" for s in sides], [f"{s.run}:" for s in sides]
    candidates = ([prefix + name for prefix, name in zip(pair, plain, strict=True)] for pair in prefixes)
    names = next((pair for pair in candidates if pair[0] != pair[1]), None)
    if names is None:
        example = f"{sides[0].run}:improved {sides[0].run}:short"
        raise UserError(f"{a} and {b} are the same: name two arms, such as {example}.")
    table = {name: cells(own)[arm] for name, own, arm in zip(names, chosen, arms, strict=True)}
    columns = headlines([e for run in runs.values() for e in run.evaluations], table)
    if margin is None:
        declarations = runs[sides[0].run].study.get("compare") or []
        margin = next((d.get("margin") for d in declarations if {d["a"], d["b"]} == {*arms}), None)
    pair = [{"a": names[0], "b": names[1], "margin": margin}]
    tests = doubted(declared(table, columns, pair), incoherent(table))
    if not tests:
        both = [headlines(runs[s.run].evaluations, {n: table[n]}) for s, n in zip(sides, names, strict=True)]
        what = [", ".join(f"{format.place(*c[:3])} by {c.judge} ({c.part})" for c in own) or "nothing" for own in both]
        measured = f"{names[0]} was measured on {what[0]}; {names[1]} on {what[1]}"
        raise UserError(f"nothing to compare: {measured}. Evaluate both alike first.")
    return tests


def forecast(study: dict[str, Any]) -> list[str]:
    """The claims that the design of a study cannot settle, each with what it can show, before it runs."""
    tests = [(claim["claim"], test) for claim in study.get("findings") or [] for test in claim["evidence"]]
    seeds, bases = len(study.get("seeds") or (0,)), len(study.get("bases") or ()) or 1
    prompts = [use.get("limit") or 100 for use in study.get("bench") or [] if isinstance(use, dict)]
    least = stats.detectable(prompts=min(prompts, default=100), seeds=seeds, bases=bases, tests=max(1, len(tests)))
    shows = f"differences of {format.distance(least, 'share')} or more" if least < 1 else "no difference of two rates"
    design = f"{plural(bases, 'base')}, {plural(seeds, 'training')} of each and {plural(len(tests), 'test')}"
    return [
        f"{claim} ({test['a']} against {test['b']}): with {design} this shows {shows}; "
        f"it cannot settle whether the difference is less than {format.distance(test['by'], 'share')}"
        for claim, test in tests
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
    of_arm = [e for e in run.evaluations if e.arm == arm]
    if not (chosen := [e for e in of_arm if s.seed in (None, e.seed)]):
        seeds = sorted({e.seed for e in of_arm if e.seed is not None})
        raise UserError(f"{s.run}:{arm} has no seed {s.seed}. There are: {', '.join(map(str, seeds)) or 'none'}.")
    return chosen
