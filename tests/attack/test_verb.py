"""`demur attack`: from a file of questions to results, and from one target to another."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from demur.cli import attack
from demur.cli.common import APPS
from demur.errors import UserError
from demur.records import Attempt, Message, Sampling, Trace, Verdict, read_jsonl, write_jsonl
from demur.report import build
from demur.storage.reply_cache import ReplyCache

SCRIPT = "script:stand_in"


def run(*words: str) -> None:
    CliRunner().invoke(APPS[attack.__name__], list(words), catch_exceptions=False, standalone_mode=False)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "questions.jsonl"
    write_jsonl(file, [{"question": f"How do I steal thing {i}?"} for i in range(4)])
    return file


def stage(out: Path) -> Path:
    (found,) = (out / "stages").glob("evaluate-*")
    return found


def test_pair_then_replay(questions: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    models = ["--target", SCRIPT, "--attacker", SCRIPT, "--judge", SCRIPT]
    run("pair", "--data", str(questions), *models, "--limit", "3", "--seed", "5", "--out", str(first))
    attempts = list(read_jsonl(stage(first) / "attempts.jsonl", Attempt))
    assert len({attempt.goal for attempt in attempts}) == 3
    results = {result.metric: result for result in build(first).results}
    assert {"served", "own_success", "queries_to_success", "target_queries"} <= set(results)
    assert results["own_success"].judge != results["served"].judge
    run("replay", str(first), "--target", "script:target", "--out", str(second))
    sent = {trace.prompt.text for trace in read_jsonl(stage(first) / "traces.jsonl", Trace)}
    again = list(read_jsonl(stage(second) / "traces.jsonl", Trace))
    assert {trace.prompt.text for trace in again} == sent
    assert {trace.prompt.attack.split(":")[:2][0] for trace in again} == {"replay"}
    assert all(trace.model.startswith("script:target") for trace in again)


def test_a_conversation_keeps_its_turns_and_what_judges_say_of_each(questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    models = ["--target", SCRIPT, "--attacker", SCRIPT, "--judge", "rules", "--attack-judge", SCRIPT]
    few = "bench.0.attack={name: crescendo, iterations: 3, stop_score: 10}"
    run("crescendo", "--data", str(questions), *models, "--limit", "2", "--set", few, "--out", str(out))
    turns = list(read_jsonl(stage(out) / "turns.jsonl", Trace))
    verdicts = list(read_jsonl(stage(out) / "turn_verdicts.jsonl", Verdict))
    assert {trace.prompt.category for trace in turns} >= {"turn 1"}
    assert [verdict.trace for verdict in verdicts] == [trace.id for trace in turns]
    sent = list(read_jsonl(stage(out) / "traces.jsonl", Trace))
    assert len(sent) == 2
    assert {trace.prompt.attack.partition(":")[0] for trace in sent} == {"crescendo"}
    assert "turn/1" in {result.metric for result in build(out).results}


def strict(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    """A judge that finds every second prompt off topic."""
    shown = messages[0].content
    if "On topic:" not in shown:
        return "Rating: [[2]]"
    return f"On topic: [[{'NO' if int(re.findall(r'draft ([0-9]+)', shown)[0]) % 2 else 'YES'}]]"


def test_tap_counts_what_was_pruned_apart(questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    models = ["--target", SCRIPT, "--attacker", SCRIPT, "--judge", "rules", "--attack-judge", f"{__name__}:strict"]
    small = "bench.0.attack={name: tap, iterations: 2, branches: 3, width: 2}"
    run("tap", "--data", str(questions), *models, "--set", small, "--out", str(out))
    attempts = list(read_jsonl(stage(out) / "attempts.jsonl", Attempt))
    asked = [attempt for attempt in attempts if attempt.outcome != "off_topic"]
    assert 0 < len(asked) < len(attempts)
    results = {result.metric: result for result in build(out).results}
    assert results["target_queries"].estimate.n == 4
    assert results["target_queries"].estimate.value == len(asked) / 4
    assert results["turns_without_score"].estimate.value == 0, "what was pruned was not to be scored"
    with ReplyCache(out / "replies") as cache:
        counts = {line.part.partition("/")[0]: line.requests for line in cache.ledger()}
    assert counts["attack_judge"] == sum(attempt.judge_queries for attempt in attempts)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pair", "--target", SCRIPT], "for its part 'attacker'"),
        (["replay", "--target", SCRIPT], "replay needs a run"),
        (["piar", "--target", SCRIPT], "Did you mean 'pair'"),
        (["none", "runs/x", "--target", SCRIPT], "only replay"),
    ],
)
def test_mistakes_are_told(words: list[str], message: str, questions: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run(*words, *([] if words[0] == "replay" else ["--data", str(questions)]), "--out", str(tmp_path / "out"))
