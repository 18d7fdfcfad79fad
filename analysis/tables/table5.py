"""Table 5: Table 4's columns for SimPO, its ablations and DPO, the form of their answers, and their differences to SimPO.

    python -m analysis.tables.table5 --results results --out results

In: tables.yaml (its ``ablations``), each run's eval/<benchmark>/scores.json, and the annotations.json of AlpacaEval 2 and the oracle;
the scores.json of the chains' runs.
Out: table5.csv, with a caption, table5.txt: Table 4's columns, with several training seeds treated as there, and

    ended, repeated_3grams                     the share of answers to AlpacaEval's questions that end by themselves, and the mean share
                                               of 3-grams that came before in the same answer
    lc_win_rate_minus_simpo                    the run's value minus that of ``simpo`` in the same setting. It has no standard error,
                                               because the fit observes nothing paired by instruction
    win_rate_minus_simpo, …_standard_error     the same of the raw win rate, paired over the instructions that are judged in both
    oracle_minus_simpo, …_standard_error       the same of the oracle's score, where the scale has the oracle

A negative value is what an ablation loses. The errors are over instructions only; ``…_between_chains`` stands beside them where there are
several chains.
"""

from __future__ import annotations

from statistics import fmean

import pandas as pd

from analysis import study as shared
from analysis.study import Study, Table
from analysis.tables.table4 import DECIMALS, chains_told, differences, frame_of, rows_of, seeds_told, with_expected
from stages.lib.errors import UserError

WHOLE = "simpo"
SHAPE = ("ended", "repeated_3grams")


def make(study: Study) -> Table:
    """One row a setting and ablation. UserError where ``simpo`` is not among the ablations."""
    if WHOLE not in study.config["ablations"]:
        where = study.results / "tables.yaml"
        raise UserError(f"{where}: ablations are compared with {WHOLE}, which is none of them; add it in conf/scale")
    rows = rows_of(study, study.config["ablations"])
    table = with_expected(study, frame_of(study, rows))
    if "alpacaeval2" in study.config["benchmarks"]:
        for key in SHAPE:
            table[key] = [fmean(study.score(run, "alpacaeval2", key) for run in runs) for runs in rows.values()]
        whole = table[table["method"] == WHOLE].set_index("setting")["lc_win_rate"]
        table["lc_win_rate_minus_simpo"] = table["lc_win_rate"] - table["setting"].map(whole)
    for benchmark in study.config["benchmarks"]:
        if column := study.benchmark(benchmark).paired:
            gaps = differences(study, rows, benchmark, column, WHOLE)
            table = pd.concat([table, gaps.drop(columns=f"{column}_minus_{WHOLE}_p")], axis=1)
    more = [
        chains_told(study),
        "…_minus_simpo: in the same setting, with paired standard errors over the instructions; negative is what an ablation loses.",
    ]
    if "seeds" in table:
        more.append(seeds_told(study))
    return table, study.caption("Ablations of SimPO, and DPO.", [run for runs in rows.values() for run in runs], *more)


if __name__ == "__main__":
    shared.table(__doc__, "table5", make, DECIMALS)
