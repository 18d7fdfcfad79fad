"""Table 4: settings x methods, each with its scores on every benchmark and their standard errors.

    python -m analysis.tables.table4 --results results --out results

In: tables.yaml; each run's eval/<benchmark>/scores.json, AlpacaEval 2's annotations.json and, where the run is a training, its manifest
and train.jsonl; the scores.json of the chains' runs. Out: table4.csv, with a caption, table4.txt, one row a setting and method. After the
benchmarks' columns,

    win_rate_minus_simpo, …_standard_error, …_p    AlpacaEval 2's raw win rate minus that of ``simpo`` in the same setting, paired over the
                                                   instructions judged in both (over seeds averaged first), and the two-sided p of the t
                                                   test of zero; likewise ``…_minus_sft``
    significant                                    which of the two differences have a p below 1 - analysis.level, and their sign
    failures                                       why judgments failed, and how many
    warning                                        signs of a training that went wrong: answers beyond the limits of tables.yaml's
                                                   analysis.collapse, a figure that is not a number; and how many verdicts the judge gave
                                                   while it meant to say something else

**Chains.** A standard error is over questions. Where a setting has several chains, ``<column>_low`` and ``<column>_high`` bound what one
more chain, another machine's say, is expected to have: the figure ± t s √2, with s the standard deviation between chains, pooled over their
methods (analysis/stats.py). ``…_between_chains`` is s of a difference, and its p is of the error √(standard error² + s²).

**Seeds.** Where the scale has several training seeds, a figure is the mean over them, and ``seeds`` is their number. A standard error is
then the mean of theirs, and judged and failed judgments are counted together. In a setting with one chain ``<column>_low`` and
``<column>_high`` then bound Student's t interval of the mean.

Each p is that of one test by itself. compare.csv has the paper's figures beside ours.
"""

from __future__ import annotations

import math
from collections import Counter
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from analysis import study as shared
from analysis.stats import Noise, expected, over_chains, p_of_zero
from analysis.study import Run, Study, Table
from stages.benchmarks.paired import values
from stages.benchmarks.rows import check_same
from stages.lib import files
from stages.lib.errors import UserError

# Counts of judgments: an instruction's in AlpacaEval 2, a turn's in MT-Bench; Arena-Hard has two a question. The oracle never fails.
COUNTS = ("n_total", "n_failed")
AGAINST = ("simpo", "sft")
DECIMALS = "%.4f"
Rows = dict[tuple[str, str], list[Run]]


def rows_of(study: Study, methods: list[str]) -> Rows:
    """The runs of each setting and method, one a seed, in the order of the scale."""
    keys = [(setting, method) for setting in study.config["settings"] for method in methods]
    return {key: [run for run in study.rows() if (run.setting, run.method) == key] for key in keys}


def frame_of(study: Study, rows: Rows) -> pd.DataFrame:
    """A row a setting and method, with the columns of the scale's benchmarks.

    Win rates are in percent, lengths in characters, MT-Bench in [1, 10], the oracle in [0, 10]. UserError names the first scores.json that
    is missing or lacks a figure.
    """
    several = any(len(runs) > 1 for runs in rows.values())
    found = []
    for (setting, method), runs in rows.items():
        row: dict[str, Any] = {"setting": setting, "method": method} | ({"seeds": len(runs)} if several else {})
        for benchmark in study.config["benchmarks"]:
            for column in study.benchmark(benchmark).columns:
                each = [study.score(run, benchmark, column.key) for run in runs]
                row[column.name] = int(sum(each)) if column.key in COUNTS else fmean(each)
                if several and column.head:
                    row[f"{column.name}_low"], row[f"{column.name}_high"] = over_chains(each, study.config["analysis"]["level"])[1:]
        found.append(row)
    return pd.DataFrame(found)


def with_expected(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """A table of ``frame_of`` with the interval in which another chain's figure is expected, where a setting has several chains."""
    table, level = table.copy(), study.config["analysis"]["level"]
    for benchmark in study.config["benchmarks"] if study.n_chains > 1 else ():
        for column in (one for one in study.benchmark(benchmark).columns if one.head):
            ends = [f"{column.name}_{end}" for end in ("low", "high")]
            for place, end in enumerate(ends, start=1):
                if end not in table:
                    table.insert(list(table.columns).index(column.name) + place, end, math.nan)
            for setting in dict.fromkeys(table["setting"]):
                if noise := between_chains(study, setting, benchmark, column.key):
                    part = table[table["setting"] == setting]
                    table.loc[part.index, ends] = [expected(value, noise, level) for value in part[column.name]]
    return table


def between_chains(study: Study, setting: str, benchmark: str, key: str, minus: str = "") -> Noise | None:
    """The noise between chains of a number of scores.json, or of its difference to that of the method ``minus``."""
    return study.between_chains(setting, lambda run: study.score(run, benchmark, key), minus=minus)


def chains_told(study: Study) -> str:
    """The caption's sentence on chains."""
    if study.n_chains == 1:
        return "One chain: another machine's figures will differ by more than these standard errors."
    return (
        f"…_low, …_high: where another chain's figure, another machine's say, is expected ({study.config['analysis']['level']:.0%}; from"
        f" {study.n_chains} chains of pretraining, fine-tuning, pairs and trainings, pooled over their methods)."
    )


def seeds_told(study: Study) -> str:
    """The caption's sentence on several training seeds."""
    bounds = "" if study.n_chains > 1 else f", …_low and …_high their {study.config['analysis']['level']:.0%} t interval"
    return f"Means over training seeds{bounds}."


# -- differences -----------------------------------------------------------------------------------------------------------


def per_instruction(study: Study, runs: list[Run], benchmark: str) -> tuple[list[str], np.ndarray]:
    """The instructions of a benchmark, and the value of each, the mean over the runs; NaN where a judgment failed."""
    (asked, first), *others = [values(study.annotations(run, benchmark), benchmark) for run in runs]
    for run, (asked_too, _) in zip(runs[1:], others, strict=True):
        check_same(str(study.annotations(runs[0], benchmark)), asked, str(study.annotations(run, benchmark)), asked_too)
    return asked, np.mean([first, *(value for _, value in others)], axis=0)


def differences(study: Study, rows: Rows, benchmark: str, column: str, other: str) -> pd.DataFrame:
    """Paired differences between each row's runs and those of another method in the same setting.

    rows:      the runs by setting and method
    benchmark: whose annotations have a value for each instruction
    column:    the name of that value in Table 4
    other:     the method to compare with

    Columns: ``<column>_minus_<other>``, its standard error over instructions, where there are several chains its standard deviation
    between them, and the two-sided p of the t test of zero, each with the row's number as index. All are NaN in a setting without
    ``other``; p is NaN where all differences are the same, as between a run and itself. UserError where no instruction was judged in both.
    """
    judged = {key: per_instruction(study, runs, benchmark) for key, runs in rows.items()}
    key = next(one.key for one in study.benchmark(benchmark).columns if one.name == column)
    noise = {setting: between_chains(study, setting, benchmark, key, minus=other) for setting, _ in rows}
    found = []
    for (setting, method), (asked, ours) in judged.items():
        if (setting, other) not in judged:
            found.append((math.nan,) * 4)
            continue
        asked_too, theirs = judged[setting, other]
        where = f"{benchmark}, {setting}, {method}"
        check_same(where, asked, "what it is compared with", asked_too)
        gaps = (ours - theirs)[~np.isnan(ours - theirs)]
        if not gaps.size:
            raise UserError(f"{where}: there is no instruction on which both were judged; the annotations' `failure` says why")
        error = gaps.std(ddof=1) / math.sqrt(gaps.size) if gaps.size > 1 else math.nan
        chains = None if method == other else noise[setting]
        found.append((gaps.mean(), error, chains.s if chains else math.nan, p_of_zero(gaps.mean(), error, gaps.size - 1, chains)))
    name = f"{column}_minus_{other}"
    table = pd.DataFrame(found, columns=[name, f"{name}_standard_error", f"{name}_between_chains", f"{name}_p"])
    return table if study.n_chains > 1 else table.drop(columns=f"{name}_between_chains")


def significant(row: pd.Series, level: float) -> str:
    """``above SFT, below SimPO``: which differences are unlikely to be chance, and their sign."""
    told = []
    for other in AGAINST:
        name = f"win_rate_minus_{other}"
        if f"{name}_p" in row and row[f"{name}_p"] < 1 - level:
            told.append(f"{'above' if row[name] > 0 else 'below'} {shared.METHODS[other]}")
    return ", ".join(told)


# -- failures and warnings of a row -----------------------------------------------------------------------------------------


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
                path = study.evaluated(run, f"{benchmark}/scores.json")
                raise UserError(f"{path} has no 'failures'; {files.again(path)}")
            counts.update(scores["failures"])
        if counts:
            told.append(f"{study.benchmark(benchmark).label}: {', '.join(f'{n} {reason}' for reason, n in counts.most_common())}")
    return "; ".join(told)


def warning(study: Study, run: Run) -> list[str]:
    """The signs that a run's training went wrong."""
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


def make(study: Study) -> Table:
    rows = rows_of(study, study.config["methods"])
    table, level = with_expected(study, frame_of(study, rows)), study.config["analysis"]["level"]
    more = ["Win rates in percent, length in characters, MT-Bench from 1 to 10; standard errors are over questions.", chains_told(study)]
    if "seeds" in table:
        more.append(seeds_told(study))
    # The first benchmark with a judge that has a value an instruction.
    known = ((name, study.benchmark(name)) for name in study.config["benchmarks"])
    if paired := next(((name, one.paired) for name, one in known if one.paired and one.tokens), None):
        compared = [other for other in AGAINST if other in study.config["methods"]]
        table = pd.concat([table, *(differences(study, rows, *paired, other) for other in compared)], axis=1)
        table["significant"] = [significant(row, level) for _, row in table.iterrows()]
        test = "two-sided paired t test over AlpacaEval 2's instructions, raw win rate"
        spread = "with" if study.n_chains > 1 else "without"
        more.append(
            f"significant: p < {1 - level:.2g} by a {test}, each by itself, {spread} the spread between chains; 0.0000 is < 0.00005."
        )
    table["failures"] = [failures(study, runs) for runs in rows.values()]
    table["warning"] = ["; ".join(text for run in runs for text in warning(study, run)) for runs in rows.values()]
    if warned := [f"{row.setting} {row.method}" for row in table.itertuples() if row.warning]:
        more.append(f"Signs of a training that went wrong: {', '.join(warned)}.")
    return table, study.caption("Settings by methods.", [run for runs in rows.values() for run in runs], *more)


if __name__ == "__main__":
    shared.table(__doc__, "table4", make, DECIMALS)
