"""Table 4: settings x methods, what each benchmark says of them, with standard errors.

    python -m analysis.table4 --results results --out results

In: tables.yaml, which names the settings, methods and benchmarks, and each run's eval/<benchmark>/scores.json.
Out: table4.csv, one row a setting and method; printed as it is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from stages import files

# The column of the table, and where in a benchmark's scores.json it stands. Arena-Hard's low and high bound a 95 % bootstrap interval.
# Judgments are an instruction's in AlpacaEval 2 and a turn's in MT-Bench; Arena-Hard has two a question. The oracle never fails.
COLUMNS = {
    "alpacaeval2": {
        "lc_win_rate": "length_controlled_winrate",
        "lc_standard_error": "lc_standard_error",
        "win_rate": "win_rate",
        "win_rate_standard_error": "standard_error",
        "length": "avg_length",
        "judged": "n_total",
        "failed": "n_failed",
    },
    "arena_hard": {
        "arena_hard_win_rate": "win_rate",
        "arena_hard_low": "win_rate_low",
        "arena_hard_high": "win_rate_high",
        "arena_hard_judged": "n_total",
        "arena_hard_failed": "n_failed",
    },
    "mt_bench": {
        "mt_bench": "mean",
        "mt_bench_standard_error": "standard_error",
        "mt_bench_judged": "n_total",
        "mt_bench_failed": "n_failed",
    },
    "oracle": {"oracle": "mean", "oracle_standard_error": "standard_error"},
}


def row(results: Path, setting: str, run: str, benchmarks: list[str]) -> dict[str, Any]:
    """One run's row; ValueError names the first scores.json that is missing, or lacks a figure."""
    values: dict[str, Any] = {"setting": setting, "method": run}
    for benchmark in benchmarks:
        path = results / setting / "runs" / run / "eval" / benchmark / "scores.json"
        if not path.is_file():
            raise ValueError(f"{path} does not exist; make it with: snakemake --cores all {path}")
        scores = files.read_json(path)
        if missing := [key for key in COLUMNS[benchmark].values() if key not in scores]:
            raise ValueError(f"{path} has no {missing[0]!r}; {files.again(path)}")
        values |= {column: scores[key] for column, key in COLUMNS[benchmark].items()}
    return values


def rows(results: Path, part: str) -> pd.DataFrame:
    """A row a setting and run of a ``part`` of ``results/tables.yaml`` (methods, ablations), with the columns of the scale's benchmarks.

    Win rates in percent, length in characters, MT-Bench in [1, 10], oracle in [0, 10].
    """
    wanted: Any = OmegaConf.load(results / "tables.yaml")
    return pd.DataFrame([row(results, setting, run, list(wanted.benchmarks)) for setting in wanted.settings for run in wanted[part]])


def table4(results: Path) -> pd.DataFrame:
    return rows(results, "methods")


def run(docstring: str | None, name: str, table_of: Callable[[Path], pd.DataFrame]) -> None:
    """The command line of a table: ``table_of(results)``, written to ``name`` and printed."""
    parser = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--out", type=Path, default=Path("results"))
    args = parser.parse_args()
    try:
        table = table_of(args.results)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    with files.atomic(args.out / name) as partial:
        table.to_csv(partial, index=False, float_format="%.4f")
    print(table.to_string(index=False, float_format="%.2f"))


if __name__ == "__main__":
    run(__doc__, "table4.csv", table4)
