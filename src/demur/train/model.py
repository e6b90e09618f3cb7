"""The model to be trained: loaded, adapted, sharded if asked, and saved so that any library can load it."""

import json
import math
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

import demur
from demur.errors import UserError
from demur.models.local import bfloat16_is_faster
from demur.storage.artifacts import atomic_write
from demur.train import attention, distributed, loss
from demur.train.chat import load_tokenizer
from demur.train.settings import LoraSettings, TrainSettings

BYTES_PER_TOKEN = 34
"""Bytes of activations that a layer keeps for each token and unit of width, in 16 bits and without attention scores
(Korthikanti et al. 2022, arXiv 2205.05198, table 2)."""
NARROW = 256  # Width below which bfloat16 arithmetic does not pay on a CPU (measured in docs/training.md)


class Place(NamedTuple):
    """Where and in what precision to train."""

    device: torch.device
    dtype: torch.dtype  # Of the weights
    mixed: bool  # Whether arithmetic is in bfloat16 over float32 weights
    packed: bool  # Whether the rows of a micro-batch stand in one line without padding


def place_of(settings: TrainSettings, config: Any) -> Place:
    """The device, precision and packing that the settings mean for a model of this configuration.

    Raises UserError: the device is missing, or the model's rows cannot be packed as asked.
    """
    device = torch.device("cpu")
    if torch.cuda.is_available() and settings.device != "cpu":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    elif settings.device == "cuda":
        raise UserError("train.device=cuda, and no CUDA device is here. Allowed here: auto, cpu.")
    precision = precision_of(settings, config)
    obstacle = attention.obstacle(config)
    packed = obstacle is None if settings.packing == "auto" else settings.packing
    if packed and obstacle:
        raise UserError(f"train.packing=true does not suit this model: {obstacle}. Use packing: auto or false.")
    return Place(device, torch.bfloat16 if precision == "bfloat16" else torch.float32, precision == "mixed", packed)


def precision_of(settings: TrainSettings, config: Any) -> Literal["float32", "mixed", "bfloat16"]:
    """The precision that `train.dtype` means on this machine; `auto` is measured on a CPU."""
    if settings.dtype != "auto":
        return settings.dtype
    if torch.cuda.is_available() and settings.device != "cpu":
        return "mixed"
    width = config.get_text_config().hidden_size
    return "mixed" if width >= NARROW and bfloat16_is_faster(width) else "float32"


def config_of(base: Path | str) -> Any:
    """The configuration of a base. Raises UserError: transformers cannot load it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise UserError(f"{base}: not a model that transformers can load: {str(error).splitlines()[0]}") from None


def parallel_of(base: Path | str, settings: TrainSettings, place: Place) -> Literal["auto", "ddp", "fsdp2"]:
    """What `train.parallel` means here: replicas where weights, gradients and optimizer fit one device, else shards."""
    if settings.parallel != "auto" or distributed.world_size() == 1:
        return settings.parallel
    frozen = settings.lora is not None and place.device.type == "cuda"
    needed = sum(p.numel() for p in _empty(base, place).parameters()) * (2 if frozen else 16)
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / distributed.world_size()
    if place.device.type == "cuda":
        available = torch.cuda.get_device_properties(place.device).total_memory
    return "ddp" if needed < 0.7 * available else "fsdp2"


def load(base: Path | str, settings: TrainSettings, place: Place) -> Any:
    """The model, ready to train: its loss fused, adapters added, on its device, sharded if asked.

    Raises UserError: weights are missing, the architecture's loss is not supported, or no module takes an adapter.
    """
    sharded = settings.parallel == "fsdp2" and distributed.world_size() > 1
    model = _empty(base, place) if sharded else _pretrained(base, settings, place)
    model.config.use_cache = False
    if obstacle := loss.obstacle(model):
        raise UserError(f"{base}: the loss of this architecture is not supported ({obstacle}).")
    loss.fuse(model)
    if settings.lora:
        model = _with_adapters(model, settings.lora)
    if wants_checkpointing(settings, place, model):
        recompute_activations(model, adapters=settings.lora is not None)
    if sharded:
        model = distributed.shard(model, place)
        _load_shards(model, base, place)
    else:
        model.to(place.device)
    if settings.lora:
        _init_adapters(model, seed=settings.seed)
    return model


def _pretrained(base: Path | str, settings: TrainSettings, place: Place) -> Any:
    """The whole model with its weights."""
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"attn_implementation": attention.register() if place.packed else "sdpa"}
    options["dtype"] = torch.bfloat16 if settings.lora and place.device.type == "cuda" else place.dtype
    try:
        return AutoModelForCausalLM.from_pretrained(base, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{base}: its weights cannot be loaded: {str(error).splitlines()[0]}") from None


def _empty(base: Path | str, place: Place) -> Any:
    """The model without weights."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    kind = attention.register() if place.packed else "sdpa"
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config_of(base), dtype=place.dtype, attn_implementation=kind)
    model.tie_weights()
    return model


def _load_shards(model: Any, base: Path | str, place: Place) -> None:
    """Read the base's weights into a sharded model without any; each process reads its own part.

    Raises UserError: the base's files name their weights differently.
    """
    import torch.distributed.checkpoint as dcp
    from huggingface_hub import snapshot_download
    from torch.distributed.checkpoint.api import CheckpointException

    folder = base if Path(base).is_dir() else snapshot_download(str(base), allow_patterns="*.safetensors")
    model._apply(lambda t: torch.empty_like(t, device=place.device) if t.is_meta else t.to(place.device))
    model.tie_weights()
    state = {plain_name(name): p.detach() for name, p in model.named_parameters() if "lora_" not in name}
    try:
        dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))
    except (CheckpointException, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{base}: its weights cannot be read in parts; use train.parallel=ddp. {reason}") from None


def _with_adapters(model: Any, lora: LoraSettings) -> Any:
    """The model with adapters, all else frozen. Raises UserError: no linear layer has one of the names."""
    from peft import LoraConfig, get_peft_model

    head = model.get_output_embeddings()
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    sizes = {"r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    config = LoraConfig(**sizes, target_modules=targets, task_type="CAUSAL_LM")
    try:
        with warnings.catch_warnings():
            # peft reads attributes that transformers has renamed, and warns of tied weights, which `save` handles.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings", category=UserWarning)
            adapted = get_peft_model(model, config, low_cpu_mem_usage=next(model.parameters()).is_meta)
    except ValueError as error:
        linear = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
        first = str(error).splitlines()[0]
        raise UserError(f"train.lora.targets: {first} Linear layers here: {', '.join(sorted(linear))}.") from None
    embedded = any("lora_embedding" in name for name, _ in adapted.named_parameters())
    if embedded or adapted.get_base_model().get_output_embeddings() is not head:
        raise UserError("train.lora.targets: linear layers are adapted, neither the embeddings nor the head.")
    # Adapters stay in float32 over a 16-bit base: they are small, and small updates would be rounded away.
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def _init_adapters(model: Any, *, seed: int) -> None:
    """Set the first values of adapters, the same however the model is spread: A uniform, B zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            values = torch.zeros(parameter.shape)
            if "lora_A" in name:
                bound = 1 / math.sqrt(parameter.shape[1])
                values.uniform_(-bound, bound, generator=generator)
            distributed.assign(parameter, values)


def recompute_activations(model: Any, *, adapters: bool) -> None:
    """Recompute activations in the backward pass instead of keeping them."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    if adapters:
        model.enable_input_require_grads()


def wants_checkpointing(settings: TrainSettings, place: Place, model: Any) -> bool:
    """Whether to recompute activations; by default, where they would not fit in memory."""
    if settings.checkpointing != "auto":
        return settings.checkpointing
    if place.device.type != "cuda":
        return False
    config = model.config.get_text_config()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    shards = distributed.world_size() if settings.parallel == "fsdp2" else 1
    free = torch.cuda.get_device_properties(place.device).total_memory - (trained * 12 + weights) / shards
    tokens = max(settings.micro_tokens, settings.max_length)
    return bool(tokens * config.num_hidden_layers * config.hidden_size * BYTES_PER_TOKEN > 0.8 * free)


def plain_name(name: str) -> str:
    """A parameter's name in the base's own files."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def merged_state(model: Any, dtype: torch.dtype, *, scale: float = 0.0) -> dict[str, Any]:
    """The weights under the base's names, adapters merged, on the first process; empty elsewhere.

    One weight at a time is gathered in float32: a merge needs no second copy of the model. All processes must call it.
    """
    parameters = dict(model.named_parameters())
    state: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if "lora_" in name:
            continue
        weight = distributed.full_tensor(parameter)
        module = name.removesuffix(".base_layer.weight")
        pair = [parameters.get(f"{module}.lora_{letter}.default.weight") for letter in "AB"]
        if scale and None not in pair:
            down, up = (distributed.full_tensor(p).float() for p in pair)
            weight = weight.float() + (up @ down) * scale
        if distributed.rank() == 0:
            state[plain_name(name)] = weight.to(dtype).cpu()
    return state


def save(model: Any, *, base: Path | str, folder: Path, settings: TrainSettings) -> None:
    """Write the result: weights (adapters merged), and the base's tokenizer, template and generation settings.

    All processes must call it; the first one writes.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    lora, first = settings.lora, distributed.rank() == 0
    config = config_of(base)
    base_dtype = getattr(config, "dtype", None) or torch.float32
    dtype = base_dtype if settings.save_dtype == "base" else getattr(torch, settings.save_dtype)
    if lora:
        adapter = {n: distributed.full_tensor(p).cpu() for n, p in model.named_parameters() if "lora_" in n}
        if first:
            model.save_pretrained(folder.parent / "adapter", state_dict=adapter, save_embedding_layers=False)
    state = merged_state(model, dtype, scale=lora.alpha / lora.r if lora else 0.0)
    if not first:
        return
    config.dtype, config.use_cache = dtype, True
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config, dtype=dtype)
    shell.save_pretrained(folder, state_dict=state)
    # Unchanged from the base: the model is served with the template that it was trained for.
    load_tokenizer(base).save_pretrained(folder)
    with suppress(OSError):
        GenerationConfig.from_pretrained(base).save_pretrained(folder)


def write_card(folder: Path, *, name: str, settings: TrainSettings, data: dict[str, Any]) -> None:
    """Write the model card. It holds no dates or hosts: equal runs write equal cards."""
    import transformers
    from huggingface_hub import ModelCard, ModelCardData

    tags = ["demur", "safety", "reasoning", "sft"]
    header = ModelCardData(base_model=name, library_name="transformers", pipeline_tag="text-generation", tags=tags)
    changed = json.dumps(settings.model_dump(mode="json", exclude_defaults=True), indent=1, sort_keys=True)
    fields: dict[str, Any] = {"name": name, "settings": changed, "seed": settings.seed}
    fields |= {"demur": demur.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    card = ModelCard.from_template(header, template_path=str(Path(__file__).with_name("card.md")), **data, **fields)
    atomic_write(folder / "README.md", str(card))
