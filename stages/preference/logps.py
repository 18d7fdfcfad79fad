"""Sums of the log-probabilities of answers under a causal language model.

Only hidden states that predict a trained token reach the output layer. They reach it in tiles: the largest tensor of logits has ``TILE``
elements, whatever the batch, the prompts and the vocabulary. In: a model and a pack of stages/preference/packing.py. Out: tensors [2n].
Log-probabilities are float32 under fp32 and bf16, and float64 in a float64 model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.lib import files
from stages.lib.errors import UserError
from stages.preference import attention
from stages.preference.data import Pair
from stages.preference.packing import LAYOUTS, collate, to_device, tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Elements of a tile. CPU: 128 MiB of float32, 1,024 tokens of a vocabulary of 32,768. CUDA: 1 GiB, 2,092 tokens of Llama-3's vocabulary;
# larger products are faster.
TILE = {"cpu": 2**25, "cuda": 2**28}


def answer_logps(
    model: PreTrainedModel,
    input_ids: Tensor,
    source: Tensor,
    target: Tensor,
    sequence: Tensor,
    length: Tensor,
    position_ids: Tensor | None = None,
    shared_prompt: dict[str, Any] | None = None,
) -> Tensor:
    """log π(y|x) of each sequence, summed over its trained tokens, [2n]. The arguments after ``model`` are a pack's tensors.

    The caller sets the attention of the pack's layout (``attention_layout``), and autocast for bf16.
    """
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    if getattr(config, "logit_scale", 1.0) != 1.0 or getattr(config, "logits_scaling", 1.0) != 1.0 or head.bias is not None:
        raise UserError(
            f"model type {config.model_type} scales or shifts its logits, which is not supported; use Llama, Mistral or Gemma-2"
        )
    shared = {} if shared_prompt is None else {"shared_prompt": shared_prompt}
    hidden = model.base_model(input_ids, position_ids=position_ids, use_cache=False, **shared).last_hidden_state
    hidden = hidden.flatten(0, 1).index_select(0, source)
    tile = TILE.get(hidden.device.type, TILE["cpu"])
    logps = token_logps(hidden, head.weight, target, getattr(config, "final_logit_softcapping", None), tile)
    return logps.new_zeros(len(length)).index_add(0, sequence, logps)


def token_logps(hidden: Tensor, weight: Tensor, target: Tensor, softcap: float | None, tile: int) -> Tensor:
    """The log-probability of each target, [N].

    hidden: the hidden states that predict the targets, [N, h]
    weight: of the output layer, [V, h]
    target: token ids, [N]
    softcap: Gemma-2's c in c tanh(logits / c), or None
    tile: elements of the largest tensor of logits
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    logps: Tensor = _TokenLogps.apply(hidden, weight, target, softcap, max(1, tile // len(weight)), dtype)
    return logps


class _TokenLogps(torch.autograd.Function):
    """``token_logps`` in tiles of ``rows`` tokens, in place. The backward pass uses a single tile's probabilities, and computes several
    tiles again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, softcap: float | None, rows: int, dtype: torch.dtype) -> Tensor:
        ctx.softcap, ctx.rows, ctx.dtype, ctx.kept = softcap, rows, dtype, None
        head = weight.to(dtype)
        logps, normalizers = [], []
        for part, wanted in zip(hidden.split(rows), target.split(rows), strict=True):
            logits = _logits(part, head, softcap)
            picked = logits.gather(1, wanted.unsqueeze(1)).squeeze(1)
            highest = logits.amax(1, keepdim=True)
            total = logits.sub_(highest).exp_().sum(1, keepdim=True)
            normalizer = (total.log() + highest).squeeze(1)
            logps.append(picked - normalizer)
            normalizers.append(normalizer)
            if len(hidden) <= rows and softcap is None and any(ctx.needs_input_grad):
                ctx.kept = logits.div_(total)
        ctx.save_for_backward(hidden, weight, target, torch.cat(normalizers))
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        hidden, weight, target, normalizers = ctx.saved_tensors
        head = weight.to(ctx.dtype)
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        parts = (tensor.split(ctx.rows) for tensor in (hidden, target, normalizers, grad, grad_hidden))
        for part, wanted, normalizer, scale, out in zip(*parts, strict=True):
            if ctx.kept is not None:
                change = ctx.kept
            else:
                logits = _logits(part, head, ctx.softcap)
                slope = None if ctx.softcap is None else 1 - (logits / ctx.softcap) ** 2
                change = logits.sub_(normalizer.unsqueeze(1)).exp_()
            change.scatter_add_(1, wanted.unsqueeze(1), change.new_full((len(wanted), 1), -1.0))
            change.mul_(-scale.unsqueeze(1))
            if ctx.kept is None and slope is not None:
                change.mul_(slope)
            low = change.to(ctx.dtype)
            out.copy_(low @ head)
            if ctx.dtype == weight.dtype:
                grad_weight.addmm_(low.T, part.to(ctx.dtype))
            else:
                grad_weight += low.T @ part.to(ctx.dtype)
        ctx.kept = None
        return grad_hidden, grad_weight, None, None, None, None


def _logits(hidden: Tensor, head: Tensor, softcap: float | None) -> Tensor:
    """The logits of some tokens, [rows, V], in float32 or float64."""
    logits = hidden.to(head.dtype) @ head.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


@contextmanager
def attention_layout(model: PreTrainedModel, layout: str) -> Iterator[None]:
    """Give ``model`` the attention of a layout for the block: ``shared_prompt`` in ``shared``, else the one that it was loaded with."""
    before = model.config._attn_implementation
    if layout == "shared":
        model.set_attn_implementation(attention.NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def fastest_correct_layout(model: PreTrainedModel, pairs: Sequence[Pair], precision: str) -> str:
    """The first of LAYOUTS in which ``model`` has the log-probabilities of its eager attention. Prints which one it is.

    The longest and the shortest pair are compared: a window or a soft cap that a layout leaves out would show there. The mean
    log-probability a token may differ by 1e-4, under bf16 by 0.05. If no layout passes, the model gets eager attention and the layout
    ``padded``.
    """
    sample = [min(pairs, key=lambda pair: tokens_of(pair, "shared")), max(pairs, key=lambda pair: tokens_of(pair, "shared"))]
    before, training = model.config._attn_implementation, model.training
    model.eval()

    def averages(layout: str) -> Tensor:
        batch = to_device(collate(sample, layout), model.device)
        with attention_layout(model, layout), torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return answer_logps(model, **batch) / batch["length"]

    model.set_attn_implementation("eager")
    expected = averages("padded")
    model.set_attn_implementation(before)
    reasons = []
    for layout in LAYOUTS:
        try:
            gap = float((averages(layout) - expected).abs().max())
        except (TypeError, ValueError, RuntimeError) as error:
            reasons.append(f"{layout}: {str(error).splitlines()[0]}")
            continue
        if gap <= (0.05 if precision == "bf16" else 1e-4):
            break
        reasons.append(f"{layout}: {gap:.2g} a token away from eager attention")
    else:
        layout = "padded"
        model.set_attn_implementation("eager")
    model.train(training)
    under = attention.NAME if layout == "shared" else model.config._attn_implementation
    if files.first_process():
        why = "".join(f"; not {reason}" for reason in reasons)
        print(f"layout: {layout}, attention {under}, checked against eager attention{why}", flush=True)
    return layout
