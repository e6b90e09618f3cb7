"""What fits where: sizes, what is lacking, a schedule of phases, and servers that live exactly as long as they are needed."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from demur.errors import UserError
from demur.models.config import Local, Remote, Scripted, Served
from demur.pipeline import placement, sizes
from demur.pipeline.dag import plan
from demur.pipeline.estimate import outlook
from demur.pipeline.placement import Phase, schedule
from demur.pipeline.resolve import make
from demur.pipeline.run import execute
from demur.pipeline.sizes import Device, lacking, parameters
from demur.train.settings import LoraSettings, TrainSettings

BIG = tuple(Device("big", 80.0, number) for number in range(8))
SMALL = tuple(Device("small", 24.0, number) for number in range(2))
LARGE: dict[str, Any] = {
    "name": "large",
    "base": "owner/R1-Distill-Qwen-7B",
    "serve": "vllm",
    "models": {
        "teacher": {"url": "https://teacher.invalid/v1", "model": "t"},
        "guard": {"hub": "meta-llama/Llama-Guard-3-8B", "engine": "vllm"},
        "shield": {"hub": "owner/ReasoningShield-3B", "engine": "vllm"},
    },
    "prompts": {"harmful": {"source": "mini-harmful", "n": 20}},
    "filter": {"kind": "reasoning_shield", "model": "shield"},
    "train": {"lora": True},
    "arms": {"raw": {}, "improved": {"format": "improved", "safety": 8}},
    "bench": [
        {"name": "mini_harm", "judge": {"kind": "llama_guard3", "model": "guard"}, "also": ["thinking"]},
        {"name": "mini_arithmetic"},
    ],
}


class Healthy:
    """A server that needs no waiting for."""

    def wait(self, seconds: float) -> None:
        """At once."""


def phases(tmp_path: Path, cards: tuple[Device, ...], **changes: Any) -> list[Phase]:
    return schedule(plan(make(LARGE | changes, where="test").stages, tmp_path), cards=cards)


def shape(found: list[Phase]) -> list[set[str]]:
    return [{"train"} if phase.training else {place.need.part for place in phase.places} for phase in found]


@pytest.mark.parametrize("cards", [BIG[:1], BIG, SMALL])
def test_models_share_phases_and_cards_are_never_given_out_twice(tmp_path: Path, cards: tuple[Device, ...]) -> None:
    found = phases(tmp_path, cards)
    assert shape(found) == [{"target", "judge"}, {"filter"}, {"train"}, {"target", "judge"}]
    for phase in found:
        used: dict[int, float] = {}
        for place in phase.places:
            for number in place.devices:
                used[number] = used.get(number, 0.0) + place.share
                room = place.share * next(card.gigabytes for card in cards if card.number == number)
                assert room >= place.need.gigabytes / (len(place.devices) / place.copies) - 0.1
        assert all(share <= 0.93 for share in used.values())
    assert [item.name for item in found[0].stages][:1] == ["evaluate-raw-s0-mini_harm-none"]
    copies = {place.need.part: place.copies for place in found[0].places}
    assert sum(copies.values()) == max(2, len(cards)), "no card is idle while there is work"
    assert copies["target"] >= copies["judge"], "who writes most gets most"


ARMS: dict[str, Any] = {"arms": {name: {"base": f"owner/{name}-7B"} for name in "ABC"}}


def cards_of(phase: Phase, part: str = "target") -> list[int]:
    return sorted(card for place in phase.places if place.need.part == part for card in place.devices)


@pytest.mark.parametrize(("cards", "together"), [(8, [6]), (3, [6]), (2, [4, 2]), (1, [2, 2, 2])])
def test_arms_are_evaluated_side_by_side_where_each_has_cards_of_its_own(
    cards: int, together: list[int], tmp_path: Path
) -> None:
    found = phases(tmp_path, BIG[:cards], **ARMS)
    assert [len(phase.stages) for phase in found] == together
    for phase in found:
        assert len(set(cards_of(phase))) == len(cards_of(phase)), "no two targets on a card"
    assert len(cards_of(found[0])) >= together[0] // 2
    used = {card for place in found[0].places for card in place.devices}
    assert used == set(range(cards)), "no card is idle"


def test_what_each_process_would_load_for_itself_is_not_shared(tmp_path: Path) -> None:
    """A target of a stage's own process has its card; a judge of each of three processes would be there three times."""
    served = phases(tmp_path, BIG, **ARMS, serve={})
    assert [len(phase.stages) for phase in served] == [6]
    assert len(set(cards_of(served[0]))) == 3
    models = LARGE["models"] | {"guard": {"hub": "meta-llama/Llama-Guard-3-8B"}}
    assert [len(phase.stages) for phase in phases(tmp_path, BIG, **ARMS, serve={}, models=models)] == [2, 2, 2]
    # Under test, and the attacker of another arm's stage: two processes would load it.
    judge = {"kind": "llama_guard3", "model": "guard"}
    uses = [{"name": "mini_harm", "judge": judge, "attack": {"name": "pap-written", "attacker": "again"}}]
    both = LARGE["models"] | {"again": {"hub": "owner/A-7B"}}
    twice = phases(tmp_path, BIG, **ARMS, serve={}, models=both, bench=[*LARGE["bench"], *uses])
    assert [len(phase.stages) for phase in twice] == [3, 3, 3]


@pytest.mark.parametrize(("device", "together"), [("cuda", [2, 2, 2]), ("cuda:1", [2, 2, 2]), ("auto", [6])])
def test_targets_that_name_one_card_take_turns_on_it(device: str, together: list[int], tmp_path: Path) -> None:
    own = {name: {"hub": f"owner/{name}-7B", "device": device} for name in "ABC"}
    arms = {name: {"base": name} for name in "ABC"}
    found = phases(tmp_path, BIG, arms=arms, serve={}, models=LARGE["models"] | own)
    assert [len(phase.stages) for phase in found] == together
    named = {"cuda": [0], "cuda:1": [1]}.get(device)
    assert named is None or all(cards_of(phase) == named for phase in found), "the plan shows where it is"


def test_targets_that_fit_beside_no_judge_are_asked_side_by_side(tmp_path: Path) -> None:
    """A judge that takes both cards reads what two targets wrote, each on one."""
    models = LARGE["models"] | {"guard": {"hub": "owner/Llama-Guard-3-20B", "engine": "vllm"}}
    two = {name: arm for name, arm in ARMS["arms"].items() if name != "C"}
    cards = tuple(Device("middling", 32.0, number) for number in range(2))
    asked, read = phases(tmp_path, cards, arms=two, models=models, bench=LARGE["bench"][:1])
    assert (asked.generating, cards_of(asked), len(asked.stages)) == (True, [0, 1], 2)
    assert (cards_of(read), cards_of(read, "judge")) == ([], [0, 1])
    assert read.stages == asked.stages


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Starts and stops of servers, each of which is the scripted stand-in."""
    from demur.testing.server import serving

    log: list[str] = []

    @contextmanager
    def started(model: Served) -> Iterator[tuple[Healthy, Remote]]:
        name = Path(model.weights_at).name
        log.append(f"start {name}")
        with serving("stand_in") as server:
            yield Healthy(), Remote(url=(server.url,), model="scripted", weights=name)
        log.append(f"stop {name}")

    monkeypatch.setattr("demur.models.vllm.started", started)
    monkeypatch.setattr(Served, "missing", lambda self: [])
    return log


@pytest.mark.slow
def test_what_is_read_later_is_written_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    """Each target is asked by a process of its own, which publishes nothing; the judge reads what is in the cache."""
    from demur.records import Verdict

    monkeypatch.setattr(placement, "devices", lambda: tuple(Device("middling", 32.0, number) for number in range(2)))
    uses = [{"name": "mini_harm", "limit": 3, "judge": {"kind": "llama_guard3", "model": "guard"}}]
    models = {"guard": {"hub": "owner/Llama-Guard-3-20B", "engine": "vllm"}}
    two = {name: arm for name, arm in ARMS["arms"].items() if name != "C"}
    plain = {"name": "apart", "serve": "vllm", "models": models, "arms": two, "bench": uses}
    done = execute(make(plain, where="test").stages, out=tmp_path)
    assert log[:2] == ["start A-7B", "start B-7B"]
    assert sorted(log[2:4]) == ["stop A-7B", "stop B-7B"]
    assert log[4:] == ["start Llama-Guard-3-20B", "stop Llama-Guard-3-20B"]
    for stage in done.values():
        assert stage.rows("traces") == stage.rows("verdicts") == 3
        assert {verdict.label for verdict in stage.read("verdicts", Verdict)} <= {"safe", "unsafe"}


def test_how_a_model_of_a_card_is_reached_can_be_sent(tmp_path: Path) -> None:
    mine, other = Local(hub="owner/A-7B"), Local(hub="owner/B-7B")
    places = (placement.Place(placement.Need("target", mine, 20.0, 100), (3,), 0.9),)
    reach = pickle.loads(pickle.dumps(placement.Servers().move_to(Phase((), places))))
    assert (reach(mine).device, reach(other).device) == ("cuda:3", "auto")
    pinned = mine.model_copy(update={"device": "cuda:0"})
    assert reach(pinned) == pinned


@pytest.mark.parametrize(("targets", "most"), [(1, 8), (3, 2), (12, 1)])
def test_what_several_targets_processes_ask_gets_no_more_requests_than_declared(targets: int, most: int) -> None:
    own = [Local(hub=f"owner/T{at}-7B") for at in range(targets)]
    places = [placement.Place(placement.Need("target", one, 20.0, 9), (at,), 0.9) for at, one in enumerate(own)]
    reach = placement.Servers().move_to(Phase((), tuple(places)))
    api = Remote(url=("http://judge.invalid/v1",), in_flight=8)
    found = reach(api)
    assert found == api.model_copy(update={"in_flight": most})
    assert reach(own[0]) == own[0].model_copy(update={"device": "cuda:0"})


def test_a_target_that_answers_elsewhere_is_asked_by_one_process(tmp_path: Path) -> None:
    api = {"url": "http://target.invalid/v1", "in_flight": 8}
    arms = ARMS["arms"] | {"elsewhere": {"base": "api"}}
    [phase] = phases(
        tmp_path, BIG, arms=arms, serve={}, models=LARGE["models"] | {"api": api}, bench=LARGE["bench"][1:]
    )
    [model] = {
        one.stage.models["target"].where: one.stage.models["target"]
        for one in phase.stages
        if "-elsewhere-" in one.name
    }.values()
    found = placement.Servers().move_to(phase)(model)
    assert isinstance(found, Remote)
    assert found.in_flight == 8


def test_what_is_done_side_by_side_takes_as_long_as_the_longest(tmp_path: Path) -> None:
    def seen(cards: tuple[Device, ...], arms: str) -> dict[str, Any]:
        slow = {"engine": "vllm", "least_speed": 0.1}
        plain = LARGE | {"serve": slow, "arms": {name: ARMS["arms"][name] for name in arms}}
        planned = plan(make(plain, where="test").stages, tmp_path)
        return outlook(planned, schedule(planned, cards=cards))

    alone, three = seen(BIG[:1], "A"), seen(BIG[:3], "ABC")
    assert len(alone["phases"]) == len(three["phases"]) == 1
    assert alone["total"]["hours"] == three["total"]["hours"] > 0
    [minutes] = {row["minutes"] for row in three["phases"][0]["models"] if row["part"] == "target"}
    assert minutes == next(row["minutes"] for row in alone["phases"][0]["models"] if row["part"] == "target")


def test_a_plan_shows_how_a_training_is_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "devices", lambda: BIG)
    planned = plan(make(LARGE | {"train": {}}, where="test").stages, tmp_path)
    rows = [phase for phase in outlook(planned, schedule(planned, cards=BIG))["phases"] if phase["work"] == "train"]
    [row] = rows[0]["models"]
    assert (row["part"], row["devices"], row["gigabytes"]) == ("train (fsdp2)", list(range(8)), 15.8)


def test_what_does_not_fit_states_why_and_the_smallest_change(tmp_path: Path) -> None:
    tiny = phases(tmp_path, (Device("tiny", 12.0, 0),))
    assert "Llama-Guard-3-8B needs about" in tiny[0].problem
    assert "answer it by a url" in tiny[0].problem
    wide = phases(tmp_path, BIG, base="owner/Big-70B")
    assert next(place for place in wide[0].places if place.need.part == "target").devices[:4]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 7e9),
        ("Qwen/Qwen3-0.6B", 0.6e9),
        ("owner/model-360M-chat", 360e6),
        ("owner/Qwen2.5", None),
        ("", None),
    ],
)
def test_sizes_are_read_off_names(name: str, size: float | None) -> None:
    assert parameters(name) == size


def test_what_training_lacks_states_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    full, lora = TrainSettings(), TrainSettings(lora=LoraSettings())
    monkeypatch.setattr(sizes, "devices", lambda: ())
    message = lacking("x/R1-Distill-Qwen-7B", full)
    assert "no GPU" in message
    assert "126 GB" in message
    assert "--set train.lora=true needs about 21 GB" in message
    assert lacking("mini-lrm-a", full) == ""
    monkeypatch.setattr(sizes, "devices", lambda: BIG)
    assert lacking("x/R1-Distill-Qwen-7B", lora) == ""
    assert lacking("x/R1-Distill-Qwen-7B", full) == "", "all cards, which share a copy"
    alone = full.model_copy(update={"processes": 1})
    assert "train.parallel=fsdp2 needs about 16 GB on each of 8" in lacking("x/R1-Distill-Qwen-7B", alone)
    copies = full.model_copy(update={"processes": 8, "parallel": "ddp"})
    assert "126 GB on each;" in lacking("x/R1-Distill-Qwen-7B", copies), "each card holds a copy"


def test_the_wrapper_is_the_one_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "devices", lambda: BIG)
    how = {
        model: sizes.training(model, settings)
        for model, settings in (
            ("x/R1-Distill-Qwen-32B", TrainSettings()),
            ("x/Qwen-1.5B", TrainSettings()),
            ("x/Llama-8B", TrainSettings(lora=LoraSettings())),
            ("x/Qwen-7B", TrainSettings(batch=1)),
        )
    }
    assert [found and (found.wrapper, len(found.cards)) for found in how.values()] == [
        ("fsdp2", 8),
        ("ddp", 8),
        ("ddp", 8),
        ("single", 1),
    ]


def test_servers_live_as_long_as_they_are_needed_and_never_beyond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []

    @contextmanager
    def started(model: Served) -> Iterator[tuple[Healthy, Scripted]]:
        name = Path(model.weights_at).name
        log.append(f"start {name}")
        try:
            yield Healthy(), Scripted(script="target" if name in ("a", "b") else "stand_in")
        finally:
            log.append(f"stop {name}")

    monkeypatch.setattr("demur.models.vllm.started", started)
    monkeypatch.setattr(Served, "missing", lambda self: [])
    monkeypatch.setattr(placement, "devices", lambda: BIG[:1])
    judge = {"kind": "llama_guard3", "model": "guard"}
    plain = {
        "name": "served",
        "serve": "vllm",
        "models": {"guard": {"hub": "meta-llama/Llama-Guard-3-8B", "engine": "vllm"}},
        "arms": {"a": {"base": "mini-lrm-a"}, "b": {"base": "mini-lrm-b"}},
        "bench": [
            {"name": "mini_harm", "limit": 4, "judge": judge, "also": ["thinking"]},
            {"name": "mini_benign", "limit": 4},
        ],
    }
    execute(make(plain, where="test").stages, out=tmp_path, workers=2)
    assert sorted(log[:2]) == ["start Llama-Guard-3-8B", "start a"], "one judge for both parts"
    assert log[2:] == ["stop a", "start b", *log[4:]]
    assert sorted(log[4:]) == ["stop Llama-Guard-3-8B", "stop b"], "the judge is kept for both arms"


@pytest.mark.slow
def test_a_target_that_fails_leaves_the_others_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from demur.pipeline.run import Event
    from demur.testing.server import serving

    events: list[Event] = []

    @contextmanager
    def started(model: Served) -> Iterator[tuple[Healthy, Remote]]:
        with serving("stand_in") as server:
            key = "NO_SUCH_KEY" if "B-7B" in model.weights_at else ""
            yield Healthy(), Remote(url=(server.url,), model="scripted", weights=model.weights_at, key_env=key)

    monkeypatch.setattr("demur.models.vllm.started", started)
    monkeypatch.setattr(Served, "missing", lambda self: [])
    monkeypatch.setattr(placement, "devices", lambda: BIG)
    uses = [{"name": "mini_harm", "limit": 3}, {"name": "mini_harm", "attack": "mini-seen", "limit": 3}]
    stages = make({"name": "failing", "serve": "vllm", "bench": uses} | ARMS, where="test").stages
    with pytest.raises(UserError, match="NO_SUCH_KEY"):
        execute(stages, out=tmp_path, watch=events.append)
    assert {event.name for event in events if event.state == "failed"} == {"evaluate-B-s0-mini_harm-none"}
    done = {item.name for item in plan(stages, tmp_path) if item.done}
    assert {"evaluate-A-s0-mini_harm-none", "evaluate-C-s0-mini_harm-none"} <= done
    assert not any("-B-" in name for name in done)


def test_a_server_is_started_anew_for_exchanges_that_it_is_too_short_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept, it would refuse them: a run that goes on may have had only short ones left of the phase before."""
    log: list[int | str | None] = []

    @contextmanager
    def started(model: Served) -> Iterator[tuple[Healthy, Remote]]:
        log.append(model.max_model_len)
        yield Healthy(), Remote(url=("http://127.0.0.1:9/v1",))
        log.append("stop")

    monkeypatch.setattr("demur.models.vllm.started", started)
    guard, servers = Served(engine="vllm", hub="owner/Guard-8B"), placement.Servers()
    for length in (1000, 500, 2000):
        servers.move_to(Phase((), (placement.Place(placement.Need("judge", guard, 20.0, length), (0,), 0.92),)))
    servers.close()
    assert log == [1000, "stop", 2000, "stop"]


@pytest.mark.slow
def test_what_begins_with_traces_of_another_distillation_is_asked_after_those_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teacher and filter take turns on one card: what the first distillation made is there when both have had theirs."""
    from demur.testing.server import serving

    @contextmanager
    def started(model: Served) -> Iterator[tuple[Healthy, Remote]]:
        with serving("stand_in") as server:
            yield Healthy(), Remote(url=(server.url,), model="scripted", weights=model.weights_at, prefill="plain")

    monkeypatch.setattr("demur.models.vllm.started", started)
    monkeypatch.setattr(Served, "missing", lambda self: [])
    monkeypatch.setattr(placement, "devices", lambda: (Device("one", 62.0, 0),))
    large = {name: {"hub": f"owner/{name}-20B", "engine": "vllm"} for name in ("teacher", "guard")}
    begun = {"begin": {"traces": "default"}, "keep": "answer safe"}
    plain: dict[str, Any] = {
        "name": "begun", "models": large, "filter": {"kind": "llama_guard3", "model": "guard"},
        "prompts": {"harmful": {"source": "mini-harmful", "n": 24}},
        "arms": {"a": {"format": "improved", "safety": 8, "distil": begun}},
    }  # fmt: skip
    trained = next(stage for stage in make(plain, where="test").stages if stage.kind == "train")
    mixed = trained.inputs["mix"]
    found = schedule(plan([mixed], tmp_path))
    asked = [[one.name for one in phase.stages] for phase in found if phase.generating]
    assert asked == [["distil-default"], ["distil-improved-a"]]
    assert execute([mixed], out=tmp_path)["distil-improved-a"].rows("traces")


def test_what_does_not_fit_together_is_asked_first_and_read_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    """One small card: the target answers and is stopped, then the judge reads what is in the cache."""
    from demur.records import Verdict

    monkeypatch.setattr(placement, "devices", lambda: (Device("small", 24.0, 0),))
    monkeypatch.setattr(placement, "FULL_REPLIES", 1)
    judge = {"kind": "llama_guard3", "model": "guard"}
    uses = [
        {"name": "mini_harm", "limit": 3, "judge": judge},
        {"name": "mini_harm", "attack": "mini-seen", "limit": 3, "judge": judge},
    ]
    plain = {
        "name": "apart",
        "base": "owner/Target-7B",
        "serve": "vllm",
        "models": {"guard": {"hub": "meta-llama/Llama-Guard-3-8B", "engine": "vllm"}},
        "arms": {"raw": {}},
        "bench": uses,
    }
    done = execute(make(plain, where="test").stages, out=tmp_path)
    assert log == ["start Target-7B", "stop Target-7B", "start Llama-Guard-3-8B", "stop Llama-Guard-3-8B"]
    for stage in done.values():
        assert stage.manifest.summary["line"] == "3 traces", "what this run asked itself was not there already"
        assert {verdict.label for verdict in stage.read("verdicts", Verdict)} <= {"safe", "unsafe"}
        assert stage.rows("traces") == stage.rows("verdicts") == 3
