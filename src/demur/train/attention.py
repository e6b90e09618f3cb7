"""Attention over many rows in one line of tokens, each row seeing itself alone.

On CUDA in half precision this is torch's variable-length kernel; elsewhere one row after the other through
`scaled_dot_product_attention`. No mask is built: a dense block-diagonal one costs the square of the line's length, and
a forgotten one lets rows see each other while the loss looks fine.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "demur_packed"


def packed_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None, **options: Any
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each row, whose bounds are `cu_seq_lens_q` [rows + 1] of the options.

    Shapes: queries [1, heads, tokens, width], keys and values [1, key heads, tokens, width], the result
    [1, tokens, heads, width].
    """
    bounds = options.get("cu_seq_lens_q")
    assert bounds is not None, "packed attention is for packed rows"
    assert not options.get("dropout"), "packed attention has no dropout"
    scale = options.get("scaling")
    if torch.is_autocast_enabled(query.device.type):
        # Over float32 weights, norms leave queries and keys in float32: compute in the values' type.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    shared: dict[str, Any] = {"scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
    if query.dtype in (torch.bfloat16, torch.float16) and _has_kernel(query.device):
        from torch.nn.attention.varlen import varlen_attn

        flat = [tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value)]  # [tokens, heads, width]
        longest = int(options["max_length_q"])
        return varlen_attn(*flat, bounds, bounds, longest, longest, window_size=(-1, 0), **shared).unsqueeze(0), None
    # Split, not sliced: the gradient of a slice is as long as the whole line.
    rows = zip(*(tensor.split(bounds.diff().tolist(), dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [scaled_dot_product_attention(q, k, v, is_causal=True, **shared).transpose(1, 2) for q, k, v in rows]
    return torch.cat(outputs, dim=1), None


def _has_kernel(device: torch.device) -> bool:
    return bool(device.type == "cuda")


def register() -> str:
    """Register the attention with transformers, without a mask (the rows' bounds replace it); returns its name."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    return NAME


def obstacle(config: Any) -> str | None:
    """Why a model's rows cannot be packed; `None` if they can."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"its layers are not all full attention ({', '.join(sorted(kinds))}): others carry state across rows"
    if getattr(config, "use_sliding_window", False) or getattr(config, "attention_dropout", 0):
        return "it uses a sliding window or attention dropout"
    return None
