"""The client beside what others use: one server process, one client on one core, replies of two kilobytes after 50 ms.

    python benchmarks/client.py                     the table
    python benchmarks/client.py --rows 20000        a shorter run for memory
    python benchmarks/client.py --json out.json     flat figures for programs

Compared are demur with its durable reply cache (each reply committed with a synced log before it is seen), a bare aiohttp loop
that keeps nothing, the openai SDK on each of its two transports (httpx, and aiohttp: `pip install openai[aiohttp]`) with a
connection for every request in flight, of which the better counts, and inspect-ai's evaluation loop at the margin: what a
sample more costs, by the difference of two sizes, so that its start is not counted. Each is given the same number of
requests in flight, takes its turn several times in alternation, and its best turn counts. Server and client have a core
each where there are two. Memory is the peak of a fresh process that draws its requests from a generator.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demur.interfaces import Request, requests_for
from demur.models.config import Remote
from demur.models.open import open_model
from demur.records import Prompt, Sampling, Trace
from demur.storage.reply_cache import ReplyCache
from demur.testing.server import Server, serving

LATENCY = 0.05
IN_FLIGHT = (64, 256, 1024)
SAMPLING = Sampling(max_tokens=4096)


def requests(count: int) -> Iterator[Request]:
    return iter(requests_for((Prompt(text=f"question {i}", intent="benign") for i in range(count)), SAMPLING))


async def by_demur(url: str, count: int, in_flight: int, folder: Path) -> None:
    with ReplyCache(folder) as cache:
        config = Remote(url=(url,), model="scripted", in_flight=in_flight)
        async with open_model(config, cache=cache, label="target/benchmark") as model:
            done = 0
            async for found in model.answers(requests(count)):
                assert isinstance(found, Trace)
                done += 1
        assert done == cache.count() == count


async def by_aiohttp(url: str, count: int, in_flight: int) -> None:
    import aiohttp

    todo = iter(range(count))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def worker() -> None:
            for i in todo:
                body = {
                    "model": "scripted",
                    "messages": [{"role": "user", "content": f"question {i}"}],
                    "max_tokens": 4096,
                }
                async with session.post(f"{url}/chat/completions", json=body) as response:
                    assert (await response.json())["choices"][0]["message"]["content"]

        await asyncio.gather(*(worker() for _ in range(in_flight)))


async def by_openai(url: str, count: int, in_flight: int, transport: str) -> None:
    import httpx
    import openai

    todo = iter(range(count))
    limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    make = {"openai_httpx": openai.DefaultAsyncHttpxClient, "openai_aiohttp": openai.DefaultAioHttpClient}[transport]
    http = make(limits=limits)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=http) as client:

        async def worker() -> None:
            for i in todo:
                turns = [{"role": "user", "content": f"question {i}"}]
                reply = await client.chat.completions.create(model="scripted", messages=turns, max_tokens=4096)
                assert reply.choices[0].message.content

        await asyncio.gather(*(worker() for _ in range(in_flight)))


INSPECT = """
import sys, time, os
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import get_model, GenerateConfig
from inspect_ai.scorer import includes
url, count, in_flight, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
model = get_model("openai-api/demur/scripted", base_url=url, api_key="none", config=GenerateConfig(max_connections=in_flight))
task = Task(dataset=[Sample(input=f"question {i}", target="answer") for i in range(count)], scorer=includes())
begun = time.monotonic()
(log,) = eval(task, model=model, display="none", log_dir=folder, max_samples=in_flight)
assert log.status == "success", log.error
print("seconds", time.monotonic() - begun)
"""


def by_inspect(url: str, count: int, in_flight: int) -> float | None:
    """Seconds of inspect-ai's evaluation loop; `None` when it is not installed or failed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", INSPECT, url, str(count), str(in_flight), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    for line in done.stdout.splitlines():
        if line.startswith("seconds "):
            return float(line.split()[1])
    print(f"inspect-ai gave no figure: {done.stderr[-300:]}", file=sys.stderr)
    return None


def at_the_margin(url: str, count: int, in_flight: int) -> float | None:
    """Samples a second of inspect-ai's loop beyond its start: four times as many samples against these."""
    few, many = by_inspect(url, count, in_flight), by_inspect(url, 4 * count, in_flight)
    return 3 * count / (many - few) if few and many else None


def rate(name: str, url: str, count: int, in_flight: int) -> float:
    """Requests a second of one turn."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        begun = time.monotonic()
        if name == "demur":
            asyncio.run(by_demur(url, count, in_flight, Path(folder)))
        elif name == "aiohttp":
            asyncio.run(by_aiohttp(url, count, in_flight))
        else:
            asyncio.run(by_openai(url, count, in_flight, name))
        return count / (time.monotonic() - begun)


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """The server, on the last core; this process and its children on the first."""
    with serving("filler", latency=LATENCY) as running:
        if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
            os.sched_setaffinity(running.process.pid, {(os.cpu_count() or 2) - 1})
            os.sched_setaffinity(0, {0})
        yield running


def memory(url: str, count: int) -> float:
    """Peak megabytes of a fresh process that asks `count` requests."""
    command = [sys.executable, __file__, "--memory-child", url, "--rows", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def measured(args: argparse.Namespace) -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    with server() as running:
        for in_flight in IN_FLIGHT:
            best: dict[str, float] = {}
            for _ in range(args.turns):
                for name in ("aiohttp", "demur", "openai_httpx", "openai_aiohttp"):
                    count = args.count // 4 if name.startswith("openai") else args.count
                    found = rate(name, running.url, count, in_flight)
                    best[name] = max(best.get(name, 0.0), found)
            best["openai"] = max(best["openai_httpx"], best["openai_aiohttp"])
            figures |= {f"{name}_rps_{in_flight}": value for name, value in best.items()}
            figures[f"durable_over_aiohttp_{in_flight}"] = best["demur"] / best["aiohttp"]
            figures[f"durable_over_openai_{in_flight}"] = best["demur"] / best["openai"]
        inspect = at_the_margin(running.url, args.count // 20, 256)
        figures["inspect_rps_256"] = inspect
        demur = figures["demur_rps_256"]
        figures["durable_over_inspect"] = demur / inspect if demur and inspect else None
        figures["rss_mb_200k" if args.rows == 200_000 else f"rss_mb_{args.rows}"] = memory(running.url, args.rows)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=6000, help="requests of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rows", type=int, default=200_000, help="requests of the memory run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_child:
        rate("demur", args.memory_child, args.rows, 256)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10))
        return
    figures = measured(args)
    names = ("demur", "aiohttp", "openai_httpx", "openai_aiohttp")
    print("in flight", *(f"{name:>14}" for name in (*names, "/aiohttp", "/openai's best")), "  requests a second")
    for in_flight in IN_FLIGHT:
        row: list[Any] = [figures[f"{name}_rps_{in_flight}"] for name in names]
        ratios: list[Any] = [figures[f"durable_over_{name}_{in_flight}"] for name in ("aiohttp", "openai")]
        print(f"{in_flight:>9}", *(f"{one:>14.0f}" for one in row), *(f"{one:>14.2f}" for one in ratios))
    for name in ("inspect_rps_256", "durable_over_inspect", *(name for name in figures if name.startswith("rss_mb"))):
        value = figures[name]
        print(f"{name:>24}  {'–' if value is None else f'{value:.1f}'}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
