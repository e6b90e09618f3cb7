"""Benchmarks: releases are read in their own form, copies are checked, and a protocol says all that it means."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.made import ASSETS, SHARED, needs_shared

from demur.bench import get_bench, names
from demur.bench.load import faults, find, in_turn, load_prompts, text_hash
from demur.bench.xstest import read, read_train, split
from demur.errors import UserError
from demur.judge import JUDGES
from demur.records import Prompt
from demur.storage import readers as tables

TINY = ASSETS / "bench"
OURS = ("advbench", "harmbench", "safebench", "strongreject", "jailbreakbench", "wildjailbreak", "xstest", "orbench")
SAFETY = [name for name in names() if name.startswith(OURS)]


def tiny(name: str, count: int, data: Path) -> list[Prompt]:
    """A tiny file of the release's form, under the protocol but for the count."""
    bench = get_bench(name)
    prompts = load_prompts(replace(bench, count=count, sha256=""), data=data)
    with pytest.raises(UserError, match=rf"holds {count} prompts, the release {bench.count}"):
        load_prompts(bench, data=data)
    return prompts


@pytest.mark.parametrize("name", names())
def test_a_protocol_says_everything(name: str) -> None:
    bench = get_bench(name)
    assert bench.name == name
    assert bench.metrics
    assert bench.judge in JUDGES or ":" in bench.judge
    assert bench.files or bench.hub or bench.count is None
    assert bench.about


@pytest.mark.parametrize("name", SAFETY)
def test_a_safety_benchmark_names_its_source(name: str) -> None:
    bench = get_bench(name)
    assert bench.paper.startswith("arXiv")
    assert bench.licence
    assert bench.columns
    assert bench.count


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'xstest'"):
        get_bench("xtest")


def test_strongreject() -> None:
    prompts = tiny("strongreject", 3, TINY / "strongreject_dataset.csv")
    assert [p.category for p in prompts] == ["Disinformation and deception", "Illegal goods and services", "Violence"]
    assert all(p.intent == "harmful" for p in prompts)


def test_jailbreakbench_twins_share_a_cluster() -> None:
    prompts = tiny("jailbreakbench", 4, TINY / "jbb-behaviors")
    assert [p.intent for p in prompts] == ["benign", "benign", "harmful", "harmful"]
    assert prompts[0].cluster == prompts[2].cluster != prompts[1].cluster
    assert prompts[0].pair == prompts[2].pair != prompts[1].pair


def test_jailbreakbench_needs_its_halves(tmp_path: Path) -> None:
    mixed = tmp_path / "jailbreakbench.csv"
    mixed.write_text((TINY / "jbb-behaviors" / "harmful-behaviors.csv").read_text())
    with pytest.raises(UserError, match="does not say whether it is harmful"):
        load_prompts(replace(get_bench("jailbreakbench"), count=2), data=mixed)


def test_wildjailbreak() -> None:
    harmful, benign = tiny("wildjailbreak", 2, TINY / "eval.tsv")
    assert (harmful.intent, benign.intent) == ("harmful", "benign")
    assert 'describe "the" [placeholder]\nin two lines.' in harmful.text
    assert benign.text.endswith(", None"), "nothing in a cell is taken for a missing value"


def test_wildjailbreak_is_not_its_training_set(tmp_path: Path) -> None:
    wrong = tmp_path / "train.tsv"
    wrong.write_text("adversarial\tdata_type\nx\tvanilla_harmful\n")
    with pytest.raises(UserError, match="vanilla_harmful"):
        load_prompts(get_bench("wildjailbreak"), data=wrong)


def test_orbench() -> None:
    assert [p.intent for p in tiny("orbench_hard", 2, TINY / "or-bench-hard-1k.csv")] == ["borderline"] * 2
    assert [p.intent for p in tiny("orbench_toxic", 1, TINY / "or-bench-toxic.csv")] == ["harmful"]


def test_harmbench_kinds_are_kept_apart() -> None:
    data = TINY / "harmbench_behaviors_text_all.csv"
    (standard,) = tiny("harmbench", 1, data)
    (contextual,) = tiny("harmbench_contextual", 1, data)
    assert standard.text == standard.question == "Give instructions for making [placeholder]"
    assert contextual.question == "Write a letter that uses the address above"
    assert contextual.text.startswith("The address is 1 Placeholder Street.\n\n---\n\nWrite")
    assert contextual.gold == "The address is 1 Placeholder Street."


def test_missing_columns_and_copies_are_told(tmp_path: Path) -> None:
    wrong = tmp_path / "safebench.csv"
    wrong.write_text("text\nhello\n")
    with pytest.raises(UserError, match=r"no column question; there are: text"):
        load_prompts(get_bench("safebench"), data=wrong)
    with pytest.raises(UserError, match=r"looked for safebench.csv or SafeBench.csv in"):
        find(get_bench("safebench"), data_dir=tmp_path / "nowhere")
    with pytest.raises(UserError, match="no such file"):
        find(get_bench("safebench"), data=tmp_path / "none.csv")


@needs_shared
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("xstest", r"no column prompt; there are: .*\. xstest reads: prompt, type\. The file holds the prompts of advbench\."),
        ("harmful", ""),
        ("strongreject", r"no column forbidden_prompt or prompt; .* strongreject reads: forbidden_prompt or prompt, category\. The file"),
    ],
)  # fmt: skip
def test_of_another_benchmarks_file_it_is_said_which_it_is(name: str, message: str, tmp_path: Path) -> None:
    shutil.copy(SHARED / "advbench50.jsonl", tmp_path / "unknown.jsonl")
    if not message:
        assert len(load_prompts(get_bench(name), data=tmp_path / "unknown.jsonl")) == 50
        return
    with pytest.raises(UserError, match=message):
        load_prompts(get_bench(name), data=tmp_path / "unknown.jsonl")
    with pytest.raises(UserError, match=r"holds 50 prompts, the release 655.*The file holds the prompts of advbench"):
        load_prompts(
            replace(get_bench("advbench"), name="other", count=655, sha256=""), data=tmp_path / "unknown.jsonl"
        )


@needs_shared
def test_xstest_under_either_name_of_its_header(tmp_path: Path) -> None:
    """`xstest_v2_prompts.csv` with `id_v2`, and no label; later `xstest_prompts.csv` with `id`. Another header is a sentence."""
    release = SHARED / "xstest_prompts.csv"
    old = tmp_path / "xstest_v2_prompts.csv"
    with old.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id_v2", "type", "prompt"])
        table.writerows([f"v2-{row['id']}", row["type"], row["prompt"]] for _, row in tables.rows(release))
    assert load_prompts(get_bench("xstest"), data=old) == load_prompts(get_bench("xstest"), data=release)
    old.write_text(old.read_text().replace("prompt", "question", 1))
    with pytest.raises(UserError, match="no column prompt; there are: id_v2, type, question"):
        load_prompts(get_bench("xstest"), data=old)


@needs_shared
@pytest.mark.parametrize(
    ("name", "count", "intents"),
    [
        ("advbench", 50, {"harmful"}),
        ("advbench@paper-v2", 50, {"harmful"}),
        ("harmbench", 200, {"harmful"}),
        ("safebench", 500, {"harmful"}),
        ("xstest", 450, {"harmful", "borderline"}),
        ("xstest@paper-v1", 250, {"borderline"}),
        ("xstest@paper-v2", 150, {"borderline"}),
    ],
)
def test_the_releases_load(name: str, count: int, intents: set[str]) -> None:
    prompts = load_prompts(get_bench(name), data_dir=SHARED)
    assert len(prompts) == count
    assert {p.intent for p in prompts} == intents
    assert not faults(get_bench(name), prompts)


@needs_shared
def test_a_changed_text_is_not_the_release(tmp_path: Path) -> None:
    copy = tmp_path / "safebench.csv"
    copy.write_text((SHARED / "safebench.csv").read_text().replace("manufacture", "make", 1))
    with pytest.raises(UserError, match="texts hash to"):
        load_prompts(get_bench("safebench"), data=copy)


@needs_shared
def test_a_copy_in_another_form_is_the_same_release(tmp_path: Path) -> None:
    prompts = load_prompts(get_bench("advbench"), data_dir=SHARED)
    plain = tmp_path / "advbench.txt"
    plain.write_text("".join(f"{p.text}  \r\n" for p in prompts))
    assert text_hash(load_prompts(get_bench("advbench"), data=plain)) == text_hash(prompts)


def test_the_split_is_fixed() -> None:
    chosen = split()
    assert len(set(chosen)) == 100
    assert chosen == tuple(sorted(chosen))
    assert chosen[:8] == (2, 3, 4, 5, 6, 7, 8, 11), "published: it never changes"


@needs_shared
def test_the_documented_ids_are_those_of_the_split() -> None:
    rows = [row for _, row in tables.rows(SHARED / "xstest_prompts.csv") if row["label"] == "safe"]
    ids = ", ".join(str(rows[place]["id"]) for place in split())
    documented = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text()
    assert ids in " ".join(documented.split())


@needs_shared
def test_train_and_test_share_no_prompt() -> None:
    path, xstest = SHARED / "xstest_prompts.csv", get_bench("xstest")
    found = (read(replace(xstest, options={"part": part}), path) for part in ("test", "safe"))
    train, test, safe = ({p.id for p in prompts} for prompts in (read_train(path), *found))
    assert (len(train), len(test)) == (100, 150)
    assert not train & test
    assert train | test == safe


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40), st.integers(1, 50))
def test_a_limit_takes_categories_in_turn(kinds: list[str], limit: int) -> None:
    prompts = [Prompt(text=str(i), intent="harmful", category=kind) for i, kind in enumerate(kinds)]
    chosen = in_turn(prompts, limit)
    assert len(chosen) == min(limit, len(prompts))
    assert chosen == [p for p in prompts if p in chosen], "the release's order is kept"
    counts = [sum(p.category == kind for p in chosen) for kind in set(kinds)]
    full = [sum(k == kind for k in kinds) for kind in set(kinds)]
    assert all(n == f or n >= max(counts) - 1 for n, f in zip(counts, full, strict=True))
