"""Numbers: each with interval, n, unscored and truncated; metrics only of judges that speak their labels."""

from __future__ import annotations

import pytest

from demur.bench import get_bench
from demur.bench.summary import everything, results
from demur.records import Failure, Label, Outcome, Prompt, Result, Trace, Verdict
from demur.thinking import join, traced


def made(
    i: int, *, intent: str = "harmful", outcome: Outcome = "complete", attack: str = "", category: str = "c"
) -> Trace:
    prompt = Prompt(text=f"q{i}", intent=intent, attack=attack, category=category)  # type: ignore[arg-type]
    raw = join("t", None if outcome == "cut_in_thinking" else "a")
    return traced(
        prompt, raw, model="m", finish="length" if outcome.startswith("cut") else "stop", tokens_thinking=10 * i
    )


def says(trace: Trace, label: Label | None, judge: str = "j", score: float | None = None) -> Verdict:
    return Verdict(trace=trace.id, judge=judge, query="question", part="answer", label=label, score=score)


def by_metric(found: list[Result]) -> dict[str, Result]:
    return {r.metric: r for r in found}


def test_rates_bounds_and_counts() -> None:
    traces = [made(i) for i in range(6)] + [made(6, outcome="cut_in_thinking"), made(7, outcome="cut_in_answer")]
    labels: list[Label | None] = ["unsafe", "unsafe", "safe", "safe", "safe", None, None, "safe"]
    verdicts = [says(t, label) for t, label in zip(traces, labels, strict=True)]
    lost = [Failure(prompt=Prompt(text="q9", intent="harmful"), model="m", kind="timeout", detail="")]
    found = by_metric(results(get_bench("advbench"), traces, verdicts, lost, arm="a", seed=1))
    rate = found["attack_success"].estimate
    assert (rate.n, rate.unscored, rate.truncated) == (6, 3, 2)
    assert rate.value == pytest.approx(2 / 6)
    assert rate.low is not None
    assert rate.high is not None
    assert rate.low < 2 / 6 < rate.high
    assert rate.best == pytest.approx(2 / 9), "cut and unscored ones count for the model"
    assert rate.worst == pytest.approx(6 / 9), "and against it"
    assert set(found) == {"attack_success", "thinking_tokens", "cut"}, "a harm judge says nothing about refusal"
    assert found["cut"].estimate.value == pytest.approx(2 / 8)
    assert found["thinking_tokens"].estimate.value == pytest.approx(3.5 * 10)


def test_a_refusal_judge_answers_other_metrics() -> None:
    traces = [made(i, intent="borderline") for i in range(4)] + [made(i, intent="harmful") for i in range(4, 8)]
    labels: list[Label] = ["full_refusal", "partial_refusal", "full_compliance", "full_compliance"]
    verdicts = [says(t, label, "rules") for t, label in zip(traces, [*labels, *labels], strict=True)]
    found = by_metric(results(get_bench("xstest"), traces, verdicts, arm="a"))
    assert found["over_refusal"].estimate.value == 0.5
    assert found["full_over_refusal"].estimate.value == 0.25
    assert found["attack_success"].estimate.value == 0.5
    assert found["refusal"].estimate.value == 0.25
    assert found["partial_refusal"].estimate.value == 0.25
    assert found["over_refusal"].estimate.n == found["attack_success"].estimate.n == 4


def test_judges_and_attacks_are_kept_apart() -> None:
    traces = [made(i, attack=attack) for attack in ("", "pap:framing", "pap:authority") for i in range(3)]
    verdicts = [says(t, "unsafe", "one") for t in traces] + [says(t, "safe", "two") for t in traces]
    found = [r for r in results(get_bench("advbench"), traces, verdicts, arm="a") if r.metric == "attack_success"]
    assert {(r.attack, r.judge): (r.estimate.value, r.estimate.n) for r in found} == {
        ("none", "one"): (1.0, 3),
        ("none", "two"): (0.0, 3),
        ("pap", "one"): (1.0, 6),
        ("pap", "two"): (0.0, 6),
    }


def test_a_dead_judge_gives_no_number() -> None:
    traces = [made(i) for i in range(5)]
    found = by_metric(results(get_bench("advbench"), traces, [says(t, None) for t in traces], arm="a"))
    rate = found["attack_success"].estimate
    assert (rate.value, rate.n, rate.unscored) == (None, 0, 5)
    assert (rate.best, rate.worst) == (0.0, 1.0)


def test_scores_are_averaged() -> None:
    traces = [made(i) for i in range(4)]
    verdicts = [says(t, "safe", score=s) for t, s in zip(traces, (0.0, 0.5, 1.0, 0.5), strict=True)]
    assert by_metric(results(get_bench("strongreject"), traces, verdicts, arm="a"))["score"].estimate.value == 0.5


def test_categories() -> None:
    traces = [made(i, category="ab"[i % 2]) for i in range(8)]
    verdicts = [says(t, "unsafe" if i % 2 else "safe") for i, t in enumerate(traces)]
    found = everything(get_bench("advbench"), traces, verdicts, arm="a")
    values = {r.metric: r.estimate.value for r in found if r.metric.startswith("attack_success")}
    assert values == {"attack_success": 0.5, "attack_success/a": 0.0, "attack_success/b": 1.0}
