"""DPO's lemmas and theorem (arXiv 2305.18290, section 5.1), checked in float64 on spaces that are small enough to enumerate.

    python -m analysis.theory

A reward r(x, y), a reference π_ref(y|x) and a function f(x) of the prompt are drawn at random; |X| prompts have |Y| answers each.
Arrays are (…, |X|, |Y|). Policies and references are logarithms. ``deviations`` measures how far these statements fail:

    preferences      Lemma 1: r and r + f give the same Bradley-Terry and Plackett-Luce preferences
    policy           Eq. 4 and Lemma 2: π_r(y|x) ∝ π_ref exp(r/β) maximises E[r] - β KL(π‖π_ref), because any π is worse than it by
                     β KL(π‖π_r); r + f has the same π_r
    representation   Theorem 1 and Proposition 1: β log π_r/π_ref is in r's class, is the same for the whole class, and is its own image
    gradient         Eq. 7: if r gives the preferences, the expected loss has no gradient at π_r

In: nothing. Out: the largest deviation of each statement over all instances, printed. Rounding leaves some 1e-13.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
INSTANCES, PROMPTS, ANSWERS, SEED = 500, 3, 4, 0
BETAS = (0.05, 5.0)  # with rewards of scale 1 to 3: from almost deterministic policies to ones that hardly leave the reference


def log_sum(values: Array) -> Array:
    """log Σ_y exp over the last axis, which keeps length 1."""
    top = values.max(axis=-1, keepdims=True)
    summed: Array = top + np.log(np.exp(values - top).sum(axis=-1, keepdims=True))
    return summed


def bradley_terry(reward: Array) -> Array:
    """p(y ≻ y') = σ(r(y) - r(y')), (…, |Y|, |Y|)."""
    p: Array = 1 / (1 + np.exp(reward[..., None, :] - reward[..., :, None]))
    return p


def plackett_luce(reward: Array) -> Array:
    """The probability of each order of the answers, (…, |Y|!): at each place a softmax over the answers that are left."""
    orders = [reward[..., list(order)] for order in permutations(range(reward.shape[-1]))]
    logs = [sum(part[..., i] - log_sum(part[..., i:])[..., 0] for i in range(part.shape[-1])) for part in orders]
    return np.exp(np.stack(logs, axis=-1))


def optimal(reward: Array, reference: Array, beta: Array) -> Array:
    """log π_r (Eq. 4)."""
    weighted = reference + reward / beta
    return weighted - log_sum(weighted)


def divergence(policy: Array, reference: Array) -> Array:
    """KL(π‖π_ref) of each prompt, (…, |X|)."""
    kl: Array = (np.exp(policy) * (policy - reference)).sum(axis=-1)
    return kl


def objective(policy: Array, reward: Array, reference: Array, beta: Array) -> Array:
    """E[r] - β KL(π‖π_ref) of each prompt, (…, |X|) (Eq. 3)."""
    value: Array = (np.exp(policy) * reward).sum(axis=-1) - beta[..., 0] * divergence(policy, reference)
    return value


def representative(reward: Array, reference: Array, beta: Array) -> Array:
    """r - β log Σ_y π_ref exp(r/β), the member of r's class that is β log π/π_ref of a policy (App. A.6)."""
    return reward - beta * log_sum(reference + reward / beta)


def gradient(policy: Array, reward: Array, reference: Array, beta: Array) -> Array:
    """The gradient of the expected loss by the policy's logits, (…, |X|, |Y|).

    The loss is -Σ_{y,y'} p(y ≻ y') log σ(r̂(y) - r̂(y')), r̂ = β log π/π_ref (Eq. 7). All pairs have the same weight, and the reward gives
    their preferences.
    """
    implicit = beta * (policy - reference)
    preferred = bradley_terry(reward)
    pull = preferred * np.swapaxes(bradley_terry(implicit), -1, -2)  # p(y ≻ y') σ(r̂(y') - r̂(y)): up y, down y'
    slope: Array = -beta * (pull.sum(axis=-1) - pull.sum(axis=-2))
    return slope


@cache
def deviations(instances: int = INSTANCES, seed: int = SEED) -> dict[str, float]:
    """The largest absolute deviation of each statement over ``instances`` random spaces."""
    draws = np.random.default_rng(seed)
    shape = (instances, PROMPTS, ANSWERS)
    reward = draws.uniform(1, 3, (instances, 1, 1)) * draws.standard_normal(shape)
    shifted = reward + 3 * draws.standard_normal((*shape[:2], 1))
    reference, other = (np.log(draws.dirichlet(np.ones(ANSWERS), shape[:2])) for _ in range(2))
    beta = np.exp(draws.uniform(np.log(BETAS[0]), np.log(BETAS[1]), (instances, 1, 1)))

    policy, own = optimal(reward, reference, beta), representative(reward, reference, beta)
    short = objective(policy, reward, reference, beta) - objective(other, reward, reference, beta)
    offset = reward - own
    gaps = {
        "preferences": [bradley_terry(reward) - bradley_terry(shifted), plackett_luce(reward) - plackett_luce(shifted)],
        "policy": [short - beta[..., 0] * divergence(other, policy), np.exp(policy) - np.exp(optimal(shifted, reference, beta))],
        "representation": [
            own - beta * (policy - reference),
            offset - offset.mean(axis=-1, keepdims=True),
            own - representative(shifted, reference, beta),
            own - representative(own, reference, beta),
        ],
        "gradient": [gradient(policy, reward, reference, beta)],
    }
    return {name: max(float(np.abs(gap).max()) for gap in parts) for name, parts in gaps.items()}


if __name__ == "__main__":
    for name, deviation in deviations().items():
        print(f"{name}: {deviation:.1e} at most, in {INSTANCES} instances of {PROMPTS} prompts and {ANSWERS} answers")
