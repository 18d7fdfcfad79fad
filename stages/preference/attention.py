"""Attention in which both answers of a pair read one prompt: an attention function for Transformers, ``shared_prompt``.

In a shared pack (stages/preference/packing.py) the keys of a rejected answer are the prompt's and its own, and its queries are the last of
these: causal attention with fewer queries than keys, aligned at the right end. It is computed in one of two ways, with the same result.
CUDA in half precision takes torch's variable-length kernel, which computes nothing twice. Everything else gathers the keys into a rectangle
of sequences. The rectangle computes the prompt's attention twice, a few per cent of a model's work, but needs no mask of the whole pack.

Both ways know grouped heads and sliding windows. Windows are measured in positions, not in places in the pack. Gemma-2's soft cap on the
scores always takes the rectangle.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from stages.lib.errors import UserError

NAME = "shared_prompt"


def shared_prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    shared_prompt: dict[str, Any],
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention's result, [1, T, H, D], for the T tokens of a pack and H heads in G groups.

    query: [1, H, T, D]
    key, value: [1, G, T, D]
    scaling: the factor of the scores
    shared_prompt: the pack's (packing.py), which reaches every layer as a keyword of the model's forward
    sliding_window: positions that a token sees, itself included; None for all
    softcap: Gemma-2's c in c tanh(scores / c), or None
    """
    kind = query.device.type  # rotary embeddings leave autocast's queries and keys in fp32
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    query, key, value = (states[0].transpose(0, 1).to(dtype) for states in (query, key, value))
    if kind == "cuda" and dtype in (torch.float16, torch.bfloat16) and softcap is None:
        result = _by_kernel(query, key, value, shared_prompt, scaling, sliding_window)
    else:
        result = _in_a_rectangle(query, key, value, shared_prompt, scaling, sliding_window, softcap)
    return result.unsqueeze(0), None


def _by_kernel(query: Tensor, key: Tensor, value: Tensor, plan: dict[str, Any], scaling: float, window: int | None) -> Tensor:
    """By torch.nn.attention.varlen, whose causal mask is aligned at the right end; query [T, H, D], key and value [T, G, D]."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        raise UserError(
            f"torch {torch.__version__} has no torch.nn.attention.varlen, which bf16 on CUDA needs: make setup ENV=cuda"
        ) from None
    key, value = (states.index_select(0, plan["keys"]) for states in (key, value))
    if group := query.shape[1] // key.shape[1] - 1:  # torch 2.11 has no enable_gqa
        key, value = (states.repeat_interleave(group + 1, dim=1) for states in (key, value))
    sight = (-1 if window is None else window - 1, 0)
    ends, longest = (plan["query_ends"], plan["key_ends"]), plan["longest"]
    result = varlen_attn(query.contiguous(), key, value, *ends, *longest, scale=scaling, window_size=sight)
    assert isinstance(result, Tensor)
    return result


def _in_a_rectangle(
    query: Tensor, key: Tensor, value: Tensor, plan: dict[str, Any], scaling: float, window: int | None, softcap: float | None
) -> Tensor:
    """As S sequences padded on the right to one width: causal attention never reads the padding. Shapes as in ``_by_kernel``."""
    table = plan["table"]
    query, key, value = (
        states.index_select(0, table.flatten()).unflatten(0, table.shape).transpose(1, 2) for states in (query, key, value)
    )
    if group := query.shape[1] // key.shape[1] - 1:
        key, value = (states.repeat_interleave(group + 1, dim=1) for states in (key, value))
    width = table.shape[1]
    mask = None
    if softcap is not None or (window is not None and window < width):
        distance = torch.arange(width, device=query.device).unsqueeze(1) - torch.arange(width, device=query.device)
        mask = (distance >= 0) & (distance < (width if window is None else window))
    if softcap is None:
        result = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling)
    else:
        scores = softcap * torch.tanh(query @ key.transpose(2, 3) * (scaling / softcap))
        scores = scores.masked_fill(~mask, float("-inf")) if mask is not None else scores
        result = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype) @ value
    return result.transpose(1, 2).flatten(0, 1).index_select(0, plan["places"])


# No mask function is registered: the pack's plan replaces the mask. With one, Transformers would check in every pack whether the positions
# are those of packed texts, and wait for the device.
AttentionInterface.register(NAME, shared_prompt_attention)
