"""Generating and judging at the same time, over a server with heavy-tailed latencies, against stage after stage.

    python benchmarks/pipeline.py                   the table
    python benchmarks/pipeline.py --json out.json   flat figures for programs

The critical path is the slowest single trace: its generation, then its judgement, with nothing else in the way. No
schedule can be faster. It is measured with everything in flight at once. What `demur eval` does (`demur.generate.ask_and_judge`, with reply cache, client and judge as they are) is
measured as a multiple of it, its careful start included. The server's latencies follow from the requests: the same in
every run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from demur import judge as judges
from demur.generate import ask_and_judge
from demur.interfaces import Judge, Model, requests_for
from demur.models import limiter
from demur.models.config import Remote
from demur.models.open import open_model
from demur.records import Prompt, Sampling, Trace
from demur.storage.reply_cache import ReplyCache
from demur.testing.server import serving

SAMPLING = Sampling()


def prompts(count: int) -> list[Prompt]:
    return [Prompt(text=f"How would one steal car number {i}?", intent="harmful") for i in range(count)]


@asynccontextmanager
async def ready(url: str) -> AsyncIterator[tuple[Model, Judge]]:
    """A target and a judge at the server, over a new reply cache."""
    config = Remote(url=(url,), model="scripted", in_flight=2048)
    with tempfile.TemporaryDirectory() as folder, ReplyCache(Path(folder)) as cache:
        async with (
            open_model(config, cache=cache, label="target/pipeline") as target,
            open_model(config, cache=cache, label="judge/pipeline") as judge_model,
        ):
            yield target, judges.open_judge("harmbench", model=judge_model)


async def overlapped(url: str, count: int) -> float:
    """Seconds with generation and judgement overlapped."""
    async with ready(url) as (target, judge):
        begun = time.monotonic()
        flow = await ask_and_judge(target, requests_for(prompts(count), SAMPLING), [judge])
        seconds = time.monotonic() - begun
    assert len(flow.traces) == len(flow.verdicts) == count
    assert all(verdict.label for verdict in flow.verdicts)
    return seconds


async def one_after_the_other(url: str, count: int) -> tuple[float, float]:
    """Seconds of stage after stage, and of the critical path: when each trace came, and how long its verdict took."""
    async with ready(url) as (target, judge):
        begun = time.monotonic()
        traces: list[Trace] = []
        came: dict[str, float] = {}
        async for found in target.answers(requests_for(prompts(count), SAMPLING)):
            assert isinstance(found, Trace)
            traces.append(found)
            came[found.id] = time.monotonic() - begun
        between = time.monotonic()
        judged: dict[str, float] = {}
        async for verdict in judge.verdicts(traces):
            judged[verdict.trace] = time.monotonic() - between
        whole = time.monotonic() - begun
    return whole, max(came[key] + judged[key] for key in came)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--latency", type=float, default=0.9, help="shortest latency of a reply, in seconds")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with serving("stand_in", latency=args.latency, tail=True) as server:
        careful, limiter.START = limiter.START, args.count
        staged, path = asyncio.run(one_after_the_other(server.url, args.count))
        limiter.START = careful
        together = asyncio.run(overlapped(server.url, args.count))
    figures = {
        "critical_path_s": path,
        "overlapped_s": together,
        "staged_s": staged,
        "over_critical_path": together / path,
        "staged_over_critical_path": staged / path,
    }
    print(f"{'':>22} {'seconds':>8} {'x critical path':>16}")
    for name, seconds in (("critical path", path), ("overlapped", together), ("stage after stage", staged)):
        print(f"{name:>22} {seconds:>8.2f} {seconds / path:>16.3f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
