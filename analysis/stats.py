"""The statistics of analysis/: intervals, Spearman's ρ, bootstrap resamples, bins and densities. Nothing here reads a results folder.

``z`` is how many standard errors an interval reaches to either side: ``quantile(level)``.

An interval is of one of three kinds. A chain is pretraining, fine-tuning, pairs and trainings with one seed.

    over questions    ``over_questions``: other questions or pairs, the same model; or a bootstrap
    over chains       ``over_chains``: the mean over all chains, where several were measured
    expected          ``expected``: the figure of one more chain, of another machine's say
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[np.float64]
BINS, LEAST = 10, 8  # at most BINS bins, and fewer where a bin would have fewer than LEAST members
CELLS = 4_000_000  # units times resamples in one block of ``counts``: 32 MB
ROWS = 64  # resamples that ``resampled_spearman`` ranks at a time: as many as stay in the processor's cache


class Measured(NamedTuple):
    """A value, its interval, and the number ``n`` of judgments, pairs or texts behind it."""

    value: float
    low: float
    high: float
    n: float


# -- intervals -------------------------------------------------------------------------------------------------------------


def quantile(level: float) -> float:
    """Φ⁻¹((1 + level) / 2): 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + level) / 2)


def over_questions(value: float, error: float, z: float) -> tuple[float, float]:
    """value ± z standard errors."""
    return value - z * error, value + z * error


def over_chains(values: Iterable[float], level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of one figure over k chains, or training seeds: mean ± t s/√k, Student's t with k - 1 degrees of freedom.

    The bounds are NaN for one chain.
    """
    from scipy import stats

    found = np.asarray(list(values), dtype=float)
    middle = float(found.mean())
    if len(found) < 2:
        return middle, float("nan"), float("nan")
    half = float(stats.t.ppf((1 + level) / 2, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))
    return middle, middle - half, middle + half


class Noise(NamedTuple):
    """The standard deviation ``s`` of a figure between chains, known with ``df`` degrees of freedom."""

    s: float
    df: int

    def reach(self, level: float = 0.95, of: int = 1) -> float:
        """t s: how far one chain's figure lies from the mean of all at most. ``of``: for that many figures at once (Bonferroni)."""
        from scipy import stats

        return float(stats.t.ppf(1 - (1 - level) / (2 * of), self.df) * self.s)


def pooled(methods: Iterable[Iterable[float]]) -> Noise | None:
    """The noise that several methods share: s² = Σ (x - mean of its method)² / Σ (k - 1), over methods of k chains each.

    methods: a method's figures, one for each chain; those that are NaN are left out

    None where no method has two. The methods of a chain start from one model, and their figures move together. So more methods add no
    degrees of freedom: df is the largest k - 1.
    """
    squares, dfs = 0.0, [0]
    for values in methods:
        found = np.asarray([value for value in values if not math.isnan(value)], dtype=float)
        if len(found) > 1:
            squares += float(((found - found.mean()) ** 2).sum())
            dfs.append(len(found) - 1)
    return Noise(math.sqrt(squares / sum(dfs)), max(dfs)) if sum(dfs) else None


def expected(value: float, noise: Noise, level: float = 0.95) -> tuple[float, float]:
    """Where another chain's figure is expected: value ± t s √2, for both chains have the noise."""
    half = math.sqrt(2) * noise.reach(level)
    return value - half, value + half


def widened(measured: Measured, reach: float) -> Measured:
    """An interval over questions that contains the noise between chains too: √(half² + reach²) to either side (``Noise.reach``)."""
    value, low, high, n = measured
    return Measured(value, value - math.hypot(value - low, reach), value + math.hypot(high - value, reach), n)


def p_of_zero(value: float, error: float, df: float, noise: Noise | None) -> float:
    """The two-sided p of the t test that a value is 0; NaN where its standard error is 0 or none.

    error, df: the standard error over questions, with its degrees of freedom
    noise:     between chains. The error is then √(error² + s²), with the degrees of freedom of Welch and Satterthwaite
    """
    from scipy import stats

    if not error > 0:
        return math.nan
    if noise and noise.s > 0:
        both = error**2 + noise.s**2
        error, df = math.sqrt(both), both**2 / (error**4 / df + noise.s**4 / noise.df)
    return float(2 * stats.t.sf(abs(value) / error, df))


def together(measured: Iterable[Measured]) -> Measured:
    """The mean over training seeds of the values and of the bounds. All seeds have the same prompts, so more seeds narrow no interval."""
    return Measured(*np.mean(list(measured), axis=0).tolist())


def mean(values: pd.Series, z: float) -> Measured:
    """mean ± z s/√n; the bounds are NaN for one value."""
    middle, error = float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5
    return Measured(middle, *over_questions(middle, error, z), len(values))


def share(p: float, n: int, z: float) -> Measured:
    """A share ``p`` of ``n`` with Wilson's score interval (JASA 22, 1927), which stays within [0, 1]:

    (p + z²/2n ± z √(p(1 - p)/n + z²/4n²)) / (1 + z²/n)
    """
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    return Measured(p, max(middle - half, 0.0), min(middle + half, 1.0), n)


# -- the bootstrap, and Spearman's ρ -----------------------------------------------------------------------------------------


def counts(n: int, resamples: int, seed: int | Sequence[int]) -> Iterator[Array]:
    """How often each of ``n`` units occurs: first in the sample itself, a row of ones, then in each bootstrap resample.

    Yields blocks (rows, n). The same seed gives the same resamples, whatever the size of the blocks.
    """
    yield np.ones((1, n))
    draws, rows = np.random.default_rng(seed), max(1, CELLS // n)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = draws.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(float)


def spearman(x: Array, y: Array) -> float:
    """Spearman's ρ of two arrays (n,): Pearson's correlation of the ranks. Equal values share the mean of their ranks."""
    once = np.ones((1, len(x)))
    return float(np.corrcoef(_ranks(x, once), _ranks(y, once))[0, 1])


def resampled_spearman(x: Array, y: Array, blocks: Iterable[Array]) -> Array:
    """Spearman's ρ in each row of ``blocks``: Σ w a b / √(Σ w a² Σ w b²), where a and b are the ranks minus their mean.

    x, y:   (n,)
    blocks: of ``counts``, each (rows, m), m units. If m is n / k, a unit has k values, which stand m apart and are drawn together

    Returns (rows of all blocks,), NaN where x or y is constant.
    """
    found = []
    for block in blocks:
        for start in range(0, len(block), ROWS):
            weights = np.tile(block[start : start + ROWS], (1, len(x) // block.shape[1]))
            a, b = (_ranks(values, weights) - (len(x) + 1) / 2 for values in (x, y))
            ab, aa, bb = (np.einsum("ij,ij,ij->i", weights, left, right) for left, right in ((a, b), (a, a), (b, b)))
            with np.errstate(divide="ignore", invalid="ignore"):
                found.append(ab / np.sqrt(aa * bb))
    return np.concatenate(found)


def _ranks(values: Array, weights: Array) -> Array:
    """The mean ranks of ``values`` (n,) if each occurs ``weights`` (rows, n) times: (rows, n)."""
    order = np.argsort(values, kind="stable")
    _, starts, group = np.unique(values[order], return_index=True, return_inverse=True)
    of_group = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(of_group, axis=1) - (of_group - 1) / 2
    ranks = np.empty_like(weights)
    ranks[:, order] = middle[:, group]
    return ranks


# -- what is drawn -----------------------------------------------------------------------------------------------------------


def bins(x: Array | pd.Series, count: int) -> npt.NDArray[np.intp]:
    """The bin of each of ``x`` (n,): at most ``count`` bins of equally many members; equal values share one."""
    edges = np.quantile(x, np.linspace(0, 1, count + 1)[1:-1])
    return np.searchsorted(np.unique(edges), x, side="left")


def binned(x: pd.Series, y: pd.Series, z: float) -> pd.DataFrame:
    """Means in at most BINS bins of x: of x, and of y with its interval. Columns: x, value, low, high, n."""
    groups = y.groupby(bins(x, min(BINS, max(1, len(x) // LEAST))))
    return pd.DataFrame([{"x": float(x[part.index].mean()), **mean(part, z)._asdict()} for _, part in groups])


def density(values: Array, at: Array) -> Array:
    """The Gaussian kernel density of ``values`` (n,) at the points ``at`` (m,): (m,). Bandwidth by Scott's rule: s n^(-1/5)."""
    width = values.std(ddof=1) * len(values) ** -0.2
    steps = (at[:, None] - values[None, :]) / width
    heights: Array = np.exp(-0.5 * steps**2).sum(axis=1) / (len(values) * width * (2 * np.pi) ** 0.5)
    return heights
