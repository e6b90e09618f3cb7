"""Live curves, each with the real library on this machine alone: what a training logs is what can be read there again."""

from __future__ import annotations

import importlib
import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.train.made import train

from demur.records import Example
from demur.train.settings import TrainSettings

Logged = dict[int, dict[str, float]]


def from_tensorboard(folder: Path) -> Logged:
    accumulator: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")

    shown, found = accumulator.EventAccumulator(str(folder / "run" / "curves" / "train-a")).Reload(), Logged()
    for name in shown.Tags()["scalars"]:
        for event in shown.Scalars(name):
            found.setdefault(event.step, {})[name] = event.value
    return found


def from_trackio(folder: Path) -> Logged:
    found = Logged()
    with sqlite3.connect(folder / "demur.db") as book:
        for run, step, values in book.execute("select run_name, step, metrics from metrics"):
            assert run == "train-a"
            found.setdefault(step, {}).update(json.loads(values))
    return found


def from_wandb(folder: Path) -> Logged:
    """A run kept offline is a log of protobuf records, each behind its checksum, length and kind, in blocks of 32 kB."""
    records: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, whole, found = path.read_bytes(), 7, b"", Logged()
    while at + 7 < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = records.Record.FromString(whole)
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            if "_step" in row:
                found[row["_step"]] = {key: value for key, value in row.items() if key[0] != "_"}
            whole = b""
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "read"), [("tensorboard", from_tensorboard), ("trackio", from_trackio), ("wandb", from_wandb)]
)
@pytest.mark.filterwarnings("ignore::Warning")
def test_curves_are_shown_while_it_trains(
    name: str, read: Callable[[Path], Logged], stand_in: Path, byte_examples: list[Example], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip(name)
    for key, value in {"WANDB_MODE": "offline", "WANDB_DIR": tmp_path, "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(key, str(value))
    for module in [one for at, one in sys.modules.items() if at.startswith("trackio") and hasattr(one, "TRACKIO_DIR")]:
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path)  # TRACKIO_DIR of the environment is read once
    settings: dict[str, Any] = {"steps": 2, "batch": 2, "lr": 1e-3, "report_to": (name,)}
    out = tmp_path / "run" / "stages" / "train-a"
    train(byte_examples[2:], base=stand_in, out=out, settings=TrainSettings(**settings), held_out=byte_examples[:2])
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    shown = read(tmp_path)
    assert [shown[step]["loss"] for step in (1, 2)] == pytest.approx(losses)
    assert [step for step, row in shown.items() if "held out, whole/loss" in row] == [0, 1, 2]
