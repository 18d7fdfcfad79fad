"""Preference objectives: pure functions from sums of log-probabilities to a loss for each pair.

    losses_B, chosen_rewards_B, rejected_rewards_B = dpo(sums, beta=0.1, label_smoothing=0.0)

In: ``Sums`` of B pairs. Out: three tensors [B]: the loss, and the implicit rewards of both answers as they are logged, without gradient.
The mean of the losses over a global batch is the batch's loss. Hyperparameters are keyword-only and have no defaults: conf/method/*.yaml
holds every one of them, and stages/config.py reads their names here.

Letters: B pairs, y_w the chosen and y_l the rejected answer, π the policy, ref the reference, |y| the number of trained tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Losses = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Sums:
    """What an objective sees of B pairs. A log-probability here is the sum over an answer's trained tokens."""

    chosen_logps: Tensor  # [B] log π(y_w|x)
    rejected_logps: Tensor  # [B] log π(y_l|x)
    chosen_length: Tensor  # [B] |y_w|
    rejected_length: Tensor  # [B] |y_l|
    # Mean |y_w| over the global batch, not over these B pairs: what a mean over all of the batch's tokens is normalised with,
    # so that the mean of the pairs' losses does not depend on how the batch is split.
    mean_chosen_length: float
    reference_chosen_logps: Tensor | None = None  # [B] log ref(y_w|x)
    reference_rejected_logps: Tensor | None = None  # [B] log ref(y_l|x)


def dpo(sums: Sums, *, beta: float, label_smoothing: float) -> Losses:
    """Direct Preference Optimization, arXiv 2305.18290, Eq. 7.

        -log σ(h),   h = β (log π(y_w|x)/ref(y_w|x) - log π(y_l|x)/ref(y_l|x))

    ``label_smoothing`` ε is the share of labels assumed flipped: -(1-ε) log σ(h) - ε log σ(-h) (the DPO authors' code).
    Rewards: β log π/ref.
    """
    if sums.reference_chosen_logps is None or sums.reference_rejected_logps is None:
        raise ValueError("objective dpo needs the reference's log-probabilities; set method.reference=cached")
    chosen_rewards = beta * (sums.chosen_logps - sums.reference_chosen_logps)
    rejected_rewards = beta * (sums.rejected_logps - sums.reference_rejected_logps)
    return _smoothed(chosen_rewards - rejected_rewards, label_smoothing), chosen_rewards.detach(), rejected_rewards.detach()


def simpo(
    sums: Sums, *, beta: float, gamma: float, length_normalization: bool, label_smoothing: float, loss_type: str, sft_weight: float
) -> Losses:
    """Simple Preference Optimization, arXiv 2405.14734, Eq. 6, with the options of the authors' code (scripts/simpo_trainer.py).

        -log σ(h),   h = β/|y_w| log π(y_w|x) - β/|y_l| log π(y_l|x) - γ

    γ is absolute, as in the paper; the authors' code takes γ/β as ``gamma_beta_ratio``. Without ``length_normalization`` (section 4.2,
    Table 5) h = β log π(y_w|x) - β log π(y_l|x) - γ, and the rewards are β log π. ``loss_type``: ``sigmoid`` (with
    ``label_smoothing`` as in ``dpo``) or ``hinge``, max(0, 1 - h). ``sft_weight`` λ adds λ times the cross-entropy of the chosen
    answers as a mean over all their tokens, not over answers: to each pair -λ log π(y_w|x) / mean_chosen_length, whose mean over
    the global batch is -λ Σ log π(y_w|x) / Σ |y_w|; the authors take that mean over a device's micro-batch.
    Rewards: β/|y| log π, without γ.
    """
    if loss_type not in ("sigmoid", "hinge"):
        raise ValueError(f"method.loss_type={loss_type}: simpo has 'sigmoid' and 'hinge'")
    if loss_type == "hinge" and label_smoothing:
        raise ValueError(f"method.label_smoothing={label_smoothing}: the hinge loss knows none; set it to 0 or method.loss_type=sigmoid")
    chosen_rewards, rejected_rewards = beta * sums.chosen_logps, beta * sums.rejected_logps
    if length_normalization:
        chosen_rewards, rejected_rewards = chosen_rewards / sums.chosen_length, rejected_rewards / sums.rejected_length
    margins = chosen_rewards - rejected_rewards - gamma
    losses = torch.relu(1 - margins) if loss_type == "hinge" else _smoothed(margins, label_smoothing)
    if sft_weight:
        losses = losses - sft_weight * sums.chosen_logps / sums.mean_chosen_length
    return losses, chosen_rewards.detach(), rejected_rewards.detach()


def _smoothed(margins: Tensor, label_smoothing: float) -> Tensor:
    """-(1-ε) log σ(h) - ε log σ(-h), [B]."""
    losses = -logsigmoid(margins)
    return losses if not label_smoothing else (1 - label_smoothing) * losses - label_smoothing * logsigmoid(-margins)


OBJECTIVES: dict[str, Callable[..., Losses]] = {"dpo": dpo, "simpo": simpo}
NEEDS_REFERENCE = {"dpo"}
