"""SIGKILL after some replies, many times in a row: nothing is lost, nothing is asked again, the results are the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import msgspec
import pytest
from tests.made import python, replies

from demur.interfaces import requests_for
from demur.models.config import Remote
from demur.records import Prompt, Sampling, Trace, encode
from demur.storage.reply_cache import ReplyCache
from demur.testing.server import serving

IN_FLIGHT = 8
COUNT = 800
KILLS = 50

CHILD = """
import asyncio, os, sys
from pathlib import Path
from demur.storage.reply_cache import ReplyCache
from demur.models.config import Remote
from demur.models.open import open_model
from demur.interfaces import requests_for
from demur.records import Prompt, Sampling
from demur.models import client as endpoint

async def main():
    with ReplyCache(Path(sys.argv[2])) as cache:
        async with open_model(Remote(url=(sys.argv[1],), model="scripted", revision="1", in_flight=int(sys.argv[3])), cache=cache) as model:
            prompts = [Prompt(text=f"question {i}", intent="benign") for i in range(int(sys.argv[4]))]
            print("up", flush=True)
            async for found in model.answers(requests_for(prompts, Sampling())):
                os.write(1, (found.id + "\\n").encode())

asyncio.run(main())
"""


def results(url: str, folder: Path) -> list[bytes]:
    prompts = [Prompt(text=f"question {i}", intent="benign") for i in range(COUNT)]
    found = replies(Remote(url=(url,), model="scripted", revision="1"), requests_for(prompts, Sampling()), cache=folder)
    return sorted(map(encode, found))


@pytest.mark.slow
def test_fifty_kills_in_a_row_lose_nothing_and_ask_nothing_twice(tmp_path: Path) -> None:
    rng = random.Random(7)
    seen_by_user: set[str] = set()
    interrupted = kept = 0
    with serving("echo", latency=0.01) as server:
        arguments = [server.url, str(tmp_path / "cache"), str(IN_FLIGHT), str(COUNT)]
        for _ in range(KILLS):
            with subprocess.Popen([python(), "-c", CHILD, *arguments], stdout=subprocess.PIPE) as child:
                assert child.stdout is not None
                assert child.stdout.readline() == b"up\n"
                shown = [child.stdout.readline() for _ in range(kept + rng.randrange(8))]
                interrupted += child.poll() is None
                os.kill(child.pid, signal.SIGKILL)
                shown += child.stdout.read().splitlines(keepends=True)
                seen_by_user |= {line.decode().strip() for line in shown if len(line) == 17}
            with ReplyCache(tmp_path / "cache") as cache:
                kept = cache.count()
            assert kept >= len(seen_by_user)
        killed = server.requests()
        found = results(server.url, tmp_path / "cache")
        after = server.requests()
    with serving("echo") as server:
        undisturbed = results(server.url, tmp_path / "other")
    assert found == undisturbed
    assert len(found) == COUNT
    assert interrupted >= 40
    assert killed["seen"] - killed["distinct"] <= IN_FLIGHT * KILLS
    assert after["seen"] - after["distinct"] <= IN_FLIGHT * (KILLS + 1)
    # Whatever was shown before a kill is still the answer after it.
    ids = {msgspec.json.decode(row, type=Trace).id for row in found}
    assert len(ids) == COUNT
    assert len(seen_by_user) > 100
    assert seen_by_user <= ids
