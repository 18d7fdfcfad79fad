"""Sums of the log-probabilities of answers under a causal language model.

Only hidden states that predict a trained token reach the output layer, in tiles: the largest tensor of logits has ``TILE`` elements,
whatever the batch, the prompts and the vocabulary. In: a model and a batch of stages/preference/data.py. Out: tensors [2B].
Log-probabilities are float32 under fp32 and bf16; in a float64 model all is float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TILE = 2**25  # elements: 128 MiB of float32, 256 tokens of Llama-3's vocabulary, 55,000 of the mini world's


def response_logps(
    model: PreTrainedModel, input_ids: Tensor, source: Tensor, target: Tensor, sequence: Tensor, length: Tensor
) -> tuple[Tensor, Tensor]:
    """log π(y|x) of each sequence, summed over its trained tokens, and their number, both [2B]; the tensors are those of a batch, in order.

    bf16 is the caller's autocast, over fp32 weights.
    """
    config = model.config.get_text_config()
    if getattr(config, "logit_scale", 1.0) != 1.0 or getattr(config, "logits_scaling", 1.0) != 1.0:
        raise ValueError(f"model type {config.model_type} scales its logits, which this module does not; use Llama, Mistral or Gemma-2")
    hidden = model.base_model(input_ids, use_cache=False).last_hidden_state.flatten(0, 1).index_select(0, source)
    logps = token_logps(hidden, model.get_output_embeddings(), target, getattr(config, "final_logit_softcapping", None))
    return logps.new_zeros(len(length)).index_add(0, sequence, logps), length


def token_logps(hidden: Tensor, head: nn.Linear, target: Tensor, softcap: float | None, tile: int = TILE) -> Tensor:
    """The log-probability of each target, [N]; hidden: [N, hidden size]; head: the output layer; softcap: Gemma-2's, c tanh(logits / c).

    Where one tile is not enough, each tile's logits are computed again in the backward pass instead of being kept.
    """

    def one(hidden: Tensor, target: Tensor) -> Tensor:
        logits = head(hidden)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return -cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), target, reduction="none")

    rows = max(1, tile // head.weight.shape[0])
    if len(target) <= rows:
        return one(hidden, target)
    tiles = zip(hidden.split(rows), target.split(rows), strict=True)
    return torch.cat([checkpoint(one, *inputs, use_reentrant=False) for inputs in tiles])
