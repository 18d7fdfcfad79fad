"""The mini world's oracle as a benchmark: it scores the answers to AlpacaEval's instructions without a judge (stages/mini/oracle.py)."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from stages.benchmarks.benchmark import OUTPUTS, Benchmark, Column, Conf, Metric
from stages.benchmarks.rows import ANSWER, Row, as_number, check_same, check_texts, placed, read_rows
from stages.judging.client import Ask
from stages.lib.errors import UserError

VERSION = "the mini world's oracle"
KEYS = (*ANSWER, "score")  # a row's further keys are counts, one for each kind of finding


def judge(benchmark: Conf, judge: Conf, ask: Ask) -> list[Row]:
    from stages.mini import oracle

    answers = read_rows(benchmark["answers"], OUTPUTS.keys)
    rows = oracle.annotate(answers, benchmark["world"])
    check_same("the answers", [row["instruction"] for row in answers], "their judgments", [row["instruction"] for row in rows])
    return rows


def check(rows: list[Row], what: str) -> None:
    """UserError names the first row with a value that the oracle does not give. ``what``: the name of the rows."""
    check_texts(rows, ANSWER, what)
    for where, row in placed(rows, what):
        for key in ["score", *(key for key in rows[0] if key not in KEYS)]:
            if math.isnan(as_number(row.get(key), f"{where}: {key!r}")):
                raise UserError(f"{where}: {key!r} has no value; the oracle gives every answer one")


def score(answers: list[Row], judgments: list[Row], _: Path | None = None) -> dict[str, Any]:
    """Mean and standard error (ddof 1) of the oracle's scores, and the mean count of each kind of finding in an answer."""
    for key in ANSWER:
        check_same(f"the answers' {key}s", [row[key] for row in answers], f"the judgments' {key}s", [row[key] for row in judgments])
    scores = [float(row["score"]) for row in judgments]
    return {
        "benchmark": "oracle",
        "protocol": {"version": VERSION},
        "generator": answers[0]["generator"],
        "n": len(scores),
        "mean": fmean(scores),
        "standard_error": stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None,
        "findings": {key: fmean(row[key] for row in judgments) for key in judgments[0] if key not in KEYS},
    }


BENCHMARK = Benchmark(
    label="Oracle",
    version=VERSION,
    format=OUTPUTS,
    judgments="annotations.json",
    judgment_keys=KEYS,
    judge=judge,
    check=check,
    score=score,
    summary="mean {mean:.3f} of 10",
    metrics=(Metric("oracle", "Oracle score (0 to 10)", "mean", ("standard_error",), "n", "instructions"),),
    columns=(Column("oracle", "mean", "Score", ("oracle_standard_error",), 2), Column("oracle_standard_error", "standard_error")),
    paired="oracle",
    note="Oracle: the mini world’s truth, 0 to 10.",
)
