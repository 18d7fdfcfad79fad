"""Table 6: Spearman's ρ of a model's average log-likelihood of an answer and the answer's length.

    python -m analysis.tables.table6 --results results --out results

In: tables.yaml and the eval/loglik.parquet of SFT, DPO, SimPO and SimPO without length normalisation. Out: table6.csv, with a caption,
table6.txt, one row a run with two ρ, their percentile bootstrap intervals (tables.yaml's analysis: level, resamples, seed) and their n:

    heldout    chosen and rejected answers of the held-out pairs together: the paper does not say which it took. Whole pairs are
               resampled; n counts answers, two a pair
    answers    the model's own answers to the benchmarks' questions, first turns only. Each is resampled by itself

Average log-likelihood is log π(y|x) / |y| and length is |y|, both over the answer's trained tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis import study as shared
from analysis.inventory import LIKELIHOOD
from analysis.stats import Array, counts, resampled_spearman
from analysis.study import Run, Study, Table
from stages.lib.errors import UserError


def with_interval(average: Array, length: Array, units: int, analysis: dict[str, Any]) -> tuple[float, float, float]:
    """(ρ, low, high) of two arrays (n,), with a percentile bootstrap interval.

    average, length: the values; the values of one unit, such as a pair, stand ``units`` apart
    units:           how many units there are, and how many are drawn in a resample
    analysis:        level, resamples and seed
    """
    rho, *found = resampled_spearman(average, length, counts(units, analysis["resamples"], analysis["seed"]))
    tail = (1 - analysis["level"]) / 2
    low, high = np.nanquantile(found, [tail, 1 - tail])
    return float(rho), float(low), float(high)


def row(study: Study, run: Run) -> dict[str, Any]:
    pairs, texts = study.pairs(run, "heldout"), study.loglik(run)
    own = texts[(texts["split"] == "answers") & (texts["turn"] == 1) & (texts["length"] > 0)]
    both = [np.concatenate([pairs[f"{side}_{what}"] for side in ("chosen", "rejected")]) for what in ("average", "length")]
    alone = [(own["logp"] / own["length"]).to_numpy(float), own["length"].to_numpy(float)]
    values: dict[str, Any] = {"setting": run.setting, "method": run.method, "seed": run.seed}
    for name, (average, length), units in (("heldout", both, len(pairs)), ("answers", alone, len(own))):
        rho, low, high = with_interval(average, length, units, study.config["analysis"])
        values |= {f"{name}_rho": rho, f"{name}_low": low, f"{name}_high": high, f"{name}_n": average.size}
    return values


def make(study: Study) -> Table:
    runs = [run for run in study.rows() if run.method in LIKELIHOOD]
    if not runs:
        raise UserError(f"{study.results / 'tables.yaml'}: none of {', '.join(LIKELIHOOD)} is a method of the scale; add one in conf/scale")
    analysis = study.config["analysis"]
    told = (
        "heldout: chosen and rejected answers of the held-out pairs together; answers: the model's own, first turns.",
        f"Intervals: {analysis['level']:.0%}, percentile bootstrap of {analysis['resamples']} resamples, of pairs and of answers.",
    )
    what = "Spearman's ρ of average log-likelihood and length, in tokens, of an answer."
    return pd.DataFrame([row(study, run) for run in runs]), study.caption(what, runs, *told)


if __name__ == "__main__":
    shared.table(__doc__, "table6", make)
