"""analysis/theory.py: DPO's lemmas and theorem hold to rounding, each check against an independent computation, and each can fail."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize

from analysis import theory

BETA = np.full((1, 1), 0.7)


@pytest.fixture
def spaces() -> tuple[np.ndarray, np.ndarray]:
    """A reward and a reference, as logarithms, of one prompt and four answers."""
    draws = np.random.default_rng(3)
    return draws.standard_normal((1, 4)), np.log(draws.dirichlet(np.ones(4), 1))


def test_every_statement_holds_to_rounding() -> None:
    found = theory.deviations(instances=50, seed=1)
    assert set(found) == {"preferences", "policy", "representation", "gradient"}
    assert max(found.values()) < 1e-11


def test_bradley_terry_and_plackett_luce_are_the_models_by_name(spaces: tuple[np.ndarray, np.ndarray]) -> None:
    """Products of softmaxes over what is left, order by order; and of two answers alone Plackett-Luce is Bradley-Terry."""
    reward = spaces[0][0]
    expected = []
    for order in permutations(range(4)):
        strengths = np.exp(reward[list(order)])
        expected.append(np.prod([strengths[i] / strengths[i:].sum() for i in range(4)]))
    orders = theory.plackett_luce(reward)
    np.testing.assert_allclose(orders, expected)
    assert orders.sum() == pytest.approx(1)
    two = theory.plackett_luce(reward[:2])
    assert two[0] == pytest.approx(theory.bradley_terry(reward[:2])[0, 1]) == pytest.approx(1 / (1 + np.exp(reward[1] - reward[0])))


def test_preferences_tell_rewards_apart_that_differ_by_more_than_the_prompt(spaces: tuple[np.ndarray, np.ndarray]) -> None:
    reward, _ = spaces
    other = reward + np.array([0.01, 0, 0, 0])
    assert np.abs(theory.bradley_terry(reward) - theory.bradley_terry(other)).max() > 1e-4
    assert np.abs(theory.plackett_luce(reward) - theory.plackett_luce(other)).max() > 1e-4


def test_the_optimum_is_the_one_a_minimiser_finds(spaces: tuple[np.ndarray, np.ndarray]) -> None:
    reward, reference = spaces

    def loss(logits: np.ndarray) -> float:
        return -float(theory.objective((logits - theory.log_sum(logits))[None], reward, reference, BETA)[0])

    found = minimize(loss, np.zeros(4), tol=1e-12).x
    policy = theory.optimal(reward, reference, BETA)
    np.testing.assert_allclose(np.exp(found - theory.log_sum(found)), np.exp(policy[0]), atol=1e-5)
    nudged = policy + np.array([0.01, 0, 0, 0])
    nudged -= theory.log_sum(nudged)
    assert loss(nudged[0]) > loss(policy[0]) + 1e-6


def test_the_objective_and_the_divergence_are_plain_sums(spaces: tuple[np.ndarray, np.ndarray]) -> None:
    reward, reference = spaces
    policy = np.array([0.1, 0.2, 0.3, 0.4])
    divergence = sum(p * np.log(p / q) for p, q in zip(policy, np.exp(reference[0]), strict=True))
    assert theory.divergence(np.log(policy)[None], reference)[0] == pytest.approx(divergence)
    assert theory.objective(np.log(policy)[None], reward, reference, BETA)[0] == pytest.approx(policy @ reward[0] - 0.7 * divergence)


def test_a_class_has_one_representative_and_another_class_another(spaces: tuple[np.ndarray, np.ndarray]) -> None:
    reward, reference = spaces
    own = theory.representative(reward, reference, BETA)
    assert (np.exp(reference + own / BETA)).sum() == pytest.approx(1)  # β log π/π_ref of a policy, Proposition 1
    np.testing.assert_allclose(own, theory.representative(reward - 5, reference, BETA))
    assert np.abs(own - theory.representative(reward + np.arange(4), reference, BETA)).max() > 0.1


def test_the_gradient_is_that_of_the_expected_loss_and_vanishes_at_the_optimum_alone(spaces: tuple[np.ndarray, np.ndarray]) -> None:
    reward, reference = spaces

    def loss(logits: np.ndarray) -> float:
        implicit = 0.7 * (logits - theory.log_sum(logits) - reference[0])
        pairs = ((a, b) for a in range(4) for b in range(4) if a != b)
        strengths = np.exp(reward[0])
        return sum(strengths[a] / (strengths[a] + strengths[b]) * np.log1p(np.exp(implicit[b] - implicit[a])) for a, b in pairs)

    policy = theory.optimal(reward, reference, BETA)
    nudged = policy + np.array([0.3, -0.1, 0, 0])
    nudged -= theory.log_sum(nudged)
    slope = theory.gradient(nudged, reward, reference, BETA)
    np.testing.assert_allclose(slope[0], approx_fprime(nudged[0], loss, 1e-7), atol=1e-5)
    assert np.abs(slope).max() > 0.01
    assert np.abs(theory.gradient(policy, reward, reference, BETA)).max() < 1e-14
