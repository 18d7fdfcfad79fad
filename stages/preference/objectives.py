"""Preference objectives: pure functions from sums of log-probabilities to a loss for each pair.

    losses_B, chosen_rewards_B, rejected_rewards_B = dpo(sums, beta=0.1, label_smoothing=0.0)

In: ``Sums`` of B pairs. Out: ``Losses``, or a plain tuple of the same three tensors [B]: the loss, and the implicit rewards of both
answers. An objective's accuracy is the share of pairs whose chosen reward is higher. A global batch's loss is the mean of its pairs'
losses. The equations and their order are those of SimPO's Table 3 (arXiv 2405.14734). DEVIATIONS.md lists what is read differently.

To add an objective, write one function here and one file in conf/method. ``named`` finds the function. Hyperparameters are keyword-only
and have no defaults; the file gives them all. stages/plan/schema.py reads their names and types here.

Letters: B pairs, y_w the chosen and y_l the rejected answer, π the policy, ref the reference, |y| the number of trained tokens,
Δ = log π(y|x) - log ref(y|x). log π(y|x) is a sum over the answer's trained tokens; log π(y|x) / |y| is their mean.

Some objectives add the chosen answer's cross-entropy, over its trained tokens. ``nll`` selects the divisor. ``sum``: none, so the term is
-log π(y_w|x), as Table 3 prints it. ``mean``: |y_w|, a mean over each answer. ``token_mean``: the mean of |y_w| over the global batch. The
batch's mean is then a mean over all chosen tokens, as in TRL's and the CPO authors' code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from stages.lib.errors import UserError


class Losses(NamedTuple):
    """What an objective returns for B pairs."""

    losses: Tensor  # [B]
    chosen_rewards: Tensor  # [B] without gradient
    rejected_rewards: Tensor  # [B] without gradient


@dataclass(frozen=True)
class Sums:
    """What an objective receives for B pairs. Each log-probability is a sum over an answer's trained tokens."""

    chosen_logps: Tensor  # [B] log π(y_w|x)
    rejected_logps: Tensor  # [B] log π(y_l|x)
    chosen_length: Tensor  # [B] |y_w|
    rejected_length: Tensor  # [B] |y_l|
    # Mean |y_w| over the global batch, not over these B pairs. It normalises a mean over all of the batch's tokens. The batch's loss
    # then does not depend on how the batch is split.
    mean_chosen_length: float
    reference_chosen_logps: Tensor | None = None  # [B] log ref(y_w|x)
    reference_rejected_logps: Tensor | None = None  # [B] log ref(y_l|x)
    kl: Tensor | None = None  # [] mean of log π(y'|x) - log ref(y'|x) over the global batch's mismatched pairs, without gradient (KTO)


def named(name: str) -> Callable[..., Losses]:
    """The objective ``name``: a public function here with keyword-only hyperparameters. If there is none, UserError lists them."""
    functions = {key: value for key, value in globals().items() if inspect.isfunction(value) and value.__module__ == __name__}
    known = {key: value for key, value in functions.items() if not key.startswith("_") and value.__code__.co_kwonlyargcount}
    if name not in known:
        raise UserError(f"method.objective={name}: no such objective; stages/preference/objectives.py has {', '.join(known)}")
    return known[name]


def rrhf(sums: Sums, *, nll_weight: float, nll: Literal["sum", "mean", "token_mean"]) -> Losses:
    """Rank Responses to align Human Feedback, arXiv 2304.05302, for two answers.

        max(0, -1/|y_w| log π(y_w|x) + 1/|y_l| log π(y_l|x)) - λ log π(y_w|x)

    The ranking term uses means. λ is ``nll_weight``. ``nll`` normalises the last term (see above). Rewards: 1/|y| log π.
    """
    chosen_rewards, rejected_rewards = sums.chosen_logps / sums.chosen_length, sums.rejected_logps / sums.rejected_length
    losses = torch.relu(rejected_rewards - chosen_rewards) + nll_weight * _nll(sums, nll)
    return Losses(losses, chosen_rewards.detach(), rejected_rewards.detach())


def slic_hf(sums: Sums, *, delta: float, nll_weight: float, nll: Literal["sum", "mean", "token_mean"]) -> Losses:
    """Sequence Likelihood Calibration with Human Feedback, arXiv 2305.10425, regularised with the chosen answer.

        max(0, δ - log π(y_w|x) + log π(y_l|x)) - λ log π(y_w|x)

    The ranking term uses sums. δ is ``delta``, λ is ``nll_weight``. ``nll`` normalises the last term (see above). Rewards: log π.
    """
    losses = torch.relu(delta - sums.chosen_logps + sums.rejected_logps) + nll_weight * _nll(sums, nll)
    return Losses(losses, sums.chosen_logps.detach(), sums.rejected_logps.detach())


def dpo(sums: Sums, *, beta: float, label_smoothing: float) -> Losses:
    """Direct Preference Optimization, arXiv 2305.18290, Eq. 7.

        -log σ(h),   h = β (log π(y_w|x)/ref(y_w|x) - log π(y_l|x)/ref(y_l|x))

    ``label_smoothing`` ε is the share of labels assumed to be flipped. With ε the loss is -(1-ε) log σ(h) - ε log σ(-h), as in the DPO
    authors' code.
    Rewards: β log π/ref.
    """
    chosen_rewards, rejected_rewards = (beta * ratios for ratios in _log_ratios(sums, "dpo"))
    losses = _smoothed(chosen_rewards - rejected_rewards, label_smoothing)
    return Losses(losses, chosen_rewards.detach(), rejected_rewards.detach())


def ipo(sums: Sums, *, tau: float) -> Losses:
    """Identity Preference Optimization, arXiv 2310.12036, Eq. 17.

        (log π(y_w|x)/ref(y_w|x) - log π(y_l|x)/ref(y_l|x) - 1/(2τ))²

    The log-ratios are sums, as printed. TRL divides each by |y| first. τ is ``tau``. The loss pulls the margin to 1/(2τ), from above too.
    Rewards: log π/ref.
    """
    chosen_rewards, rejected_rewards = _log_ratios(sums, "ipo")
    losses = (chosen_rewards - rejected_rewards - 1 / (2 * tau)) ** 2
    return Losses(losses, chosen_rewards.detach(), rejected_rewards.detach())


def cpo(sums: Sums, *, beta: float, nll_weight: float, nll: Literal["sum", "mean", "token_mean"]) -> Losses:
    """Contrastive Preference Optimization, arXiv 2401.08417: DPO with a uniform reference, and behaviour cloning.

        -log σ(β log π(y_w|x) - β log π(y_l|x)) - λ log π(y_w|x)

    The contrastive term uses sums. λ is ``nll_weight``. ``nll`` normalises the last term (see above). Rewards: β log π.
    """
    chosen_rewards, rejected_rewards = beta * sums.chosen_logps, beta * sums.rejected_logps
    losses = -logsigmoid(chosen_rewards - rejected_rewards) + nll_weight * _nll(sums, nll)
    return Losses(losses, chosen_rewards.detach(), rejected_rewards.detach())


def kto(sums: Sums, *, beta: float, chosen_weight: float, rejected_weight: float) -> Losses:
    """Kahneman-Tversky Optimization, arXiv 2402.01306, of a pair split into a desirable and an undesirable answer.

        ½ [λ_w (1 - σ(β Δ_w - z)) + λ_l (1 - σ(z - β Δ_l))],   z = max(0, β kl)

    kl (``Sums.kl``) estimates KL(π || ref) on the batch's prompts with other prompts' answers. It carries no gradient. With the factor ½
    the batch's loss is the mean over its single labels, as in KTO's paper and TRL. λ_w is ``chosen_weight``, λ_l is ``rejected_weight``.
    Table 3 prints -λ_w σ(β Δ_w - z) + λ_l σ(z - β Δ_l). Its second sign is a misprint: minimising that term raises log π(y_l|x).
    Rewards: β log π/ref.
    """
    chosen_rewards, rejected_rewards = (beta * ratios for ratios in _log_ratios(sums, "kto"))
    if sums.kl is None:
        raise UserError("objective kto needs the log-ratios of mismatched pairs; set method.mismatched=true")
    z = (beta * sums.kl).clamp(min=0)
    # 1 - σ(h) = σ(-h), without the cancellation.
    losses = (chosen_weight * torch.sigmoid(z - chosen_rewards) + rejected_weight * torch.sigmoid(rejected_rewards - z)) / 2
    return Losses(losses, chosen_rewards.detach(), rejected_rewards.detach())


def orpo(sums: Sums, *, odds_weight: float) -> Losses:
    """Odds Ratio Preference Optimization, arXiv 2403.07691, Eq. 6 and 7.

        -log p(y_w|x) - λ log σ(log odds(y_w|x) - log odds(y_l|x)),   odds = p / (1 - p),   p = exp(1/|y| log π)

    Both terms use means over the answer's tokens, without the prompt's. λ is ``odds_weight``. Rewards: log odds.
    """
    chosen, rejected = sums.chosen_logps / sums.chosen_length, sums.rejected_logps / sums.rejected_length
    chosen_rewards, rejected_rewards = _log_odds(chosen), _log_odds(rejected)
    losses = -chosen - odds_weight * logsigmoid(chosen_rewards - rejected_rewards)
    return Losses(losses, chosen_rewards.detach(), rejected_rewards.detach())


def rdpo(sums: Sums, *, beta: float, alpha: float) -> Losses:
    """Length-regularised DPO, arXiv 2403.19159.

        -log σ(β Δ_w - β Δ_l + α|y_w| - α|y_l|)

    The preferences follow a reward r, but the policy maximises r - α|y| under DPO's KL constraint. The optimum is
    π ∝ ref exp((r - α|y|)/β). Hence r = β Δ + α|y| + a constant of x. The Bradley-Terry model with this r gives the loss. A longer y_w
    explains a part of the preference by its length, and needs less Δ. ``alpha`` is a reward per token. Rewards: r = β log π/ref + α|y|.
    """
    chosen_ratios, rejected_ratios = _log_ratios(sums, "rdpo")
    # add() keeps the ratios' precision. The product of a number and integers would be float32.
    chosen_rewards = (beta * chosen_ratios).add(sums.chosen_length, alpha=alpha)
    rejected_rewards = (beta * rejected_ratios).add(sums.rejected_length, alpha=alpha)
    losses = -logsigmoid(chosen_rewards - rejected_rewards)
    return Losses(losses, chosen_rewards.detach(), rejected_rewards.detach())


def simpo(
    sums: Sums,
    *,
    beta: float,
    gamma: float,
    length_normalization: bool,
    label_smoothing: float,
    loss_type: Literal["sigmoid", "hinge"],
    sft_weight: float,
) -> Losses:
    """Simple Preference Optimization, arXiv 2405.14734, Eq. 6, with the options of the authors' code (scripts/simpo_trainer.py).

        -log σ(h),   h = β/|y_w| log π(y_w|x) - β/|y_l| log π(y_l|x) - γ

    γ is absolute, as in the paper. The authors' code takes γ/β instead, as ``gamma_beta_ratio``. Without ``length_normalization`` (section
    4.2, Table 5) h = β log π(y_w|x) - β log π(y_l|x) - γ, and the rewards are β log π. ``loss_type`` is ``sigmoid``, with
    ``label_smoothing`` as in ``dpo``, or ``hinge``: max(0, 1 - h). ``sft_weight`` λ adds λ times the chosen answers' cross-entropy, a mean
    over all their tokens (``token_mean``, see above). The authors average over a device's micro-batch. Rewards: β/|y| log π, without γ.
    """
    if loss_type not in ("sigmoid", "hinge"):
        raise UserError(f"method.loss_type={loss_type}: expected sigmoid or hinge")
    if loss_type == "hinge" and label_smoothing:
        raise UserError(f"method.label_smoothing={label_smoothing}: the hinge loss knows none; set it to 0 or method.loss_type=sigmoid")
    chosen_rewards, rejected_rewards = beta * sums.chosen_logps, beta * sums.rejected_logps
    if length_normalization:
        chosen_rewards, rejected_rewards = chosen_rewards / sums.chosen_length, rejected_rewards / sums.rejected_length
    margins = chosen_rewards - rejected_rewards - gamma
    losses = torch.relu(1 - margins) if loss_type == "hinge" else _smoothed(margins, label_smoothing)
    if sft_weight:
        losses = losses + sft_weight * _nll(sums, "token_mean")
    return Losses(losses, chosen_rewards.detach(), rejected_rewards.detach())


def _log_ratios(sums: Sums, objective: str) -> tuple[Tensor, Tensor]:
    """Δ_w and Δ_l, [B] each. UserError if the reference's log-probabilities are missing."""
    if sums.reference_chosen_logps is None or sums.reference_rejected_logps is None:
        raise UserError(f"objective {objective} needs the reference's log-probabilities; set method.reference=cached, or live")
    return sums.chosen_logps - sums.reference_chosen_logps, sums.rejected_logps - sums.reference_rejected_logps


def _nll(sums: Sums, nll: str) -> Tensor:
    """The cross-entropy of the chosen answers, [B], divided as ``nll`` says (see above)."""
    lengths: dict[str, Tensor | float] = {"sum": 1.0, "mean": sums.chosen_length, "token_mean": sums.mean_chosen_length}
    if nll not in lengths:
        raise UserError(f"method.nll={nll}: expected one of {', '.join(lengths)}")
    return -sums.chosen_logps / lengths[nll]


def _log_odds(mean_logps: Tensor) -> Tensor:
    """log(p / (1 - p)) for p = exp(``mean_logps``), [B]. Value and gradient are finite up to p = 1."""
    below_one = mean_logps.clamp(max=-torch.finfo(mean_logps.dtype).tiny)
    return below_one - torch.log(-torch.expm1(below_one))


def _smoothed(margins: Tensor, label_smoothing: float) -> Tensor:
    """-(1-ε) log σ(h) - ε log σ(-h), [B]."""
    losses = -logsigmoid(margins)
    return losses if not label_smoothing else (1 - label_smoothing) * losses - label_smoothing * logsigmoid(-margins)
