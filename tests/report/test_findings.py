"""The table of findings: what is decided, from numbers that are known."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from tests.report.made import evaluation, harm_label, prompts_of, publish

from demur import stats
from demur.report import build, markdown, terminal, write
from demur.report.compare import forecast
from demur.report.data import Report
from demur.report.format import conclusion, verdict
from demur.report.metrics import cells
from demur.report.read import read
from demur.report.tests import PairedTest, _by_level, _decided, _with, adjusted, aligned, difference

BASES = ("x", "y", "z")
SEEDS = (1, 2, 3)


def report_of(
    folder: Path, chances: dict[str, dict[str, float]], evidence: dict[str, Any], *, prompts: int = 120
) -> Report:
    """A run on three bases; arm -> base -> chance of success. `raw` is not trained."""
    folder.mkdir(parents=True, exist_ok=True)
    for arm, by_base in chances.items():
        for base, chance in by_base.items():
            for seed in (None,) if arm == "raw" else SEEDS:
                asked = prompts_of("harm", "harmful", prompts)
                evaluation(folder, f"{arm}@{base}", seed, "mini_harm", "", asked, harm_label(chance))
                if seed is not None:
                    wobble = random.Random(f"{arm} {base} {seed}").gauss(0, 0.01)
                    line = {"step": 1, "part": "whole", "loss": chance + wobble, "loss_per_sequence": 20.0, "rows": 9}
                    publish(
                        folder, f"train-{arm}@{base}-s{seed}", "train", {"learnability": [line | {"trained_tokens": 5}]},
                        settings={"arm": f"{arm}@{base}", "seed": seed},
                    )  # fmt: skip
    study = {
        "name": "made", "arms": {arm: {} for arm in chances}, "bases": list(BASES),
        "findings": [{"claim": "the claim", "evidence": [{"bench": "mini_harm", "metric": "attack_success"} | evidence]}],
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return build(folder)


def everywhere(chance: float) -> dict[str, float]:
    return dict.fromkeys(BASES, chance)


@pytest.mark.parametrize(
    ("a", "b", "expect", "by", "outcome"),
    [
        (0.30, 0.05, "higher", 0.05, "supported"),
        (0.30, 0.05, "lower", 0.05, "refuted"),
        (0.05, 0.05, "higher", 0.15, "refuted"),
        (0.05, 0.05, "same", 0.15, "supported"),
        (0.60, 0.05, "same", 0.15, "refuted"),
        (0.05, 0.05, "same", 0.001, "undecided"),
    ],
)
def test_a_claim_is_decided_by_size_and_certainty(
    tmp_path: Path, a: float, b: float, expect: str, by: float, outcome: str
) -> None:
    report = report_of(
        tmp_path, {"a": everywhere(a), "b": everywhere(b)}, {"a": "a", "b": "b", "expect": expect, "by": by}
    )
    (found,) = report.findings
    (test,) = found.evidence
    assert found.outcome == test.outcome == outcome
    assert (test.difference.n, test.difference.clusters, test.difference.seeds, test.bases) == (9 * 120, 120, 9, 3)
    assert found.claim in markdown(report).partition("## Results")[0]
    assert outcome in conclusion(found)


def test_bases_that_disagree_leave_a_claim_open(tmp_path: Path) -> None:
    # 1,080 pairs of which a third is sure: prompts alone, or nine seeds alone, would call it shown.
    chances = {"a": {"x": 0.65, "y": 0.06, "z": 0.04}, "b": everywhere(0.05)}
    (found,) = report_of(tmp_path, chances, {"a": "a", "b": "b", "expect": "higher", "by": 0.05}).findings
    assert found.outcome == "undecided"
    assert (found.evidence[0].difference.value or 0) > 0.15


def test_every_claim_is_printed_whatever_became_of_it(tmp_path: Path) -> None:
    evidence: dict[str, Any] = {"a": "a", "b": "b", "metric": "attack_success", "expect": "higher", "by": 0.05}
    for arm, chance in (("a", 0.6), ("b", 0.05)):
        evaluation(tmp_path, arm, 1, "mini_harm", "", prompts_of("harm", "harmful", 60), harm_label(chance))
    wanted: dict[str, dict[str, Any]] = {
        "shown": {},
        "not shown": {"expect": "lower"},
        "open": {"expect": "same", "by": 0.001},
        "lost": {"b": "c"},
    }
    claims = [{"claim": f"it is {name}", "evidence": [evidence | own]} for name, own in wanted.items()]
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump({"name": "made", "findings": claims, "arms": {"a": {}, "b": {}}})
    )
    report = build(tmp_path)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal(report))
    for text in (console.export_text(), markdown(report), write(tmp_path, built=report)["html"].read_text()):
        assert all(f"it is {name}" in text for name in wanted)


@pytest.mark.parametrize(
    ("low", "high", "p", "winner"), [(0.1, 0.3, 0.01, "b"), (-0.1, 0.3, 0.01, None), (0.1, 0.3, 0.06, None)]
)
def test_a_winner_is_named_only_where_interval_and_p_agree(
    low: float, high: float, p: float, winner: str | None
) -> None:
    gap = stats.Difference(value=0.2, low=low, high=high, p=p, n=100, clusters=100)
    test = PairedTest(a="a", b="b", metric="attack_success", better="lower", difference=gap, p_holm=p)
    assert test.winner == winner
    assert ("is better" in verdict(test)) == bool(winner)


def test_the_larger_p_of_trainings_and_bases_is_what_holm_adjusts(tmp_path: Path) -> None:
    """Bases that disagree: with trainings alone as what varies the difference would be certain."""
    chances = {"a": {"x": 0.65, "y": 0.06, "z": 0.04}, "b": everywhere(0.05)}
    (found,) = report_of(tmp_path, chances, {"a": "a", "b": "b", "expect": "higher", "by": 0.05}).findings
    run = read(tmp_path).pooled()
    cells_of = cells(run.evaluations)
    (column,) = [c for c in cells_of["a"] if c.metric == "attack_success" and c.part == "answer"]
    levels = [one.p or 0.0 for one in _by_level(aligned(cells_of["a"][column], cells_of["b"][column]))]
    assert len(levels) == 2
    assert min(levels) < 0.05 < max(levels), "trainings alone would call it shown"
    assert found.evidence[0].p_holm == pytest.approx(max(levels))
    assert difference(cells_of["a"][column], cells_of["b"][column]).p == max(levels), "and compare's"


@pytest.mark.parametrize("trainings", [1, 3])
def test_twenty_claims_that_are_all_false_seldom_give_one_that_is_supported(trainings: int) -> None:
    """40 families of arms that are equal: at most 5 % of families, two, and that for trainings that differ as well."""
    rng, wrong = np.random.default_rng(3), 0
    names = [str(i) for i in np.repeat(np.arange(60), trainings)]
    seeds = list(range(trainings)) * 60 if trainings > 1 else None
    for _ in range(40):
        family = []
        for _ in range(20):
            own = rng.standard_normal((60, 1)) + rng.standard_normal((2, 60, trainings)) - 0.7
            own += 0.4 * rng.standard_normal((2, 1, trainings)) * (trainings > 1)
            a, b = ([bool(v) for v in side.ravel() > 0] for side in own)
            test = PairedTest(a="a", b="b", metric="m", expect="lower", by=0.01)
            family.append(_with(test, [stats.paired(a, b, clusters=names, seeds=seeds)]))
        wrong += any(_decided(test).outcome == "supported" for test in adjusted(family))
    assert wrong <= 2


def test_an_untrained_arm_stands_against_the_trainings_of_its_own_base(tmp_path: Path) -> None:
    chances = {"a": {"x": 0.0, "y": 0.5, "z": 1.0}, "raw": {"x": 0.0, "y": 0.5, "z": 1.0}}
    (found,) = report_of(tmp_path, chances, {"a": "a", "b": "raw", "expect": "same", "by": 0.3}).findings
    assert found.evidence[0].difference.n == 9 * 120
    assert found.outcome == "supported"


def test_a_test_goes_by_the_part_that_the_judge_reads_unless_it_names_one(tmp_path: Path) -> None:
    for arm, chance in (("a", 0.6), ("b", 0.05)):
        for seed in SEEDS:
            asked = prompts_of("harm", "harmful", 60)
            evaluation(tmp_path, arm, seed, "mini_harm", "", asked, harm_label(chance), part="whole")
    evidence = {"a": "a", "b": "b", "metric": "attack_success", "expect": "higher", "by": 0.05}
    findings = [{"claim": "c", "evidence": [evidence]}, {"claim": "d", "evidence": [evidence | {"part": "thinking"}]}]
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump({"name": "made", "findings": findings, "arms": {"a": {}, "b": {}}})
    )
    read, unread = build(tmp_path).findings
    assert read.outcome == "supported"
    assert unread.evidence[0].why == "not measured on both arms"


def test_nothing_is_read_of_a_garbled_arm(tmp_path: Path) -> None:
    evidence = {"a": "a", "b": "b", "expect": "lower", "by": 0.05}
    report_of(tmp_path, {"a": everywhere(0.0), "b": everywhere(0.9)}, evidence)
    for base in BASES:
        asked = prompts_of("kind", "benign", 40)
        evaluation(
            tmp_path, f"a@{base}", 1, "mini_benign", "", asked,
            lambda rng, _: "garbled" if rng.random() < 0.3 else "full_compliance",
        )  # fmt: skip
    report = build(tmp_path)
    (found,) = report.findings
    assert set(report.incoherent) == {"a"}
    assert found.outcome == "undecided"
    assert "garbled" in found.evidence[0].why
    assert found.evidence[0].difference.value is None


def test_loss_is_compared_training_by_training(tmp_path: Path) -> None:
    evidence = {"a": "a", "b": "b", "metric": "loss", "expect": "lower", "by": 0.02}
    report = report_of(tmp_path, {"a": everywhere(0.1), "b": everywhere(0.4)}, evidence)
    (test,) = report.findings[0].evidence
    assert test.outcome == "supported"
    assert test.difference.value == pytest.approx(-0.3, abs=0.02)
    assert (test.difference.n, test.unit) == (9, "nats")


def test_one_failed_test_of_several_fails_the_claim(tmp_path: Path) -> None:
    report_of(
        tmp_path, {"a": everywhere(0.6), "b": everywhere(0.05)}, {"a": "a", "b": "b", "expect": "higher", "by": 0.05}
    )
    study = yaml.safe_load((tmp_path / "study.yaml").read_text())
    first = study["findings"][0]["evidence"][0]
    study["findings"][0]["evidence"] = [first, first | {"expect": "same", "by": 0.01}, first | {"by": 0.2}]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    (found,) = build(tmp_path).findings
    assert [test.outcome for test in found.evidence] == ["supported", "refuted", "supported"]
    assert found.outcome == "refuted"


def test_arms_are_shown_over_all_bases_and_on_each(tmp_path: Path) -> None:
    evidence = {"a": "a", "b": "b", "expect": "higher", "by": 0.05}
    report = report_of(tmp_path, {"a": {"x": 0.0, "y": 0.5, "z": 1.0}, "b": everywhere(0.5)}, evidence)
    assert report.arms == ("a", "b")
    success = {r.arm: r.estimate for r in report.results if r.metric == "attack_success" and r.seed is None}
    assert success["a@x"].value == 0
    assert success["a@z"].value == 1
    assert success["a"].value == pytest.approx(0.5, abs=0.05)
    assert (success["a"].high or 0) - (success["a"].low or 0) > 0.5  # three bases that differ promise little
    assert (success["b"].high or 0) - (success["b"].low or 0) < 0.2


def test_every_comparison_counts_the_bases_that_it_pairs(tmp_path: Path) -> None:
    chances = {"raw": everywhere(0.9), "a": everywhere(0.5), "b": {"x": 0.1, "y": 0.1}}
    report_of(tmp_path, chances, {"a": "a", "b": "b", "expect": "higher", "by": 0.05})
    study = yaml.safe_load((tmp_path / "study.yaml").read_text())
    study["arms"] |= {"a": {"format": "default"}, "b": {"format": "short"}}
    study["compare"] = [{"a": "raw", "b": "a"}, {"a": "a", "b": "b"}]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    report = build(tmp_path)
    assert {(test.a, test.b): test.bases for test in report.claims} == {("raw", "a"): 3, ("a", "b"): 2}
    assert {test.a: test.bases for test in report.changes} == {"a": 3, "b": 2}
    assert report.findings[0].evidence[0].bases == 2


def test_attacks_weigh_as_the_study_says(tmp_path: Path) -> None:
    """Apart without an attack, alike under one: the difference is a mean of the two, each as heavy as it was declared."""
    for arm, plain in (("a", 1.0), ("b", 0.0)):
        for attack, prompts in (("", 100), ("pair", 10)):
            asked = prompts_of("harm", "harmful", prompts, attack)
            evaluation(tmp_path, arm, 1, "mini_harm", attack, asked, harm_label(plain if not attack else 0.5))
    evidence: dict[str, Any] = {"a": "a", "b": "b", "metric": "attack_success", "expect": "higher", "by": 0.05}
    found = []
    for weights in ({}, {"none": 1, "pair": 9}):
        study = {"name": "made", "arms": {"a": {}, "b": {}}}
        claims = [{"claim": "c", "evidence": [evidence | {"weights": weights}]}]
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study | {"findings": claims}))
        found.append(build(tmp_path).findings[0].evidence[0])
    equal, leaning = (test.difference.value or 0 for test in found)
    under = 2 * equal - 1.0
    assert leaning == pytest.approx(0.1 + 0.9 * under)
    assert abs(under) < 0.5


def test_a_fixed_set_of_prompts_is_measured_as_such(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        asked = prompts_of("harm", "harmful", 40)
        evaluation(tmp_path, "a", seed, "mini_harm", "", asked, lambda rng, p: harm_label(int(p.text[-1]) / 9)(rng, p))
    widths = []
    for fixed in ([], ["mini_harm"]):
        (tmp_path / "study.yaml").write_text(yaml.safe_dump({"name": "made", "arms": {"a": {}}, "fixed": fixed}))
        one = next(r.estimate for r in build(tmp_path).results if r.metric == "attack_success" and r.seed is None)
        widths.append((one.high or 0) - (one.low or 0))
        assert ("these prompts alone" in one.how) == bool(fixed)
    assert widths[1] < 0.8 * widths[0]


def test_a_plan_says_what_its_design_cannot_settle() -> None:
    study = {"seeds": [0, 1, 2], "bases": ["x", "y", "z"], "bench": [{"name": "b", "limit": 100}]}
    claims = [{"claim": "c", "evidence": [{"a": "a", "b": "b", "expect": "lower", "by": 0.05}]}]
    (line,) = forecast(study | {"findings": claims})
    assert line.startswith("c (a against b): with 3 bases, 3 trainings of each and 1 test this shows differences of ")
    assert 30 <= int(line.partition("differences of ")[2].split()[0]) <= 50
    claims[0]["evidence"][0]["by"] = 0.6  # type: ignore[index]
    assert forecast(study | {"findings": claims}) == []
