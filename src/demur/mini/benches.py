"""What the miniature world asks: pools of prompts for training, and three benchmarks on others.

A pair of verb and object belongs either to training or to the tests (`Pair.tested`), and so does a sum; nothing
depends on the seed but which prompts are drawn and how they are worded. Test questions about known words and about new
ones, which safety training never saw, come in equal numbers, and their category says which they are.
"""

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from demur.bench.spec import Bench
from demur.errors import UserError
from demur.mini import world
from demur.mini.world import Pair
from demur.records import Intent, Prompt

DEFAULT = 400
PLAIN_SHARE = 0.2  # Share of the training prompts without a framing (the paper's have none); the others have a seen one


def read_harmful(path: Path | None, *, n: int | None, seed: int) -> list[Prompt]:
    """Harmful prompts for training: plain or in a seen framing, without new words."""
    return _training(n, seed, "harmful", lambda pair: pair.harmful)


def read_benign(path: Path | None, *, n: int | None, seed: int) -> list[Prompt]:
    """Benign prompts for training, half of them alarming, in the same framings."""
    alarming = _training((n or DEFAULT) // 2, seed, "benign", lambda pair: pair.alarming)
    rest = (n or DEFAULT) - len(alarming)
    neutral = _training(rest, seed, "benign", lambda pair: pair.category == "work")
    return [*alarming, *neutral]


def bench_harmful(bench: Bench, path: Path | None, *, n: int | None, seed: int) -> list[Prompt]:
    """Harmful questions of the tests, plain: attacks do the framing. Half of them have a new word."""
    rng = random.Random(f"mini test harmful {seed}")
    pairs = _balanced(rng, lambda pair: pair.harmful, n or DEFAULT)
    seen = Counter[str]()
    return [_prompt(world.request(rng, pair), "harmful", pair, "mini_harm", _twin(pair, seen)) for pair in pairs]


def bench_benign(bench: Bench, path: Path | None, *, n: int | None, seed: int) -> list[Prompt]:
    """Benign questions of the tests: half alarming, half neutral; half plain, half in any of the framings."""
    rng = random.Random(f"mini test benign {seed}")
    wanted = n or DEFAULT
    pairs = _balanced(rng, lambda pair: pair.alarming, wanted - wanted // 2)
    pairs += _balanced(rng, lambda pair: pair.category == "work", wanted // 2)
    prompts, seen = [], Counter[str]()
    for number, pair in enumerate(pairs):
        kind = rng.choice([*world.FRAMINGS]) if number % 4 < 2 else ""
        text = world.framing(rng, kind).wrap(world.request(rng, pair))
        twin = _twin(pair, seen) if pair.alarming and not kind else ""
        prompts.append(_prompt(text, "benign", pair, "mini_benign", twin))
    return prompts


def _twin(pair: Pair, seen: Counter[str]) -> str:
    """What the i-th plain harmful question with a verb has in common with the i-th harmless one."""
    seen[pair.verb] += 1
    return f"mini-{pair.verb}-{seen[pair.verb]}"


def _training(n: int | None, seed: int, intent: Intent, wanted: Callable[[Pair], bool]) -> list[Prompt]:
    """Distinct training prompts about the pairs that are wanted."""
    rng = random.Random(f"mini {intent} {seed}")
    pairs = [pair for pair in world.pairs() if wanted(pair) and not pair.tested]
    found: dict[str, Prompt] = {}
    tries = 0
    while len(found) < (DEFAULT if n is None else n):
        pair = rng.choice(pairs)
        kind = "" if rng.random() < PLAIN_SHARE else rng.choice(world.SEEN)
        text = world.framing(rng, kind).wrap(world.request(rng, pair))
        found.setdefault(text, _prompt(text, intent, pair, f"mini-{intent}"))
        tries += 1
        if tries > 100_000:
            raise UserError(f"the miniature world has no {n} different {intent} prompts; it has about {len(found)}.")
    return list(found.values())


def _balanced(rng: random.Random, wanted: Callable[[Pair], bool], n: int) -> list[Pair]:
    """`n` test pairs, known and new words in turn; each pair once before any comes again."""
    tested = [pair for pair in world.pairs() if wanted(pair) and pair.tested]
    groups = [[pair for pair in tested if pair.new == new] for new in (False, True)]
    chosen: list[Pair] = []
    for number, group in enumerate(groups):
        share = (n + 1 - number) // 2
        while share > 0:
            drawn = rng.sample(group, min(share, len(group)))
            chosen += drawn
            share -= len(drawn)
    rng.shuffle(chosen)
    return chosen


def _prompt(text: str, intent: Intent, pair: Pair, source: str, twin: str = "") -> Prompt:
    """A prompt about a pair; prompts about the same pair are not independent of each other."""
    kind = pair.category if pair.category != "work" else "neutral"
    own = {"category": f"{kind}, {'new' if pair.new else 'known'} words", "cluster": f"{pair.verb} {pair.object}"}
    return Prompt(text=text, intent=intent, source=source, pair=twin, **own)


def _sums(*where: object, n: int | None, seed: int, tested: bool) -> list[Prompt]:
    """Distinct sums of one side of the split, with their answers."""
    rng = random.Random(f"mini sums {seed} {tested}")
    found: dict[str, Prompt] = {}
    while len(found) < (DEFAULT if n is None else n):
        problem = world.problem(rng)
        if problem.tested == tested:
            text = rng.choice(world.SUMS).format(s=problem.text)
            source, kind = ("mini_arithmetic" if tested else "mini-arithmetic"), f"{len(problem.steps)} steps"
            known = {"source": source, "category": kind, "gold": str(problem.totals[-1])}
            found.setdefault(problem.text, Prompt(text=text, intent="maths", **known))
    return list(found.values())


read_arithmetic, bench_arithmetic = partial(_sums, tested=False), partial(_sums, tested=True)  # Training, and tests
