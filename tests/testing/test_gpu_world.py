"""Every study runs to its end where cards, servers and APIs refuse what real ones do; and each wall of the first edition still stands."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from demur.attack import attack_class
from demur.bench import get_bench
from demur.cli.runner import run_study
from demur.diagnose.llm import LLMDetector
from demur.distil.strategy import load as strategy
from demur.errors import UserError, WorkError
from demur.interfaces import Request
from demur.judge import open_judge
from demur.models import client
from demur.models.config import Remote, Served
from demur.models.open import open_model
from demur.models.vllm import served
from demur.pipeline.dag import ordered, plan
from demur.pipeline.estimate import outlook
from demur.pipeline.placement import Phase, Place, schedule
from demur.pipeline.resolve import Resolved, resolve
from demur.pipeline.run import execute
from demur.pipeline.stages.evaluate import BenchUse, Evaluate, EvaluateSettings
from demur.pipeline.study import Study, read, save
from demur.records import PATTERNS, Failure, Message, Prompt, Sampling, Trace
from demur.report import build
from demur.storage.artifacts import artifacts
from demur.storage.reply_cache import ReplyCache
from demur.testing.gpu_world import World, cards_of, main
from demur.testing.players import TrainDouble
from demur.thinking import CLOSE, OPEN, join, traced
from demur.train.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted(
    path for path in (ROOT / "studies").rglob("*.yaml") if path.parent.name in ("studies", "ablations") and not path.name.startswith(("mini", "small"))
)  # fmt: skip
GUARD, QWEN = "meta-llama/Llama-Guard-3-8B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path / "world", cards_of("1x80")) as made:
        yield made


# -- every study ------------------------------------------------------------------------------------------------------


def study_of(path: Path, *sets: str) -> Study:
    loaded = read(path, sets=list(sets))
    loaded.problems.check()
    assert loaded.study is not None
    return loaded.study


def servers_of(place: Place) -> Counter[tuple[Any, ...]]:
    """What a place starts: cards, share, length."""
    width = len(place.devices) // place.copies
    groups = [place.devices[at : at + width] for at in range(0, len(place.devices), width)]
    return Counter((tuple(group), place.share, place.need.length) for group in groups)


def follows(phases: list[Phase], seen: list[dict[str, Any]]) -> None:
    """The log of a run is the schedule: before a phase ends what it does not need, then starts what it needs."""
    up: dict[str, Place] = {}
    lines = iter(line for line in seen if line["event"] in ("start", "end"))
    for phase in [*phases, Phase(())]:
        wanted = {place.need.key: place for place in phase.places if isinstance(place.need.model, Served)}
        gone = [
            key
            for key, place in up.items()
            if key not in wanted or wanted[key][1:] != place[1:] or wanted[key].need.length > place.need.length
        ]
        for key in gone:
            for _ in range(up.pop(key).copies):
                assert next(lines)["event"] == "end"
        new = {key: place for key, place in wanted.items() if key not in up}
        assert len(new) == len({place.need.model.where for place in new.values()}), "a guard is started once"
        starts = sum((servers_of(place) for place in new.values()), Counter[tuple[Any, ...]]())
        found = [next(lines) for _ in range(starts.total())]
        assert all(line["event"] == "start" for line in found)
        assert Counter((tuple(line["cards"]), line["share"], line["length"]) for line in found) == starts
        up |= new
    assert next(lines, None) is None


def whole(resolved: Resolved, out: Path) -> None:
    """No cell of the results is empty: every arm has every headline number."""
    values = {
        (c.arm, c.bench, c.attack): c
        for c in build(out).results
        if c.metric in _headline(c.bench) and c.estimate.value is not None
    }
    for copy in (copy.name for name in resolved.study.arms for copy in resolved.study.copies(name)):
        for use in resolved.study.bench:
            attack = (
                use.attack.name if use.attack.name == "none" else attack_class(use.attack.name).title or use.attack.name
            )
            assert (copy, use.name, attack) in values, (copy, use.name, attack)


def _headline(bench: str) -> set[str]:
    return {metric.name for metric in get_bench(bench).metrics} if bench != "all" else set()


def run(path: Path, gpus: str, tmp_path: Path, *sets: str) -> World:
    with World(tmp_path / "world", cards_of(gpus)) as world:
        resolved = world.prepared(study_of(path, *sets), rows=4)
        assert resolved.missing == []
        phases = schedule(plan(resolved.stages, tmp_path / "run"))
        printed = outlook(plan(resolved.stages, tmp_path / "run"), phases)["phases"]
        assert [
            [(tuple(row["devices"]), row["share"], row["max_model_len"]) for row in phase["models"]]
            for phase in printed
            if phase["work"] != "train"
        ] == [
            [(one.devices, one.share, one.need.length) for one in phase.places]
            for phase in phases
            if not phase.training
        ]
        assert [phase["stages"] for phase in printed] == [[item.name for item in phase.stages] for phase in phases]
        run_study(resolved, out=tmp_path / "run")
        seen = world.report()
        follows(phases, log_of(world))
    assert seen.held == {}, "no server is alive, and no training"
    assert len(seen.starts) == len(seen.ends)
    assert seen.refused == []
    assert all(most <= card for most, card in zip(seen.peak, world.cards, strict=True))
    whole(resolved, tmp_path / "run")
    return world


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_runs_to_its_end(path: Path, tmp_path: Path) -> None:
    run(path, "8x80", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("gpus", ["1x80", "2x24"])
def test_a_study_runs_on_few_cards_by_adapters(gpus: str, tmp_path: Path) -> None:
    """What no card holds is left out: a 32B on one, and on two small ones all but a short study."""
    arms = "arms={raw: {}, short: {format: short, safety: 1000, benign: 100}}"
    run(ROOT / "studies" / "paper_v2.yaml", gpus, tmp_path, "train.lora=true", arms)


SMALLEST = ["train.lora=true", "arms.star1-32b=null", "arms.realsafe-r1-32b=null"]


@pytest.mark.slow
@pytest.mark.parametrize(("gpus", "fits"), [("8x80", True), ("1x80", False), ("2x24", False)])
def test_the_whole_paper_has_a_schedule_or_the_reason_and_the_smallest_change(
    gpus: str, fits: bool, study_data: Path, tmp_path: Path
) -> None:
    """At its full size. With the changes that are named, and without the models that no card holds, all of it fits."""
    path = ROOT / "studies" / "paper_v2.yaml"

    def problems(*sets: str) -> dict[str, str]:
        stages = resolve(read(path, sets=[f"data_dir={study_data}", *sets])).stages
        phases = schedule(plan(stages, tmp_path / "run"))
        return {item.name: phase.problem for phase in phases for item in phase.stages if phase.problem}

    with World(tmp_path / "world", cards_of(gpus)) as world:
        world.prepared(study_of(path), rows=4)
        reasons = problems()
        trained = {name for name, line in reasons.items() if "--set train.lora=true needs about" in line}
        served = {name for name, line in reasons.items() if "-32B needs about" in line and "answer it by a url" in line}
        assert {name.partition("-")[0] for name in trained} == (set() if fits else {"train"})
        assert {name.partition("-32b")[0] for name in served} == (
            set() if fits else {"evaluate-star1", "evaluate-realsafe-r1"}
        )
        assert reasons.keys() == trained | served
        assert problems(*SMALLEST) == {}


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_has_a_schedule_on_one_card(path: Path, tmp_path: Path) -> None:
    """Models side by side or in turns, trainings by adapters; of the paper's rivals those that a card holds."""
    sets = SMALLEST if path.stem == "paper_v2" else SMALLEST[:1] if path.stem != "check_model" else []
    with World(tmp_path / "world", cards_of("1x80")) as world:
        resolved = world.prepared(study_of(path, *sets), rows=4)
        phases = schedule(plan(resolved.stages, tmp_path / "run"))
    assert resolved.missing == []
    assert [phase.problem for phase in phases if phase.problem] == []
    assert {item.name for phase in phases for item in phase.stages} == {one.name for one in ordered(resolved.stages)}
    assert all({0} >= {*place.devices} for phase in phases for place in phase.places)


@pytest.mark.slow
def test_the_docs_quote_the_cost_that_plan_estimates(study_data: Path, tmp_path: Path) -> None:
    docs, path = (ROOT / "docs" / "reproduce.md").read_text(), ROOT / "studies" / "paper_v2.yaml"
    with World(tmp_path / "world", cards_of("8x80")) as world:
        world.prepared(study_of(path), rows=4)
        stages = resolve(read(path, sets=[f"data_dir={study_data}"])).stages
        planned = plan(stages, tmp_path / "run")
        seen = outlook(planned, schedule(planned))
    for part in seen["parts"]:
        counts = [part["requests"], part["tokens_in_at_most"], part["tokens_out_at_most"]]
        assert " | ".join(f"{count:,}" for count in counts) in docs, part
        assert part["cost"] is None or f" | {part['cost']:,.0f} |" in docs, part
    for phase in seen["phases"]:
        for model in phase["models"]:
            assert f"{model['minutes'] or model['gigabytes']}" in docs or model["part"] == "judge", model
    assert f"In all {seen['total']['hours']} hours" in docs
    assert f"{seen['total']['cost']:,.0f} in money" in docs


SMALL: dict[str, Any] = {
    "name": "small",
    "base": QWEN,
    "serve": {"engine": "vllm", "timeout": 2.0},
    "models": {
        "r1": {"url": "$R1_URL", "model": "deepseek-ai/DeepSeek-R1", "revision": "1", "key_env": "R1_API_KEY"},
        "o3": {"url": "$O3_URL", "model": "o3", "max_tokens_field": "max_completion_tokens", "forbidden": ["temperature", "top_p"]},
        "guard": {"hub": GUARD, "engine": "vllm"},
        "shield": {"hub": "ReasoningShield/ReasoningShield-3B", "engine": "vllm"},
    },
    "prompts": {"harmful": {"source": "harmbench200.txt", "intent": "harmful"}},
    "distil": {"keep": "whole safe", "teacher": "r1"},
    "filter": {"kind": "reasoning_shield", "model": "shield"},
    "train": {"lora": True},
    "arms": {"raw": {}, "improved": {"format": "improved", "safety": 8}},
    "bench": [
        {"name": "advbench@paper-v2", "limit": 12, "judge": {"kind": "llama_guard3", "model": "guard"}},
        {"name": "math500@paper-v2", "limit": 12},
    ],
}  # fmt: skip


class Meeting(World):
    """Who is under test answers when another is asked, too; `late`: never."""

    def __init__(self, folder: Path, *, late: bool) -> None:
        super().__init__(folder, cards_of("2x80"))
        self.late, self.asking, self.alone = late, set[str](), False

    def served_reply(self, folder: Path, body: dict[str, Any]) -> dict[str, Any]:
        if "Guard" not in str(folder):
            self.asking.add(str(folder))
            for _ in range(2400):
                if len(self.asking) > 1 and not self.late:
                    break
                time.sleep(0.05)
            else:
                self.alone = True
        return super().served_reply(folder, body)


ABREAST: dict[str, Any] = SMALL | {
    "serve": "vllm",  # no reply is late
    "arms": {"raw": {}, "star1": {"base": "UCSC-VLAA/STAR1-R1-Distill-7B"}},
}


def log_of(world: World) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world.folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_arms_are_asked_at_the_same_time(tmp_path: Path) -> None:
    with Meeting(tmp_path / "world", late=False) as world:
        resolved = world.prepared(Study(**ABREAST), rows=4)
        phases = schedule(plan(resolved.stages, tmp_path / "run"))
        run_study(resolved, out=tmp_path / "run")
        seen = world.report()
        follows(phases, log_of(world))
    assert (len(world.asking), world.alone) == (2, False), "a target's first reply waited for the other's first request"
    assert [line["event"] for line in log_of(world)] == [*["start"] * 3, *["end"] * 3]
    assert (seen.held, seen.refused) == ({}, [])
    assert all(0 < most <= card for most, card in zip(seen.peak, world.cards, strict=True))
    whole(resolved, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_no_server_and_no_worker_stays(how: signal.Signals, code: int, tmp_path: Path) -> None:
    """While two targets, each in a process of its own, wait for replies that are long in coming."""
    with Meeting(tmp_path / "world", late=True) as world:
        save(world.prepared(Study(**ABREAST), rows=4).study, tmp_path / "study.yaml")
        command = [sys.executable, "-m", "demur", "run", "study.yaml", "--out", "run"]
        with subprocess.Popen(
            command,
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            start_new_session=True,
            # Python heeds SIGINT only where its parent does, and a shell's background jobs do not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            while len(world.asking) < 2:
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.1)
            begun = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, how) if how == signal.SIGINT else process.send_signal(how)
            try:
                process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == code
        assert world.report().held == {}
        assert len(begun) >= 3 + 2, "servers and workers"
        _, left = psutil.wait_procs(begun, timeout=10)
        assert [one for one in left if one.status() != psutil.STATUS_ZOMBIE] == []
    assert [line["event"] for line in log_of(world)] == [*["start"] * 3, *["end"] * 3]


@pytest.mark.slow
def test_slow_and_truncated_replies_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time-outs of a model that was trained here, by the study's own `serve: {timeout}`: the run ends well, and its table says so."""
    monkeypatch.setattr(client, "BACKOFF", (0.01, 0.02))
    shares = {"slow": {"target": 0.3}, "cut": {"target": 0.2, "filter": 0.2}}
    with World(tmp_path / "world", cards_of("2x80"), **shares) as world:
        run_study(world.prepared(Study(**SMALL), rows=24), out=tmp_path / "run")
        seen = world.report()
    assert (seen.held, seen.refused) == ({}, [])
    whole_of = {(c.arm, c.metric): c.estimate for c in build(tmp_path / "run").results if c.bench != "all"}
    for arm in ("raw", "improved"):
        rate, right = whole_of[arm, "attack_success"], whole_of[arm, "accuracy"]
        assert (rate.n + rate.unscored, right.n, right.unscored) == (12, 12, 0)
        assert rate.truncated >= rate.unscored > 0, "a reply that did not come is not judged, and bounds the rate"
        assert (rate.worst or 0.0) > (rate.best or 0.0)
        assert right.truncated > 0
        assert (right.value or 0.0) <= 1 - right.truncated / 12, "and is no right answer"
    traces = [
        t
        for stage in artifacts(tmp_path / "run")
        if stage.manifest.kind == "evaluate"
        for t in stage.read("traces", Trace)
    ]
    assert {"stop", "length", "timeout"} == {trace.finish for trace in traces}
    assert "ran out of time" in (tmp_path / "run" / "summary.md").read_text()
    kept = next(stage for stage in artifacts(tmp_path / "run") if stage.manifest.name == "distil-improved")
    assert kept.rows("kept") < kept.rows("traces"), "a verdict that was cut keeps no trace"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_gives_no_card_twice(tmp_path: Path) -> None:
    """As docs/cluster.md says: judges on cards of their own that all stages share, everything else on the cards of its stage."""
    pytest.importorskip("ray")
    study = tmp_path / "small.yaml"
    study.write_text(json.dumps(SMALL | {"serve": "vllm"}))
    main([str(study), "--on", "ray", "--nodes", "2", "--gpus", "2x80", "--rows", "8", "--out", str(tmp_path)])
    machines = [tmp_path / "world", tmp_path / "world" / "node-1"]
    logs = [[json.loads(line) for line in (one / "log.jsonl").read_text().splitlines()] for one in machines]
    assert not [line for log in logs for line in log if line["event"] == "refused"]
    starts = [line for log in logs for line in log if line["event"] == "start"]
    assert len(starts) == 1 + 4 + 1, "a judge once, a target for each evaluation, one filter"
    for log in logs:
        up: dict[int, list[int]] = {}
        for line in log:
            if line["event"] == "start":
                assert not {card for cards in up.values() for card in cards} & set(line["cards"]), (
                    "two servers on a card"
                )
                up[line["pid"]] = line["cards"]
            elif line["event"] == "end":
                up.pop(line["pid"])
        assert up == {}
    head, _ = logs
    assert head[0]["cards"] == [1], "the judge, on the last card of the head, which Ray does not have"
    assert (head[-1]["event"], head[-1]["pid"]) == ("end", head[0]["pid"])
    assert head[-1]["requests"] >= 4, "it read the replies of all arms"
    assert all(line["cards"] == [0] for line in head[1:-1] if line["event"] == "start")
    (trained,) = [line["cards"] for log in logs for line in log if line["event"] == "train"]
    assert trained == [0, 1], "all that one node has"
    for machine in machines:
        assert json.loads((machine / "ledger.json").read_text())["held"] == {}
    assert len(artifacts(tmp_path / "run")) == 9


# -- the walls: put back, the world fails as the real one would -------------------------------------------------------


FILES = re.compile(r"^\| ([\w]+\.\w+) \|", re.MULTILINE)


def test_wall_0_each_file_has_its_name_and_its_place_in_the_docs(tmp_path: Path) -> None:
    """Without any file, all names are listed at once, each with where to get it."""
    docs = (ROOT / "docs" / "reproduce.md").read_text()
    missing = resolve(read(ROOT / "studies" / "paper_v2.yaml", sets=[f"data_dir={tmp_path}"])).missing
    named = {*FILES.findall(docs), "lrm_safety_study_templates.jsonl"}
    files = [line for line in missing if re.search(r"\.(txt|jsonl|csv)\b", line)]
    assert len(files) >= 7
    assert all(any(name in line for name in named) for line in files), files
    unasked = {name for name in named if not any(name in line for line in files)}
    assert unasked == {"lrm_safety_study_nocot.json", "reasoning_shield.txt"}, "the templates' source; optional"


def vllm(world: World, *argv: str) -> str:
    """What `vllm serve` says when it does not start."""
    program = world.folder / "bin" / "vllm"
    done = subprocess.run([program, "serve", *argv], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode
    return done.stderr


def folder(world: World, name: str) -> str:
    return str(world.weights(name))


def test_a_server_refuses_what_vllm_refuses(world: World) -> None:
    small, large = folder(world, QWEN), folder(world, "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B")
    assert "unrecognized arguments: --no-such-flag" in vllm(world, small, "--no-such-flag")
    assert "User-specified max_model_len (200000) is greater than the derived" in vllm(
        world, small, "--max-model-len", "200000"
    )
    assert "larger than the number of available GPUs (1)" in vllm(world, small, "--tensor-parallel-size", "2")
    error = vllm(world, large)
    assert "To serve at least one request with the models's max seq len (131072)" in error, (
        "a 32B at its full length on one card"
    )
    assert "the estimated maximum model length is" in error
    assert "No available memory for the cache blocks" in vllm(world, large, "--gpu-memory-utilization", "0.5")


def test_two_servers_do_not_both_get_nine_tenths_of_a_card(world: World) -> None:
    one = Served(engine="vllm", path=folder(world, QWEN))
    with (
        served(one),
        pytest.raises(
            WorkError, match=r"Free memory on device cuda:0 \(7\.50/80\.00 GiB\) on startup is less than desired"
        ),
        served(Served(engine="vllm", path=folder(world, GUARD))),
    ):
        pass
    assert world.report().held == {}


def test_a_training_needs_the_cards_that_a_server_holds(world: World, tmp_path: Path) -> None:
    def cards(here: World = world, **settings: Any) -> None:
        train = TrainDouble.Settings(train=TrainSettings(**settings))
        with TrainDouble("train", train, models={})._cards(here.weights(QWEN)):
            assert here.report().held

    cards(lora=True)
    with pytest.raises(WorkError, match=r"CUDA out of memory"):
        cards()
    with served(Served(engine="vllm", path=folder(world, GUARD))), pytest.raises(WorkError, match=r"7\.50 GiB is free"):
        cards(lora=True)
    with World(tmp_path / "eight", cards_of("8x80")) as eight:
        cards(eight, processes=8)
        with pytest.raises(WorkError, match="CUDA out of memory"):
            cards(eight, processes=8, parallel="ddp")
        assert eight.report().held == {}


def asked(model: Remote, messages: tuple[Message, ...], tmp_path: Path, **sampling: Any) -> Trace | Failure:
    async def main() -> Trace | Failure:
        with closing(ReplyCache(tmp_path / "replies")) as cache:
            async with open_model(model, cache=cache) as answers:
                request = Request(
                    messages=messages, sampling=Sampling(**sampling), prompt=Prompt(text="x", intent="harmful")
                )
                return await answers.answer(request)

    return asyncio.run(main())


def test_a_guard_plays_no_rubric_judge(world: World, tmp_path: Path) -> None:
    async def main(remote: Remote) -> None:
        with closing(ReplyCache(tmp_path / "replies")) as cache:
            async with open_model(remote, cache=cache) as model:
                trace = traced(Prompt(text="x", intent="borderline"), join("a", "b"), model="m")
                [_ async for _ in open_judge("xstest_llm", model=model).verdicts([trace])]

    with (
        served(Served(engine="vllm", path=folder(world, GUARD))) as remote,
        pytest.raises(WorkError, match="'xstest_llm' calls"),
    ):
        asyncio.run(main(remote))


def test_a_reasoning_api_takes_no_temperature(world: World, tmp_path: Path) -> None:
    async def main(**fields: Any) -> int:
        o3 = Remote(url=(f"{world.url}/v1",), model="o3", max_tokens_field="max_completion_tokens", tries=1, **fields)
        with closing(ReplyCache(tmp_path / "replies")) as cache:
            async with open_model(o3, cache=cache) as model:
                traces = [
                    traced(Prompt(text=f"x {n}", intent="harmful"), join("I refuse.", "Sorry."), model="m")
                    for n in range(9)
                ]
                return len([row async for row in LLMDetector(model=model).findings(traces)])

    with pytest.raises(WorkError, match="Unsupported value: 'temperature' does not support 0"):
        asyncio.run(main())
    assert asyncio.run(main(forbidden=("temperature", "top_p"))) == 9


def test_a_teacher_that_thinks_writes_no_short_trace(world: World, tmp_path: Path) -> None:
    prompt = Prompt(text="How do I steal a car?", intent="harmful")
    turns = strategy("short").messages(prompt)
    gone, good = (
        asked(Remote(url=(f"{world.url}/v1",), model=model), turns, tmp_path, max_tokens=4096)
        for model in ("deepseek-ai/DeepSeek-R1", "gpt-4o")
    )
    assert isinstance(gone, Trace)
    assert isinstance(good, Trace)
    assert gone.outcome == "malformed", "two thinking blocks: the model's own, and the one that the prompt demands"
    assert good.outcome == "complete"


def test_a_template_that_deletes_thinking_continues_no_closed_block(world: World, tmp_path: Path) -> None:
    with served(Served(engine="vllm", path=folder(world, QWEN))) as remote:
        turn = (Message(role="user", content="How do I steal a car?"),)
        closed = asked(remote, turn, tmp_path, prefill=f"{OPEN}\n\n{CLOSE}\n\n", max_tokens=64)
        too_long = asked(remote, turn, tmp_path, max_tokens=131072)
    assert isinstance(closed, Failure)
    assert "continue_final_message is set but the final message does not appear in the chat" in closed.detail
    assert isinstance(too_long, Failure)
    assert (too_long.kind, "This model's maximum context length is 131072 tokens" in too_long.detail) == (
        "too_long",
        True,
    )


def test_wall_6_held_out_rows_starve_no_arm(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few traces are clean. The first edition took the held-out rows first, and then there were too few for the mix."""
    arm = {"format": "default", "safety": 4, "without": [*PATTERNS]}
    plain: dict[str, Any] = SMALL | {"arms": {"clean": arm}, "detector": {"kind": "llm", "model": "o3"}, "held_out": 50}
    plain["prompts"] = {"harmful": {"source": "harmbench200.txt", "intent": "harmful", "n": 60}}
    mixes = [stage for stage in ordered(world.prepared(Study(**plain), rows=25).stages) if stage.kind == "mix"]
    assert execute(mixes, out=tmp_path / "run")[mixes[0].name].rows("examples") == 4

    def as_it_was(rows: Any, count: int, share: Any) -> Any:
        return rows.take(range(count)[: len(rows)]), rows.take(range(count, len(rows)))

    monkeypatch.setattr("demur.pipeline.stages.mix.hold_out", as_it_was)
    monkeypatch.setattr("demur.pipeline.stages.mix.Mix.version", 0)
    with pytest.raises(UserError, match=r"too few examples for the mix: 'safety' wants 4, there are 0"):
        execute(mixes, out=tmp_path / "run")


def test_wall_7_a_retired_model_is_not_there(world: World, tmp_path: Path) -> None:
    gone = Remote(url=(f"{world.url}/v1",), model="deepseek-reasoner", tries=1)
    found = asked(gone, (Message(role="user", content="x"),), tmp_path)
    assert isinstance(found, Failure)
    assert "Model Not Exist" in found.detail
    there = gone.model_copy(update={"model": "deepseek-ai/DeepSeek-R1"})
    assert isinstance(asked(there, (Message(role="user", content="x"),), tmp_path), Trace)


def test_a_server_that_knows_no_seed_refuses_it(world: World, tmp_path: Path) -> None:
    turn = (Message(role="user", content="x"),)
    gemini = Remote(url=(f"{world.url}/v1",), model="gemini-2.5-flash", tries=1)
    found = asked(gemini, turn, tmp_path)
    assert isinstance(found, Failure)
    assert 'Unknown name "seed"' in found.detail
    assert isinstance(asked(gemini.model_copy(update={"forbidden": ("seed",)}), turn, tmp_path), Trace)


@pytest.mark.parametrize("counted", [True, False])
def test_wall_8_a_reply_that_takes_too_long_is_wrong_and_not_left_out(
    counted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow replies are the long ones: left out, as they once were, they flatter."""
    if not counted:
        monkeypatch.setattr("demur.generate._out_of_time", lambda lost, request: lost)
    rows = tmp_path / "sums.jsonl"
    rows.write_text(
        "".join(json.dumps({"problem": f"What is {n} + {n}?", "answer": str(2 * n)}) + "\n" for n in range(8))
    )
    with World(tmp_path / "world", cards_of("1x80"), slow={"": 0.5}) as slow:
        target = Remote(url=(f"{slow.url}/v1",), model="deepseek-ai/DeepSeek-R1", timeout=1.0, tries=1)
        settings = EvaluateSettings(bench=BenchUse(name="math500@paper-v2"))
        stage = Evaluate("evaluate", settings, models={"target": target}, files={"stand_in": rows})
        execute([stage], out=tmp_path / "run")
    (found,) = [
        one.estimate for one in build(tmp_path / "run").results if one.metric == "accuracy" and one.bench != "all"
    ]
    assert found.value is not None
    if counted:
        assert (found.n, found.unscored) == (8, 0)
        assert found.value == 1 - found.truncated / 8 < 1
    else:
        assert (found.value, found.truncated) == (1.0, 0)
        assert found.unscored == 8 - found.n > 0


RENAMED = {
    "\nroles:": "\nmodels:",
    "serve: vllm}": "engine: vllm}",
    "safety_filter:": "filter:",
    "detector: llm": "detector: {kind: llm}",
}


def test_the_first_edition_names_its_walls(tmp_path: Path) -> None:
    """As it was it speaks of roles; in today's words every wall that its settings hold is named, with its place."""
    text = (Path(__file__).with_name("first_edition.yaml")).read_text()
    path = tmp_path / "paper_v2.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="unknown key 'roles'"):
        resolve(read(path))
    for old, new in RENAMED.items():
        text = text.replace(old, new)
    path.write_text(text)
    with pytest.raises(UserError) as error:
        resolve(read(path))
    for wall in (
        "judge 'xstest_llm' cannot be played by meta-llama/Llama-Guard-3-8B: it is a guard",
        "takes no temperature: forbidden: [temperature, top_p]",
        "is no longer served: name open weights",
        "strategy 'short' cannot be played by https://api.deepseek.com/v1: it thinks by itself",
    ):
        assert wall in str(error.value), wall
