"""Table 4: settings x methods, what each benchmark says of them, with standard errors.

    python -m analysis.tables.table4 --results results --out results

In: tables.yaml; each run's eval/<benchmark>/scores.json, AlpacaEval 2's annotations.json and, where the run is a training, its manifest
and train.jsonl. Out: table4.csv, one row a setting and method, and its caption, table4.txt. Where the scale has several training seeds,
a figure is the mean over them, ``seeds`` says how many they are, and ``…_low`` and ``…_high`` bound Student's t interval of that mean; a
standard error is then the mean of theirs, and judged and failed judgments are counted together. After the benchmarks' columns,

    win_rate_minus_simpo, …_standard_error, …_p    AlpacaEval 2's raw win rate minus that of ``simpo`` in the same setting, paired over the
                                                   instructions judged in both (over seeds averaged first), and the two-sided p of the t
                                                   test of zero; likewise ``…_minus_sft``
    significant                                    which of the two differences have a p below 1 - analysis.level, and their sign
    paper_…                                        the paper's figure, where one has the same setting, judge, baseline and version
    failures                                       why judgments failed, and how many
    warning                                        answers or figures of a training that went wrong: tables.yaml's analysis.collapse; how
                                                   many verdicts the judge gave while it meant to say something else

The p are of the instructions alone: another training seed moves a run besides. They are of one test each, not of all together.
"""

from __future__ import annotations

import math
from collections import Counter
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis import study as shared
from analysis.paper import differs, reported
from analysis.stats import over_seeds
from analysis.study import Run, Study, Table
from stages.benchmarks.paired import Difference, values
from stages.benchmarks.rows import check_same
from stages.lib import files
from stages.lib.errors import UserError

# Counts of judgments: an instruction's in AlpacaEval 2, a turn's in MT-Bench; Arena-Hard has two a question. The oracle never fails.
COUNTS = ("n_total", "n_failed")
AGAINST = ("simpo", "sft")
# The table's name of the paper's figure, by the metric's in paper.yaml.
PAPER = {
    "lc_win_rate": "paper_lc_win_rate",
    "win_rate": "paper_win_rate",
    "arena_hard_win_rate": "paper_arena_hard",
    "mt_bench": "paper_mt_bench",
}
DECIMALS = "%.4f"
Rows = dict[tuple[str, str], list[Run]]


def benchmark_of(study: Study, column: str) -> str | None:
    """The scale's benchmark that a column of Table 4 is of; None where the scale has none."""
    known = {one.name: benchmark for benchmark in study.config["benchmarks"] for one in study.benchmark(benchmark).columns}
    return known.get(column)


def rows_of(study: Study, methods: list[str]) -> Rows:
    """The runs of each setting and method, one a seed, in the order of the scale."""
    every = study.rows()
    wanted = {(setting, method): list[Run]() for setting in study.config["settings"] for method in methods}
    for run in every:
        if (run.setting, run.method) in wanted:
            wanted[run.setting, run.method].append(run)
    return wanted


def frame_of(study: Study, rows: Rows) -> pd.DataFrame:
    """A row a setting and method, with the columns of the scale's benchmarks.

    Win rates in percent, length in characters, MT-Bench in [1, 10], oracle in [0, 10]. UserError names the first scores.json that is
    missing, or lacks a figure.
    """
    several = any(len(runs) > 1 for runs in rows.values())
    found = []
    for (setting, method), runs in rows.items():
        row: dict[str, Any] = {"setting": setting, "method": method} | ({"seeds": len(runs)} if several else {})
        for benchmark in study.config["benchmarks"]:
            for column in study.benchmark(benchmark).columns:
                each = [study.score(run, benchmark, column.key) for run in runs]
                row[column.name] = int(sum(each)) if column.key in COUNTS else fmean(each)
                if several and column.head and column.has_best:
                    row[f"{column.name}_low"], row[f"{column.name}_high"] = over_seeds(each, study.config["analysis"]["level"])[1:]
        found.append(row)
    return pd.DataFrame(found)


# -- differences -----------------------------------------------------------------------------------------------------------

Asked = tuple[list[str], np.ndarray]


def per_instruction(study: Study, runs: list[Run], benchmark: str) -> Asked:
    """The instructions of a benchmark, and what each gave, the mean over the runs; NaN where a judgment failed."""
    (asked, first), *others = [values(study.annotations(run, benchmark), benchmark) for run in runs]
    for run, (asked_too, _) in zip(runs[1:], others, strict=True):
        check_same(str(study.annotations(runs[0], benchmark)), asked, str(study.annotations(run, benchmark)), asked_too)
    return asked, np.mean([first, *(value for _, value in others)], axis=0)


def minus(ours: Asked, theirs: Asked, where: str) -> Difference:
    """Ours minus theirs, paired as in stages/benchmarks/paired.py; UserError names ``where`` no instruction is judged in both."""
    check_same(where, ours[0], "what it is compared with", theirs[0])
    gaps = (ours[1] - theirs[1])[~np.isnan(ours[1] - theirs[1])]
    if not gaps.size:
        raise UserError(f"{where}: there is no instruction on which both were judged; the annotations' `failure` says why")
    error = gaps.std(ddof=1) / math.sqrt(gaps.size) if gaps.size > 1 else math.nan
    return Difference(float(gaps.mean()), float(error), gaps.size)


def two_sided(gap: Difference) -> float:
    """The p of the paired t test of a difference of zero; NaN where all differences are the same, as of a run and itself."""
    return float(2 * stats.t.sf(abs(gap.mean / gap.standard_error), gap.n - 1)) if gap.standard_error > 0 else math.nan


def differences(study: Study, rows: Rows, benchmark: str, column: str, other: str) -> pd.DataFrame:
    """``<column>_minus_<other>`` and its standard error and p, a row as in ``rows``; NaN in a setting without ``other``."""
    judged = {key: per_instruction(study, runs, benchmark) for key, runs in rows.items()}
    found = []
    for (setting, method), ours in judged.items():
        theirs = judged.get((setting, other))
        gap = minus(ours, theirs, f"{benchmark}, {setting}, {method}") if theirs else Difference(math.nan, math.nan, 0)
        found.append((gap.mean, gap.standard_error, two_sided(gap)))
    name = f"{column}_minus_{other}"
    return pd.DataFrame(found, columns=[name, f"{name}_standard_error", f"{name}_p"])


def significant(row: pd.Series, level: float) -> str:
    """``above SFT, below SimPO``: which differences are unlikely to be chance, and their sign."""
    told = []
    for other in AGAINST:
        name = f"win_rate_minus_{other}"
        if f"{name}_p" in row and row[f"{name}_p"] < 1 - level:
            told.append(f"{'above' if row[name] > 0 else 'below'} {shared.METHODS[other]}")
    return ", ".join(told)


# -- what else is to be known of a row --------------------------------------------------------------------------------------


def failures(study: Study, runs: list[Run]) -> str:
    """``AlpacaEval 2: 3 no verdict, 1 …; Arena-Hard: …``: of all runs together, the most frequent first."""
    told = []
    for benchmark in study.config["benchmarks"]:
        if not any(column.key == "n_failed" for column in study.benchmark(benchmark).columns):
            continue
        counts = Counter[str]()
        for run in runs:
            scores = study.scores(run, benchmark)
            if "failures" not in scores:
                path = study.folder(run) / "eval" / benchmark / "scores.json"
                raise UserError(f"{path} has no 'failures'; {files.again(path)}")
            counts.update(scores["failures"])
        if counts:
            told.append(f"{study.benchmark(benchmark).label}: {', '.join(f'{n} {reason}' for reason, n in counts.most_common())}")
    return "; ".join(told)


def warning(study: Study, run: Run) -> list[str]:
    """What of a run looks like a training that went wrong."""
    told, rule = [], study.config["analysis"]["collapse"]
    if "alpacaeval2" in study.config["benchmarks"]:
        ended, repeated = (study.score(run, "alpacaeval2", key) for key in ("ended", "repeated_3grams"))
        told += [f"{ended:.0%} of answers end by themselves"] if ended < rule["ended"] else []
        told += [f"{repeated:.0%} of 3-grams are repeated"] if repeated > rule["repeated_3grams"] else []
        scores = study.scores(run, "alpacaeval2")
        if improbable := scores.get("n_improbable"):
            told.append(f"{improbable} of {scores['n_total']} AlpacaEval judgments put less than half of the probability on m and M")
    if (study.folder(run) / files.MANIFEST).is_file():  # a run that trains nothing has none
        logged = files.read_rows(study.folder(run) / "train.jsonl")
        for where, found in (("heldout", [study.manifest(run)["heldout"]]), ("train.jsonl", logged)):
            bad = dict.fromkeys(key for row in found for key, value in row.items() if isinstance(value, float) and not math.isfinite(value))
            told += [f"{key} is no number in {where}" for key in bad]
    return [f"{run.run}: {text}" for text in told]


def beside(study: Study, rows: Rows) -> pd.DataFrame:
    """The paper's figures for the rows whose setting and protocol are the same, a column each where there is any."""
    paper = {(one.setting, one.method, one.metric): one.value for one in reversed(reported()) if one.table in ("table4", "v0.2", "gemma2")}
    found = []
    for (setting, method), runs in rows.items():
        row = {}
        for metric, name in PAPER.items():
            benchmark = benchmark_of(study, metric)
            value = paper.get((setting, method, metric)) if benchmark else None
            if benchmark and value is not None and not any(differs(benchmark, study.scores(run, benchmark)) for run in runs):
                row[name] = value
        found.append(row)
    table = pd.DataFrame(found, index=range(len(found)))
    return table[[name for name in PAPER.values() if name in table]]


def make(study: Study) -> Table:
    rows = rows_of(study, study.config["methods"])
    table = frame_of(study, rows)
    level = study.config["analysis"]["level"]
    # The first benchmark with a judge that has a value an instruction.
    paired = next((name for name in study.config["benchmarks"] if study.benchmark(name).paired and study.benchmark(name).tokens), None)
    if paired:
        compared = [other for other in AGAINST if other in study.config["methods"]]
        column = study.benchmark(paired).paired
        table = pd.concat([table, *(differences(study, rows, paired, column, other) for other in compared)], axis=1)
        table["significant"] = [significant(row, level) for _, row in table.iterrows()]
    paper = beside(study, rows)
    table = pd.concat([table, paper], axis=1)
    table["failures"] = [failures(study, runs) for runs in rows.values()]
    table["warning"] = ["; ".join(text for run in runs for text in warning(study, run)) for runs in rows.values()]
    return table, caption(study, rows, table, "Settings by methods.", level)


def caption(study: Study, rows: Rows, table: pd.DataFrame, what: str, level: float) -> str:
    more = ["Win rates in percent, length in characters, MT-Bench from 1 to 10."]
    if "seeds" in table:
        more.append(f"Means over training seeds, …_low and …_high their {level:.0%} t interval; …_standard_error is of the questions.")
    if "significant" in table:
        test = "two-sided paired t test over AlpacaEval 2's instructions, raw win rate"
        more.append(
            f"significant: p < {1 - level:.2g} by a {test}, each by itself, without the spread of training seeds; 0.0000 is < 0.00005."
        )
    more.append(
        "paper_…: the paper's figure, by the same judge, baseline and version."
        if any(name in table for name in PAPER.values())
        else "No figure of the paper stands beside: none has this setting and protocol."
    )
    if warned := [f"{row.setting} {row.method}" for row in table.itertuples() if getattr(row, "warning", "")]:
        more.append(f"Warned of: {', '.join(warned)}.")
    return study.caption(what, [run for runs in rows.values() for run in runs], *more)


if __name__ == "__main__":
    shared.table(__doc__, "table4", make, DECIMALS)
