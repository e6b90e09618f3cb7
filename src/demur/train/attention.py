"""Attention over many rows in one line of tokens, each row seeing itself alone.

On CUDA in half precision it is torch's variable-length kernel; elsewhere the same rows one after the other through
`scaled_dot_product_attention`. No mask is built: a dense block-diagonal one costs the square of the line's length, and a
forgotten one lets rows see each other while the loss looks fine.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "demur_packed"


def packed_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None, **options: Any
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each row, whose bounds come as `cu_seq_lens_q` [rows + 1].

    Queries are [1, heads, tokens, width], keys and values [1, key heads, tokens, width]; returns [1, tokens, heads, width].
    """
    bounds = options.get("cu_seq_lens_q")
    assert bounds is not None, "packed attention is for packed rows"
    assert not options.get("dropout"), "packed attention knows no dropout"
    scale = options.get("scaling")
    if torch.is_autocast_enabled(query.device.type):
        # Norms of queries and keys leave them in float32 over float32 weights; the arithmetic is the values'.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    if query.dtype in (torch.bfloat16, torch.float16) and _has_kernel(query.device):
        return _varlen(query, key, value, bounds, int(options["max_length_q"]), scale), None
    how: dict[str, Any] = {"is_causal": True, "scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
    # Split, not sliced: the gradient of a slice is as long as the whole line.
    rows = zip(*(tensor.split(bounds.diff().tolist(), dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat([scaled_dot_product_attention(*row, **how).transpose(1, 2) for row in rows], dim=1), None


def _has_kernel(device: torch.device) -> bool:
    return bool(device.type == "cuda")


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int, scale: float | None
) -> torch.Tensor:
    """The same by torch's variable-length kernel: [1, tokens, heads, width]."""
    from torch.nn.attention.varlen import varlen_attn

    flat = [tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value)]
    grouped = query.shape[1] != key.shape[1]
    output = varlen_attn(*flat, bounds, bounds, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=grouped)
    assert isinstance(output, torch.Tensor)
    return output.unsqueeze(0)


def register() -> str:
    """Make the attention known to transformers; returns its name. What a row may see follows from its bounds, not a mask."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    return NAME


def obstacle(config: Any) -> str | None:
    """Why a model's rows cannot be packed; `None` when they can."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"it has layers of other kinds than full attention ({', '.join(sorted(kinds))}), which carry state across rows"
    if getattr(config, "use_sliding_window", False) or getattr(config, "attention_dropout", 0):
        return "it uses a sliding window or attention dropout"
    return None
