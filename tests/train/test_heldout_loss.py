"""The held-out loss of a data set, measured as it is defined."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.train.made import train

from demur.records import Example
from demur.train import heldout_loss
from demur.train.chat import load_tokenizer
from demur.train.render import IGNORED, Renderer
from demur.train.settings import TrainSettings


def test_losses_are_those_of_the_model_by_part(mini_base: Path, mini_examples: list[Example], tmp_path: Path) -> None:
    """Against the plain definition: log-softmax of the model's own logits, token by token."""
    from transformers import AutoModelForCausalLM

    from demur.train import model as models
    from demur.train.batches import Plan
    from demur.train.prepare import Prepared
    from demur.train.render import Rendered
    from demur.train.trainer import Trainer

    rows = Renderer(load_tokenizer(mini_base)).rows(mini_examples[:9], max_length=500).rows
    model = AutoModelForCausalLM.from_pretrained(mini_base, dtype=torch.float32).train()
    plain = []
    for row in rows:
        with torch.no_grad():
            scores = model.eval()(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        nats = [
            (-scores[at - 1, label].item(), at < row.answer) for at, label in enumerate(row.labels) if label != IGNORED
        ]
        plain.append((sum(x for x, inside in nats if inside), sum(x for x, inside in nats if not inside), len(nats)))
    settings = TrainSettings()
    config = models.config_of(mini_base)
    place = models.place_of(settings, config)
    prepared = Prepared(Rendered(rows, []), Rendered(rows, []), [[0]], Plan([[[0]]]), "", "", [])
    model = models.load(mini_base, settings, place)
    trainer = Trainer(model, prepared, settings=settings, place=place, out=tmp_path)
    measured = heldout_loss.measure(trainer, rows)
    for (thought, answer, count), item in zip(plain, measured, strict=True):
        assert item.nats["thinking"] == pytest.approx(thought, rel=1e-4, abs=1e-5)
        assert item.nats["answer"] == pytest.approx(answer, rel=1e-4, abs=1e-5)
        assert item.tokens["whole"] == count == item.tokens["thinking"] + item.tokens["answer"]
    (whole,) = [line for line in heldout_loss.lines(measured, step=0, tokens=0) if line["part"] == "whole"]
    assert whole["loss"] == pytest.approx(sum(a + b for a, b, _ in plain) / sum(n for *_, n in plain), rel=1e-4)


def test_it_is_measured_before_and_during_training(
    mini_base: Path, mini_examples: list[Example], tmp_path: Path
) -> None:
    settings = TrainSettings(lr=1e-3, steps=5, batch=8)
    train(mini_examples[:40], base=mini_base, out=tmp_path, settings=settings, held_out=mini_examples[40:])
    curve = [json.loads(line) for line in (tmp_path / "learnability.jsonl").read_text().splitlines()]
    assert sorted({row["step"] for row in curve}) == [0, 1, 2, 4, 5]
    before = {row["part"]: row["loss"] for row in curve if row["step"] == 0}
    assert set(before) == {"thinking", "answer", "whole"}


def test_measuring_does_not_change_the_training(stand_in: Path, byte_examples: list[Example], tmp_path: Path) -> None:
    settings = TrainSettings(lr=1e-3, steps=4, batch=8)
    train(byte_examples, base=stand_in, out=tmp_path / "a", settings=settings)
    train(byte_examples, base=stand_in, out=tmp_path / "b", settings=settings, held_out=byte_examples[:4])
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()


def test_when_it_is_measured() -> None:
    assert heldout_loss.steps_to_measure(10) == {0, 1, 2, 4, 8, 10}
    assert heldout_loss.steps_to_measure(1) == {0, 1}
