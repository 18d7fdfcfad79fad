"""stages/preference/objectives.py: each objective of the paper against its equation in plain arithmetic and against TRL, in float64."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from inspect import getfullargspec
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from tiny import batch_parts, llama
from torch import Tensor

from stages.lib.errors import UserError
from stages.plan.compose import CONF, compose_raw
from stages.plan.schema import Method, objective_kinds
from stages.preference import objectives
from stages.preference.objectives import Sums, cpo, dpo, ipo, kto, named, orpo, rdpo, rrhf, simpo, slic_hf

RELATIVE = 1e-10
KL = 0.7


def random_sums(n: int = 40, seed: int = 0, kl: float | None = KL) -> Sums:
    """n pairs in float64: answers of 3 to 40 tokens, each side better in about half of the pairs, the reference a few nats away."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 41, (2, n), generator=draw)
    chosen, rejected = -lengths * (0.2 + 2 * torch.rand(2, n, generator=draw, dtype=torch.float64))
    references = torch.stack([chosen, rejected]) + 3 * torch.randn(2, n, generator=draw, dtype=torch.float64)
    mean = lengths[0].double().mean().item() + 1.5  # the global batch is more than these pairs
    estimate = None if kl is None else torch.tensor(kl, dtype=torch.float64)
    return Sums(chosen.requires_grad_(), rejected.requires_grad_(), *lengths, mean, *references, estimate)


# -- the equations in plain arithmetic ------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """Log-probabilities of the chosen (w) and the rejected (l) answer under policy and reference, their lengths, the batch's mean |y_w|."""

    w: complex
    l: complex  # noqa: E741
    n_w: int
    n_l: int
    ref_w: float
    ref_l: float
    mean: float


def sigmoid(h: complex) -> complex:
    return 1 / (1 + cmath.exp(-h))


def hinge(h: complex) -> complex:
    return h if h.real > 0 else 0j


def nll_of(p: Pair, nll: str) -> complex:
    return {"sum": -p.w, "mean": -p.w / p.n_w, "token_mean": -p.w / p.mean}[nll]


def odds(mean: complex) -> complex:
    return cmath.exp(mean) / (1 - cmath.exp(mean))


Written = tuple[complex, complex, complex]  # the loss, and both answers' rewards


def written_rrhf(p: Pair, nll_weight: float, nll: str) -> Written:
    return hinge(-p.w / p.n_w + p.l / p.n_l) + nll_weight * nll_of(p, nll), p.w / p.n_w, p.l / p.n_l


def written_slic_hf(p: Pair, delta: float, nll_weight: float, nll: str) -> Written:
    return hinge(delta - p.w + p.l) + nll_weight * nll_of(p, nll), p.w, p.l


def written_ipo(p: Pair, tau: float) -> Written:
    return ((p.w - p.ref_w) - (p.l - p.ref_l) - 1 / (2 * tau)) ** 2, p.w - p.ref_w, p.l - p.ref_l


def written_cpo(p: Pair, beta: float, nll_weight: float, nll: str) -> Written:
    return -cmath.log(sigmoid(beta * p.w - beta * p.l)) + nll_weight * nll_of(p, nll), beta * p.w, beta * p.l


def written_kto(p: Pair, beta: float, chosen_weight: float, rejected_weight: float, kl: float = KL) -> Written:
    reward_w, reward_l, z = beta * (p.w - p.ref_w), beta * (p.l - p.ref_l), max(0.0, beta * kl)
    labels = [chosen_weight * (1 - sigmoid(reward_w - z)), rejected_weight * (1 - sigmoid(z - reward_l))]
    return sum(labels) / len(labels), reward_w, reward_l


def written_orpo(p: Pair, odds_weight: float) -> Written:
    log_odds_w, log_odds_l = cmath.log(odds(p.w / p.n_w)), cmath.log(odds(p.l / p.n_l))
    return -p.w / p.n_w - odds_weight * cmath.log(sigmoid(log_odds_w - log_odds_l)), log_odds_w, log_odds_l


def written_rdpo(p: Pair, beta: float, alpha: float) -> Written:
    margin = beta * (p.w - p.ref_w) - beta * (p.l - p.ref_l) + alpha * (p.n_w - p.n_l)
    return -cmath.log(sigmoid(margin)), beta * (p.w - p.ref_w) + alpha * p.n_w, beta * (p.l - p.ref_l) + alpha * p.n_l


def derivative(loss: Callable[[complex], complex], at: float) -> float:
    """By a complex step, exact to float64's last digits: no difference of two near values is taken."""
    return loss(at + 1e-200j).imag / 1e-200


CASES: list[tuple[Any, Any, dict[str, Any]]] = [
    *[(rrhf, written_rrhf, {"nll_weight": 0.3, "nll": nll}) for nll in ("sum", "mean", "token_mean")],
    *[(slic_hf, written_slic_hf, {"delta": 1.5, "nll_weight": 0.3, "nll": nll}) for nll in ("sum", "mean", "token_mean")],
    (ipo, written_ipo, {"tau": 0.2}),
    *[(cpo, written_cpo, {"beta": 0.1, "nll_weight": 0.7, "nll": nll}) for nll in ("sum", "mean", "token_mean")],
    (kto, written_kto, {"beta": 0.3, "chosen_weight": 1.0, "rejected_weight": 1.3}),
    (orpo, written_orpo, {"odds_weight": 0.5}),
    (rdpo, written_rdpo, {"beta": 0.1, "alpha": 0.05}),
]


@pytest.mark.parametrize(("objective", "written", "values"), CASES, ids=[f"{c[0].__name__} {c[2].get('nll', '')}".strip() for c in CASES])
def test_an_objective_is_its_equation_with_its_gradient(objective: Any, written: Any, values: dict[str, Any]) -> None:
    """Losses, rewards and both gradients of each pair within 1e-10 of the equation; pairs on both sides of each hinge."""
    sums = random_sums()
    losses, *rewards = objective(sums, **values)
    gradients = torch.autograd.grad(losses.sum(), (sums.chosen_logps, sums.rejected_logps), materialize_grads=True)
    assert losses.dtype == torch.float64 and not any(reward.requires_grad for reward in rewards)
    assert 5 < (rewards[0] > rewards[1]).sum() < 35
    per_pair = (sums.chosen_logps, sums.rejected_logps, sums.chosen_length, sums.rejected_length)
    references = (sums.reference_chosen_logps, sums.reference_rejected_logps)
    columns = [column.tolist() for column in (*per_pair, *references)]
    for index, row in enumerate(zip(*columns, strict=True)):
        pair = Pair(*row, sums.mean_chosen_length)
        got = [losses[index], *(reward[index] for reward in rewards), *(gradient[index] for gradient in gradients)]
        want = [value.real for value in written(pair, **values)]
        want.append(derivative(lambda w, pair=pair: written(pair._replace(w=w), **values)[0], pair.w.real))
        want.append(derivative(lambda l, pair=pair: written(pair._replace(l=l), **values)[0], pair.l.real))  # noqa: E741
        assert [value.item() for value in got] == pytest.approx(want, rel=RELATIVE, abs=1e-14)


# -- TRL ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cpo_is_trls() -> None:
    """cpo with ``token_mean``: TRL's CPOTrainer, its padded forward, its loss and its cross-entropy, gradients of all weights included."""
    from trl.experimental.cpo import CPOTrainer

    model: Any = llama().double()
    draw = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(6):
        n = torch.randint(2, 14, (3,), generator=draw).tolist()
        texts = [torch.randint(3, 64, (length,), generator=draw).tolist() for length in n]
        rows.append(dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)))

    sums, lengths = batch_parts(model, rows)
    stacked, counts = torch.stack(sums), torch.tensor(lengths)
    values = {"beta": 0.2, "nll_weight": 0.7, "nll": "token_mean"}
    losses, *rewards = cpo(Sums(stacked[:6], stacked[6:], counts[:6], counts[6:], sum(lengths[:6]) / 6), **values)

    batch: dict[str, Tensor] = {}
    for side in ("chosen", "rejected"):
        width = max(len(row["prompt"] + row[side]) for row in rows)
        ids, labels = torch.zeros(6, width, dtype=torch.long), torch.full((6, width), -100)
        for index, row in enumerate(rows):
            tokens, start = torch.tensor(row["prompt"] + row[side]), len(row["prompt"])
            ids[index, : len(tokens)] = tokens
            labels[index, start : len(tokens)] = tokens[start:]
        batch |= {f"{side}_input_ids": ids, f"{side}_attention_mask": (ids > 0).long(), f"{side}_labels": labels}
    trainer = SimpleNamespace(
        **{"beta": values["beta"], "cpo_alpha": values["nll_weight"], "alpha": 0.0, "loss_type": "sigmoid", "label_smoothing": 0.0},
        **{"accelerator": SimpleNamespace(device="cpu"), "is_encoder_decoder": False, "pad_token_id": 0, "aux_loss_enabled": False},
        **{name: getattr(CPOTrainer, name) for name in ("concatenated_inputs", "get_batch_logps")},
    )
    chosen, rejected, *_, nll = CPOTrainer.concatenated_forward(trainer, model, batch)
    their_losses, *their_rewards = CPOTrainer.cpo_loss(trainer, chosen, rejected)

    loss, theirs = losses.mean(), their_losses.mean() + trainer.cpo_alpha * nll
    assert loss.item() == pytest.approx(theirs.item(), rel=RELATIVE)
    for got, want in zip(rewards, their_rewards, strict=True):
        assert torch.allclose(got, want, rtol=RELATIVE, atol=0)
    weights = list(model.parameters())
    for got, want in zip(torch.autograd.grad(loss, weights), torch.autograd.grad(theirs, weights), strict=True):
        assert (got - want).norm() <= RELATIVE * want.norm()


def test_orpos_odds_ratio_is_trls(monkeypatch: pytest.MonkeyPatch) -> None:
    """orpo less its cross-entropy: TRL's odds_ratio_loss and its gradient, from nearly certain to hopeless answers."""
    from trl.experimental.orpo import ORPOTrainer

    monkeypatch.setattr(Tensor, "float", lambda tensor: tensor)  # TRL rounds to float32 first
    means = torch.tensor([-1e-6, -1e-3, -0.1, -0.69, -0.7, -2.0, -9.0, -30.0], dtype=torch.float64)
    chosen, rejected = (mean.flatten().requires_grad_() for mean in torch.meshgrid(means, means, indexing="ij"))
    length = torch.full_like(chosen, 8)
    losses = orpo(Sums(8 * chosen, 8 * rejected, length, length, 8.0), odds_weight=0.25)[0] + chosen
    trainer = SimpleNamespace(beta=0.25, accelerator=SimpleNamespace(device="cpu"))
    theirs = -ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0]
    assert torch.allclose(losses, theirs, rtol=RELATIVE, atol=1e-14)
    for got, want in zip(*(torch.autograd.grad(value.sum(), (chosen, rejected)) for value in (losses, theirs)), strict=True):
        assert torch.allclose(got, want, rtol=RELATIVE, atol=1e-14)


# -- properties -----------------------------------------------------------------------------------------------------------


def one_pair(**changes: Any) -> Sums:
    """A pair that no objective is content with: the chosen answer is the less likely one, in sum and mean, and the reference is even."""
    values = {"chosen_logps": -12.0, "rejected_logps": -8.0, "reference_chosen_logps": -10.0, "reference_rejected_logps": -10.0, "kl": KL}
    tensors = {key: torch.tensor([value] if key != "kl" else value, dtype=torch.float64) for key, value in (values | changes).items()}
    for key in ("chosen_logps", "rejected_logps"):
        tensors[key].requires_grad_()
    return Sums(chosen_length=torch.tensor([5]), rejected_length=torch.tensor([5]), mean_chosen_length=5.0, **tensors)


def gradient(objective: Callable[[Sums], Any], sums: Sums) -> list[float]:
    found = torch.autograd.grad(objective(sums)[0].sum(), (sums.chosen_logps, sums.rejected_logps))
    return [value.item() for value in found]


SIMPO = {"beta": 2.0, "gamma": 1.2, "length_normalization": True, "label_smoothing": 0.0, "loss_type": "sigmoid", "sft_weight": 0.0}
EACH: dict[str, Callable[[Sums], Any]] = {objective.__name__: partial(objective, **values) for objective, _, values in CASES}
EACH |= {"dpo": partial(dpo, beta=0.1, label_smoothing=0.0), "simpo": partial(simpo, **SIMPO)}


@pytest.mark.parametrize("name", EACH)
def test_a_step_raises_the_chosen_and_lowers_the_rejected_answer(name: str) -> None:
    """Every objective; KTO as SimPO's Table 3 prints it would raise both."""
    chosen, rejected = gradient(EACH[name], one_pair())
    assert chosen < 0 < rejected


def test_ktos_point_of_reference_is_never_below_zero() -> None:
    """kto: a negative estimate of the divergence counts as none; a positive one makes chosen answers dearer, rejected ones cheaper."""
    loss = {kl: partial(kto, beta=0.3, chosen_weight=1.0, rejected_weight=1.0)(one_pair(kl=kl))[0].item() for kl in (-3.0, 0.0)}
    assert loss[-3.0] == loss[0.0]
    for weights, sign in (((1.0, 0.0), 1), ((0.0, 1.0), -1)):
        none, some = (kto(one_pair(kl=kl), beta=0.3, chosen_weight=weights[0], rejected_weight=weights[1])[0].item() for kl in (0.0, 3.0))
        assert (some - none) * sign > 0


def test_ipo_wants_one_margin_and_no_more() -> None:
    """ipo: nothing to gain at a margin of 1/(2τ); beyond it the gradient turns."""
    below, at, above = (gradient(partial(ipo, tau=0.25), one_pair(chosen_logps=-10.0 + m, rejected_logps=-10.0)) for m in (1.5, 2.0, 2.5))
    assert at == [0.0, 0.0]
    assert below == [-1.0, 1.0] and above == [1.0, -1.0]


def test_rdpo_asks_less_of_a_longer_winner() -> None:
    """rdpo: with equal lengths it is DPO; the longer the chosen answer, the smaller loss and gradient; its reward pays for length."""
    pair = one_pair()
    objective = partial(rdpo, beta=0.1, alpha=0.05)
    assert objective(pair)[0].item() == dpo(pair, beta=0.1, label_smoothing=0.0)[0].item()
    longer, shorter = (replace(pair, chosen_length=torch.tensor([length])) for length in (25, 3))
    losses = [objective(sums)[0].item() for sums in (longer, pair, shorter)]
    pulls = [-gradient(objective, sums)[0] for sums in (longer, pair, shorter)]
    assert losses == sorted(losses) and pulls == sorted(pulls) and losses[0] < losses[2] and pulls[0] < pulls[2]
    # α = 0.05 a token: 20 tokens more are worth 1, which at β = 0.1 is 10 nats of Δ.
    assert losses[0] == pytest.approx(objective(one_pair(chosen_logps=-2.0))[0].item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_orpo_is_finite_for_certain_and_for_hopeless_answers(dtype: torch.dtype, side: str) -> None:
    """orpo: loss, rewards and gradients where p is 1, rounds to 1 or rounds to 0."""
    for mean in (0.0, -1e-9, -50.0):
        means = {"chosen": torch.tensor([-1.0], dtype=dtype), "rejected": torch.tensor([-1.0], dtype=dtype)}
        means[side] = torch.tensor([mean], dtype=dtype)
        for value in means.values():
            value.requires_grad_()
        one = torch.ones(1, dtype=dtype)
        losses, *rewards = orpo(Sums(means["chosen"], means["rejected"], one, one, 1.0), odds_weight=1.0)
        found = [losses, *rewards, *torch.autograd.grad(losses.sum(), list(means.values()))]
        assert all(bool(value.isfinite().all()) for value in found), (mean, found)
        if mean == -1e-9:
            assert rewards[["chosen", "rejected"].index(side)].item() == pytest.approx(-math.log(1e-9), rel=1e-6)


# -- by name, and conf/method ---------------------------------------------------------------------------------------------


def test_an_objective_is_found_by_its_name() -> None:
    """named: each objective's own function, and an error with the known ones for anything else that the module holds."""
    assert all(named(name) is getattr(objectives, name) for name in EACH)
    for name in ("simppo", "named", "_nll", "Sums", "dataclass", "logsigmoid"):
        with pytest.raises(UserError, match=rf"method.objective={name}: .* rrhf, slic_hf, dpo, ipo, cpo, kto, orpo, rdpo, simpo$"):
            named(name)


def test_what_an_objective_lacks_is_an_error_that_names_the_key() -> None:
    """Objectives with a reference without it, KTO without mismatched pairs, and an unknown normalisation."""
    for name in ("dpo", "ipo", "kto", "rdpo"):
        with pytest.raises(UserError, match=f"objective {name} needs the reference's log-probabilities; set method.reference=cached"):
            EACH[name](replace(one_pair(), reference_chosen_logps=None))
    with pytest.raises(UserError, match=r"objective kto .*set method.mismatched=true"):
        EACH["kto"](replace(one_pair(), kl=None))
    for objective in (partial(rrhf, nll_weight=1.0), partial(slic_hf, delta=1.0, nll_weight=1.0), partial(cpo, beta=1.0, nll_weight=1.0)):
        with pytest.raises(UserError, match="method.nll=tokens: expected one of sum, mean, token_mean"):
            objective(one_pair(), nll="tokens")


def needs(name: str, **without: None) -> bool:
    """Whether an objective refuses a pair that lacks this."""
    try:
        EACH[name](replace(one_pair(), **without))
    except ValueError:
        return True
    return False


@pytest.mark.slow
def test_conf_method_gives_each_objective_its_hyperparameters() -> None:
    """conf/method: a file's further keys are its function's keyword-only parameters, which have no defaults; every function has a file."""
    used = set()
    for path in sorted((CONF / "method").glob("*.yaml")):
        method = compose_raw(f"method/{path.stem}").method
        if method.objective is None:
            continue
        used.add(method.objective)
        arguments = getfullargspec(named(method.objective))
        assert sorted(set(method) - {f.name for f in fields(Method)}) == sorted(arguments.kwonlyargs), path.name
        assert not arguments.kwonlydefaults and tuple(objective_kinds(method.objective)) == tuple(arguments.kwonlyargs)
        # What costs forwards is computed for the objectives that need it, and for no other.
        assert (method.reference == "cached") == needs(method.objective, reference_chosen_logps=None), path.name
        assert method.get("mismatched", False) == needs(method.objective, kl=None), path.name
    assert used == set(EACH)
