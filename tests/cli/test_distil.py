"""What `demur distil` and `demur diagnose` print is what their records hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.made import exit_code


def test_its_tables_count_as_the_traces_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "prompts.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps({"prompt": f"How would one forge document {i}?"}) + "\n" for i in range(8)))
    words = ("--teacher", "script:stand_in", "--intent", "harmful", "--set", "keep=everything", "--out", str(out))
    assert exit_code("distil", str(data), "--set", "strategy=improved", *words) == 0
    shown, err = capsys.readouterr()
    assert re.search(r"  prompts: done  \d+\.\d s  8 prompts  \[1/2\]", err), "what there are 8 of"
    (folder,) = (out / "stages").glob("distil-*")
    tokens = sorted(json.loads(line)["tokens_out"] for line in (folder / "traces.jsonl").read_text().splitlines())
    (row,) = (line.split() for line in shown.splitlines() if line.startswith("all "))
    assert float(row[2]) == pytest.approx(sum(tokens) / 8, abs=0.5)
    assert float(row[3]) == tokens[-1], "the eighth of eight"
    assert "unjudged" not in shown, "nobody judged"
    kept = (folder / "kept.jsonl").read_text().splitlines()
    assert exit_code("diagnose", str(out), "--out", str(tmp_path / "run's"), "--json") == 0
    rates = json.loads(capsys.readouterr().out)["report"]["patterns"]
    assert {rate["after"]["n"] + rate["after"].get("unscored", 0) for rate in rates} == {len(kept)}, (
        "of a run as of its stage"
    )
    assert exit_code("diagnose", str(folder), "--out", str(tmp_path / "looked"), "--json") == 0
    (measures,) = json.loads(capsys.readouterr().out)["report"]["measures"].values()
    assert all(e["low"] >= 0 for e in measures.values() if e["low"] is not None), measures
    assert measures["key_sentence"]["high"] is None or measures["key_sentence"]["high"] <= 1


def test_a_constant_reply_has_no_lengths_to_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prompt": "How would one forge a document?"}\n{"prompt": "How would one forge a key?"}\n')
    words = (
        "--intent",
        "harmful",
        "--set",
        "strategy=nocot",
        "--set",
        "keep=everything",
        "--out",
        str(tmp_path / "run"),
    )
    assert exit_code("distil", str(data), *words) == 0
    assert "tokens of" not in capsys.readouterr().out
