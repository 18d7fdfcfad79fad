"""Every number of the paper (analysis/paper.yaml) beside ours.

    python -m analysis.tables.compare --results results --out results

In: tables.yaml, and the runs' scores.json and (Table 6) eval/loglik.parquet in the paper's settings that the scale has. Out: compare.csv,
with a caption, compare.txt, one row a number of the paper:

    table, setting, method, metric    where the number stands, in our names; ``setting`` is empty for models of others
    paper, confidence, source         the number and its source (paper.yaml explains both)
    ours, standard_error              only for the same setting, judge, baseline and protocol version; a mean over training seeds
    difference, low, high             ours minus the paper's. The interval is that of ours, because the paper's number has no stated error:
                                      normal by the standard error, bootstrap for Arena-Hard and ρ, Student's t over several seeds
    n                                 the number of our judgments or texts
    note                              why there is no ``ours``, and what else is known of the paper's number
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import pandas as pd

from analysis import study as shared
from analysis.paper import Reported, differs, reported
from analysis.stats import over_chains, quantile
from analysis.study import Run, Study, Table
from analysis.tables import table6
from analysis.tables.table4 import frame_of
from stages.benchmarks import BENCHMARKS

SPEARMAN = "spearman"
Measured = dict[str, float]  # ours, standard_error, low, high, n


def unmeasured(study: Study, one: Reported, runs: list[Run]) -> str:
    """Why nothing of ours stands beside a number of the paper; empty where something does. ``runs``: of its setting and method."""
    scale = f"scale {study.config['name']}"
    if one.setting is None:
        return ""  # the block's own note says so
    if one.setting not in study.config["settings"]:
        return f"{scale} has no setting {one.setting}"
    if not runs:
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
    """The benchmark that has ``metric`` among its columns of Table 4, whether the scale has it or not."""
    return next((name for name, known in BENCHMARKS.items() if metric in (column.name for column in known.columns)), None)


def scored(study: Study, one: Reported, runs: list[Run]) -> Measured:
    """Our score on a benchmark, as in Table 4."""
    row = frame_of(study, {(runs[0].setting, runs[0].method): runs}).iloc[0]
    columns = {column.name: column for column in BENCHMARKS[str(benchmark_of(one.metric))].columns}
    errors = columns[one.metric].error
    error = float(row[errors[0]]) if len(errors) == 1 else math.nan
    half = quantile(study.config["analysis"]["level"]) * error
    low, high = row[one.metric] - half, row[one.metric] + half
    bounds = (f"{one.metric}_low", f"{one.metric}_high") if len(runs) > 1 else errors
    if len(bounds) == 2 and set(bounds) <= set(row.index):
        low, high = row[list(bounds)]
    n = row[next(column.name for column in columns.values() if column.key == "n_total")]
    return {"ours": row[one.metric], "standard_error": error, "low": low, "high": high, "n": n}


def correlated(study: Study, runs: list[Run]) -> Measured:
    """Our ρ on the held-out pairs, as in Table 6."""
    rows = [table6.row(study, run) for run in runs]
    rho, low, high = over_chains((row["heldout_rho"] for row in rows), study.config["analysis"]["level"])
    if len(rows) == 1:
        low, high = rows[0]["heldout_low"], rows[0]["heldout_high"]
    return {"ours": rho, "standard_error": math.nan, "low": low, "high": high, "n": fmean(row["heldout_n"] for row in rows)}


def row(study: Study, one: Reported) -> dict[str, Any]:
    """A number of the paper beside ours."""
    runs = [run for run in study.rows(one.method) if run.setting == one.setting]
    why = unmeasured(study, one, runs)
    named = {"table": one.table, "setting": one.setting, "method": one.method, "metric": one.metric}
    paper = {"paper": one.value, "confidence": one.confidence, "source": one.source}
    values: dict[str, Any] = dict.fromkeys(("ours", "standard_error", "difference", "low", "high", "n"), math.nan)
    if one.setting and not why:
        found = correlated(study, runs) if one.metric == SPEARMAN else scored(study, one, runs)
        values |= found | {"difference": found["ours"] - one.value} | {key: found[key] - one.value for key in ("low", "high")}
    return named | paper | values | {"note": "; ".join(filter(None, (why, one.note)))}


def make(study: Study) -> Table:
    table = pd.DataFrame([row(study, one) for one in reported()])
    found = table[table["ours"].notna()]
    measured = set(zip(found["setting"], found["method"], strict=True))
    told = f"{len(table)} numbers of the paper. {len(found)} of them stand beside one of ours: same setting, judge, baseline and version."
    return table, study.caption(told, [run for run in study.rows() if (run.setting, run.method) in measured])


if __name__ == "__main__":
    shared.table(__doc__, "compare", make)
