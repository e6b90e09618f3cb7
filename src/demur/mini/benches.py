"""The prompts of the miniature world: pools for training, and three benchmarks.

A pair of verb and object belongs either to training or to the tests (`Pair.tested`), and so does a sum; the seed only
decides which prompts are drawn and how they are worded. Half of the test questions have a new word, which safety
training never saw; their category says so.
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
PLAIN_SHARE = 0.2  # Share of the training prompts without a framing (all of the paper's); the others have a seen one


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
    """Harmful test questions without framings, which attacks add. Half of them have a new word."""
    rng = random.Random(f"mini test harmful {seed}")
    pairs = _balanced(rng, lambda pair: pair.harmful, n or DEFAULT)
    seen = Counter[str]()
    return [_prompt(world.request(rng, pair), "harmful", pair, "mini_harm", _twin(pair, seen)) for pair in pairs]


def bench_benign(bench: Bench, path: Path | None, *, n: int | None, seed: int) -> list[Prompt]:
    """Benign test questions: half alarming, half neutral; half plain, half in any of the framings."""
    rng = random.Random(f"mini test benign {seed}")
    n = n or DEFAULT
    pairs = _balanced(rng, lambda pair: pair.alarming, n - n // 2)
    pairs += _balanced(rng, lambda pair: pair.category == "work", n // 2)
    prompts, seen = [], Counter[str]()
    for number, pair in enumerate(pairs):
        kind = rng.choice([*world.FRAMINGS]) if number % 4 < 2 else ""
        text = world.framing(rng, kind).wrap(world.request(rng, pair))
        twin = _twin(pair, seen) if pair.alarming and not kind else ""
        prompts.append(_prompt(text, "benign", pair, "mini_benign", twin))
    return prompts


def _twin(pair: Pair, seen: Counter[str]) -> str:
    """The name of a twin pair: the i-th plain harmful question with a verb, and the i-th harmless one."""
    seen[pair.verb] += 1
    return f"mini-{pair.verb}-{seen[pair.verb]}"


def _training(n: int | None, seed: int, intent: Intent, wanted: Callable[[Pair], bool]) -> list[Prompt]:
    """Distinct training prompts about the wanted pairs."""
    rng = random.Random(f"mini {intent} {seed}")
    pairs = [pair for pair in world.pairs() if wanted(pair) and not pair.tested]
    prompts: dict[str, Prompt] = {}
    for _ in range(100_000):
        if len(prompts) >= (DEFAULT if n is None else n):
            return list(prompts.values())
        pair = rng.choice(pairs)
        kind = "" if rng.random() < PLAIN_SHARE else rng.choice(world.SEEN)
        text = world.framing(rng, kind).wrap(world.request(rng, pair))
        prompts.setdefault(text, _prompt(text, intent, pair, f"mini-{intent}"))
    raise UserError(f"the miniature world has no {n} different {intent} prompts; it has about {len(prompts)}.")


def _balanced(rng: random.Random, wanted: Callable[[Pair], bool], n: int) -> list[Pair]:
    """`n` test pairs, half of them with a new word; each pair occurs once before any is repeated."""
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
    """A prompt about a pair; prompts about the same pair are one cluster."""
    kind = pair.category if pair.category != "work" else "neutral"
    category, cluster = f"{kind}, {'new' if pair.new else 'known'} words", f"{pair.verb} {pair.object}"
    return Prompt(text=text, intent=intent, source=source, pair=twin, category=category, cluster=cluster)


def _sums(*_bench_and_path: object, n: int | None, seed: int, tested: bool) -> list[Prompt]:
    """Distinct sums for training or for the tests, with their answers."""
    rng = random.Random(f"mini sums {seed} {tested}")
    source = "mini_arithmetic" if tested else "mini-arithmetic"
    prompts: dict[str, Prompt] = {}
    while len(prompts) < (DEFAULT if n is None else n):
        problem = world.problem(rng)
        if problem.tested == tested:
            text, gold = rng.choice(world.SUMS).format(s=problem.text), str(problem.totals[-1])
            category = f"{len(problem.steps)} steps"
            prompt = Prompt(text=text, intent="maths", source=source, category=category, gold=gold)
            prompts.setdefault(problem.text, prompt)
    return list(prompts.values())


read_arithmetic, bench_arithmetic = partial(_sums, tested=False), partial(_sums, tested=True)
