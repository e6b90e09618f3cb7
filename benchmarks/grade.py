"""How fast replies are graded: maths against math-verify in a warm pool of as many processes, and what isolation costs a program.

    python benchmarks/grade.py [--json FILE] [--data math500.jsonl]

Maths: the worked solutions of MATH-500 as replies, every fifth with a perturbed answer, as of a model that is right four times of five;
our way extracts and compares behind two warm workers. math-verify's is `verify(parse(gold), parse(reply))` without its
timeouts, which cost it time: called plainly in one process, in a pool of two warm processes that are handed sixteen replies at a time, and in
that pool on the last box alone, which is less to read. Without the data, its place is taken by generated sums and fractions. Isolation: `print(1)` under bubblewrap and in a bare subprocess, the two in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from msgspec.structs import replace

from demur.judge.isolation import python, run_program
from demur.judge.maths import MathsJudge, last_boxed, perturbed
from demur.records import Message, Prompt, Sampling, Trace

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "math500.jsonl"


def problems(path: Path) -> list[tuple[str, str]]:
    """Reply and gold."""
    if path.exists():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [(row["solution"], row["answer"]) for row in rows]
    return [(f"We see that it is \\boxed{{\\frac{{{n}}}{{{n + 7}}}}}.", f"{n}/{n + 7}") for n in range(1, 501)]


def replies(path: Path) -> list[Trace]:
    """Traces, every fifth of them wrong."""
    made = []
    for i, (text, gold) in enumerate(problems(path)):
        right = last_boxed(text) or gold
        answer = text.replace(f"\\boxed{{{right}}}", f"\\boxed{{{perturbed(right)}}}") if i % 5 == 0 else text
        prompt = Prompt(text=f"{i}", intent="maths", gold=gold)
        sent = (Message(role="user", content=prompt.text),)
        made.append(
            Trace(
                prompt=prompt, model="m", sampling=Sampling(), sent=sent, raw=answer, thinking="", answer=answer,
                outcome="complete", opened_by="model", finish="stop",
            )
        )  # fmt: skip
    return made


async def ours(traces: list[Trace]) -> float:
    """Replies a second; the workers are warm, as they are a few seconds into a run: they have read other numbers before."""
    warm = [
        replace(trace, id="", prompt=replace(trace.prompt, gold=perturbed(perturbed(trace.prompt.gold or ""))))
        for trace in traces
    ]
    labels = []
    began = 0.0
    async for verdict in MathsJudge(workers=2).verdicts([*warm, *traces]):
        labels.append(verdict.label)
        if len(labels) == len(warm):
            began = time.perf_counter()
    rate = len(traces) / (time.perf_counter() - began)
    share = labels[len(warm) :].count("correct") / len(traces)
    assert 0.78 < share < 0.82, f"four of five replies are right, graded right: {share:.0%}"
    return rate


def verified(pair: tuple[str, str]) -> bool:
    """What math-verify says of a gold and a reply."""
    from math_verify import parse, verify

    logging.disable()
    gold, reply = (parse(text, parsing_timeout=None) for text in pair)
    return bool(verify(gold, reply, timeout_seconds=None))


def plain(pairs: list[tuple[str, str]]) -> float:
    """Replies a second of math-verify in this process."""
    verified(("$1$", "\\boxed{1}"))
    began = time.perf_counter()
    for pair in pairs:
        verified(pair)
    return len(pairs) / (time.perf_counter() - began)


def pooled(pairs: list[tuple[str, str]]) -> float:
    """Replies a second of math-verify in two warm processes: they have read other numbers before."""
    warm = [(f"${perturbed(perturbed(gold.strip('$')))}$", reply) for gold, reply in pairs]
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(verified, warm, chunksize=16))
        began = time.perf_counter()
        right = sum(pool.map(verified, pairs, chunksize=16))
        rate = len(pairs) / (time.perf_counter() - began)
    assert 0.7 < right / len(pairs) < 0.85, f"four of five replies are right, verified: {right / len(pairs):.0%}"
    return rate


def processor(work: Callable[[], object]) -> float:
    """Processor seconds of some work, its processes that have ended included; the better of two."""

    def used() -> float:
        return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

    found = []
    for _ in range(2):
        before = used()
        work()
        found.append(used() - before)
    return min(found)


def at_the_margin(traces: list[Trace], pairs: list[tuple[str, str]]) -> tuple[float, float]:
    """Processor seconds that these replies cost after as many others, ours and math-verify's: no start, no other load counts."""

    async def judged(some: list[Trace]) -> None:
        async for _ in MathsJudge(workers=2).verdicts(some):
            pass

    def verify_all(some: list[tuple[str, str]]) -> None:
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(verified, some, chunksize=16))

    others = [
        replace(t, id="", prompt=replace(t.prompt, gold=perturbed(perturbed(t.prompt.gold or "")))) for t in traces
    ]
    strange = [(f"${trace.prompt.gold}$", reply) for trace, (_, reply) in zip(others, pairs, strict=True)]
    ours_ = [processor(lambda some=some: asyncio.run(judged(some))) for some in (others, [*others, *traces])]  # type: ignore[misc]
    theirs = [processor(lambda some=some: verify_all(some)) for some in (strange, [*strange, *pairs])]  # type: ignore[misc]
    return ours_[1] - ours_[0], theirs[1] - theirs[0]


def overhead(times: int) -> tuple[float, float]:
    """Median milliseconds of an isolated program and of a bare one, measured in turn."""

    def milliseconds(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - began)

    bare = [python(), "-I", "-c", "print(1)"]
    pairs = [
        (
            milliseconds(lambda: run_program("print(1)")),
            milliseconds(lambda: subprocess.run(bare, capture_output=True, check=True)),
        )
        for _ in range(times)
    ]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--programs", type=int, default=1000, help="programs in a row that must leave nothing behind")
    options = parser.parse_args()
    traces = replies(options.data)
    whole = [(f"${trace.prompt.gold}$", trace.answer or "") for trace in traces]
    boxes = [(gold, f"\\boxed{{{last_boxed(reply) or reply}}}") for gold, reply in whole]
    fast = max(asyncio.run(ours(traces)) for _ in range(2))
    peers = {"plain": plain(whole)}
    peers |= {"pool": max(pooled(whole) for _ in range(2)), "pool_boxed": max(pooled(boxes) for _ in range(2))}
    own, pool = at_the_margin(traces, boxes)
    before = (len(os.listdir("/proc/self/fd")), len(os.listdir("/tmp")))
    isolated, bare = overhead(options.programs)
    left = [a - b for a, b in zip((len(os.listdir("/proc/self/fd")), len(os.listdir("/tmp"))), before, strict=True)]
    figures = {
        "maths_per_s": round(fast, 1),
        **{f"math_verify_{name}_per_s": round(rate, 1) for name, rate in peers.items()},
        **{f"over_math_verify_{name}": round(fast / rate, 2) for name, rate in peers.items()},
        "ours_cpu_ms": round(1000 * own / len(traces), 2),
        "math_verify_cpu_ms": round(1000 * pool / len(traces), 2),
        "over_math_verify_cpu": round(pool / own, 2),
        "isolated_ms": round(isolated, 1),
        "bare_ms": round(bare, 1),
        "isolation_overhead_ms": round(isolated - bare, 1),
        "programs": options.programs,
        "left_descriptors": left[0],
    }
    for name, value in figures.items():
        print(f"{name:<24} {value:>10,}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
