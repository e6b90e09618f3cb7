"""How close PAIR comes to its longest chain: many goals and streams at once, against a server whose latencies have a heavy tail.

    python benchmarks/pair.py [--json FILE] [--goals 50] [--latency 0.3]

The target never gives in, so that every goal runs through all streams and iterations. The scripted server decides a reply's
latency by the hash of the request, so that the client knows it, too. From these latencies follow the longest chain (the slowest
goal: in each iteration its slowest stream, attacker, target and judge one after the other), below which no schedule can
come, and the sum of all, which is what one conversation at a time takes; that is checked on two small goals by doing it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import tempfile
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec

from demur.attack import open_attack, parse
from demur.attack.pair import Pair
from demur.interfaces import Request
from demur.models import client
from demur.models.config import Remote
from demur.models.open import open_model
from demur.records import Prompt
from demur.storage.reply_cache import ReplyCache
from demur.testing.server import Behaviour, _Server, serving


class Latencies:
    """The latency of every request that is sent, by the id of its prompt."""

    def __init__(self, latency: float) -> None:
        self.found: dict[str, float] = {}
        server = _Server(Behaviour(script="echo", latency=latency, tail=True))
        plain = client.RemoteModel._body

        def body(client: client.RemoteModel, request: Request, begun: str) -> dict[str, Any]:
            sent = plain(client, request, begun)
            key = hashlib.blake2b(msgspec.json.encode(sent), digest_size=8).digest()
            # Target and judge have the same id within a turn: their latencies are told apart by who is asked.
            self.found[f"{client.identity}/{request.prompt.id}"] = server._latency(key)
            return sent

        client.RemoteModel._body = body  # type: ignore[method-assign,assignment]

    def total(self) -> float:
        """Seconds that one conversation at a time takes."""
        return sum(self.found.values())

    def longest(self) -> float:
        """Seconds of the slowest goal under its barriers."""
        turns: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for name, seconds in self.found.items():
            goal, stream, iteration = name.rpartition("/")[2].split(".")[:3]
            turns[goal, iteration][stream] += seconds
        chains: dict[str, float] = defaultdict(float)
        for (goal, _), streams in turns.items():
            chains[goal] += max(streams.values())
        return max(chains.values())


async def attack(goals: int, url: dict[str, str], folder: Path, **how: int) -> tuple[float, float, Pair]:
    """Wall and CPU seconds of one search, reply cache on disk included."""
    questions = [Prompt(text=f"Say how thing {i} is done.", intent="harmful") for i in range(goals)]
    with ReplyCache(folder) as cache:
        async with AsyncExitStack() as stack:
            configs = {who: Remote(url=(url[who],), model=who, in_flight=1024) for who in url}
            models = {
                who: await stack.enter_async_context(open_model(config, cache=cache, label=f"{who}/benchmark"))
                for who, config in configs.items()
            }
            found = open_attack(parse({"name": "pair", **how}), target=models.pop("target"), models=models)
            assert isinstance(found, Pair)
            wall, cpu = time.perf_counter(), time.process_time()
            async for _ in found.attacked(questions):
                pass
            return time.perf_counter() - wall, time.process_time() - cpu, found


def measure(goals: int, latency: float) -> dict[str, float]:
    """All figures."""
    latencies = Latencies(latency)
    options: dict[str, Any] = {"latency": latency, "tail": True}
    with (
        serving("filler", **options) as target,
        serving("stand_in", **options) as attacker,
        serving("stand_in", **options) as judge,
        tempfile.TemporaryDirectory() as folder,
    ):
        url = {"target": target.url, "attacker": attacker.url, "judge": judge.url}
        wall, cpu, found = asyncio.run(attack(goals, url, Path(folder) / "all", streams=5, iterations=5))
        assert len(found.attempts) == goals * 25, "a goal ended early"
        served, longest, queries = latencies.total(), latencies.longest(), len(latencies.found)
        seen = sum(server.requests()["seen"] for server in (target, attacker, judge))
        # A stream that comes back to a prompt of its own gets the reply that is there: such a query is not sent.
        assert 0.99 * queries <= seen <= queries, f"{queries} queries were meant, {seen} sent"
        alone = alone_served = 0.0
        for number in range(2):
            latencies.found.clear()
            folder_of_one = Path(folder) / f"alone{number}"
            alone += asyncio.run(attack(1, url, folder_of_one, streams=1, iterations=3, seed=1 + number))[0]
            alone_served += latencies.total()
    return {
        "goals": goals,
        "queries": seen,
        "wall_s": round(wall, 2),
        "longest_chain_s": round(longest, 2),
        "served_s": round(served, 1),
        "over_longest_chain": round(wall / longest, 3),
        "over_sequential": round(served / wall, 1),
        "one_at_a_time_over_served": round(alone / alone_served, 3),
        "cpu_ms_per_query": round(1000 * cpu / seen, 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--goals", type=int, default=50)
    parser.add_argument("--latency", type=float, default=0.3, help="seconds of the fastest reply; mean 1.67 times that")
    options = parser.parse_args()
    figures = measure(options.goals, options.latency)
    for name, value in figures.items():
        print(f"{name:<26} {value:>12,}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
