"""analysis/stats.py: the kinds of intervals, against scipy and by hand. Spearman's ρ and the bootstrap are in test_scorecard.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analysis.stats import Measured, Noise, expected, over_chains, over_questions, p_of_zero, pooled, widened


def test_over_questions_reaches_z_standard_errors() -> None:
    assert over_questions(10, 2, 1.5) == (7, 13)


def test_over_chains_is_student_s_t_and_of_one_chain_nothing() -> None:
    values = [3.0, 5.0, 4.5]
    assert over_chains(values, 0.9)[1:] == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval(0.9)))
    middle, low, high = over_chains([3.0])
    assert middle == 3 and math.isnan(low) and math.isnan(high)


def test_pooled_is_the_mean_variance_of_methods_with_as_many_chains() -> None:
    every = np.random.default_rng(0).normal(0, 3, (4, 3))
    noise = pooled(every + np.array([[0], [100], [5], [9]]))
    assert noise is not None and noise.df == 2
    assert noise.s == pytest.approx(np.sqrt(every.var(axis=1, ddof=1).mean()))
    assert pooled([[1, 3, math.nan], [7, math.nan]]) == Noise(math.sqrt(2), 1)
    assert pooled([[1], []]) is None


def test_another_chain_lies_within_the_expected_interval_as_often_as_it_says() -> None:
    """Chains from a normal distribution: the first is ours, three tell the noise, the last is another's. Its methods move together."""
    draws, inside = np.random.default_rng(1), 0
    for chains in draws.normal(20, 2, (2000, 4)):
        noise = pooled(chains[:3] + shift for shift in (0, 5, 9))
        assert noise is not None
        low, high = expected(chains[0], noise, 0.9)
        inside += low <= chains[3] <= high
    assert 0.87 < inside / 2000 < 0.93


def test_noise_of_several_figures_at_once_reaches_further() -> None:
    assert Noise(2, 8).reach(0.95) == pytest.approx(2 * stats.t.ppf(0.975, 8))
    assert Noise(2, 8).reach(0.95, of=5) == pytest.approx(2 * stats.t.ppf(0.995, 8))


def test_widened_adds_in_squares_on_each_side() -> None:
    assert widened(Measured(10, 7, 14, 50), 0) == Measured(10, 7, 14, 50)
    assert widened(Measured(10, 7, 14, 50), 4) == pytest.approx((10, 5, 10 + math.sqrt(32), 50))


def test_p_is_the_t_test_s_and_with_noise_that_of_welch() -> None:
    gaps = np.random.default_rng(2).normal(0.4, 1, 30)
    error = gaps.std(ddof=1) / math.sqrt(30)
    assert p_of_zero(gaps.mean(), error, 29, None) == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue)
    other = np.random.default_rng(3).normal(0, 1, 9)
    noise = Noise(other.std(ddof=1) / 3, 8)
    difference = gaps.mean() - other.mean()
    assert p_of_zero(difference, error, 29, noise) == pytest.approx(stats.ttest_ind(gaps, other, equal_var=False).pvalue)
    assert math.isnan(p_of_zero(0, 0, 29, noise)) and math.isnan(p_of_zero(0, math.nan, 0, None))
