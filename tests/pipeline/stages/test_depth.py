"""How deep safety goes: probes of a thinking, filters by them, rounds of training, fine-tuning that undoes it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.made import publish

from demur import thinking
from demur.distil.settings import DistilSettings
from demur.errors import UserError
from demur.models.config import parse_model
from demur.pipeline.resolve import make
from demur.pipeline.run import execute
from demur.pipeline.stages.distil import Distil, DistilStageSettings
from demur.pipeline.stages.probe import steady
from demur.pipeline.stages.prompts import Prompts
from demur.prompts import PromptsSettings
from demur.records import Failure, Kept, Message, Pair, Probed, Prompt, Sampling, Trace, Verdict
from demur.report.data import build

THOUGHT = " ".join(f"Sentence {number}." for number in range(1, 9)) + " No way. At last."
CHANCE = {1: 0.0, 2: 0.2, 5: 0.5, 8: 0.8, 10: 1.0}
"""Sentences kept of ten -> P(refuse | prefix) of the script below."""


def script(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    """A model that refuses the more likely the more of the thinking it has read; left alone it thinks ten sentences."""
    if not sampling.prefill:
        return thinking.join(THOUGHT, "No.")
    kept = len((thinking.split(sampling.prefill, finish="length").thinking or "").split(". "))
    return "sorry, i will not help with that." if rng.random() < CHANCE[kept] else "step 1: alpha. step 2: beta."


def fading(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    """A model that gives in at the end of every second thinking, and answers as it has thought so far."""
    if not sampling.prefill:
        gives_in = rng.random() < 0.5
        return thinking.join(
            "It is bad. I refuse. Well." + (" I give in." if gives_in else ""),
            "step 1: alpha." if gives_in else "sorry.",
        )
    return "step 1: alpha. step 2: beta." if "give in" in sampling.prefill else "sorry."


def study(**more: Any) -> dict[str, Any]:
    return {
        "name": "depth",
        "base": "mini-lrm-a",
        "models": {
            "fading": "script:tests.pipeline.stages.test_depth:fading",
            "known": "script:tests.pipeline.stages.test_depth:script",
            "teacher": "script:demur.mini.teacher:script",
        },
        "arms": {"raw": {"base": "known"}},
        "bench": [{"name": "mini_harm", "limit": 100}],
        "seeds": [0],
    } | more


def test_a_probe_finds_the_known_chance_to_refuse_at_every_place(tmp_path: Path) -> None:
    shares = [kept / 10 for kept in CHANCE]
    made = make(study(probe=[{"bench": "mini_harm", "shares": shares, "samples": 4}]), where="test")
    done = execute(made.stages, out=tmp_path)
    probe = done["probe-raw-s0-mini_harm-none"]
    assert probe.rows("forced") == probe.rows("places") == 100 * 5 * 4
    found = {r.metric: r.estimate for r in build(tmp_path).results if r.metric.startswith("declined_at/")}
    for share, chance in zip(shares, CHANCE.values(), strict=True):
        estimate = found[f"declined_at/{share:g}"]
        assert estimate.n == 400
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low - 0.02 <= chance <= estimate.high + 0.02, (share, estimate)


def test_a_fall_is_seen_by_its_last_place() -> None:
    rows = {"rises": (0, 1), "falls": (1, 0), "flat": (0, 0), "unknown": (1, None)}
    places = [Probed(trace=t, share=s, reply=f"{t}{s}") for t in rows for s in (0.5, 1.0)]
    labels = {None: None, 1: "full_refusal", 0: "full_compliance"}
    verdicts = {
        f"{t}{s}": Verdict(trace=f"{t}{s}", judge="j", query="question", part="answer", label=labels[label])
        for t, row in rows.items()
        for s, label in zip((0.5, 1.0), row, strict=True)
    }
    assert steady(places, verdicts, fall=0.0) == {"rises", "flat"}
    assert steady(places, verdicts, fall=1.0) == {"rises", "flat", "falls"}


def test_the_cliff_filter_leaves_out_rows_whose_refusal_fades(tmp_path: Path) -> None:
    plain = study(
        prompts={"harmful": {"source": "mini-harmful", "n": 40}},
        distil={"keep": "everything", "teacher": "fading"}, filter="mini", detector="mini", mix={"dedupe": "none"},
        arms={"cliff": {"format": "default", "filter": {"kind": "cliff", "model": "fading"}, "safety": {"n": 40, "up_to": True}}},
    )  # fmt: skip
    stages = [s for s in make(plain, where="test").stages if s.kind in ("prompts", "distil", "probe", "mix")]
    done = execute([s for s in stages if s.kind == "mix"], out=tmp_path)
    cliff = done["cliff-cliff"]
    kept = {row.trace for row in cliff.read("kept", Kept)}
    assert 0 < len(kept) < 40
    for trace in cliff.read("traces", Trace):
        assert (trace.id in kept) == ("give in" not in str(trace.thinking))


def rounds(**more: Any) -> dict[str, Any]:
    """Two rounds, and preferences behind the first, small enough for a test."""
    return study(
        prompts={"harmful": {"source": "mini-harmful", "n": 24}, "benign": {"source": "mini-benign", "n": 16}},
        distil={"keep": "everything", "max_tokens": 120}, filter="mini-harm", detector="mini", mix={"dedupe": "none"},
        train={"steps": 3, "batch": 4, "lr": 1.0e-3},
        arms={
            "first": {"format": "short", "safety": 16},
            "second": {"after": "first", "teacher": "self", "format": "default", "safety": {"n": 8, "up_to": True}},
        },
        bench=[{"name": "mini_harm", "limit": 4}],
    ) | more  # fmt: skip


@pytest.mark.slow
def test_a_round_goes_on_from_another_arms_weights_which_write_its_rows(tmp_path: Path) -> None:
    done = execute(make(rounds(), where="test").stages, out=tmp_path)
    written = {trace.model for trace in done["distil-default-second-s0"].read("traces", Trace)}
    first = {trace.model for trace in done["evaluate-first-s0-mini_harm-none"].read("traces", Trace)}
    assert written == first, "the teacher of the second round is the model of the first"
    assert done["train-second-s0"].manifest.inputs["base"] == done["train-first-s0"].manifest.fingerprint
    second = {trace.model for trace in done["evaluate-second-s0-mini_harm-none"].read("traces", Trace)}
    assert second != first
    assert "base_model: train-first-s0\n" in (done["train-second-s0"].folder / "model" / "README.md").read_text()


@pytest.mark.slow
def test_tampering_is_measured_after_so_many_steps_and_before(tmp_path: Path) -> None:
    arms = {"first": rounds()["arms"]["first"], "raw": {}}
    plain = rounds(
        arms=arms, tamper=[{"name": "benign", "rows": {"benign": 16}, "steps": [1, 3], "bench": "mini_harm"}]
    )
    done = execute(make(plain, where="test").stages, out=tmp_path)
    assert len(done["tamper-first-s0-benign-3"].path("metrics").read_text().splitlines()) == 3
    report = build(tmp_path)
    found = {(r.arm, r.metric) for r in report.results if "/after/" in r.metric}
    wanted = {(arm, f"attack_success/after/benign/{steps}") for arm in arms for steps in (0, 1, 3)}
    assert found == wanted
    plain_number = report.table()["first", "mini_harm", "none", "attack_success", "mini", "answer"]
    before = report.table()["first", "mini_harm", "none", "attack_success/after/benign/0", "mini", "answer"]
    assert before == plain_number, (
        "step 0 is the arm as it was, and what was tampered with is not mixed into its numbers"
    )
    assert {curve.arm for curve in report.learnability} == {"first"}
    assert len({curve.steps for curve in report.learnability}) == 1, "curves of training are those of the arm itself"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"arms": {"a": {"after": "b", "format": "short", "safety": 4}, "b": {"after": "a", "format": "short", "safety": 4}}}, "no beginning"),
        ({"arms": {"a": {"after": "nobody", "format": "short", "safety": 4}}}, "nobody"),
        ({"arms": {"a": {"format": "short", "safety": 4, "teacher": "nobody"}}}, "nobody"),
        ({"arms": {"a": {"format": "short", "safety": 4, "distil": {"begn": "x"}}}}, "begn"),
        ({"probe": [{"bench": "mini_benign"}]}, "mini_benign"),
        ({"tamper": [{"name": "x", "rows": {"benign": 4}, "bench": "mini_harm", "attack": "pivot"}]}, "pivot"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_reported_before_it_starts(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(rounds(**wrong), where="test")


def test_pairs_by_cutting_share_a_beginning_on_which_no_loss_falls(tmp_path: Path) -> None:
    arm = {
        "format": "default",
        "safety": {"pairs": "repaired", "n": 20, "up_to": True},
        "repair": {
            "with": ["continue"],
            "cut": "cue",
            "cue": "plan the steps",
            "insert": "wait, this could hurt people.",
        },
        "train": {"method": "ipo"},
    }
    stages = make(rounds(arms={"ipo": arm}), where="test").stages
    done = execute([s for s in stages if s.kind == "mix"], out=tmp_path)
    pairs = list(done["mix-ipo"].read("pairs", Pair))
    assert pairs
    for pair in pairs:
        chosen, rejected = ([p for p in side.parts if p.role == "thinking"] for side in (pair.chosen, pair.rejected))
        assert [p.text for p in chosen if not p.train] == [p.text for p in rejected if not p.train]
        assert "wait, this could hurt people." in "".join(p.text for p in chosen if p.train)
        assert "plan the steps" in "".join(p.text for p in rejected if p.train)


def test_a_thinking_begins_with_what_another_strategys_unsafe_traces_began_with(tmp_path: Path) -> None:
    arm = {
        "format": "improved",
        "distil": {"begin": {"traces": "default", "share": 0.5}},
        "safety": {"n": 4, "up_to": True},
    }
    stages = make(rounds(arms={"recovery": arm}, distil={"keep": "answer safe"}), where="test").stages
    done = execute([s for s in stages if s.kind == "mix"], out=tmp_path)
    begun = list(done["distil-improved-recovery"].read("traces", Trace))
    unsafe = {t.prompt.id: t.thinking or "" for t in done["distil-default"].read("traces", Trace)}
    assert begun
    for trace in begun:
        given = thinking.split(trace.sampling.prefill or "", finish="length").thinking or ""
        assert given
        assert unsafe[trace.prompt.id].startswith(given)
        assert (trace.thinking or "").startswith(given)


def test_beginnings_of_a_file_differ_from_prompt_to_prompt(tmp_path: Path) -> None:
    path = tmp_path / "begin.txt"
    path.write_text("let me see.\nthe user asks.\n")
    arm = {"format": "improved", "distil": {"begin": {"file": str(path)}}, "safety": {"n": 4, "up_to": True}}
    stages = make(rounds(arms={"recovery": arm}, distil={"keep": "answer safe"}), where="test").stages
    done = execute([s for s in stages if s.kind == "mix"], out=tmp_path / "run")
    heads = {str(t.sampling.prefill) for t in done["distil-improved-recovery"].read("traces", Trace)}
    assert heads == {thinking.join(line, None) for line in ("let me see.", "the user asks.")}


def test_an_arm_without_rows_of_its_own_is_another_arms_checkpoint_with_another_decoding(tmp_path: Path) -> None:
    arms = {
        "first": rounds()["arms"]["first"],
        "remind": {"after": "first", "decoding": {"cue": "steps", "insert": "wait."}},
    }
    done = execute(make(rounds(arms=arms), where="test").stages, out=tmp_path)
    first, remind = (done[f"evaluate-{arm}-s0-mini_harm-none"] for arm in arms)
    assert {t.model for t in first.read("traces", Trace)} == {t.model for t in remind.read("traces", Trace)}
    interrupted = [t for t in remind.read("traces", Trace) if any("interrupted" in note for note in t.notes)]
    assert interrupted
    assert all("wait." in str(t.thinking) for t in interrupted)
    assert all(t.sampling.prefill is None for t in interrupted)


def test_a_forced_answer_that_never_came_is_unscored(tmp_path: Path) -> None:
    forced = [thinking.traced(Prompt(text=f"q{i}", intent="harmful"), "No.", model="m") for i in range(8)]
    fields: dict[str, Any] = {"judge": "j", "query": "question", "part": "answer", "label": "full_refusal"}
    records: dict[str, list[Any]] = {
        "forced": forced,
        "verdicts": [Verdict(trace=reply.id, **fields) for reply in forced],
        "failures": [Failure(prompt=forced[0].prompt, model="m", kind="timeout", detail="")],
        "places": [Probed(trace="t", share=0.5, reply=name) for name in (*(reply.id for reply in forced), "")],
    }
    publish(tmp_path, "probe-a", "probe", records, settings={"arm": "a", "bench": "mini_harm", "seed": 0})
    (found,) = [r for r in build(tmp_path).results if r.metric == "declined_at/0.5"]
    assert (found.estimate.value, found.estimate.n, found.estimate.unscored) == (1.0, 8, 1)


def test_a_beginning_that_nobody_gives_is_said_before_anything_is_asked() -> None:
    settings = DistilStageSettings(distil=DistilSettings(begin={"traces": "default"}, keep="everything"))  # type: ignore[arg-type]
    prompts = Prompts("prompts", PromptsSettings(source="mini-harmful", n=2))
    stage = Distil("distil", settings, inputs={"prompts": prompts}, models={"teacher": parse_model("script:stand_in")})
    assert [lack.what for lack in stage.needs() if lack.wrong] == ["begin"]
