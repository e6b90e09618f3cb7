"""A training that one node does not hold: on two nodes of a Ray cluster it is the same training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demur.pipeline.ray_training import shares
from demur.pipeline.run import Event, Node, execute
from demur.pipeline.stages import KINDS
from demur.records import Example, write_jsonl


def test_the_fewest_nodes_share_the_processes() -> None:
    assert shares([("a", 8), ("b", 8), ("c", 2)], 4) == [4]
    assert shares([("a", 8), ("b", 8), ("c", 2)], 12) == [8, 4]
    assert sum(shares([("a", 8), ("b", 1)], 12)) == 9, "too small"


def graph(rows: Path, base: Path, *, processes: int) -> list[Node]:
    settings = {"lr": 1e-3, "steps": 400, "batch": 8, "micro_batch": 2, "checkpoint_every": 20, "processes": processes}
    return [
        Node(name="examples", kind="examples", settings={}, files={"examples": str(rows)}),
        Node(
            name="train-a-s0",
            kind="train",
            settings={"train": settings, "arm": "a", "seed": 0},
            inputs={"mix": "examples"},
            files={"base": str(base)},
        ),
    ]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_nodes_train_what_one_process_trains_and_one_may_be_lost(
    cluster: Any, stand_in: Path, byte_examples: list[Example], tmp_path: Path
) -> None:
    from demur.pipeline.ray import ray_pool

    rows = tmp_path / "rows.jsonl"
    write_jsonl(rows, byte_examples)
    here = execute(graph(rows, stand_in, processes=1), kinds=KINDS, out=tmp_path / "here")["train-a-s0"]
    out = tmp_path / "there"
    lost_at = 400

    def watch(event: Event) -> None:
        """A node is lost while it trains, and another comes."""
        nonlocal lost_at
        training = event.name == "train-a-s0" and event.state == "progress"
        if training and event.done > 20 and cluster.second is not None:
            lost_at = event.done
            cluster.remove_node(cluster.second, allow_graceful=False)
            cluster.second = None
            cluster.add_node(num_cpus=1)

    with ray_pool("ray", journal=out / "journal", say=watch) as pool:
        nodes = graph(rows, stand_in, processes=2)
        there = execute(nodes, kinds=KINDS, out=out, workers=pool, watch=watch)["train-a-s0"]
    assert cluster.second is None, "it was lost while training"
    assert lost_at < 200, "in the middle: the other node alone could not go on"
    # What two sum in another order than one differs in the last digits, and later in more.
    assert losses(there.folder)[:150] == pytest.approx(losses(here.folder)[:150], rel=1e-3)
    assert there.manifest.files.keys() >= {"model/model.safetensors", "metrics.jsonl"}
    assert there.manifest.files.keys() == here.manifest.files.keys()
    assert there.manifest.summary["steps"] == 400
