"""Preferences are learned as their papers define it, and as TRL does."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.made import demur
from tests.train.made import job_of
from tests.train.test_trainer import metrics, run_and_kill, weights

from demur.errors import UserError
from demur.records import Example, Pair
from demur.settings import validate
from demur.train import batches, trainer
from demur.train import model as models
from demur.train.chat import load_tokenizer
from demur.train.loss import preferences
from demur.train.prepare import prepare
from demur.train.render import Renderer, Row
from demur.train.settings import LoraSettings, TrainSettings

DPO = TrainSettings(method="dpo", lr=1e-3, steps=10, batch=4, checkpoint_every=4, schedule="constant", device="cpu")


@pytest.fixture(scope="module")
def pairs(byte_examples: list[Example]) -> list[Pair]:
    """Two replies to each question."""
    made = []
    for good, other in zip(byte_examples[:12], byte_examples[12:], strict=True):
        made.append(Pair(chosen=good, rejected=Example(parts=(good.parts[0], *other.parts[1:]), origin=good.origin)))
    return made


def train(pairs: list[Pair], base: Path, out: Path, settings: TrainSettings) -> dict[str, Any]:
    return trainer.train(
        Path(job_of(pairs, base=base, out=out, settings=settings).examples), base=base, out=out, settings=settings
    )


def trl_losses(rows: list[Any], order: list[int], base: Path, out: Path, kind: str) -> list[float]:
    """The losses of TRL's trainer on the same tokens in the same order."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(0)
    steps = len(order) // DPO.batch
    config = trl.DPOConfig(
        output_dir=str(out), per_device_train_batch_size=DPO.batch, max_steps=steps, learning_rate=DPO.lr,
        lr_scheduler_type="constant", beta=DPO.beta, loss_type=[kind], max_length=None, bf16=False, use_cpu=True,
        report_to="none", logging_steps=1, logging_first_step=True, disable_tqdm=True, gradient_checkpointing=False,
        save_strategy="no", train_sampling_strategy="sequential",
    )  # fmt: skip
    bare = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    base_model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    made = trl.DPOTrainer(base_model, args=config, train_dataset=bare, processing_class=load_tokenizer(base))
    halves = [(rows[2 * i], rows[2 * i + 1]) for i in order]
    made.train_dataset = Dataset.from_list(
        [
            {"prompt_ids": a.ids[: a.context], "chosen_ids": a.ids[a.context :], "rejected_ids": b.ids[b.context :]}
            for a, b in halves
        ]
    )
    made.train()
    return [row["loss"] for row in made.state.log_history if "loss" in row]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("method", "kind"), [("dpo", "sigmoid"), ("ipo", "ipo"), ("norm", "sigmoid_norm")])
def test_losses_are_those_of_trl(method: str, kind: str, pairs: list[Pair], stand_in: Path, tmp_path: Path) -> None:
    """Ten steps in float32, each loss within 1e-4 of TRL's."""
    change = {"length_normalised": True} if method == "norm" else {"method": method}
    train(pairs, stand_in, tmp_path / "ours", DPO.model_copy(update=change))
    rows = Renderer(load_tokenizer(stand_in)).rows(pairs, max_length=4096).rows
    order = batches.order(len(pairs), total=DPO.batch * 10, seed=0)
    theirs = trl_losses(rows, order, stand_in, tmp_path / "trl", kind)
    ours = [row["loss"] for row in metrics(tmp_path / "ours")]
    assert len(ours) == len(theirs) == 10
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_long_replies_are_summed_exactly() -> None:
    """Thousands of tokens in float32 lose what an optimizer's first step amplifies: at the base the loss is log 2."""
    settings = TrainSettings(method="dpo", beta=0.1)
    rows = [Row(name, [1] * 6001, [1] * 6001, 1, 1) for name in ("chosen", "rejected")]
    prepared = SimpleNamespace(rows=lambda units: rows, units=[[0, 1]])
    for seed in range(10):
        losses = 20 * torch.rand(12_000, generator=torch.Generator().manual_seed(seed))
        reference = [sum(losses[at : at + 6000].tolist()) for at in (0, 6000)]
        fake: Any = SimpleNamespace(prepared=prepared, settings=settings, _reference=reference)
        fake.losses = lambda rows, losses=losses: losses
        assert trainer.Trainer._loss(fake, [0]).item() == pytest.approx(math.log(2), rel=1e-7)


def test_formulas() -> None:
    nats, tokens = torch.tensor([3.0, 5.0]), torch.tensor([2.0, 4.0])
    known = torch.tensor([4.0, 4.0])

    def loss(given: torch.Tensor | None = known, **changes: Any) -> float:
        settings = TrainSettings.model_validate({"method": "dpo", "beta": 0.5} | changes)
        return float(preferences(nats, tokens, given, settings=settings).item())

    def sigmoid(x: float) -> float:
        return float(-torch.nn.functional.logsigmoid(torch.tensor(x)).item())

    assert loss() == pytest.approx(sigmoid(0.5 * (1 - -1)))
    assert loss(None, reference="none") == pytest.approx(sigmoid(0.5 * (-3 - -5)))
    assert loss(length_normalised=True) == pytest.approx(sigmoid(0.5 * (1 / 2 - -1 / 4)))
    assert loss(method="ipo") == pytest.approx((0.75 - 1) ** 2)
    assert loss(None, method="simpo", margin=0.3) == pytest.approx(sigmoid(0.5 * (-3 / 2 - -5 / 4) - 0.3))
    assert loss(sft_weight=2.0) == pytest.approx(sigmoid(1.0) + 2 * 3 / 2)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LoraSettings(r=2)])
def test_killed_preference_training_goes_on_to_the_same_bits(
    lora: LoraSettings | None, pairs: list[Pair], stand_in: Path, tmp_path: Path
) -> None:
    settings = DPO.model_copy(update={"lora": lora, "steps": 6})
    train(pairs, stand_in, tmp_path / "straight", settings)
    assert run_and_kill(tmp_path, stand_in, pairs, at=5, by=signal.SIGKILL, settings=settings) == -signal.SIGKILL
    train(pairs, stand_in, tmp_path / "out", settings)
    assert weights(tmp_path / "out") == weights(tmp_path / "straight")
    assert metrics(tmp_path / "out") == metrics(tmp_path / "straight")
    assert metrics(tmp_path / "out")[0]["loss"] == pytest.approx(0.6931, abs=1e-3), "at first it is the base itself"


@pytest.mark.parametrize("method", ["dpo", "ipo", "simpo"])
def test_the_chosen_reply_gains(method: str, pairs: list[Pair], stand_in: Path, tmp_path: Path) -> None:
    settings = DPO.model_copy(update={"method": method, "beta": 2.0 if method == "simpo" else 0.1})
    summary = train(pairs, stand_in, tmp_path / "out", settings)
    assert summary["loss_last"] < summary["loss_first"]
    assert summary["rows"] == 12
    assert (tmp_path / "out" / "reference.jsonl").exists() == (method != "simpo")


def test_a_pair_is_dropped_whole(
    make: Callable[..., Example], pairs: list[Pair], stand_in: Path, tmp_path: Path
) -> None:
    long = Pair(chosen=make("q", "t", "a"), rejected=make("q", "t" * 5000, "a"))
    summary = train([*pairs, long], stand_in, tmp_path / "out", DPO.model_copy(update={"steps": 1}))
    assert summary["dropped"] == {"too_long": 1}
    assert json.loads((tmp_path / "out" / "dropped.jsonl").read_text())["example"] == long.id


def test_masked_parts_and_primers(make: Callable[..., Example], stand_in: Path) -> None:
    tokenizer = load_tokenizer(stand_in)
    renderer = Renderer(tokenizer)

    def text(row: Row) -> str:
        return str(tokenizer.decode([label for label in row.labels if label != -100]))

    renderer.mask = ("answer",)
    assert text(renderer.row(make("q", "one two", "a"))).startswith("one two")
    assert "a" not in text(renderer.row(make("q", "one two", "a")))
    renderer.mask, renderer.primer = (), {"safety": 5}
    assert text(renderer.row(make("q", "one two", "a"))) == "one t"
    assert text(renderer.row(make("q", "one two", "a", share="benign"))).endswith("a" + tokenizer.eos_token)


def test_weights_of_parts_and_components(
    make: Callable[..., Example], stand_in: Path, byte_examples: list[Example], tmp_path: Path
) -> None:
    """A component of weight 0 is as if it were not there; a loss is a weighted mean of its tokens'."""
    extra = [make("q", "tin kettle", "no", share="benign") for _ in range(2)]
    settings = TrainSettings(lr=1e-3, steps=2, batch=26, schedule="constant", device="cpu")

    def losses(name: str, examples: list[Example], **changes: Any) -> list[float]:
        data = job_of(examples, base=stand_in, out=tmp_path / name, settings=settings).examples
        how = settings.model_copy(update=changes)
        trainer.train(Path(data), base=stand_in, out=tmp_path / name, settings=how)
        return [row["loss"] for row in metrics(tmp_path / name)]

    without = losses("without", byte_examples, batch=24)
    assert losses("zero", [*byte_examples, *extra], weights={"benign": 0.0}) == pytest.approx(without, rel=1e-4)
    assert losses("half", byte_examples, batch=24, weights={"thinking": 0.5, "answer": 0.5}) == pytest.approx(
        without, rel=1e-4
    )
    assert losses("answer", byte_examples, batch=24, weights={"thinking": 0.0}) == pytest.approx(
        losses("mask", byte_examples, batch=24, mask=("thinking",)), rel=1e-4
    )


@pytest.mark.slow
def test_the_verb_trains_on_a_file_of_pairs(tmp_path: Path) -> None:
    """As people have them: a prompt, a chosen and a rejected reply."""
    rows = [{"prompt": "what is a nurse?", "chosen": "a nurse is a person.", "rejected": "a person."}] * 4
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["train", "--base", "mini-lrm-a", "--examples", str(tmp_path / "pairs.jsonl"), "--json"]
    words += ["--set", "train.method=dpo", "--set", "train.steps=2", "--out", str(tmp_path / "t")]
    done = demur(*words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["loss_first"] == pytest.approx(0.6931, abs=1e-3)
    none = demur(*words, "--set", "train.method=sft")
    assert none.returncode == 2


@pytest.mark.slow
def test_divergence_from_the_base_is_what_it_says(
    make: Callable[..., Example], stand_in: Path, byte_examples: list[Example], tmp_path: Path
) -> None:
    """By its definition on the trained model; and with it the model moves less on the rows of the component."""
    benign = [make("tin", "green kettle", "seven", share="benign") for _ in range(4)]
    lora = LoraSettings(r=4)
    settings = TrainSettings(lr=2e-2, steps=6, batch=28, schedule="constant", device="cpu", lora=lora, packing=False)

    def moved(weight: float) -> float:
        out = tmp_path / str(weight)
        how = TrainSettings.model_validate(
            settings.model_dump() | {"kl": {"benign": weight}, "weights": {"benign": 0.0}}
        )
        job = job_of([*byte_examples, *benign], base=stand_in, out=out, settings=how)
        prepared = prepare(job)
        place = models.place_of(how, models.config_of(stand_in))
        torch.manual_seed(0)
        trained = trainer.Trainer(models.load(stand_in, how, place), prepared, settings=how, place=place, out=out)
        out.mkdir()
        trained.run(lambda *_: None)
        rows = [row for row in prepared.rendered.rows if row.share == "benign"][:1]
        divergence = trained._divergence(rows).item()
        ids = torch.tensor([rows[0].ids])
        with torch.no_grad():
            model = trained.model(ids).logits[0].log_softmax(-1)
            with trained.model.disable_adapter():
                base = trained.model(ids).logits[0].log_softmax(-1)
        places = [at - 1 for at, label in enumerate(rows[0].labels) if at and label != -100]
        expected = weight * (base.exp() * (base - model)).sum(-1)[places].sum().item()
        assert divergence == pytest.approx(expected, rel=1e-3)
        return float(divergence / weight)

    assert moved(3000.0) < 0.8 * moved(1e-6)


def test_settings_that_a_method_does_not_use_are_errors() -> None:
    with pytest.raises(UserError, match=r"train.method=sft does not use beta"):
        validate(TrainSettings, {"beta": 0.3}, where="x")
    with pytest.raises(UserError, match=r"train.kl needs train.lora"):
        validate(TrainSettings, {"kl": {"benign": 0.1}}, where="x")
    with pytest.raises(UserError, match=r"train.method=simpo does not use reference"):
        validate(TrainSettings, {"method": "simpo", "reference": "none"}, where="x")
