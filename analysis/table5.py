"""Table 5: ablations. Table 4's columns for SimPO, its ablations and DPO, and how far each is from SimPO.

    python -m analysis.table5 --results results --out results

In: tables.yaml (its ``ablations``), each run's eval/<benchmark>/scores.json, and of AlpacaEval 2 and the oracle annotations.json too.
Out: table5.csv, Table 4's columns and, each a run's figure minus ``simpo``'s in the same setting,

    lc_win_rate_minus_simpo                    the difference of the two fits, without a standard error: the fit observes nothing
                                               paired by instruction
    win_rate_minus_simpo, …_standard_error     paired over the instructions that are judged in both
    oracle_minus_simpo, …_standard_error       likewise, where the scale has the oracle

Negative is what an ablation loses. These errors are of the instructions alone: another training seed moves a run besides.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.table4 import rows, run
from stages.judging.paired import difference

WHOLE = "simpo"
PAIRED = {"alpacaeval2": "win_rate", "oracle": "oracle"}  # the benchmarks with a value an instruction, and their columns


def table5(results: Path) -> pd.DataFrame:
    """A row a setting and ablation; ValueError where ``simpo`` is none of them."""
    table = rows(results, "ablations")
    if WHOLE not in set(table["method"]):
        raise ValueError(f"{results / 'tables.yaml'}: ablations are compared with {WHOLE}, which is none of them; add it in conf/scale")
    whole = table[table["method"] == WHOLE].set_index("setting")
    if "lc_win_rate" in table:
        table["lc_win_rate_minus_simpo"] = table["lc_win_rate"] - table["setting"].map(whole["lc_win_rate"])
    for benchmark, column in PAIRED.items():
        if column not in table:
            continue
        judged = f"eval/{benchmark}/annotations.json"
        gaps = [
            difference(results / setting / "runs" / method / judged, results / setting / "runs" / WHOLE / judged, benchmark)
            for setting, method in zip(table["setting"], table["method"], strict=True)
        ]
        table[f"{column}_minus_simpo"] = [gap.mean for gap in gaps]
        table[f"{column}_minus_simpo_standard_error"] = [gap.standard_error for gap in gaps]
    return table


if __name__ == "__main__":
    run(__doc__, "table5.csv", table5)
