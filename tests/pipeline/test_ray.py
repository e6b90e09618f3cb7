"""Stages on a Ray cluster of two nodes: same results, and a node that is lost in the middle costs nothing but time."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from demur.interfaces import requests_for
from demur.models.config import Local, Remote, Served
from demur.pipeline.run import Event, execute
from demur.pipeline.stage import Context, Stage
from demur.pipeline.stages.distil import Distil, DistilStageSettings
from demur.pipeline.stages.evaluate import BenchUse, Evaluate, EvaluateSettings
from demur.pipeline.stages.train import Train, TrainStageSettings
from demur.records import Prompt, Sampling, Trace
from demur.train.settings import TrainSettings


class Questions(BaseModel):
    n: int


class Ask(Stage[Questions]):
    """Asks a server some questions, slowly, and keeps the replies."""

    kind = "ask"
    Settings = Questions

    async def run(self, context: Context) -> None:
        prompts = [Prompt(text=f"What is {self.name} {i}?", intent="benign") for i in range(self.settings.n)]
        model = await context.model("target")
        assert model is not None
        found = [reply async for reply in model.answers(requests_for(prompts, Sampling(max_tokens=64)))]
        traces = sorted((t for t in found if isinstance(t, Trace)), key=lambda trace: trace.prompt.id)
        context.draft.write("traces", traces)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_lost_node_costs_nothing_but_time(cluster: Any, tmp_path: Path) -> None:
    from demur.pipeline.ray import ray_pool
    from demur.testing.server import serving

    with serving("echo", latency=0.4) as server:
        target = Remote(url=(server.url,), model="scripted", in_flight=4, revision="1")
        nodes = [Ask(f"ask-{i}", Questions(n=12), models={"target": target}) for i in range(6)]
        here = execute(nodes, out=tmp_path / "here", workers=1)
        asked_here = server.requests()["seen"]
        events: list[Event] = []
        killer = threading.Thread(target=lambda: cluster.remove_node(cluster.second, allow_graceful=False))
        out = tmp_path / "there"

        def watch(event: Event) -> None:
            """The node is lost as soon as the first stage is done: stages are under way on it or waiting for it."""
            events.append(event)
            if event.state == "done" and killer.ident is None:
                killer.start()

        with ray_pool("ray", cache=out / "replies", watch=watch) as pool:
            there = execute(nodes, out=out, workers=pool, watch=watch)
        killer.join()
        asked_there = server.requests()["seen"] - asked_here
    assert {n: a.manifest.files["traces.jsonl"].sha256 for n, a in here.items()} == {
        n: a.manifest.files["traces.jsonl"].sha256 for n, a in there.items()
    }
    assert asked_there <= 72 + 2 * 4, "only what was in flight on the lost node may be asked again"
    rows = sqlite3.connect(out / "replies" / "replies.sqlite").execute("select count(*) from replies").fetchone()[0]
    assert rows == 72
    assert {event.name for event in events if event.state == "done"} == {node.name for node in nodes}


def test_a_training_takes_as_many_devices_as_it_has_processes() -> None:
    settings = TrainStageSettings(train=TrainSettings(processes=8))
    assert Train("train", settings).gpus() == 8
    use = EvaluateSettings(bench=BenchUse(name="mini_harm"))
    assert Evaluate("evaluate", use, models={"target": Local(hub="a/b")}).gpus() == 1
    served = Served(hub="a/b", engine="vllm", tensor_parallel=2)
    assert Evaluate("evaluate", use, models={"target": served, "judge": served}).gpus() == 4
    assert Distil("distil", DistilStageSettings()).gpus() == 0
