from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.made import publish

from demur.errors import UserError
from demur.mix.contamination import certify
from demur.prompts.forms import load_file
from demur.prompts.publish import export_hf, flat, harmful
from demur.records import Example, ExamplePart, Origin, Prompt, encode

pytest.importorskip("huggingface_hub")


def example(i: int, *, share: str = "safety", intent: Any = "harmful", thought: str | None = "hm") -> Example:
    parts = [ExamplePart(role="user", text=f"ask | {i}", train=False)]
    if thought is not None:
        parts += [
            ExamplePart(role="thinking", text=thought, train=False),
            ExamplePart(role="thinking", text="!", train=True),
        ]
    parts.append(ExamplePart(role="answer", text="no", train=True))
    origin = Origin(prompt=f"p{i}", intent=intent, model="file:star1_first300.json", strategy="short", repairs=("cut",))
    return Example(parts=tuple(parts), origin=origin, share=share, cluster="c")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows = [example(i) for i in range(4)] + [example(9, share="maths", intent="maths")]
    shares = {"safety": {"file": "/home/me/a.jsonl", "n": 4}, "maths": {"licence": "CC0-1.0"}}
    records = {"examples": rows, "held_out": [example(7)]}
    publish(tmp_path / "m", "mix", "mix", records, settings={"mix": {"shares": shares}}, mark="0")
    certificate, _ = certify(
        rows, {"xstest": [Prompt(text="ask 3", intent="harmful"), Prompt(text="x", intent="benign")]}
    )
    (tmp_path / "m" / "contamination.json").write_bytes(encode({"certificates": {"mix": certificate}}))
    return tmp_path / "m"


def head_of(readme: str) -> dict[str, Any]:
    return dict(yaml.safe_load(readme.split("---")[1]))


def test_a_data_set_reads_back_in_demur_and_describes_itself(run: Path) -> None:
    folder = export_hf(run, licences={"star1_first300.json": "Apache-2.0"})
    assert folder == run / "export-hf"
    readme = (folder / "README.md").read_text()
    head = head_of(readme)
    assert head["extra_gated_prompt"]
    assert head["license"] == "other"
    assert [item["split"] for item in head["configs"][0]["data_files"]] == ["train", "held_out"]
    for line in (
        "| star1_first300.json | Apache-2.0 | 5 |",
        "| star1_first300.json | CC0-1.0 | 1 |",
        "| default | train | 5 |",
        "| short | 6 |",
        "| xstest | 2 | 1 | 1 |",
        "Harmful content",
    ):
        assert line in readme
    assert "/home/me" not in readme
    loaded = load_file(folder / "data" / "default" / "train.jsonl")
    assert loaded.form == "published"
    assert loaded.examples == load_file(run).examples
    assert export_hf(run) == folder, "again into the same place"


def test_datasets_reads_it(run: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = export_hf(run)
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in found.items()} == {"train": 5, "held_out": 1}
    row = flat(load_file(run).examples[0])
    assert {key: found["train"][0][key] for key in row} == row
    assert found["train"][0]["licence"] == "not stated"


def test_a_certificate_for_other_rows_is_not_published(run: Path) -> None:
    certificate, _ = certify([example(1)], {"xstest": [Prompt(text="x", intent="benign")]})
    (run / "contamination.json").write_bytes(encode({"certificates": {"mix": certificate}}))
    folder = export_hf(run)
    assert not (folder / "contamination.json").exists()
    assert "were not compared" in (folder / "README.md").read_text()


def test_flat_rows_keep_the_difference_between_no_thinking_and_empty_thinking() -> None:
    empty, none = flat(example(1, thought="")), flat(example(1, thought=None))
    assert [part["role"] for part in empty["parts"]] == ["user", "thinking", "thinking", "answer"]
    assert [part["role"] for part in none["parts"]] == ["user", "answer"]
    assert "think" in empty["messages"][1]["content"]
    assert none["messages"][1]["content"] == "no"
    assert set(empty) == set(none), "every column in every row"


def test_rows_that_do_not_say_what_they_are_count_as_harmful_in_a_safety_share() -> None:
    assert harmful([flat(example(1, intent=None))])
    assert not harmful([flat(example(1, share="maths", intent=None)), flat(example(2, intent="benign"))])


def test_nothing_to_export_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no stage holds examples"):
        export_hf(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    (tmp_path / "a.jsonl").write_bytes(encode(example(1)))
    with pytest.raises(UserError, match="holds something else"):
        export_hf(tmp_path / "a.jsonl", tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").exists()
