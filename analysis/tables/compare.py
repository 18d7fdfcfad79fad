"""Ours beside the paper's: every number of analysis/paper.yaml, and what is measured in its place.

    python -m analysis.tables.compare --results results --out results

In: tables.yaml, and for settings of the paper that the scale has the runs' scores.json and, for Table 6, eval/loglik.parquet. Out:
compare.csv, with a caption, compare.txt, a row a number of the paper,

    table, setting, method, metric    where it stands, in our names; ``setting`` is empty for models of others
    paper, confidence, source         the number, and whence it is known (paper.yaml explains both)
    ours, standard_error              only in the same setting, by the same judge, baseline and protocol version; a mean over training seeds
    difference, low, high             ours minus paper's; its interval is ours moved by the paper's number, whose own error nobody gives:
                                      normal by the standard error, the bootstrap's for Arena-Hard and ρ, Student's t over several seeds
    n                                 our judgments, or texts
    note                              why there is no ``ours``; what else is known of the paper's number
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import pandas as pd
from scipy import stats

from analysis import study as shared
from analysis.paper import Reported, differs, reported
from analysis.study import Run, Study, Table, over_seeds
from analysis.tables import table6
from analysis.tables.table4 import COLUMNS, frame_of

ERRORS = {"lc_win_rate": "lc_standard_error", "win_rate": "win_rate_standard_error", "mt_bench": "mt_bench_standard_error"}
BOUNDS = {"arena_hard_win_rate": ("arena_hard_low", "arena_hard_high")}
JUDGED = {"alpacaeval2": "judged", "arena_hard": "arena_hard_judged", "mt_bench": "mt_bench_judged"}
SPEARMAN = "spearman"
Measured = dict[str, float]  # ours, standard_error, low, high, n


def runs_of(study: Study, one: Reported) -> list[Run]:
    return [run for run in study.rows() if (run.setting, run.method) == (one.setting, one.method)]


def unmeasured(study: Study, one: Reported) -> str:
    """Why there is nothing of ours beside a number of the paper; empty where there is."""
    scale = f"scale {study.config['name']}"
    if one.setting is None:
        return ""  # the block's own note says so
    if one.setting not in study.config["settings"]:
        return f"{scale} has no setting {one.setting}"
    if not (runs := runs_of(study, one)):
        return f"{scale} has no method {one.method}"
    if one.metric == SPEARMAN:
        return ""
    benchmark = benchmark_of(one.metric)
    if benchmark is None:
        return f"{one.metric} is not measured here"
    if benchmark not in study.config["benchmarks"]:
        return f"{scale} has no benchmark {benchmark}"
    other = next(filter(None, (differs(benchmark, study.scores(run, benchmark)) for run in runs)), "")
    return f"another protocol: {other}" if other else ""


def benchmark_of(metric: str) -> str | None:
    return next((benchmark for benchmark, columns in COLUMNS.items() if metric in columns), None)


def scored(study: Study, one: Reported, runs: list[Run]) -> Measured:
    """A benchmark's figure of ours, as Table 4 has it."""
    row = frame_of(study, {(runs[0].setting, runs[0].method): runs}).iloc[0]
    error = float(row[ERRORS[one.metric]]) if one.metric in ERRORS else math.nan
    half = stats.norm.ppf((1 + study.config["analysis"]["level"]) / 2) * error
    low, high = (row[one.metric] - half, row[one.metric] + half)
    bounds = (f"{one.metric}_low", f"{one.metric}_high") if len(runs) > 1 else BOUNDS.get(one.metric, ())
    if set(bounds) <= set(row.index) and bounds:
        low, high = (row[bound] for bound in bounds)
    n = row[JUDGED[str(benchmark_of(one.metric))]]
    return {"ours": row[one.metric], "standard_error": error, "low": low, "high": high, "n": n}


def correlated(study: Study, runs: list[Run]) -> Measured:
    """Table 6's ρ on the held-out pairs."""
    rows = [table6.row(study, run) for run in runs]
    rho, low, high = over_seeds((row["heldout_rho"] for row in rows), study.config["analysis"]["level"])
    if len(rows) == 1:
        low, high = rows[0]["heldout_low"], rows[0]["heldout_high"]
    return {"ours": rho, "standard_error": math.nan, "low": low, "high": high, "n": fmean(row["heldout_n"] for row in rows)}


def row(study: Study, one: Reported) -> dict[str, Any]:
    why = unmeasured(study, one)
    named = {"table": one.table, "setting": one.setting, "method": one.method, "metric": one.metric}
    paper = {"paper": one.value, "confidence": one.confidence, "source": one.source}
    values: dict[str, Any] = dict.fromkeys(("ours", "standard_error", "difference", "low", "high", "n"), math.nan)
    if one.setting and not why:
        runs = runs_of(study, one)
        found = correlated(study, runs) if one.metric == SPEARMAN else scored(study, one, runs)
        values |= found | {"difference": found["ours"] - one.value} | {key: found[key] - one.value for key in ("low", "high")}
    return named | paper | values | {"note": "; ".join(filter(None, (why, one.note)))}


def make(study: Study) -> Table:
    table = pd.DataFrame([row(study, one) for one in reported()])
    found = table["ours"].notna()
    runs = [
        run for run in study.rows() if (run.setting, run.method) in set(zip(table["setting"][found], table["method"][found], strict=True))
    ]
    told = f"{len(table)} numbers of the paper, {found.sum()} of them with one of ours: same setting, judge, baseline and version."
    return table, study.caption(told, runs)


if __name__ == "__main__":
    shared.table(__doc__, "compare", make)
