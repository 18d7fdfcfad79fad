"""stages/preference: objectives and log-probabilities against the papers' formulas and TRL, in float64, losses and gradients."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import batch_parts, double, engine_loss, llama, pairs, tokenizer
from torch import Tensor

from stages.lib.errors import UserError
from stages.plan.schema import objective_kinds
from stages.preference.data import Pair, tokenize_rows
from stages.preference.objectives import Sums, dpo, simpo

RELATIVE = 1e-10
PLAIN = {"beta": 2.0, "gamma": 1.2, "length_normalization": True, "label_smoothing": 0.0, "loss_type": "sigmoid", "sft_weight": 0.0}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return double(llama())


@pytest.fixture(scope="module")
def rows() -> list[Pair]:
    return tokenize_rows(pairs(7), tokenizer(), "pairs", max_length=200, max_prompt_length=100, empty_system=False).pairs


def gradients(model: torch.nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def check_equal(model: torch.nn.Module, loss: Tensor, expected: Tensor) -> None:
    assert loss.dtype == expected.dtype == torch.float64
    assert loss.item() == pytest.approx(expected.item(), rel=RELATIVE)
    for (name, _), got, want in zip(model.named_parameters(), gradients(model, loss), gradients(model, expected), strict=True):
        assert (got - want).norm() <= RELATIVE * want.norm(), name


def written_simpo(
    sums: list[Tensor], lengths: list[int], beta: float, gamma: float, normalised: bool, eps: float, loss_type: str, sft: float
) -> Tensor:
    """SimPO's Eq. 6, its ablation and the authors' options, a pair at a time; the SFT term as one mean over all chosen tokens."""
    n = len(sums) // 2
    losses = []
    for index in range(n):
        chosen, rejected = (lengths[index], lengths[n + index]) if normalised else (1, 1)
        h = beta / chosen * sums[index] - beta / rejected * sums[n + index] - gamma
        if loss_type == "hinge":
            losses.append(torch.clamp(1 - h, min=0))
        else:
            losses.append(-(1 - eps) * torch.log(torch.sigmoid(h)) - eps * torch.log(torch.sigmoid(-h)))
    return torch.stack(losses).mean() - sft * torch.stack(sums[:n]).sum() / sum(lengths[:n])


@pytest.mark.parametrize(
    "changes",
    [{}, {"gamma": 0.0}, {"length_normalization": False}, {"label_smoothing": 0.1}, {"loss_type": "hinge"}, {"sft_weight": 0.3}],
    ids=["plain", "no margin", "no length normalisation", "smoothed", "hinge", "sft"],
)
@pytest.mark.slow
def test_simpo_is_the_papers_formula_with_its_gradient(model: Any, rows: list[Pair], changes: dict[str, Any]) -> None:
    """objectives.simpo and logps.response_logps: Eq. 6 on unpadded forwards, within 1e-10, for each of the authors' options."""
    values = PLAIN | changes
    sums, lengths = batch_parts(model, rows)
    expected = written_simpo(sums, lengths, *values.values())
    check_equal(model, engine_loss(model, rows, partial(simpo, **values)), expected)


@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_dpo_is_the_papers_formula_with_its_gradient(model: Any, rows: list[Pair], eps: float) -> None:
    """objectives.dpo: Eq. 7 on unpadded forwards of each sequence with another model as the reference, within 1e-10."""
    n = len(rows)
    with torch.no_grad():
        reference, _ = batch_parts(double(llama(seed=1)), rows)
    sums, _ = batch_parts(model, rows)
    h = torch.stack([0.1 * ((sums[i] - reference[i]) - (sums[n + i] - reference[n + i])) for i in range(n)])
    expected = (-(1 - eps) * torch.log(torch.sigmoid(h)) - eps * torch.log(torch.sigmoid(-h))).mean()
    cached = [(reference[i].item(), reference[n + i].item()) for i in range(n)]
    check_equal(model, engine_loss(model, rows, partial(dpo, beta=0.1, label_smoothing=eps), cached), expected)


def test_dpo_starts_at_ln_2(model: Any, rows: list[Pair]) -> None:
    """objectives.dpo: with the policy as its own reference every pair's loss is ln 2, and no reward differs from 0."""
    with torch.no_grad():
        sums, _ = batch_parts(model, rows)
        loss = engine_loss(
            model, rows, partial(dpo, beta=0.1, label_smoothing=0.0), [(sums[i].item(), sums[7 + i].item()) for i in range(7)]
        )
    assert loss.item() == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize("loss_type", ["simpo", "hinge"])
def test_simpo_is_trls(model: Any, rows: list[Pair], loss_type: str) -> None:
    """objectives.simpo against TRL's CPOTrainer: its log-probabilities from padded logits and its loss, in float64, gradients included."""
    from trl.experimental.cpo import CPOTrainer

    beta, gamma = 2.5, 1.0
    n, width = len(rows), max(len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"])) for row in rows)
    ids, labels = torch.zeros(2 * n, width, dtype=torch.long), torch.full((2 * n, width), -100)
    for index, (row, side) in enumerate([(row, side) for side in ("chosen", "rejected") for row in rows]):
        tokens, start = torch.tensor(row["prompt"] + row[side]), len(row["prompt"])
        ids[index, : len(tokens)] = tokens
        labels[index, start : len(tokens)] = tokens[start:]
    averages = CPOTrainer.get_batch_logps(model(input_ids=ids).logits, labels, average_log_prob=True)
    settings = {"alpha": 0.0, "beta": beta, "simpo_gamma": gamma, "loss_type": loss_type, "label_smoothing": 0.0}
    trainer = SimpleNamespace(**settings, accelerator=SimpleNamespace(device="cpu"))
    # TRL's hinge knows no margin; the authors' subtracts it first.
    chosen = averages[:n] - (gamma / beta if loss_type == "hinge" else 0.0)
    theirs = CPOTrainer.cpo_loss(trainer, chosen, averages[n:])[0].mean()
    values = PLAIN | {"beta": beta, "gamma": gamma, "loss_type": "hinge" if loss_type == "hinge" else "sigmoid"}
    check_equal(model, engine_loss(model, rows, partial(simpo, **values)), theirs)


def test_rewards_are_logged_without_margin_and_without_gradient() -> None:
    """objectives: SimPO's reward is β times the average log-probability, DPO's β times the log-ratio; neither carries a gradient."""
    chosen, rejected = torch.tensor([-6.0], requires_grad=True), torch.tensor([-8.0], requires_grad=True)
    sums = Sums(chosen, rejected, torch.tensor([3]), torch.tensor([4]), 3.0, torch.tensor([-7.0]), torch.tensor([-5.0]))
    by_simpo, by_dpo = simpo(sums, **PLAIN), dpo(sums, beta=0.5, label_smoothing=0.0)
    simpo_rewards = by_simpo.chosen_rewards, by_simpo.rejected_rewards
    dpo_rewards = by_dpo.chosen_rewards, by_dpo.rejected_rewards
    assert [reward.item() for reward in simpo_rewards] == [-4.0, -4.0]
    assert [reward.item() for reward in dpo_rewards] == [0.5, -1.5]
    assert not any(reward.requires_grad for reward in (*simpo_rewards, *dpo_rewards))


def test_planning_knows_the_words_that_an_objective_takes() -> None:
    """objectives: ``loss_type`` and ``nll`` are annotated with their words, which stages/plan/schema.py refuses others by."""
    assert objective_kinds("simpo")["loss_type"].choices == ("sigmoid", "hinge")
    for name in ("rrhf", "slic_hf", "cpo"):
        assert objective_kinds(name)["nll"].choices == ("sum", "mean", "token_mean")


def test_options_that_contradict_each_other_are_errors() -> None:
    """objectives: an unknown loss type, smoothing under hinge and DPO without a reference name the key to change."""
    one = torch.tensor([-1.0])
    sums = Sums(one, one, one, one, 1.0)
    with pytest.raises(UserError, match="method.loss_type=ipo"):
        simpo(sums, **PLAIN | {"loss_type": "ipo"})
    with pytest.raises(UserError, match="method.label_smoothing=0.1"):
        simpo(sums, **PLAIN | {"loss_type": "hinge", "label_smoothing": 0.1})
    with pytest.raises(UserError, match="method.reference=cached"):
        dpo(sums, beta=0.1, label_smoothing=0.0)
