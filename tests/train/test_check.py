"""`demur check template` and `demur train`, as a user meets them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.made import demur, exit_code

from demur.models.checkpoint import identity_of
from demur.records import Example, write_jsonl
from demur.train.check import check_template, render_report
from demur.train.settings import TrainSettings


def text_of(report: Any) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_report(report))
    return console.export_text()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_shipped_and_stand_in_bases_hold(mini_base: Path, stand_in: Path) -> None:
    for base, name in ((mini_base, "mini"), (stand_in, "r1-distill")):
        report = check_template(base)
        assert report.ok
        assert report.template == name
        assert report.opened
        assert len(report.shown) == 3
        assert any(token.trained for token in report.shown[0])
        assert "nothing truncated; 0 left out" in text_of(report)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_refusal_is_shown(stand_in: Path, byte_examples: list[Example]) -> None:
    report = check_template(stand_in, byte_examples, settings=TrainSettings(template="tokenizer"))
    assert not report.ok
    assert "deletes the reasoning" in text_of(report)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_long_rows_are_listed_and_no_failure(stand_in: Path, make: Callable[..., Example]) -> None:
    report = check_template(stand_in, [make("q", "t", "a"), make("q", "t" * 9000, "a")])
    assert report.ok
    assert "too_long" in text_of(report)
    assert not check_template(stand_in, [make("q", "t", "a"), make("q", "t", "a<｜User｜>")]).ok


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_words_of_rows_are_masked_until_asked_for(
    stand_in: Path, make: Callable[..., Example], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [make("how to forge keys", "They ask of forging>brass.", "Melt brass.")])
    command = ("check", "template", "--base", str(stand_in), "--examples", str(tmp_path / "rows.jsonl"))
    for more, shown in (((), False), (("--words",), True)):
        assert exit_code(*command, *more) == 0
        text = capfd.readouterr().out
        assert ("forging" in text) == shown, "not even in front of what could end a tag"
        assert ("fo·····" in text) != shown
        assert "</think>" in text, "tags are what one looks for"


def test_real_traces_are_trained_whole(stand_in: Path, data_dir: Path) -> None:
    """300 real R1 traces: every row holds, and thinking and answer come back from the labels to the character."""
    from demur import mix, thinking
    from demur.prompts.forms import load_file
    from demur.train.chat import load_tokenizer
    from demur.train.render import IGNORED, Renderer

    rows, unfit = mix.examples_of(list(load_file(data_dir / "star1_first300.json").traces), share="safety")
    tokenizer = load_tokenizer(stand_in)
    rendered = Renderer(tokenizer).rows(rows, max_length=1 << 20)
    assert len(rendered.rows) + len(unfit) + len(rendered.dropped) == 300
    assert len(rendered.rows) >= 290
    by_id = {example.id: example for example in rows}
    for row in rendered.rows[::25]:
        text = tokenizer.decode([t for t in row.labels if t != IGNORED]).removesuffix(tokenizer.eos_token)
        parts = thinking.split(text, opened=True)
        texts = {part.role: part.text for part in by_id[row.example].parts}
        assert (parts.thinking, parts.answer) == (texts["thinking"].strip(), texts["answer"].strip())


@pytest.mark.slow
def test_the_verb_trains_reuses_and_refuses(mini_base: Path, mini_examples: list[Example], tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    write_jsonl(data, mini_examples)

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        words = ["train", "--base", "mini-lrm-a", "--examples", str(data), "--out", str(tmp_path / "t")]
        return demur(*words, "--set", "train.steps=3", "--held-out", "8", *more)

    done = run("--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (Path(summary["stage"]) / "model" / "config.json").is_file()
    assert summary["rows"] == len(mini_examples) - 8
    assert summary["base"] == identity_of(mini_base), "the weights that it started from are in its records"
    assert "reused" in run("--json").stderr
    wrong = run("--set", "train.lerning_rate=1")
    assert wrong.returncode == 2
    assert "unknown key 'lerning_rate'" in wrong.stderr
    assert "train." in run("--set", "lr=1").stderr
    refused = run("--set", "train.template=tokenizer")
    assert refused.returncode == 1
    assert "refusing to train" in refused.stderr
