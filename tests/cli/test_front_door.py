"""What every verb promises: help with examples, exit code 2 for wrong usage, no tracebacks for users' mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.made import exit_code

from demur.cli import VERBS, command_of
from demur.cli.common import FLAGS

VERB_NAMES = [verb for group in VERBS.values() for verb in group]
ROOT = Path(__file__).resolve().parents[2]


def commands(verb: str) -> list[Any]:
    """The command of a verb, or its sub-commands."""
    command = command_of(verb)
    return list(getattr(command, "commands", {}).values()) or [command]


@pytest.mark.parametrize("verb", VERB_NAMES)
def test_every_command_shows_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands(verb):
        assert "Examples:" in (command.help or ""), f"demur {verb} {command.name}"
        assert "demur " in command.help
    assert exit_code(verb, "--help") == 0
    assert f"demur {verb}" in capsys.readouterr().out


def test_every_flag_and_argument_has_its_help_and_no_help_is_left_over() -> None:
    shown = [(verb, one.name, one.help) for verb in VERB_NAMES for command in commands(verb) for one in command.params]
    assert not [row for row in shown if not row[2]]
    words = [text for text in FLAGS.values() if isinstance(text, str)]
    words += [text for table in (FLAGS["arguments"], *FLAGS["verbs"].values()) for text in table.values()]
    assert set(words) == {text for *_, text in shown}


def test_examples_stay_commands_to_copy(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("distil", "--help") == 0
    examples = [line for line in capsys.readouterr().out.splitlines() if line.startswith("    demur ")]
    assert len(examples) == 3
    assert all(line.endswith(("8001/v1", "nocot", "./guard")) for line in examples), "an example was wrapped"


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    shown = capsys.readouterr().out
    assert all(f" {verb} " in shown for verb in VERB_NAMES)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["rnu"], "Did you mean 'run'"),
        (["run"], "Missing argument"),
        (["run", "none.yaml"], "no such study file"),
        (["run", "--badflag"], "No such option"),
        (["attack", "none"], "--target"),
        (["eval", "xtest", "--target", "script:echo"], "Did you mean 'xstest'"),
        (["eval", "xstest", "--target", "nowhere"], "is not a model"),
        (["diagnose", "none.jsonl"], "none.jsonl"),
        (["status", "none"], "is not a folder"),
        (["mix"], "--share NAME=FILE"),
        (["check", "bench", "xstest", "--data", "none.csv"], "does not exist"),
    ],
)
def test_mistakes_are_reported_with_exit_code_2(
    args: list[str], expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code(*args) == 2
    shown = capsys.readouterr()
    assert expected in shown.err + shown.out
    assert "Traceback" not in shown.err


def test_a_wrong_key_of_a_study(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert exit_code("run", "studies/mini.yaml", "--set", "trian.lr=1") == 2
    assert "unknown key 'trian'. Did you mean 'train'" in capsys.readouterr().err


def test_an_unsound_study_fails_its_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: x\narms: {a: {format: improved}}\n")
    assert exit_code("check", "study", str(bad)) == 2
    assert "has a format and no safety rows" in capsys.readouterr().out


def test_init_writes_a_study_that_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "first.yaml"
    assert exit_code("init", str(path)) == 0
    assert exit_code("check", "study", str(path)) == 0
    assert f"name: {path.stem}\n" in path.read_text()
    assert "script:NAME" in path.read_text(), "a placeholder of the comments is no study's name"
    capsys.readouterr()
    assert exit_code("plan", str(path)) == 0
    assert "without declared prices, so without a cost: target, teacher" in capsys.readouterr().out
    for more, trained in ((), 2), (("--quick",), 1):
        assert exit_code("plan", str(path), "--json", *more) == 0
        (train,) = (row for row in json.loads(capsys.readouterr().out)["stages"] if row["kind"] == "train")
        assert train["of"] == trained
    assert exit_code("init", str(path)) == 2
    assert "exists already" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert capsys.readouterr().out.startswith("demur 0.")


def test_a_flag_states_the_intent_of_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ask.csv").write_text("prompt\nHow do I boil an egg?\nHow do I fry an egg?\n")
    words = ["distil", "--data", str(tmp_path / "ask.csv"), "--teacher", "script:stand_in", "--set", "keep=everything"]
    words += ["--out", str(tmp_path / "d")]
    assert exit_code(*words) == 2
    assert "--intent" in capsys.readouterr().err
    assert exit_code(*words, "--intent", "begin") == 2
    assert "benign" in capsys.readouterr().err
    assert exit_code(*words, "--intent", "benign") == 0
    assert "asked" in capsys.readouterr().out
    assert exit_code(*words[:3], "--intent", "harmful", "--set", "strategy=nocot", *words[-2:]) == 0


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("train:", "trian:"),
        ("mini_harm", "mini_hram"),
        ("mini_benign", "mini_bening"),
        ("source: mini-harm", "source: mini-hram"),
        ("  teacher:", "  techer:"),
        ("harmful:", "harmfull:"),
        ("safety: 150, benign: 150, maths: 80}", "safty: 150, benign: 150, maths: 80}"),
        ("script:demur", "script:dmur"),
    ],
)
def test_one_wrong_word_is_one_error(
    right: str, wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code("init", "first") == 0
    text = Path("first.yaml").read_text()
    Path("first.yaml").write_text(re.sub(rf"^([^#]*?){re.escape(right)}", rf"\g<1>{wrong}", text, flags=re.MULTILINE))
    code = exit_code("check", "study", "first.yaml")
    first, *others = [
        line for line in capsys.readouterr().out.splitlines() if not re.match("first.yaml is written|✓", line)
    ]
    assert code == (0 if "dmur" in wrong else 2)
    assert wrong.strip(" :").partition(":")[0] in first or "no model writes" in first or "rows of harmful" in first
    assert not any("short" not in line for line in others), "a line an arm where two arms are wrong"
    assert not first.startswith("✗ first.yaml: first.yaml")


def test_help_describes_each_verbs_own_flags(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for args, expected in [
        (("distil",), "such as strategy=improved"), (("repair",), "such as with=trim,drop"), (("mix",), "dedupe=exact"),
        (("serve",), "latency=0.05"), (("train",), "by its path in a study file"),
        (("calibrate", "guard"), "runs/calibrate/replies"), (("check", "contamination"), "else runs/contamination"),
        (("eval",), "OUT/replies"), (("judge",), "Default: rules"), (("view",), "in a browser"),
    ]:  # fmt: skip
        assert exit_code(*args, "--help") == 0
        assert expected in re.sub(r"\s+", " ", capsys.readouterr().out), args
    for verb in ("check", "bench", "calibrate"):
        assert exit_code(verb, "--help") == 0
        assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("distil none.jsonl", ("needs a judge", "none.jsonl: no such file", "--teacher")),
        ("distil ask.csv --data other.csv", ("named twice, ask.csv and --data other.csv",)),
        ("attack pair --target script:stand_in --data ask.csv", ("--attacker;", "--attack-judge;")),
        ("mix --share a=ask.csv:0", ("0 rows",)),
        ("mix --share a=ask.csv:80% --share b=ask.csv:40%", ("demur mix: the ratios add up to 1.2",)),
        (
            "attack tap --target script:stand_in --data ask.csv --set bench.0.attack.widht=5",
            ("attack 'tap'", "'width'"),
        ),
    ],
)
def test_an_error_names_the_flag_that_helps(
    args: str,
    expected: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ask.csv", "other.csv"):
        Path(name).write_text("prompt\nHow do I boil an egg?\nHow do I fry an egg?\n")
    assert exit_code(*args.split(), "--out", "m") == 2
    shown = capsys.readouterr().err
    assert all(words in shown for words in expected), shown
    assert "{'" not in shown


def test_what_is_wrong_with_a_study_is_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: x\narms: {a: {}}\nbehch: []\nseedz: [1]\n")
    assert exit_code("check", "study", str(bad), "--json") == 2
    (row,) = json.loads(capsys.readouterr().out)["studies"]
    assert [next(key for key in ("behch", "seedz") if key in line) for line in row["errors"]] == ["behch", "seedz"]
