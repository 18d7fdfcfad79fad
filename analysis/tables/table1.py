"""Table 1: our best model of each setting on AlpacaEval 2, ranked by length-controlled win rate among other people's models.

    python -m analysis.tables.table1 --results results --out results

In: tables.yaml, the scores.json of Table 4's methods on AlpacaEval 2, and the others' results:

    AlpacaEval's leaderboard     used where judge, baseline and version are the leaderboard's. The rows are the models that the paper's
                                 Table 1 names and those next above and below each of ours, from the alpaca_eval package's file
    the world's writers          used where the baseline is a world's. The rows are the baseline, 50 by definition, and its concise and
                                 verbose variants, whose judgments are results/calibration/<world>/df_gamed.csv. Their length-controlled
                                 win rates are fitted as a model's are

Out: table1.csv, with a caption, table1.txt; ``source`` says whose model a row is. Win rates are in percent, lengths in characters.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from analysis import study as shared
from analysis.paper import differs
from analysis.study import METHODS, SETTINGS, Study, Table, name_of, require
from analysis.tables.table4 import frame_of, rows_of
from stages.benchmarks import alpacaeval2
from stages.benchmarks.rows import check_same, read_rows
from stages.lib import files
from stages.lib.errors import UserError

OURS, LEADERBOARD, WRITERS = "ours", "AlpacaEval's leaderboard", "the world's writers"
LEADERBOARD_FILE = "leaderboards/data_AlpacaEval_2/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv"
# The baseline, and the models of the paper's Table 1 that the leaderboard has, by its names.
NAMED = (
    "gemma-2-9b-it-SimPO",
    "gpt-4-turbo-2024-04-09",
    "gpt4_1106_preview",
    "Llama-3-Instruct-8B-SimPO",
    "claude-3-opus-20240229",
    "Meta-Llama-3-70B-Instruct",
    "Meta-Llama-3-8B-Instruct",
)
FIGURES = {column.name: column.key for column in alpacaeval2.BENCHMARK.columns if column.key != "n_failed"}  # the leaderboard's keys


def best_of_ours(study: Study) -> pd.DataFrame:
    """In each setting, the method of Table 4 with the highest length-controlled win rate."""
    table = frame_of(study, rows_of(study, study.config["methods"]))
    best = table.loc[table.groupby("setting", sort=False)["lc_win_rate"].idxmax()]
    names = [f"{name_of(setting, SETTINGS)} {name_of(method, METHODS)}" for setting, method in best[["setting", "method"]].to_numpy()]
    return best.assign(source=OURS, model=names)


def leaderboard() -> pd.DataFrame:
    """The leaderboard's rows, best first. The package is located and not imported: an import takes seconds."""
    spec = importlib.util.find_spec("alpaca_eval")
    if spec is None or spec.origin is None:
        raise UserError("package alpaca_eval is not installed; envs/*.txt has it: make setup")
    rows = pd.read_csv(Path(spec.origin).parent / LEADERBOARD_FILE, index_col=0)
    table = rows[list(FIGURES.values())].set_axis(list(FIGURES), axis=1).assign(source=LEADERBOARD, model=rows.index)
    return table.sort_values("lc_win_rate", ascending=False)


def shown(board: pd.DataFrame, ours: pd.Series) -> pd.DataFrame:
    """The leaderboard's rows that are ``NAMED``, and those next above and below each of ``ours``, our length-controlled win rates."""
    keep = board["model"].isin(NAMED)
    for rate in ours:
        place = int((board["lc_win_rate"] > rate).sum())
        keep.iloc[max(place - 1, 0) : place + 1] = True
    return board[keep]


def writers(study: Study) -> pd.DataFrame:
    """The world's baseline and its variants. UserError where df_gamed.csv was made of other answers."""
    named = study.config["baseline"]["alpacaeval2"]
    file = study.path(named)
    gamed_file = study.results / "calibration" / PurePosixPath(named).parts[2] / "df_gamed.csv"
    require(gamed_file, gamed_file.with_name(files.MANIFEST))
    baseline, gamed = read_rows(file, ("instruction", "output", "generator")), alpacaeval2.read_gamed(gamed_file)
    first: dict[str, Any] = {"model": baseline[0]["generator"], "lc_win_rate": 50.0, "lc_standard_error": 0.0, "win_rate": 50.0}
    first |= {"win_rate_standard_error": 0.0, "length": np.mean([len(row["output"]) for row in baseline]), "judged": len(baseline)}
    rows = [first]
    for name, judged in gamed.sort_values("index").groupby("model", sort=False):
        answers = read_rows(file.parent / f"writers/{name}.json", ("instruction", "output"))
        check_same(f"{name}'s answers", [row["instruction"] for row in answers], str(file), [row["instruction"] for row in baseline])
        if len(judged) != len(answers):
            raise UserError(f"{gamed_file} has {len(judged)} rows for {len(answers)} answers by {name}; {files.again(gamed_file)}")
        preference = judged["preference"].to_numpy()
        texts = {f"output_{i}": [row["output"] for row in rows] for i, rows in ((1, baseline), (2, answers))}
        fitted = alpacaeval2.length_controlled(pd.DataFrame({"preference": 1 + preference, **texts}), gamed)
        row = {"model": name, "length": np.mean([len(row["output"]) for row in answers]), "judged": len(judged)}
        for rate, error, wins in (("lc_win_rate", "lc_standard_error", fitted), ("win_rate", "win_rate_standard_error", preference)):
            row |= {rate: 100 * wins.mean(), error: 100 * wins.std(ddof=1) / np.sqrt(len(wins))}
        rows.append(row)
    return pd.DataFrame(rows).assign(source=WRITERS)


def make(study: Study) -> Table:
    if "alpacaeval2" not in study.config["benchmarks"]:
        raise UserError(f"{study.results / 'tables.yaml'}: Table 1 ranks by AlpacaEval 2, which is none of the scale's benchmarks")
    ours = best_of_ours(study)
    best = set(zip(ours["setting"], ours["method"], strict=True))
    runs = [run for run in study.rows() if (run.setting, run.method) in best]
    parts, among = [ours], "among no others: the judge, the baseline or the version is not the leaderboard's"
    if PurePosixPath(study.config["baseline"]["alpacaeval2"]).parts[:2] == ("results", "worlds"):
        parts.append(writers(study))
        among = "among the world's writers; the baseline has 50 by definition"
    elif not (other := differs("alpacaeval2", study.scores(runs[0], "alpacaeval2"))):
        parts.append(shown(leaderboard(), ours["lc_win_rate"]))
        among = "among AlpacaEval's leaderboard: the paper's rows and our neighbours"
    else:
        among += f" ({other})"
    table = pd.concat(parts, ignore_index=True).sort_values("lc_win_rate", ascending=False, kind="stable", ignore_index=True)
    table["rank"] = range(1, len(table) + 1)
    columns = ["rank", "source", "model", "setting", "method", *FIGURES, *(["seeds"] if "seeds" in table else [])]
    what = f"Our best model of each setting by length-controlled win rate on AlpacaEval 2, {among}."
    return table[columns], study.caption(what, runs, "The best of many methods is best by chance too.")


if __name__ == "__main__":
    shared.table(__doc__, "table1", make)
