"""Preference training: two replies to one prompt, the chosen one made likelier than the rejected one.

    dpo    -log sigmoid(beta h)                          Rafailov et al. 2023, arXiv 2305.18290
    ipo    (h - 1 / (2 beta))^2, h per token             Azar et al. 2023, arXiv 2310.12036
    simpo  -log sigmoid(beta h - margin), h per token    Meng et al. 2024, arXiv 2405.14734; without a reference

h is the difference of the log-probabilities of chosen and rejected reply, each relative to the reference where there is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

if TYPE_CHECKING:
    from demur.train.settings import TrainSettings


def losses(
    nats: torch.Tensor, tokens: torch.Tensor, reference: torch.Tensor | None, *, settings: TrainSettings
) -> torch.Tensor:
    """The loss of each pair [pairs].

    Args:
        nats: summed loss of each reply, chosen and rejected in turn [2 pairs].
        tokens: trained tokens of each reply [2 pairs].
        reference: as `nats`, of the base; `None`: no reference.
        settings: method, beta, margin, length_normalised, sft_weight.
    """
    scores = -nats if reference is None else reference - nats
    if settings.length_normalised or settings.method != "dpo":
        scores = scores / tokens
    h = scores[0::2] - scores[1::2]
    if settings.method == "ipo":
        found = (h - 1 / (2 * settings.beta)) ** 2
    else:
        found = -logsigmoid(settings.beta * h - settings.margin)
    return found + settings.sft_weight * (nats / tokens)[0::2]
