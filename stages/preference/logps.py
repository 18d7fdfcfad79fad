"""Sums of the log-probabilities of answers under a causal language model.

Only hidden states that predict a trained token reach the output layer, in tiles: the largest tensor of logits has ``TILE`` elements,
whatever the batch, the prompts and the vocabulary. In: a model and a batch of stages/preference/data.py. Out: tensors [2B] or ``Sums``.
Log-probabilities are float32 under fp32 and bf16; in a float64 model all is float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from stages.preference.data import Batch
from stages.preference.objectives import Sums

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TILE = 2**25  # elements: 128 MiB of float32, 256 tokens of Llama-3's vocabulary, 55,000 of the mini world's


def answer_logps(model: PreTrainedModel, batch: Batch, precision: str) -> Tensor:
    """log π(y|x) of each sequence, summed over its trained tokens, [2B]. ``precision``: fp32, or bf16 by autocast over fp32 weights."""
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision={precision}: expected fp32 or bf16")
    config = model.config.get_text_config()
    if getattr(config, "logit_scale", 1.0) != 1.0 or getattr(config, "logits_scaling", 1.0) != 1.0:
        raise ValueError(f"model type {config.model_type} scales its logits, which stages/preference/logps.py does not; use Llama, Mistral or Gemma-2")
    with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
        hidden = model.base_model(batch["input_ids"], use_cache=False).last_hidden_state
        hidden = hidden.flatten(0, 1).index_select(0, batch["source"])
        logps = token_logps(hidden, model.get_output_embeddings(), batch["target"], getattr(config, "final_logit_softcapping", None))
    return logps.new_zeros(len(batch["length"])).index_add(0, batch["sequence"], logps)


def token_logps(hidden: Tensor, head: nn.Module, target: Tensor, softcap: float | None, tile: int = TILE) -> Tensor:
    """The log-probability of each target, [N]; hidden: [N, hidden size]; head: the output layer; softcap: Gemma-2's, c tanh(logits / c).

    Where one tile is not enough, each tile's logits are computed again in the backward pass instead of being kept.
    """

    def one(hidden: Tensor, target: Tensor) -> Tensor:
        logits = head(hidden)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return -cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), target, reduction="none")

    rows = max(1, tile // head.weight.shape[0])  # type: ignore[union-attr, operator]
    if len(target) <= rows:
        return one(hidden, target)
    tiles = zip(hidden.split(rows), target.split(rows), strict=True)
    return torch.cat([checkpoint(one, *inputs, use_reentrant=False) for inputs in tiles])


def pair_sums(model: PreTrainedModel, batch: Batch, precision: str, mean_chosen_length: float) -> Sums:
    """What the objectives see of a batch."""
    logps = answer_logps(model, batch, precision)
    chosen_length, rejected_length = batch["length"].chunk(2)
    reference = batch["reference"].to(logps.dtype).chunk(2) if "reference" in batch else (None, None)
    return Sums(*logps.chunk(2), chosen_length, rejected_length, mean_chosen_length, *reference)
