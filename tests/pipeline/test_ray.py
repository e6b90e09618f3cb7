"""Stages on a Ray cluster of two nodes: same results, and a node that is lost in the middle costs nothing but time."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from demur.interfaces import requests_for
from demur.models.config import ModelConfig
from demur.models.open import open_model
from demur.pipeline.run import Event, Kind, Node, Task, execute
from demur.records import Prompt, Sampling, Trace
from demur.storage.reply_cache import ReplyCache

KINDS = {"ask": Kind("tests.test_ray_cluster:ask", 1)}


def ask(task: Task) -> None:
    """Ask a server some questions, slowly, and keep the replies."""
    asyncio.run(_ask(task))


async def _ask(task: Task) -> None:
    name = task.node.name
    prompts = [Prompt(text=f"What is {name} {i}?", intent="benign") for i in range(task.node.settings["n"])]
    role = ModelConfig(url=(task.node.settings["url"],), model="scripted", in_flight=4)
    with ReplyCache(task.journal) as journal:
        async with open_model(role, journal=journal, label=f"target/{name}") as model:
            found = [reply async for reply in model.answers(requests_for(prompts, Sampling(max_tokens=64)))]
    traces = sorted((t for t in found if isinstance(t, Trace)), key=lambda trace: trace.prompt.id)
    task.draft.write("traces", traces)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_lost_node_costs_nothing_but_time(cluster: Any, tmp_path: Path) -> None:
    from demur.pipeline.ray import ray_pool
    from demur.testing.server import serving

    with serving("echo", latency=0.4) as server:
        nodes = [Node(name=f"ask-{i}", kind="ask", settings={"n": 12, "url": server.url}) for i in range(6)]
        here = execute(nodes, kinds=KINDS, out=tmp_path / "here", workers=1)
        asked_here = server.requests()["seen"]
        events: list[Event] = []
        killer = threading.Thread(target=lambda: cluster.remove_node(cluster.second, allow_graceful=False))
        out = tmp_path / "there"

        def watch(event: Event) -> None:
            """The node is lost as soon as the first stage is done: stages are under way on it or waiting for it."""
            events.append(event)
            if event.state == "done" and killer.ident is None:
                killer.start()

        with ray_pool("ray", journal=out / "journal", say=watch) as pool:
            there = execute(nodes, kinds=KINDS, out=out, workers=pool, watch=watch)
        killer.join()
        asked_there = server.requests()["seen"] - asked_here
    assert {n: a.manifest.files["traces.jsonl"].sha256 for n, a in here.items()} == {
        n: a.manifest.files["traces.jsonl"].sha256 for n, a in there.items()
    }
    assert asked_there <= 72 + 2 * 4, "only what was in flight on the lost node may be asked again"
    rows = sqlite3.connect(out / "journal" / "replies.sqlite").execute("select count(*) from replies").fetchone()[0]
    assert rows == 72
    assert {event.name for event in events if event.state == "done"} == {node.name for node in nodes}


def test_a_training_takes_as_many_devices_as_it_has_processes() -> None:
    from demur.pipeline.ray import devices

    kinds = {
        kind: Node(name=kind, kind=kind, settings={"train": {"processes": 8}})
        for kind in ("train", "evaluate", "distil")
    }
    assert {kind: devices(node) for kind, node in kinds.items()} == {"train": 8, "evaluate": 1, "distil": 0}
