"""Table 4: settings x methods, what each benchmark says of them, with standard errors.

    python -m analysis.table4 --results results --out results

In: tables.yaml, which names the settings, methods and benchmarks, and each run's eval/<benchmark>/scores.json.
Out: table4.csv, one row a setting and method; printed as it is written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from stages import files

# The column of the table, and where in a benchmark's scores.json it stands.
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
    "oracle": {"oracle": "mean", "oracle_standard_error": "standard_error"},
}


def row(results: Path, setting: str, run: str, benchmarks: list[str]) -> dict[str, Any]:
    """One run's row; ValueError names the first scores.json that is missing."""
    values: dict[str, Any] = {"setting": setting, "method": run}
    for benchmark in benchmarks:
        path = results / setting / "runs" / run / "eval" / benchmark / "scores.json"
        if not path.is_file():
            raise ValueError(f"{path} does not exist; make it with: snakemake --cores all {path}")
        scores = files.read_json(path)
        values |= {column: scores[key] for column, key in COLUMNS[benchmark].items()}
    return values


def table4(results: Path) -> pd.DataFrame:
    """A row a setting and method of ``results/tables.yaml``: win rates in percent, length in characters, oracle in [0, 10]."""
    wanted = OmegaConf.load(results / "tables.yaml")
    rows = [row(results, setting, method, list(wanted.benchmarks)) for setting in wanted.settings for method in wanted.methods]
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--out", type=Path, default=Path("results"))
    args = parser.parse_args()
    try:
        table = table4(args.results)
    except ValueError as error:
        sys.exit(str(error))
    with files.atomic(args.out / "table4.csv") as partial:
        table.to_csv(partial, index=False, float_format="%.4f")
    print(table.to_string(index=False, float_format="%.2f"))


if __name__ == "__main__":
    main()
