"""The loss at supervised positions only.

A causal model's own forward makes logits for every position: with a vocabulary of 152,000 and 16,000 tokens that is
10 GB in float32, mostly for positions of the prompt. Here the body runs as it is, the hidden states that predict a
trained token are selected, and head and cross entropy run over these alone, in chunks where they are many.

The losses of preference methods are those of pairs of replies:

    dpo    -log sigmoid(beta h)                          Rafailov et al. 2023, arXiv 2305.18290
    ipo    (h - 1 / (2 beta))^2, h per token             Azar et al. 2023, arXiv 2310.12036
    simpo  -log sigmoid(beta h - margin), h per token    Meng et al. 2024, arXiv 2405.14734; without a reference

h is the log-probability of the chosen reply minus that of the rejected one, each relative to the reference if any.
"""

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from demur.train.settings import TrainSettings

MAX_LOGITS = {"cuda": 1 << 28, "cpu": 1 << 25}
"""Logits (positions x vocabulary) of one chunk: 1 GiB in float32, on a CPU 128 MiB. Much smaller chunks would read the
head's weights too often."""


def token_losses(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss of each target [targets], in nats, from `hidden` [targets, width] and `weight` [vocabulary, width]."""
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    elif hidden.dtype != weight.dtype:
        hidden = hidden.to(weight.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        most = MAX_LOGITS.get(hidden.device.type, MAX_LOGITS["cuda"])
        if targets.numel() * weight.shape[0] <= most:
            return _chunk(hidden, weight, targets)
        # The logits of a chunk are recomputed in the backward pass instead of kept.
        size = max(1, most // weight.shape[0])
        chunks = [
            checkpoint(_chunk, hidden[at : at + size], weight, targets[at : at + size], use_reentrant=False)
            for at in range(0, targets.numel(), size)
        ]
    return torch.cat(chunks)


def _chunk(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The losses of one chunk, with the softmax in float32 at least."""
    logits = F.linear(hidden, weight)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none")


def fuse(model: Any) -> None:
    """Give a causal model a forward that returns `losses` [targets] at the `supervised` positions of a batch.

    With `full` it returns `log_probs` [targets, vocabulary] there. Batches without `supervised` take the model's own
    forward, so that generation works as before. To be called before adapters are added or the model is wrapped.
    """
    original = model.forward

    def forward(self: Any, *args: Any, supervised: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if supervised is None:
            return original(*args, **kwargs)
        targets, full = kwargs.pop("targets"), kwargs.pop("full", False)
        hidden = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        selected = hidden.flatten(0, 1)[supervised]
        weight = self.get_output_embeddings().weight
        if full:
            return {"log_probs": F.linear(selected, weight.to(selected.dtype)).float().log_softmax(-1)}
        return {"losses": token_losses(selected, weight, targets)}

    model.forward = types.MethodType(forward, model)


def obstacle(model: Any) -> str | None:
    """Why the head cannot be run apart from the model (it scales or caps its logits); `None` if it can."""
    config = model.config.get_text_config()
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            return f"{name} = {getattr(config, name)}"
    head = model.get_output_embeddings()
    return "its head has a bias" if getattr(head, "bias", None) is not None else None


def preferences(
    nats: torch.Tensor, tokens: torch.Tensor, reference: torch.Tensor | None, *, settings: TrainSettings
) -> torch.Tensor:
    """The loss of each pair [pairs], from each reply's summed loss and number of tokens [2 pairs].

    Replies alternate, chosen and rejected. `reference` has the base's `nats`; `None`: no reference.
    """
    scores = -nats if reference is None else reference - nats
    if settings.length_normalised or settings.method != "dpo":
        scores = scores / tokens
    h = scores[0::2] - scores[1::2]
    if settings.method == "ipo":
        losses = (h - 1 / (2 * settings.beta)) ** 2
    else:
        losses = -F.logsigmoid(settings.beta * h - settings.margin)
    return losses + settings.sft_weight * (nats / tokens)[0::2]
