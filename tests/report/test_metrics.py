"""Numbers: each with interval, n, unscored and truncated; metrics only of judges that give their labels."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.made import publish
from tests.report.made import evaluation, of_records, prompts_of

from demur import stats
from demur.bench import get_bench
from demur.records import Failure, Label, Outcome, Prompt, Result, Trace, Verdict
from demur.report.format import metric
from demur.report.metrics import cells
from demur.report.metrics import results as numbers
from demur.report.read import read
from demur.thinking import join, traced


def reply(
    i: int, *, intent: str = "harmful", outcome: Outcome = "complete", attack: str = "", category: str = "c"
) -> Trace:
    prompt = Prompt(text=f"q{i}", intent=intent, attack=attack, category=category)  # type: ignore[arg-type]
    raw = join("t", None if outcome == "cut_in_thinking" else "a")
    return traced(
        prompt, raw, model="m", finish="length" if outcome.startswith("cut") else "stop", tokens_thinking=10 * i
    )


def verdict(trace: Trace, label: Label | None, judge: str = "j", score: float | None = None) -> Verdict:
    return Verdict(trace=trace.id, judge=judge, query="question", part="answer", label=label, score=score)


def results(
    bench: str, traces: list[Trace], verdicts: list[Verdict], lost: Sequence[Failure] = (), *, by_category: bool = False
) -> list[Result]:
    return list(numbers(cells(of_records(get_bench(bench), traces, verdicts, lost), by_category=by_category)))


def by_metric(found: list[Result]) -> dict[str, Result]:
    return {r.metric: r for r in found}


def test_rates_bounds_and_counts() -> None:
    traces = [reply(i) for i in range(6)] + [reply(6, outcome="cut_in_thinking"), reply(7, outcome="cut_in_answer")]
    labels: list[Label | None] = ["unsafe", "unsafe", "safe", "safe", "safe", None, None, "safe"]
    verdicts = [verdict(t, label) for t, label in zip(traces, labels, strict=True)]
    lost = [Failure(prompt=Prompt(text="q9", intent="harmful"), model="m", kind="timeout", detail="")]
    found = by_metric(results("advbench", traces, verdicts, lost))
    rate = found["attack_success"].estimate
    assert (rate.n, rate.unscored, rate.truncated) == (6, 3, 2)
    assert rate.value == pytest.approx(2 / 6)
    assert rate.low is not None
    assert rate.high is not None
    assert rate.low < 2 / 6 < rate.high
    assert rate.best == pytest.approx(2 / 9), "cut and unscored ones count for the model"
    assert rate.worst == pytest.approx(6 / 9), "and against it"
    assert set(found) == {
        "attack_success",
        "thinking_tokens",
        "empty_thinking",
        "cut",
        "no_reply",
        "no_reply/truncated in thinking",
    }, "a harm judge has no label for refusals"
    assert found["cut"].estimate.value == pytest.approx(2 / 8)
    assert found["thinking_tokens"].estimate.value == pytest.approx(3.5 * 10)
    assert found["thinking_tokens"].estimate.unscored == 1, "a request without a reply is unscored everywhere"


def test_a_refusal_judge_answers_other_metrics() -> None:
    traces = [reply(i, intent="borderline") for i in range(4)] + [reply(i, intent="harmful") for i in range(4, 8)]
    labels: list[Label] = ["full_refusal", "partial_refusal", "full_compliance", "full_compliance"]
    pairs = list(zip(traces, [*labels, *labels], strict=True))
    found = by_metric(results("xstest", traces, [verdict(t, label, "xstest_llm") for t, label in pairs]))
    assert found["over_refusal"].estimate.value == 0.5
    assert found["full_over_refusal"].estimate.value == 0.25
    assert found["served"].estimate.value == 0.5
    assert found["refusal"].estimate.value == 0.25
    assert found["partial_refusal"].estimate.value == 0.25
    assert found["over_refusal"].estimate.n == found["served"].estimate.n == 4
    offline = by_metric(results("xstest", traces, [verdict(t, label, "rules") for t, label in pairs]))
    assert {name for name, one in found.items() if offline.get(name, one) is one} == {
        "full_over_refusal", "refusal", "partial_refusal",
    }, "rules distinguish served from refused, and full from partial refusals only where labels show it"  # fmt: skip


@pytest.mark.parametrize(("labels", "right", "counted"), [(40, 40, True), (40, 30, False), (20, 20, False)])
def test_classes_that_rules_mix_up_are_counted_where_labels_of_the_arm_allow(
    tmp_path: Path, labels: int, right: int, counted: bool
) -> None:
    asked = prompts_of("harm", "harmful", 40)
    for arm in ("a", "b"):
        evaluation(tmp_path, arm, 1, "advbench", "", asked, lambda rng, p: "full_refusal", judge="rules")
    (tmp_path / "study.yaml").write_text("name: s\narms: {a: {}, b: {}}\n")
    (evaluated,) = [e for e in read(tmp_path).evaluations if e.arm == "a"]
    rows = [
        {
            "id": row.id,
            "by": "x",
            "label": "full_refusal" if i < right else "partial_refusal",
            "rules_label": "full_refusal",
        }
        for i, row in enumerate(evaluated.rows[:labels])
    ]
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "refusal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {arm: {c.metric for c in own} for arm, own in cells(read(tmp_path).evaluations).items()}
    assert ("refusal" in found["a"]) == counted
    assert "refusal" not in found["b"], "labels of another arm's replies do not count"
    assert "served" in found["b"]


def test_judges_and_attacks_are_kept_apart() -> None:
    traces = [reply(i, attack=attack) for attack in ("", "pap:framing", "pap:authority") for i in range(3)]
    verdicts = [verdict(t, "unsafe", "one") for t in traces] + [verdict(t, "safe", "two") for t in traces]
    found = [r for r in results("advbench", traces, verdicts) if r.metric == "attack_success"]
    assert {(r.attack, r.judge): (r.estimate.value, r.estimate.n) for r in found} == {
        ("none", "one"): (1.0, 3),
        ("none", "two"): (0.0, 3),
        ("pap", "one"): (1.0, 6),
        ("pap", "two"): (0.0, 6),
    }


def test_a_dead_judge_gives_no_number() -> None:
    traces = [reply(i) for i in range(5)]
    found = by_metric(results("advbench", traces, [verdict(t, None) for t in traces]))
    rate = found["attack_success"].estimate
    assert (rate.value, rate.n, rate.unscored) == (None, 0, 5)
    assert (rate.best, rate.worst) == (0.0, 1.0)
    offline = by_metric(results("advbench", traces, [verdict(t, None, "rules") for t in traces]))
    assert "served" in offline
    assert "attack_success" not in offline, "labels that a judge never gives have no column"


def test_scores_are_averaged() -> None:
    traces = [reply(i) for i in range(4)]
    verdicts = [verdict(t, "safe", score=s) for t, s in zip(traces, (0.0, 0.5, 1.0, 0.5), strict=True)]
    found = by_metric(results("strongreject", traces, verdicts))["score"]
    assert (found.estimate.value, found.better) == (0.5, "lower")


@pytest.mark.parametrize(
    ("label", "judge", "better"),
    [(None, "llama_guard3", "lower"), ("correct", "choice", "higher"), ("full_refusal", "rules", "neither")],
)
def test_a_score_says_which_way_is_better(label: Label | None, judge: str, better: str) -> None:
    traces = [reply(i) for i in range(4)]
    (score,) = (
        r for r in results("advbench", traces, [verdict(t, label, judge, 0.5) for t in traces]) if r.metric == "score"
    )
    assert score.better == better
    words = f"({better} is better)"
    assert (words in metric(score.metric, score.better)) == (better != "neither")


def test_categories() -> None:
    traces = [reply(i, category="ab"[i % 2]) for i in range(8)]
    verdicts = [verdict(t, "unsafe" if i % 2 else "safe") for i, t in enumerate(traces)]
    found = results("advbench", traces, verdicts, by_category=True)
    assert {r.metric: r.estimate.value for r in found} == {"attack_success/a": 0.0, "attack_success/b": 1.0}
    alone = [reply(i, category="") for i in range(8)]
    judged = [verdict(trace, "safe") for trace in alone]
    assert not results("advbench", alone, judged, by_category=True), (
        "prompts without a category are the whole once more"
    )


def graded(*counts: int, n: int = 4) -> tuple[list[Trace], list[Verdict]]:
    """So many right replies of n to each problem."""
    traces = [
        traced(
            Prompt(text=f"p{i}", intent="maths", gold="1"), "x", model="m", sample=j, tokens_out=100, tokens_thinking=80
        )
        for i in range(len(counts))
        for j in range(n)
    ]
    return traces, [
        verdict(t, "correct" if t.sample < counts[place // n] else "wrong") for place, t in enumerate(traces)
    ]


def test_at_least_one_of_k_is_the_share_of_draws_with_a_hit() -> None:
    for n in range(1, 9):
        for hits, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations([True] * hits + [False] * (n - hits), k))
            assert stats.at_least_one(n, hits, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert stats.at_least_one(4, 2, 5) is None
    assert stats.at_least_one(4, 2, 0) is None


def test_pass_at_k_is_over_problems() -> None:
    found = by_metric(results("math500", *graded(4, 0, 1, 1)))
    assert found["accuracy"].estimate.value == pytest.approx(6 / 16)
    assert found["pass@4"].estimate.value == pytest.approx(0.75)
    assert found["pass@4"].estimate.n == 4


def test_a_lost_or_undecided_sample_leaves_its_problem_unscored() -> None:
    traces, verdicts = graded(4, 0, 2, 2)
    lost = [Failure(prompt=traces[-1].prompt, model="m", kind="timeout", detail="", sample=3)]
    missing = by_metric(results("math500", traces[:-1], verdicts[:-1], lost))["pass@4"].estimate
    undecided = by_metric(results("math500", traces, [*verdicts[:-1], verdict(traces[-1], None)]))["pass@4"].estimate
    for one in (missing, undecided):
        assert one.value == pytest.approx(2 / 3)
        assert (one.n, one.unscored) == (3, 1)


def test_economy_is_a_ratio_of_sums() -> None:
    traces = []
    for i, (tokens, thought) in enumerate([(100, 80), (300, 250), (200, 150), (400, 300)]):
        prompt = Prompt(text=f"question {i}", intent="maths", gold="1")
        traces.append(traced(prompt, "x", model="m", tokens_out=tokens, tokens_thinking=thought))
    found = by_metric(
        results("math500", traces, [verdict(t, "correct" if i < 2 else "wrong") for i, t in enumerate(traces)])
    )
    assert found["tokens_per_correct"].estimate.value == pytest.approx(1000 / 2)
    assert found["tokens_per_correct"].estimate.low == 0.0, (
        "four replies leave a wide interval, but no reply has a negative number of tokens"
    )
    assert found["answer_tokens"].estimate.value == pytest.approx((20 + 50 + 50 + 100) / 4)
    nothing = by_metric(results("math500", traces, [verdict(t, "wrong") for t in traces]))
    assert nothing["tokens_per_correct"].estimate.value is None


def test_techniques_and_best_of_k() -> None:
    questions = [Prompt(text=f"q{i}", intent="harmful") for i in range(4)]
    traces = [
        traced(Prompt(text=f"{way} {q.text}", intent="harmful", attack=f"pap:{way}", parent=q.id), "x", model="m")
        for q in questions
        for way in ("framing", "favor")
    ]
    verdicts = [verdict(t, "unsafe" if "framing" in t.prompt.attack else "safe") for t in traces]
    found = {r.metric: r.estimate.value for r in results("advbench", traces, verdicts) if "/" in r.metric}
    assert found == {
        "attack_success/framing": 1.0,
        "attack_success/favor": 0.0,
        "attack_success/best_of_2": 1.0,
    }
    one_each = by_metric(results("advbench", traces[::2], verdicts[::2]))
    assert not any("/" in metric for metric in one_each), "one prompt a question: no techniques to separate"


def test_what_a_search_cost(tmp_path: Path) -> None:
    def one(goal: str, stream: int, iteration: int, score: int | None) -> dict[str, object]:
        return {
            "goal": goal,
            "stream": stream,
            "iteration": iteration,
            "prompt": "",
            "score": score,
            "broken": score == 10,
        }

    attempts = [one("a", s, i, 10 if (s, i) == (1, 1) else 2) for i, s in itertools.product(range(2), range(2))]
    attempts += [one("b", s, i, None if s else 5) for i, s in itertools.product(range(3), range(2))]
    attempts += [one("c", s, 0, 10) for s in range(2)]
    trace = reply(0, attack="search")
    settings = {"arm": "a", "seed": 0, "bench": {"name": "advbench", "attack": {"name": "search"}}}
    publish(
        tmp_path, "evaluate-a", "evaluate", {"traces": [trace], "verdicts": [verdict(trace, "safe")], "attempts": attempts},
        settings=settings,
    )  # fmt: skip
    found = {r.metric: r.estimate for r in numbers(cells(read(tmp_path).evaluations)) if r.judge == "the attack's own"}
    assert found["own_success"].value == pytest.approx(2 / 3)
    assert found["turns_without_score"].value == pytest.approx(3 / 12)
    assert found["queries_to_success"].value == pytest.approx((4 + 1) / 2)
    assert found["queries_to_success"].unscored == 1
    assert found["target_queries"].value == pytest.approx(4)
    assert [found[f"own_success/after_{k}_queries"].value for k in (2, 4, 6)] == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_no_interval_of_a_count_goes_below_zero() -> None:
    from demur.records import Estimate
    from demur.report.metrics import clipped

    found = Estimate(value=6.5, low=-27.0, high=40.0, n=2)
    assert clipped(found, [4.0, 9.0], "tokens").low == 0.0
    assert clipped(found, [-4.0, 17.0], "tokens").low == -27.0, "what can be negative stays as it is"


def test_a_reply_without_a_thought_counts_as_empty_thinking() -> None:
    prompt = [Prompt(text=f"q{i}", intent="harmful") for i in range(4)]
    traces = [
        traced(prompt[0], join("", "a"), model="m", tokens_thinking=0),
        traced(prompt[1], "a", model="m"),
        traced(prompt[2], join("t", "a"), model="m", tokens_thinking=3),
        traced(prompt[3], join("t", "a"), model="m"),
    ]
    found = by_metric(results("advbench", traces, [verdict(t, "safe") for t in traces]))["empty_thinking"].estimate
    assert (found.n, found.unscored) == (3, 1), "nobody counted the tokens of the last one"
    assert found.value == pytest.approx(2 / 3)


def test_a_pair_that_one_side_lost_is_lost_whatever_the_other_held() -> None:
    """Ten pairs: four told apart, two lost by a side that is whole, two of which nothing is known, two that were cut."""
    traces, verdicts = [], []
    for i in range(10):
        for intent in ("harmful", "benign"):
            prompt = Prompt(text=f"{intent} {i}", intent=intent, pair=str(i))
            cut = i >= 8 and intent == "benign"
            trace = traced(prompt, join("t", "a"), model="m", finish="length" if cut else "stop", tokens_thinking=1)
            label: Label | None = "full_refusal" if intent == "harmful" else "full_compliance"
            if i in (4, 5):  # its other side is unscored, or cut
                label = "full_compliance" if intent == "harmful" else None
            traces.append(trace)
            verdicts.append(verdict(trace, None if i in (6, 7) else label, "rules"))
    pairs = by_metric(results("xstest", traces, verdicts))["pairs"].estimate
    assert (pairs.n, pairs.unscored, pairs.truncated) == (6, 4, 2), "a pair is truncated where a side is"
    assert [pairs.best, pairs.worst] == pytest.approx([8 / 10, 4 / 10])
