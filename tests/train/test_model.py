"""Models are loaded as the settings say, and what is saved is what was trained."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.made import train
from torch.utils._python_dispatch import TorchDispatchMode

from demur.errors import UserError
from demur.records import Example
from demur.train import model as models
from demur.train.settings import LoraSettings, TrainSettings

VIEWS = {torch.ops.aten.detach.default, torch.ops.aten.t.default}
TINY = TrainSettings(lr=1e-2, steps=4, batch=8, checkpoint_every=0, device="cpu")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(20).unsqueeze(0)).logits
    return found


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning")
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj")])
@pytest.mark.parametrize("tied", [True, False])
def test_adapters_are_merged_as_they_were_trained(
    targets: Any, tied: bool, chatml_base: Callable[..., Path], byte_examples: list[Example], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, settings = chatml_base(tied=tied), TINY.model_copy(update={"lora": LoraSettings(r=4, targets=targets)})
    train(byte_examples, base=base, out=tmp_path / "out", settings=settings)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out" / "adapter")
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=1e-4, atol=1e-4)
    assert (logits(merged) - logits(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 1e-3
    assert merged.config.tie_word_embeddings == tied


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning")
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_linear_layers_alone_take_an_adapter(
    target: str, stand_in: Path, byte_examples: list[Example], tmp_path: Path
) -> None:
    settings = TINY.model_copy(update={"lora": LoraSettings(targets=(target,))})
    with pytest.raises(UserError, match="neither the embeddings nor the head"):
        train(byte_examples, base=stand_in, out=tmp_path / "out", settings=settings)


def test_tied_weights_are_saved_once_and_the_configuration_says_what_they_are(
    chatml_base: Callable[..., Path], byte_examples: list[Example], tmp_path: Path
) -> None:
    from safetensors.torch import load_file
    from transformers import AutoConfig

    settings = TINY.model_copy(update={"save_dtype": "bfloat16"})
    train(byte_examples, base=chatml_base(tied=True), out=tmp_path / "out", settings=settings)
    saved = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert "lm_head.weight" not in saved
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert AutoConfig.from_pretrained(tmp_path / "out" / "model").dtype == torch.bfloat16


class Live(TorchDispatchMode):  # type: ignore[misc]
    """Counts the bytes of float32 tensors that are alive at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float32 and func not in VIEWS:
            size = out.untyped_storage().nbytes()
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(out, self._free, size)
        return out

    def _free(self, size: int) -> None:
        self.now -= size


@pytest.mark.parametrize("tied", [True, False])
def test_a_merge_holds_one_weight_in_float32(tied: bool, chatml_base: Callable[..., Path]) -> None:
    """Over a 16-bit base: never the whole model, which would not fit in one process of many."""
    settings = TINY.model_copy(update={"lora": LoraSettings(r=2), "dtype": "bfloat16", "packing": False})
    base = chatml_base(tied=tied)
    model = models.load(base, settings, models.place_of(settings, models.config_of(base)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted = logits(model)
    with Live() as live:
        state = models.merged_state(model, torch.bfloat16, scale=16.0)
    largest = max(t.numel() for name, t in state.items() if "_proj" in name)
    assert 0 < live.most <= 4 * 4 * largest, "the weight, its update, the scaled update and the sum"
    assert live.most < 4 * sum(t.numel() for t in state.values()) / 4
    assert {t.dtype for t in state.values()} == {torch.bfloat16}
    assert ("lm_head.weight" in state) != tied
    plain = models.load(
        base, settings.model_copy(update={"lora": None}), models.place_of(settings, models.config_of(base))
    )
    before = logits(plain)
    missing = plain.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert (logits(plain) - adapted).abs().mean() < 0.05 * (adapted - before).abs().mean()


def test_bfloat16_arithmetic_where_it_is_measured_to_pay(
    chatml_base: Callable[..., Path], byte_examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU: for models of some width, by the measurement that answering uses too; reported, and settled once."""
    from transformers import Qwen2Config

    for faster, width, mixed in ((True, 576, True), (True, 128, False), (False, 576, False)):
        monkeypatch.setattr(models, "bfloat16_is_faster", lambda width, faster=faster: faster)
        place = models.place_of(TrainSettings(device="cpu"), Qwen2Config(hidden_size=width))
        assert (place.mixed, place.dtype) == (mixed, torch.float32)
    monkeypatch.setattr(models, "NARROW", 32)
    found = {}
    for name, faster in (("mixed", True), ("float32", False)):
        monkeypatch.setattr(models, "bfloat16_is_faster", lambda width, faster=faster: faster)
        found[name] = train(byte_examples, base=chatml_base(), out=tmp_path / name, settings=TINY)
    assert "bfloat16" in found["mixed"]["arithmetic"]
    assert found["float32"]["arithmetic"] == "float32"
    assert found["mixed"]["fingerprint"] != found["float32"]["fingerprint"], (
        "a checkpoint of the other is not gone on from"
    )


def test_the_wrapper_follows_from_what_fits(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from demur.train import distributed

    settings = TrainSettings(device="cpu")
    place = models.place_of(settings, models.config_of(stand_in))
    assert models.parallel_of(stand_in, settings, place) == "auto", "alone there is nothing to choose"
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert models.parallel_of(stand_in, settings, place) == "ddp"
    monkeypatch.setattr("os.sysconf", lambda name: 1000)
    assert models.parallel_of(stand_in, settings, place) == "fsdp2"
    assert models.parallel_of(stand_in, settings.model_copy(update={"parallel": "ddp"}), place) == "ddp"
