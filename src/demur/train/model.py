"""The model that learns: loaded in the right precision, adapted or not, and saved so that everybody can load it."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

import demur
from demur.errors import UserError
from demur.storage.artifacts import atomic_write
from demur.train import attention, distributed, loss
from demur.train.settings import LoraSettings, TrainSettings

BYTES_PER_TOKEN = 34
"""Bytes of activations that a layer keeps for each token and unit of width, in 16 bits and without attention scores
(Korthikanti et al. 2022, arXiv 2205.05198, table 2)."""


class Place(NamedTuple):
    """Where and in what precision to train."""

    device: torch.device
    dtype: torch.dtype
    """Of the weights."""
    mixed: bool
    """Whether arithmetic is in bfloat16 over float32 weights."""
    packed: bool


def place_of(settings: TrainSettings, config: Any) -> Place:
    """Device, precision and packing that the settings mean for a model's configuration.

    Raises:
        UserError: what they ask for is not there.
    """
    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise UserError("train.device=cuda, and no CUDA device is here. Allowed here: auto, cpu.")
    if settings.lora is not None and settings.lora.quantize != "none":
        _check_quantized(cuda)
    on_cuda = cuda and settings.device != "cpu"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_cuda else torch.device("cpu")
    if on_cuda:
        torch.cuda.set_device(device)
    precision = settings.dtype if settings.dtype != "auto" else "mixed" if on_cuda else "float32"
    packed = attention.obstacle(config) is None if settings.packing == "auto" else settings.packing
    if packed:
        attention.require(config)
    return Place(device, torch.bfloat16 if precision == "bfloat16" else torch.float32, precision == "mixed", packed)


def _check_quantized(cuda: bool) -> None:
    """QLoRA needs a CUDA device and bitsandbytes.

    Raises:
        UserError: which of them is missing.
    """
    import importlib.util

    lacks = [
        name
        for name, there in (("a CUDA device", cuda), ("bitsandbytes", importlib.util.find_spec("bitsandbytes")))
        if not there
    ]
    if lacks:
        raise UserError(
            f"train.lora.quantize=nf4 needs {' and '.join(lacks)}, not here. Without it: train.lora.quantize=none."
        )


def config_of(base: Path | str) -> Any:
    """The configuration of a base.

    Raises:
        UserError: it is no model that transformers knows.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise UserError(f"{base}: not a model that transformers can load: {str(error).splitlines()[0]}") from None


def ready(base: Path | str, settings: TrainSettings, place: Place) -> Any:
    """The model, ready for the trainer: loaded, on its device, saving memory where asked, sharded where asked."""
    model = load(base, settings, place)
    if not getattr(model, "is_loaded_in_4bit", False):
        model.to(place.device)
    if wants_checkpointing(settings, place, model):
        save_memory(model, adapters=settings.lora is not None)
    if settings.parallel == "fsdp2" and distributed.world_size() > 1:
        return distributed.shard(model, place)
    return model


def load(base: Path | str, settings: TrainSettings, place: Place) -> Any:
    """The model with fused loss, packed attention, adapters.

    Raises:
        UserError: weights are missing, or an adapter fits nowhere.
    """
    from transformers import AutoModelForCausalLM

    lora = settings.lora
    options: dict[str, Any] = {"dtype": torch.bfloat16 if lora and place.device.type == "cuda" else place.dtype}
    options["attn_implementation"] = attention.register() if place.packed else "sdpa"
    if lora and lora.quantize == "nf4":
        options["quantization_config"] = _nf4()
        options["device_map"] = {"": place.device}
    try:
        model = AutoModelForCausalLM.from_pretrained(base, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{base}: its weights cannot be loaded: {str(error).splitlines()[0]}") from None
    model.config.use_cache = False
    why = loss.plain_head(model)
    if why:
        raise UserError(f"{base}: the loss of this architecture is not supported ({why}).")
    loss.fuse(model)
    return adapted(model, lora) if lora else model


def _nf4() -> Any:
    """Four-bit weights as QLoRA has them (Dettmers et al. 2023, arXiv 2305.14314)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def adapted(model: Any, lora: LoraSettings) -> Any:
    """The model with adapters, all else frozen.

    Raises:
        UserError: no module has one of the names.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if lora.quantize == "nf4":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    try:
        with _renamed():
            wrapped = get_peft_model(model, config)
    except ValueError as error:
        names = sorted(
            {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
        )
        raise UserError(
            f"train.lora.targets: {str(error).splitlines()[0]} Linear layers here: {', '.join(names)}."
        ) from None
    # Adapters stay in float32 over a 16-bit base: they are small, and small updates would be rounded away.
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return wrapped


@contextmanager
def _renamed() -> Iterator[None]:
    """peft reads attributes that transformers has renamed, and is warned of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def save_memory(model: Any, *, adapters: bool) -> None:
    """Recompute activations in the backward pass."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    if adapters:
        model.enable_input_require_grads()


def wants_checkpointing(settings: TrainSettings, place: Place, model: Any) -> bool:
    """Whether activations must be recomputed for memory's sake."""
    if settings.checkpointing != "auto":
        return settings.checkpointing
    if place.device.type != "cuda":
        return False
    config = model.config.get_text_config()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    states = trained * 12 / (1 if settings.parallel == "ddp" else distributed.world_size())
    free = torch.cuda.get_device_properties(place.device).total_memory - states
    free -= sum(p.numel() * p.element_size() for p in model.parameters())
    tokens = max(settings.micro_tokens, settings.max_length)
    return bool(tokens * config.num_hidden_layers * config.hidden_size * BYTES_PER_TOKEN > 0.8 * free)


def save(model: Any, *, base: Path | str, folder: Path, settings: TrainSettings, state: dict[str, Any] | None) -> None:
    """Write the result: weights (adapters merged), tokenizer, the inference template, generation settings.

    Args:
        model: the trained student, unwrapped.
        base: what it came from.
        folder: where to.
        settings: of the training.
        state: whole weights, where the model itself holds only a part of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if settings.lora is not None:
        model.save_pretrained(folder.parent / "adapter", state_dict=state)
        if not settings.lora.merge:
            model.save_pretrained(folder, state_dict=state)
            _tokenizer_to(base, folder)
            return
        model, state = _merged(model, base, folder.parent / "adapter", state)
    dtype = _saved_dtype(settings, base)
    state = state if state is not None else model.state_dict()
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    # The configuration must say what the weights are.
    model.config.dtype = dtype
    model.config.use_cache = True
    model.save_pretrained(folder, state_dict=state)
    _tokenizer_to(base, folder)


def _merged(
    model: Any, base: Path | str, adapter: Path, state: dict[str, Any] | None
) -> tuple[Any, dict[str, Any] | None]:
    """The base with the adapters' update added in float32; a base held otherwise, or in shards, is read again."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if state is None and next(model.parameters()).dtype == torch.float32:
        return model.merge_and_unload(), None
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with _renamed():
        return PeftModel.from_pretrained(whole, adapter).merge_and_unload(), None


def _saved_dtype(settings: TrainSettings, base: Path | str) -> torch.dtype:
    """Precision of the saved weights."""
    if settings.save_dtype != "base":
        return torch.float32 if settings.save_dtype == "float32" else torch.bfloat16
    said = getattr(config_of(base), "dtype", None)
    return said if isinstance(said, torch.dtype) else torch.float32


def _tokenizer_to(base: Path | str, folder: Path) -> None:
    """The base's own tokenizer, template and generation settings, as they were: what was trained for is what is served."""
    from transformers import AutoTokenizer, GenerationConfig

    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    try:
        GenerationConfig.from_pretrained(base).save_pretrained(folder)
    except OSError:
        return


def write_card(folder: Path, *, base: Path | str, settings: TrainSettings, data: dict[str, Any]) -> None:
    """The model card: from what, on what, how, with which versions. No dates or hosts: equal runs write equal cards."""
    import transformers
    from huggingface_hub import ModelCard, ModelCardData

    name = Path(base).name
    about = ModelCardData(
        base_model=name,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["demur", "safety", "reasoning", "sft"],
    )
    changed = settings.model_dump(mode="json", exclude_defaults=True)
    said = {
        "name": name,
        "demur": demur.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "settings": json.dumps(changed, indent=1, sort_keys=True),
        "seed": settings.seed,
    }
    card = ModelCard.from_template(about, template_path=str(Path(__file__).with_name("card.md")), **data, **said)
    atomic_write(folder / "README.md", str(card))
