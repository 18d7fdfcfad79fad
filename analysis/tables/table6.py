"""Table 6: Spearman's ρ of a model's average log-likelihood of an answer and the answer's length.

    python -m analysis.tables.table6 --results results --out results

In: tables.yaml and the eval/loglik.parquet of SFT, DPO, SimPO and SimPO without length normalisation. Out: table6.csv, with a caption,
table6.txt, a row a run, two ρ with percentile intervals of a bootstrap (tables.yaml's analysis: level, resamples, seed) and their n,

    heldout    chosen and rejected answers of the held-out pairs together, as the paper's held-out set does not say which it took: whole
               pairs are resampled, so that n, answers, is twice the pairs that are drawn
    answers    the model's own answers to the benchmarks' questions, first turns alone: each is drawn by itself

Average log-likelihood is log π(y|x) / |y|, and length |y|, both of the answer's trained tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis import study as shared
from analysis.study import Run, Study, Table
from stages.lib.errors import UserError

METHODS = ("sft", "dpo", "simpo", "simpo_no_ln")
MANY = 4_000_000  # ranks at a time: 32 MB


def spearman(average: np.ndarray, length: np.ndarray) -> np.ndarray:
    """ρ of each row of two arrays [rows, n]: Pearson's r of their ranks, ties sharing the mean rank. NaN where one is constant."""
    ranks = [stats.rankdata(values, axis=-1) for values in (average, length)]
    off = [values - values.mean(axis=-1, keepdims=True) for values in ranks]
    with np.errstate(invalid="ignore"):
        rho: np.ndarray = (off[0] * off[1]).sum(-1) / np.sqrt((off[0] ** 2).sum(-1) * (off[1] ** 2).sum(-1))
    return rho


def with_interval(average: np.ndarray, length: np.ndarray, analysis: dict[str, Any]) -> tuple[float, float, float]:
    """(ρ, low, high) over all entries of two arrays [units, k], whose rows are drawn whole."""
    units = len(average)
    draws = np.random.default_rng(analysis["seed"]).integers(units, size=(analysis["resamples"], units))
    parts = np.array_split(draws, -(-draws.size * average.shape[1] // MANY))
    found = np.concatenate([spearman(*(values[part].reshape(len(part), -1) for values in (average, length))) for part in parts])
    tail = (1 - analysis["level"]) / 2
    low, high = np.nanquantile(found, [tail, 1 - tail])
    return float(spearman(average.ravel(), length.ravel())), float(low), float(high)


def row(study: Study, run: Run) -> dict[str, Any]:
    """A run's two ρ."""
    pairs, texts = study.pairs(run, "heldout"), study.loglik(run)
    own = texts[(texts["split"] == "answers") & (texts["turn"] == 1) & (texts["length"] > 0)]
    both = [pairs[[f"{side}_{what}" for side in ("chosen", "rejected")]].to_numpy(float) for what in ("average", "length")]
    alone = [(own["logp"] / own["length"]).to_numpy(float)[:, None], own["length"].to_numpy(float)[:, None]]
    values: dict[str, Any] = {"setting": run.setting, "method": run.method, "seed": run.seed}
    for name, (average, length) in (("heldout", both), ("answers", alone)):
        rho, low, high = with_interval(average, length, study.config["analysis"])
        values |= {f"{name}_rho": rho, f"{name}_low": low, f"{name}_high": high, f"{name}_n": average.size}
    return values


def make(study: Study) -> Table:
    runs = [run for run in study.rows() if run.method in METHODS]
    if not runs:
        raise UserError(f"{study.results / 'tables.yaml'}: none of {', '.join(METHODS)} is a method of the scale; add one in conf/scale")
    analysis = study.config["analysis"]
    told = (
        "heldout: chosen and rejected answers of the held-out pairs together; answers: the model's own, first turns.",
        f"Intervals: {analysis['level']:.0%}, percentile bootstrap of {analysis['resamples']} resamples, of pairs and of answers.",
    )
    what = "Spearman's ρ of average log-likelihood and length, in tokens, of an answer."
    return pd.DataFrame([row(study, run) for run in runs]), study.caption(what, runs, *told)


if __name__ == "__main__":
    shared.table(__doc__, "table6", make)
