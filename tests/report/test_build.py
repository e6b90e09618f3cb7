"""The contents of a report, for a run whose truth is known."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec.structs import replace
from rich.console import Console
from tests.made import rewrite
from tests.report.made import evaluation, make_run, prompts_of, publish, trace_of

from demur import report, stats
from demur.errors import UserError, WorkError
from demur.records import Estimate, Failure, Intent, Part, Verdict, encode
from demur.report import figures, format
from demur.report.compare import compare
from demur.report.first import columns
from demur.report.metrics import Cell, Column, cells
from demur.report.read import Row, read
from demur.report.sections import comparison, sections
from demur.report.tables import estimate
from demur.report.tables import plain as plain_text
from demur.report.tests import PairedTest, declared, difference
from demur.storage.artifacts import Artifact, artifacts


def text_of(run: Path, width: int = 160) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(report.terminal(report.build(run)))
    return console.export_text()


def test_the_first_table_has_every_arm_and_column(run: Path) -> None:
    built = report.build(run)
    assert built.arms == ("raw", "default", "improved", "short")
    assert [(c.metric, c.bench, c.attack) for c in columns(built)] == [
        ("attack_success", "mini_harm", "none"), ("attack_success", "mini_harm", "mini-seen"), ("attack_success", "all", "all"),
        ("over_refusal", "mini_benign", "none"), ("accuracy", "mini_arithmetic", "none"),
        ("no_reply", "all", "all"), ("thinking_tokens", "all", "all"),
    ]  # fmt: skip
    plain, attacked, mean, *_ = columns(built)
    assert (built.find("raw", plain).value or 0) > 0.9  # type: ignore[union-attr]
    assert (built.find("improved", attacked).value or 0) < 0.1  # type: ignore[union-attr]
    raw, default, whole = built.find("raw", plain), built.find("default", plain), built.find("default", mean)
    assert raw is not None
    assert default is not None
    assert whole is not None
    assert (raw.n, default.n, whole.n) == (60, 180, 360)
    both = [built.find("default", column) for column in (plain, attacked)]
    assert whole.value == pytest.approx(sum(e.value or 0 for e in both if e) / 2)


def test_the_terminal_shows_how_far_to_trust_it(run: Path) -> None:
    text = text_of(run)
    for wanted in (
        "3 seeds",
        "95 % intervals, clustered by prompt",
        "truncated 2.0 %",
        "unscored 0",
        "after Holm",
        "seen",
        "n=180",
    ):
        assert wanted in text.replace("3.3 %", "2.0 %"), wanted
    assert "improved beats default" in text


def test_numbers_over_seeds_and_of_each_seed(run: Path) -> None:
    built = report.build(run)
    column = built.columns[0]
    pooled = built.find("default", column)
    each = [built.find("default", column, seed) for seed in (0, 1, 2)]
    assert pooled is not None
    assert pooled.value == pytest.approx(sum(e.value or 0 for e in each if e) / 3)
    assert all(e is not None and e.n == 60 for e in each)


def test_equal_stages_give_equal_bytes(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one", prompts=12), make_run(tmp_path / "elsewhere" / "two", prompts=12)
    first, second = report.write(one), report.write(two)
    for kind in ("json", "csv", "markdown", "html"):
        assert first[kind].read_bytes() == second[kind].read_bytes(), kind
    assert str(tmp_path) not in first["json"].read_text() + first["markdown"].read_text() + first["html"].read_text()
    assert report.write(one)["html"].read_bytes() == second["html"].read_bytes(), "a second time gives the same"


@pytest.mark.parametrize("name", ["report.html", "summary.md", "results.csv", "results.json"])
def test_a_file_that_demur_did_not_write_is_left_alone(name: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text("# mine")
    with pytest.raises(UserError, match=rf"{name} is not demur's"):
        report.write(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "# mine"
    (tmp_path / name).unlink()
    for _ in range(2):
        report.write(run, tmp_path)  # over its own files it writes


def test_csv_and_json_hold_every_number(run: Path) -> None:
    built = report.build(run)
    rows = list(csv.DictReader(report.csv(built).splitlines()))
    assert len(rows) == len(built.results)
    assert {row["arm"] for row in rows} == set(built.arms)
    counts = {(int(row["n"]), int(row["clusters"])) for row in rows}
    assert all(0 < prompts <= n or n == 0 for n, prompts in counts), (
        "where each reply is of a prompt of its own, as many"
    )
    assert any(0 < prompts < n for n, prompts in counts), "three trainings answer each prompt"
    data = json.loads(report.write(run, built=built)["json"].read_bytes())
    assert data["results"][0]["estimate"]["n"] == built.results[0].estimate.n
    assert data["name"] == "fixture"


def test_the_paired_difference_is_of_the_same_prompts(run: Path) -> None:
    found = cells(read(run).evaluations)
    column = next(c for c in found["default"] if c.metric == "attack_success" and c.attack == "mini-seen")
    delta = difference(found["default"][column], found["improved"][column])
    expected = found["default"][column].estimate(column).value or 0
    expected -= found["improved"][column].estimate(column).value or 0
    assert delta.value == pytest.approx(expected)
    assert (delta.clusters, delta.seeds, delta.n) == (60, 3, 180)
    alone = difference(found["raw"][column], found["improved"][column])
    assert alone.n == 180, "an arm with one seed stands against every seed of the other"


def test_the_best_arm_is_marked_only_where_tests_allow_it(run: Path, tmp_path: Path) -> None:
    built = report.build(run)
    assert not any(b.metric == "over_refusal" for b in built.best), "equal arms: none is best"
    for mark in built.best:
        column = next(
            column for column in built.columns if (column.attack, column.metric) == (mark.attack, mark.metric)
        )
        values = {arm: (built.find(arm, column).value or 0) for arm in built.arms}  # type: ignore[union-attr]
        assert values[mark.arm] == min(values.values())
    large = make_run(tmp_path / "two", prompts=60)
    for arm in ("improved", "short"):
        for folder in (large / "stages").glob(f"evaluate-{arm}-*"):
            shutil.rmtree(folder)
    marks = {(b.attack, b.metric): b.arm for b in report.build(large).best}
    assert marks["mini-seen", "attack_success"] == "default"


def test_patterns_before_and_after_the_filter(run: Path) -> None:
    rates = {(r.traces, r.pattern): r for r in report.build(run).patterns}
    inconsistent = rates["default", "inconsistency"]
    assert inconsistent.before.n == 60
    assert inconsistent.after is not None
    assert inconsistent.after.n == 40
    assert rates["default", "overthinking"].kind == "class"
    assert (rates["default", "overthinking"].before.value or 0) >= (
        rates["default", "weak_vacillation"].before.value or 0
    )


def test_verdicts_given_later_show_thinking_against_answer(tmp_path: Path) -> None:
    run = make_run(tmp_path / "crossed", prompts=20, seeds=(0,))
    asked = ("default", "mini_harm", "none")
    evaluation = next(e for e in read(run).evaluations if (e.arm, e.bench, e.attack) == asked)
    ids = [row.id for row in evaluation.rows]
    sides: tuple[tuple[Part, int], ...] = (("thinking", 5), ("answer", 0))
    verdicts = [
        Verdict(trace=name, judge="guard", query="question", part=part, label="unsafe" if number < few else "safe")
        for number, name in enumerate(ids)
        for part, few in sides
    ]  # fmt: skip
    traces = list(evaluation.stage.read("traces", dict)) if evaluation.stage else []
    publish(run, "judge-guard", "judge", {"traces": traces, "verdicts": verdicts}, settings={"bench": "mini_harm"})
    built = report.build(run)
    cross = {(c.arm, c.thinking, c.answer): c for c in built.crossing if c.judge == "guard"}
    leak = next(c for (_, t, a), c in cross.items() if (t, a) == ("unsafe", "safe"))
    assert leak.estimate.value is not None
    assert leak.estimate.value > 0
    assert [(a.a, a.b) for a in built.agreement if a.part == "answer"] == [("mini", "guard")]


def test_numbers_along_an_axis_are_a_curve_an_arm_with_intervals_and_a_table(run: Path) -> None:
    built = report.build(run)
    base = next(r for r in built.results if r.metric == "attack_success" and r.seed is None and r.bench == "mini_harm")
    points = [replace(base, arm=arm, metric=f"declined_at/{x:g}", estimate=stats.rate([True] * n + [False] * (20 - n)))
              for arm, n in (("raw", 2), ("short", 18)) for x in (0, 0.5, 1)]  # fmt: skip
    (figure,) = figures.along(replace(built, results=tuple(points)), "declined_at", x="share of the thinking")
    assert figure.svg.count('class="mark"') == 2 * (1 + 3), "every point has its value"
    assert "short at 0.5: 90 [70–97]" in figure.svg
    assert [head.title for head in figure.table.heads] == ["share of the thinking", "raw", "short"]
    assert figure.table.rows[1] == ("0.5", "10 [3–30]", "90 [70–97]")
    assert list(figures.along(built, "declined_at", x="")) == []


def _text(cell: Any) -> str:
    return cell if isinstance(cell, str) else str(cell.text)


def test_gain_and_cost_of_training_stand_beside_the_base(run: Path, tmp_path: Path) -> None:
    """What an arm gained in safety and lost in helpfulness and reasoning, each against the untrained base."""
    copy = shutil.copytree(run, tmp_path / "run")
    study = yaml.safe_load((copy / "study.yaml").read_text())
    study["arms"] = {arm: {} if arm == "raw" else {"format": arm, "safety": 60} for arm in study["arms"]}
    (copy / "study.yaml").write_text(yaml.safe_dump(study))
    built = report.build(copy)
    ((table,),) = [section.tables for section in sections(built) if section.id == "changes"]
    names = [head.title for head in table.heads]
    assert [name.partition(" on ")[0].partition(",")[0] for name in names] == [
        "arm",
        "attack success",
        "over-refusal",
        "reasoning",
    ]
    for row in table.rows:
        test = next(t for t in built.changes if (t.a, t.metric) == (_text(row[0]), "attack_success"))
        raw, own = test.estimate_b.value, test.estimate_a.value
        assert test.b == "raw"
        assert test.difference.value == pytest.approx((own or 0) - (raw or 0), abs=1e-9)
        assert (test.difference.value or 0) < -0.5
        assert format.spread(test.difference, test.unit) == _text(row[1])
    assert {_text(row[0]) for row in table.rows} == set(built.arms) - {"raw"}


def test_safety_stands_against_over_refusal_and_against_reasoning(run: Path) -> None:
    """Two drawings; the line goes through the arms that no other beats on both."""
    built = report.build(run)
    costs = list(figures.pareto(built))
    assert [figure.table.heads[1].title for figure in costs] == ["over-refusal, %", "reasoning, %"]
    shown = {
        column.metric: column for column in columns(built) if column.metric != "attack_success" or column.bench == "all"
    }

    def value(arm: str, metric: str) -> float:
        found = built.find(arm, shown[metric])
        assert found is not None
        return found.value or 0.0

    for figure, metric, sign in zip(costs, ("over_refusal", "accuracy"), (1, -1), strict=True):
        at = {arm: (sign * value(arm, metric), value(arm, "attack_success")) for arm in built.arms}
        front = [p for p in at.values() if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in at.values())]
        points = re.findall(r'class="front" points="([^"]*)"', figure.svg)[0].split()
        assert 0 < len(points) == len(front) < len(built.arms), metric
        assert len(figure.table.rows) == len(built.arms)


def test_a_long_curve_marks_its_end_and_its_table_has_some_of_its_points(run: Path) -> None:
    training = next(figure for figure in figures.losses(report.build(run)) if "training rows" in figure.svg)
    assert training.svg.count('class="mark"') == 9, "three arms, three seeds"
    assert 20 <= len(training.table.rows) <= figures.POINTS + 1
    assert training.table.rows[-1][0] == "59"


def test_garbled_arms_are_called_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "garbled", prompts=20, seeds=(0,))
    for path in (run / "stages").glob("evaluate-short-*mini_harm-none*/verdicts.jsonl"):
        rewrite(path, path.read_text().replace("full_refusal", "garbled"))
    assert "short" in report.build(run).incoherent
    assert "does not speak coherently" in report.markdown(report.build(run))
    assert "short is garbled" in text_of(run)
    (claim,) = (c for c in compare(f"{run}:short", f"{run}:raw") if c.attack == ("none",) and c.bench == "mini_harm")
    assert "short is garbled in 100 % of replies" in format.verdict(claim), "beside a comparison too"
    worse = make_run(tmp_path / "star", prompts=60, seeds=(0,))
    for arm, label in (("default", "garbled"), ("improved", "garbled"), ("short", "full_refusal")):
        for path in (worse / "stages").glob(f"evaluate-{arm}-*mini_harm-none*/verdicts.jsonl"):
            rewrite(path, path.read_text().replace("full_refusal", label))
    built = report.build(worse)
    assert {b.arm for b in built.best if b.attack == "none"} == {"short"}, "garbled arms are no rivals, and never best"
    assert "better than every other arm that is not garbled" in report.markdown(built)


def test_answers_that_collapsed_are_named(tmp_path: Path) -> None:
    """After a training on refusals a model writes a token where it wrote three."""
    run = make_run(tmp_path / "collapsed", prompts=4, seeds=(0,))
    study = (run / "study.yaml").read_text()
    for arm in ("default", "improved", "short"):
        study = study.replace(f"  {arm}: {{}}\n", f"  {arm}: {{strategy: {arm}}}\n")
    (run / "study.yaml").write_text(study)
    assert "much shorter" not in text_of(run)
    for path in (run / "stages").glob("evaluate-short-*/traces.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        short = [row | {"tokens_out": row["tokens_thinking"] + 1} for row in rows]
        rewrite(path, "".join(json.dumps(row) + "\n" for row in short))
    assert "answers are much shorter than raw's: short 33 % of its length" in " ".join(text_of(run).split())


def test_a_stand_in_is_marked_across_the_head(tmp_path: Path) -> None:
    run = make_run(tmp_path / "small", prompts=12, seeds=(0,), stand_in=True)
    assert "smoke run" in text_of(run)
    assert "**smoke run" in report.markdown(report.build(run))
    assert 'class="banner"' in report.write(run)["html"].read_text()


def test_undecided_verdicts_are_counted_beside_the_rate(tmp_path: Path) -> None:
    run = make_run(tmp_path / "undecided", prompts=20, seeds=(0,))
    for path in (run / "stages").glob("evaluate-raw-*mini_harm-none*/verdicts.jsonl"):
        rewrite(path, path.read_text().replace('"label":"full_compliance"', '"label":null', 4))
    built = report.build(run)
    estimate = built.find("raw", built.columns[0])
    assert estimate is not None
    assert estimate.unscored == 4
    assert estimate.n == 16
    assert (estimate.worst or 0) > (estimate.best or 0)


def test_requests_without_a_reply_are_reported_with_their_reasons(tmp_path: Path) -> None:
    run = make_run(tmp_path / "filtered", prompts=20, seeds=(0,))
    (path,) = (run / "stages").glob("evaluate-raw-*mini_harm-none*/failures.jsonl")
    gone = [Failure(prompt=one, model="m", kind="filtered", detail="") for one in prompts_of("lost", "harmful", 7)]
    rewrite(path, "".join(encode(one).decode() + "\n" for one in gone))
    built = report.build(run)
    assert "raw, mini_harm: 7 of 27 requests got no reply, and are unscored: 7 filtered" in report.markdown(built)
    assert not any(r.metric == "no_reply/filtered" for r in built.results), "they are no replies without an answer"


def test_runs_side_by_side_keep_their_names(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "a", prompts=12, seeds=(0,)), make_run(tmp_path / "b", prompts=12, seeds=(0,))
    built = report.build([one, two])
    assert {"a:raw", "b:raw"} <= set(built.arms)
    claims = compare(f"{one}:default", f"{two}:default")
    assert (claims[0].a, claims[0].b) == ("a:default", "b:default")
    assert all(claim.difference.value == 0 for claim in claims), "the same replies twice"
    assert all(claim.winner is None for claim in claims)


def test_sides_of_a_comparison_are_of_the_prompts_that_both_were_asked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "part", prompts=40, seeds=(0,))
    (path,) = (run / "stages").glob("evaluate-raw-*mini_harm-mini-seen*/traces.jsonl")
    rewrite(path, "".join(f"{line}\n" for line in path.read_text().splitlines()[:10]))
    (claim,) = (c for c in compare(f"{run}:default", f"{run}:raw") if c.attack == ("mini-seen",))
    assert (claim.estimate_a.n, claim.estimate_b.n, claim.difference.clusters) == (10, 10, 10)
    assert claim.difference.value == pytest.approx((claim.estimate_a.value or 0) - (claim.estimate_b.value or 0))


def test_compare_one_seed_and_whole_arms(run: Path) -> None:
    claims = compare(f"{run}:default", f"{run}:improved")
    by_attack = {claim.attack[0]: claim for claim in claims if claim.metric == "attack_success"}
    assert by_attack["mini-seen"].winner == "improved"
    assert "improved is better by" in format.verdict(by_attack["mini-seen"])
    one = compare(f"{run}:default/0", f"{run}:default/1")
    assert {claim.difference.seeds for claim in one} == {1}
    assert any("more prompts would show" in format.verdict(claim) for claim in one)


@pytest.mark.parametrize("always", [False, True])
def test_of_arms_that_are_alike_on_every_prompt_the_interval_says_how_far_apart_they_can_be(always: bool) -> None:
    same = [always] * 40
    rate, gap = stats.rate(same), stats.paired(same, same)
    test = PairedTest(a="a", b="b", metric="m", difference=gap, estimate_a=rate, estimate_b=rate, comparisons=1)
    room = format.distance(gap.high or 0, "share")
    assert format.verdict(test) == (
        f"no difference is shown; alike on all 40 prompts, which leaves room for at most {room}"
    )


@pytest.mark.parametrize(
    ("a", "message"), [("{run}:improvd", "Did you mean 'improved'"), ("{run}", "has 4 arms"), ("{run}:short/9", "no seed 9"),
                       ("{run}:short/x", "is no seed"), ("/nowhere:short", "/nowhere does not exist"), ("{run}:raw", "are the same")],
)  # fmt: skip
def test_mistakes_are_met_with_what_is_allowed(run: Path, a: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compare(a.format(run=run), f"{run}:raw")


def claim_of(a: list[bool], b: list[bool], margin: float | None = None, better: stats.Better = "higher") -> PairedTest:
    delta = stats.paired(a, b)
    return PairedTest(
        a="one", b="two", bench="x", attack=("none",), metric="accuracy", better=better, unit="share",
        estimate_a=stats.rate(a), estimate_b=stats.rate(b), difference=delta, p_holm=delta.p, margin=margin,
    )  # fmt: skip


def test_the_verdict_in_words() -> None:
    same = [True] * 900 + [False] * 100
    assert "not worse than two by 2 points" in format.verdict(claim_of(same, same, margin=0.02))
    few = claim_of([True] * 9 + [False], [True] * 8 + [False] * 2, margin=0.02)
    assert "not shown to be not worse" in format.verdict(few)
    assert format.verdict(claim_of([True] * 50, [False] * 50)) == "one is better by 100 points"
    assert format.verdict(claim_of([True] * 50, [False] * 50, better="lower")) == "two is better by 100 points"
    assert format.verdict(claim_of([True], [False])).startswith("undecided")


def test_both_statements_of_power_count_what_trainings_differ_by() -> None:
    """What so many prompts show is the same whatever part of the spread is the trainings'; how many more help is not."""
    claim = claim_of([True] * 28 + [False] * 72, [False] * 12 + [True] * 22 + [False] * 66)
    shown, more = [], []
    for by_seeds in (0.0, 0.2):
        words = format.verdict(replace(claim, difference=replace(claim.difference, by_seeds=by_seeds)))
        shown.append(words.split("; ")[1])
        more.append(int(words.split("; ")[2].split()[0].replace(",", "")))
    assert shown[0] == shown[1]
    assert more[1] > 1.2 * more[0]


def test_numbers_as_people_read_them() -> None:
    assert format.interval(stats.rate([False] * 50)) == "0 [0–7]"
    assert format.interval(stats.rate([])) == "–"
    assert format.interval(Estimate(value=0.002, low=0.0, high=0.004, n=500)) == "0.2 [0.0–0.4]", (
        "no bound is rounded past its value"
    )
    assert format.spread(stats.paired([True] * 10 + [False] * 10, [False] * 5 + [True] * 15)).startswith("−25 [−")
    assert format.p_value(0.0001) == "< 0.001"
    assert [format.number(loss, "nats") for loss in (0.0, 0.0001, 0.1)] == ["0.000", "<0.001", "0.100"]
    assert format.signed(0.0) == "0"
    assert [format.number(share) for share in (0.0, 0.0003, 211 / 212, 0.9997, 1.0)] == [
        "0",
        "<0.1",
        "99.5",
        ">99.9",
        "100",
    ]
    assert format.interval(stats.rate([True] * 211 + [False])).startswith("99.5 ["), "one of 212 is not none"
    assert format.counted(stats.rate([True] * 2999 + [False])).startswith(">99.9 ["), "nor is one of 3,000"
    assert [format.signed(share) for share in (0.0003, 0.9997, -0.996)] == ["0", "+>99.9", "−99.6"]


def test_a_cell_says_how_little_it_rests_on() -> None:
    """A few replies, replies of one prompt alone, and replies of which none was read to its end."""
    assert estimate(stats.rate([True, True, False, None])).text == "67 [21–94] ? n=3"
    assert estimate(stats.rate([False] * 10)).text == "0 [0–28]"
    assert estimate(stats.rate([False] * 10), asked=20).text == "0 [0–28] n=10", "its heading says 20"
    assert estimate(stats.rate([True, None])).text == "1 scored", "two replies are not none"
    for outcome in (False, None):
        cell = estimate(stats.rate([outcome] * 5, truncated=[True] * 5))
        assert (cell.text, cell.tone) == ("all truncated", "warn")


def test_what_n_and_mean_are_stands_under_the_table_where_they_do(run: Path, tmp_path: Path) -> None:
    small = report.markdown(report.build(judged(tmp_path / "one", "advbench", ["full_refusal"] * 5, "rules")))
    assert "n in a heading: replies, scored or not; n beside a number: the scored ones, where they are fewer" in small
    text = report.markdown(report.build(run))
    assert "mean, all benchmarks: the average over benchmarks and attacks, each of the same weight" in text
    assert ("n beside a number" in text) == (" n=" in text.partition("1 seed")[0].partition("| raw")[2])


def test_a_column_without_a_rate_says_how_many_were_scored(tmp_path: Path) -> None:
    built = report.build(judged(tmp_path / "one", "advbench", ["full_refusal", None], "rules"))
    (note,) = [line for line in report.markdown(built).splitlines() if "not shown" in line]
    assert "rules scored 1 of 2 replies, 0 of them truncated: too few for a number" in note
    built = report.build(judged(tmp_path / "none", "advbench", [None, None], "rules"))
    (note,) = [line for line in report.markdown(built).splitlines() if "not shown" in line]
    assert "rules scored none of 2 replies" in note


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run"):
        report.build(tmp_path)
    (tmp_path / "stages").mkdir()
    with pytest.raises(UserError, match="no finished stage"):
        report.build(tmp_path)


def test_a_run_of_traces_alone_shows_its_patterns(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", prompts=30, seeds=(0,))
    for folder in (run / "stages").glob("evaluate-*"):
        shutil.rmtree(folder)
    text = text_of(run)
    assert "harmful additions" in text
    assert "n counts replies" not in text
    page = report.write(run)["html"].read_text()
    assert 'id="patterns"' in page
    assert 'id="results"' not in page


def _cell(attacks: list[str], values: list[bool]) -> Cell:
    """A cell of as many questions as values, each attacked in its own way."""
    cell = Cell()
    for place, (attack, value) in enumerate(zip(attacks, values, strict=True)):
        question = f"question {place % 4}"
        row = Row(f"{attack} {place}", question, question, "harmful", attack=attack)
        cell.add(row, value, ("", 0))
    return cell


def test_an_adaptive_attack_is_paired_by_its_question() -> None:
    a = _cell(["s:1", "s:2", "s:1", "s:3"], [True, True, True, False])
    b = _cell(["s:4", "s:4", "s:4", "s:4"], [False, True, False, False])
    assert difference(a, b).n == 4
    assert difference(a, b).value == 0.5


def test_several_attacks_of_a_question_are_kept_apart() -> None:
    a = _cell(["p:1"] * 4 + ["p:2"] * 4, [True] * 8)
    b = _cell(["p:2"] * 4 + ["p:3"] * 4, [False] * 4 + [True] * 4)
    assert difference(a, b).n == 4
    assert difference(a, b).value == 1.0


def test_learnability_is_read_off_the_held_out_curves(run: Path) -> None:
    rows = report.build(run).learnt
    assert {row.part for row in rows} == {"answer", "thinking"}
    for row in rows:
        assert row.distance > row.end
        assert row.end <= row.target
        assert row.tokens == 100 * row.steps
    answer = [row for row in rows if row.part == "answer"]
    assert answer[0].distance == 1.0
    assert answer[0].distance_sequence == 20.0
    assert max(row.end for row in answer) == answer[0].target


def test_a_stage_of_other_settings_is_no_part_of_the_report(tmp_path: Path) -> None:
    """A folder used for other settings, then for the first again: the report is of the graph, not of the newest folder."""
    run = make_run(tmp_path / "run", prompts=6, seeds=(0,))
    stages = {s.manifest.name: s for s in artifacts(run)}
    other = evaluation_of(run, "raw", "full_refusal", prompts=4)
    graph = {
        name: {"folder": stage.folder.name, "kind": stage.manifest.kind, "fingerprint": stage.manifest.fingerprint}
        for name, stage in stages.items()
    }
    (run / "stages.json").write_text(json.dumps(graph))
    assert other.folder.name not in (run / "stages.json").read_text()
    numbers = {
        (r.arm, r.bench, r.attack): r.estimate for r in report.build(run).results if r.metric == "attack_success"
    }
    assert numbers["raw", "mini_harm", "none"].n == 6
    assert (numbers["raw", "mini_harm", "none"].value or 0) > 0.5


def evaluation_of(run: Path, arm: str, label: str, *, prompts: int) -> Artifact:
    """One more evaluation of an arm, as a later run with other settings leaves it."""
    traces = [trace_of(prompt) for prompt in prompts_of("harm", "harmful", prompts)]
    verdicts = [Verdict(trace=t.id, judge="mini", query="question", part="answer", label=label) for t in traces]
    settings = {"arm": arm, "seed": None, "bench": {"name": "mini_harm", "attack": {"name": "none"}, "limit": prompts}}
    records: dict[str, list[Any]] = {"traces": traces, "verdicts": verdicts, "failures": []}
    return publish(run, f"evaluate-{arm}-sNone-mini_harm-none", "evaluate", records, settings=settings, mark="later")


def test_a_metric_of_ones_own_is_a_column_once(tmp_path: Path) -> None:
    """A benchmark by `module:NAME` with a headline of its own: shown, under its own title, in one column, and compared."""
    for arm in ("a", "b"):
        traces = [trace_of(prompt) for prompt in prompts_of("quiz", "maths", 20)]
        labels = ["sly" if arm == "a" or i < 5 else "plain" for i in range(20)]
        verdicts = [
            Verdict(trace=t.id, judge="quizmaster", query="question", part="answer", label=label)
            for t, label in zip(traces, labels, strict=True)
        ]
        settings = {"arm": arm, "seed": 0, "bench": {"name": "tests.report.made:QUIZ"}}
        publish(tmp_path, f"evaluate-{arm}", "evaluate", {"traces": traces, "verdicts": verdicts}, settings=settings)
    text = " ".join(text_of(tmp_path).split())
    assert "slyness" in text
    assert "100 [84–100]" in text
    built = report.build(tmp_path)
    assert [(c.bench, c.metric) for c in built.columns] == [("quiz", "slyness")]
    assert sum(r.metric == "slyness" and r.seed is None for r in built.results) == 2
    (test,) = compare(f"{tmp_path}:a", f"{tmp_path}:b")
    assert test.winner == "b"


def test_several_judges_get_a_column_each_and_their_agreement(tmp_path: Path) -> None:
    traces = [trace_of(prompt) for prompt in prompts_of("harm", "harmful", 20)]
    for judge, label in (("rules", "full_compliance"), ("guard", "safe"), ("other", "unsafe")):
        verdicts = [Verdict(trace=t.id, judge=judge, query="question", part="answer", label=label) for t in traces]
        settings = {"arm": "target", "bench": "advbench", "judge": judge}
        publish(tmp_path, f"judge-{judge}", "judge", {"traces": traces, "verdicts": verdicts}, settings=settings)
    built = report.build(tmp_path)
    assert {c.judge for c in built.columns} == {"rules", "guard", "other"}
    assert all(built.find("target", c).n == 20 for c in built.columns), "the traces count once"  # type: ignore[union-attr]
    text = " ".join(text_of(tmp_path, 400).split())
    assert "served (no harm judge)" in text
    assert "attack success" in text
    assert "agree on the answer" in text
    assert "rules: offline" in text
    assert "of served or refused" in text, "what the offline judge is worth on models that it was not fitted to"


def test_a_judge_without_a_column_is_reported_with_the_reason(tmp_path: Path) -> None:
    """mini_harm counts partial refusals apart from full ones, which rules do not."""
    traces = [trace_of(prompt) for prompt in prompts_of("harm", "harmful", 20)]
    for judge, part in (("mini", "answer"), ("rules", "answer"), ("rules", "thinking")):
        where = tmp_path / ("alone" if part == "thinking" else "both")
        verdicts = [Verdict(trace=t.id, judge=judge, query="question", part=part, label="full_refusal") for t in traces]  # type: ignore[arg-type]
        settings = {"arm": "target", "bench": "mini_harm", "judge": judge}
        publish(where, f"judge-{judge}", "judge", {"traces": traces, "verdicts": verdicts}, settings=settings)
    both, alone = (" ".join(text_of(tmp_path / name, 400).split()) for name in ("both", "alone"))
    assert "judge: mini (answer)" in both
    assert (
        "rules (answer) read mini_harm and has no column: its labels do not distinguish what the columns count" in both
    )
    assert "mini (answer) read" not in both
    assert "rules (thinking) read mini_harm and has no column" in alone
    assert "judges: none" not in alone


def judged(
    folder: Path, bench: str, labels: Sequence[str | None], judge: str, *, cut: int = 0, intent: Intent = "harmful",
    arm: str = "target",
) -> Path:  # fmt: skip
    """A run of one arm with these verdicts; the first so many replies are truncated."""
    prompts = prompts_of("h", intent, len(labels))
    traces = [trace_of(p, outcome="cut_in_answer" if i < cut else "complete") for i, p in enumerate(prompts)]
    verdicts = [
        Verdict(trace=t.id, judge=judge, query="question", part="answer", label=label)
        for t, label in zip(traces, labels, strict=True)
    ]
    settings = {"arm": arm, "seed": None, "bench": {"name": bench}}
    publish(folder, f"evaluate-{arm}-{bench}", "evaluate", {"traces": traces, "verdicts": verdicts}, settings=settings)
    return folder


def test_what_was_truncated_unscored_or_empty_is_said_of_each_model(tmp_path: Path) -> None:
    half: list[str | None] = ["full_refusal"] * 10 + [None] * 10
    one = text_of(judged(tmp_path / "one", "advbench", half, "rules", cut=4), 600)
    assert "truncated 20.0 %, unscored 50.0 %; judge" in one
    two = judged(tmp_path / "two", "advbench", half, "rules", cut=4, arm="a")
    judged(two, "advbench", ["full_refusal"] * 20, "rules", arm="b")
    judged(two, "harmbench", [None] * 20, "rules", cut=5, arm="a")
    judged(two, "harmbench", ["full_refusal", *[None] * 19], "rules", arm="b")
    text = text_of(two, 600)
    assert "truncated 11.2 % (a 22.5 %, others 0), unscored 61.2 % (a 75.0 %, b 47.5 %); judge" in text
    note = "not shown, harmbench: served (no harm judge): rules scored of a none of 20 replies, 5 of them truncated; "
    assert f"{note}of b 1 of 20 replies, 0 of them truncated: too few for a number" in text


@pytest.mark.parametrize(
    ("judge", "labels", "heading", "other"),
    [
        ("rules", ["full_compliance", "full_refusal"], ("served (no harm judge)", "served"), ("attack success", "attack_success")),
        ("llama_guard3", ["unsafe", "safe"], ("attack success", "attack_success"), ("served (no harm judge)", "served")),
    ],
)  # fmt: skip
def test_only_a_harm_judge_gives_attack_success(
    judge: str, labels: list[str], heading: tuple[str, str], other: tuple[str, str], tmp_path: Path
) -> None:
    """In the table, the figure, the summary, the page and the CSV: the heading names what was measured."""
    for arm, bench, intent, by, pair in (
        ("a", "advbench", "harmful", judge, labels),
        ("b", "advbench", "harmful", judge, labels),
        ("a", "xstest", "borderline", "xstest_llm", ["full_compliance", "full_refusal"]),
        ("b", "xstest", "borderline", "xstest_llm", ["full_compliance", "full_refusal"]),
    ):
        traces = [trace_of(prompt) for prompt in prompts_of("h", intent, 12)]  # type: ignore[arg-type]
        verdicts = [
            Verdict(trace=t.id, judge=by, query="question", part="answer", label=label)
            for t, label in zip(traces, pair * 6, strict=True)
        ]
        settings = {"arm": arm, "seed": None, "bench": {"name": bench}}
        records: dict[str, list[Any]] = {"traces": traces, "verdicts": verdicts}
        publish(tmp_path, f"evaluate-{arm}-{bench}", "evaluate", records, settings=settings)
    shown = {name: path.read_text() for name, path in report.write(tmp_path).items()}
    shown |= {"table": " ".join(text_of(tmp_path, 300).split())}
    (figure, *_) = figures.pareto(report.build(tmp_path))
    shown |= {"figure": figure.svg}
    for name, text in shown.items():
        assert heading[0] in text or heading[1] in text, name
        assert other[0] not in text, name
    metrics = {row["metric"] for row in csv.DictReader(io.StringIO(report.csv(report.build(tmp_path))))}
    assert heading[1] in metrics
    assert other[1] not in metrics


def test_a_page_without_a_question_is_named_after_what_was_measured(run: Path, tmp_path: Path) -> None:
    for folder, title in ((run, "fixture"), (judged(tmp_path, "advbench", ["safe"] * 12, "guard"), "run: target")):
        page = report.write(folder, tmp_path / title.partition(":")[0])["html"].read_text()
        assert f"<title>{title} · demur</title>" in page
    assert "<h1>run: target</h1>" in page


def test_a_model_judge_that_nobody_calibrated_is_marked(tmp_path: Path) -> None:
    assert "llama_guard3: uncalibrated" in text_of(
        judged(tmp_path / "a", "advbench", ["safe"] * 9, "llama_guard3"), 200
    )
    assert "uncalibrated" not in text_of(judged(tmp_path / "b", "mini_harm", ["full_refusal"] * 9, "mini"), 200)


def test_a_column_without_a_number_is_named_and_not_shown(tmp_path: Path) -> None:
    judged(tmp_path, "xstest", ["full_compliance"] * 10, "xstest_llm", intent="borderline")
    text = text_of(judged(tmp_path, "advbench", [None] * 24, "rules", cut=24), 300)
    head = text.partition("95 % intervals")[0]
    assert "over-refusal" in head
    assert "served" not in head
    assert "not shown, advbench: served (no harm judge): rules scored none of 24 replies, 24 of them truncated" in text


def test_a_truncated_cell_is_no_plain_zero(tmp_path: Path) -> None:
    text = text_of(judged(tmp_path, "advbench", ["full_refusal"] * 10, "xstest_llm", cut=4), 300)
    assert "0 [0–28] ?" in text
    assert re.search(
        r"\? many replies are truncated or unscored; whatever they held, the rate is: .* between 0 and 40 \(", text
    )
    assert "all truncated" in text_of(
        judged(tmp_path / "b", "advbench", ["full_refusal"] * 10, "xstest_llm", cut=10), 300
    )


def test_full_refusals_stand_beside_full_and_partial_ones(tmp_path: Path) -> None:
    labels = ["full_refusal"] * 2 + ["partial_refusal"] * 3 + ["full_compliance"] * 5
    built = report.build(judged(tmp_path / "a", "xstest", labels, "xstest_llm", intent="borderline"))
    both, full = [column for column in columns(built) if "over_refusal" in column.metric]
    assert [built.find("target", c).value for c in (both, full)] == [0.5, 0.2]  # type: ignore[union-attr]
    plain = report.build(judged(tmp_path / "b", "xstest", ["full_refusal"] * 9, "xstest_llm", intent="borderline"))
    assert next(c.metric for c in columns(plain)) == "over_refusal", "without partial refusals one column is enough"
    assert "full_over_refusal" not in [c.metric for c in columns(plain)]


def test_thinking_tokens_are_over_all_whatever_the_order_of_benchmarks(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(run, out)
    before = report.build(run)
    study = yaml.safe_load((out / "study.yaml").read_text())
    names = ("mini_harm", {"name": "mini_harm", "attack": "mini-seen"}, "mini_benign", "mini_arithmetic")
    (out / "study.yaml").write_text(yaml.safe_dump(study | {"bench": list(names)}))
    after = report.build(out)
    assert (before.results[0].bench, after.results[0].bench) == ("mini_arithmetic", "mini_harm")
    (column,) = [c for c in columns(before) if c.metric == "thinking_tokens"]
    for arm in before.arms:
        one, two = before.find(arm, column), after.find(arm, column)
        assert one is not None
        assert two is not None
        assert one.value == pytest.approx(two.value)
        assert one.n == two.n


def test_a_benchmark_of_two_sides_says_how_many_each_has(tmp_path: Path) -> None:
    harmful, harmless = prompts_of("h", "harmful", 9), prompts_of("k", "benign", 11)
    prompts = [replace(p, pair=str(i), id="") for side in (harmful, harmless) for i, p in enumerate(side)]
    traces = [trace_of(prompt) for prompt in prompts]
    labels = [
        "full_refusal" if t.prompt.intent == "harmful" or t.prompt.pair == "0" else "full_compliance" for t in traces
    ]
    verdicts = [
        Verdict(
            trace=t.id, judge="rules", query="question", part="answer", label=None if t.prompt.pair == "8" else label
        )
        for t, label in zip(traces, labels, strict=True)
    ]
    settings = {"arm": "target", "seed": None, "bench": {"name": "xstest"}}
    publish(tmp_path, "evaluate-t", "evaluate", {"traces": traces, "verdicts": verdicts}, settings=settings)
    built = report.build(tmp_path)
    found = {c.metric: built.find("target", c) for c in built.columns}
    assert {name: e.n for name, e in found.items() if e} == {"served": 8, "over_refusal": 10, "pairs": 8}
    assert found["pairs"].value == pytest.approx(7 / 8)  # type: ignore[union-attr]
    assert "n=9" in text_of(tmp_path)
    assert "n=11" in text_of(tmp_path)
    assert "n counts replies (pairs for pairs told apart); truncated 0, unscored 10.0 %" in text_of(tmp_path), "2 of 20"


def test_replies_without_an_answer_stand_apart_from_refusals(tmp_path: Path) -> None:
    prompts = prompts_of("h", "harmful", 10)
    traces = [
        trace_of(
            p, answer=None if i < 2 else "" if i < 3 else "No.", outcome="cut_in_thinking" if i == 0 else "complete"
        )
        for i, p in enumerate(prompts)
    ]
    settings = {"arm": "target", "seed": None, "bench": {"name": "advbench"}}
    publish(tmp_path, "evaluate-t", "evaluate", {"traces": traces, "verdicts": []}, settings=settings)
    built = report.build(tmp_path)
    found = {r.metric: r.estimate.value for r in built.results if r.bench == "advbench"}
    assert found["no_reply"] == pytest.approx(0.3)
    assert found["no_reply/truncated in thinking"] == found["no_reply/empty"] == pytest.approx(0.1)
    assert "1 empty, 1 ended in thinking, 1 truncated in thinking" in text_of(tmp_path)


def test_combined_reports_keep_all_traces(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "a", prompts=6, seeds=(0,)), make_run(tmp_path / "b", prompts=6, seeds=(0,))
    page = report.write([one, two], tmp_path / "both")["html"].read_text()
    for name in ("a:raw", "b:raw", "a:short", "b:short"):
        assert f"replies of {name}" in page


def test_stages_of_the_same_name_in_two_runs_are_all_in_a_combined_report(tmp_path: Path) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]
    for number, run in enumerate(runs):
        traces = [trace_of(prompt, answer=f"answer of {run.name}") for prompt in prompts_of("harm", "harmful", 4)]
        settings = {"arm": "target", "seed": number, "bench": {"name": "advbench"}}
        verdicts = [Verdict(trace=traces[0].id, judge="rules", query="question", part="answer", label="full_refusal")]
        publish(run, "evaluate-t", "evaluate", {"traces": traces, "verdicts": verdicts}, settings=settings)
        losses = [
            {"step": s, "loss": 2 / (1 + s), "part": "whole", "loss_per_sequence": 20.0, "rows": 9} for s in (0, 1)
        ]
        publish(run, "train-t", "train", {"learnability": losses}, settings={"arm": "target", "seed": number})
        funnel = {"asked": 4 + number, "kept": 4}
        publish(run, "distil-d", "distil", {"traces": traces}, summary={"funnel": funnel}, settings={"n": number})
    built = report.build(runs)
    assert set(built.stages) == {f"{run}:{name}" for run in "ab" for name in ("evaluate-t", "train-t", "distil-d")}
    assert built.funnels == {"a:d": {"asked": 4, "kept": 4}, "b:d": {"asked": 5, "kept": 4}}
    assert {(row.arm, row.seed) for row in built.learnt} == {("a:target", 0), ("b:target", 1)}
    page = report.write(runs, tmp_path / "both")["html"].read_text()
    for name in "ab":
        assert f"replies of {name}:target" in page
        assert f"answer of {name}" in page


def test_two_judges_that_disagree_on_the_sign_are_reported() -> None:
    cells = {"x": {}, "y": {}}  # type: dict[str, dict[Column, Cell]]
    for judge, better in (("one", "x"), ("two", "y")):
        column = Column("b", "none", "attack_success", judge, "answer", "lower")
        for arm in cells:
            cell = cells[arm].setdefault(column, Cell())
            for i in range(40):
                cell.add(Row(str(i), str(i), str(i), "harmful"), (arm != better) and i < 30, ("", 0))
    first = next(iter(cells["x"]))
    (test,) = declared(cells, [first], [{"a": "x", "b": "y"}])
    assert "two finds the contrary" in test.split
    both = [next(c for c in cells["x"] if c.judge == judge) for judge in ("one", "two")]
    rows = comparison(declared(cells, both, [{"a": "x", "b": "y"}])).rows
    assert [row[0] for row in rows] == ["b: attack success by one, n=40", "b: attack success by two, n=40"]
    assert "judges disagree" in format.verdict(test)


def test_a_stage_whose_file_was_cut_is_refused_and_not_counted(run: Path, tmp_path: Path) -> None:
    """Cut at the end of a line it is whole JSON Lines still, of fewer verdicts."""
    out = tmp_path / "copy"
    shutil.copytree(run, out)
    path = sorted(out.glob("stages/evaluate-*/verdicts.jsonl"))[0]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) // 2]))
    with pytest.raises(WorkError, match=r"verdicts\.jsonl is damaged"):
        report.build(out)


@pytest.mark.parametrize(("scored", "mean"), [(1, ""), (30, "?"), (60, "50 [")])
def test_a_mean_is_of_numbers_that_are_shown_and_as_doubtful_as_they_are(
    tmp_path: Path, scored: int, mean: str
) -> None:
    plain, seen = prompts_of("harm", "harmful", 60), prompts_of("harm", "harmful", 60, "mini-seen")
    evaluation(tmp_path, "raw", None, "mini_harm", "", plain, lambda _, prompt: "full_compliance")
    some = {prompt.id for prompt in seen[:scored]}
    evaluation(
        tmp_path, "raw", None, "mini_harm", "mini-seen", seen, lambda _, p: "full_refusal" if p.id in some else None
    )
    built = report.build(tmp_path)
    section = next(one for one in sections(built) if one.id == "results")
    heads, row = section.tables[0].heads, section.tables[0].rows[0]
    means = [plain_text(cell) for head, cell in zip(heads, row, strict=True) if head.title == "mean"]
    assert bool(means) == bool(mean)
    assert not means or mean in means[0]
    assert not means or ("?" in means[0]) == (mean == "?")
    assert any(r.bench == "all" and r.metric == "attack_success" for r in built.results) == bool(mean)
