"""A benchmark in which a rule decides which answers pass. No judge is asked. Questions and answers are in AlpacaEval's format."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from stages.benchmarks.benchmark import OUTPUTS, Benchmark, Column, Conf, Judged, Metric, Question
from stages.benchmarks.rows import ANSWER, Row, check_same, check_texts, placed, read_rows
from stages.judging.client import Ask
from stages.lib.errors import UserError


def by_rule(name: str, label: str, version: str, passes: Callable[[str, str], bool]) -> Benchmark:
    """A benchmark whose result is the share of answers that pass, in percent, with the standard error of a share.

    name: its protocol's name
    label: its name in tables and figures
    version: raised when the rule changes; conf/benchmark has it too
    passes: (instruction, output) says whether an answer passes
    """

    def judge(benchmark: Conf, judge: Conf, ask: Ask) -> list[Row]:
        rows = read_rows(benchmark["answers"], ANSWER)
        check_texts(rows, ANSWER, str(benchmark["answers"]))
        return [{key: row[key] for key in ANSWER} | {"passed": bool(passes(row["instruction"], row["output"]))} for row in rows]

    def check(rows: list[Row], what: str) -> None:
        check_texts(rows, ANSWER, what)
        for where, row in placed(rows, what):
            if not isinstance(row["passed"], bool):
                raise UserError(f"{where}: 'passed' is {row['passed']!r}; expected true or false")

    def score(answers: list[Row], judgments: list[Row], _: Path | None) -> dict[str, Any]:
        for key in ("instruction", "output"):
            check_same(f"the answers' {key}s", [row[key] for row in answers], f"the verdicts' {key}s", [row[key] for row in judgments])
        share, n = fmean(row["passed"] for row in judgments), len(judgments)
        error = math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else None
        named = {"benchmark": name, "protocol": {"version": version}, "generator": answers[0]["generator"]}
        return {**named, "n": n, "pass_rate": 100 * share, "standard_error": None if error is None else 100 * error}

    def judged(rows: list[Row], questions: list[Question], path: str) -> list[Judged]:
        check_same(path, [row["instruction"] for row in rows], "the questions", [question.key for question in questions])
        verdicts = [{"verdict": "passes" if row["passed"] else "fails", "failure": None, "text": None} for row in rows]
        return [Judged(100.0 * row["passed"], 1, [[verdict]]) for row, verdict in zip(rows, verdicts, strict=True)]

    return Benchmark(
        label=label,
        version=version,
        format=OUTPUTS,
        judgments="verdicts.jsonl",
        judgment_keys=(*ANSWER, "passed"),
        judge=judge,
        check=check,
        score=score,
        summary="{pass_rate:.1f} % pass",
        columns=(Column(name, "pass_rate", "Pass (%)", (f"{name}_standard_error",)), Column(f"{name}_standard_error", "standard_error")),
        metrics=(Metric(name, f"{label} (%)", "pass_rate", ("standard_error",), "n", "instructions"),),
        scoring="a rule, without a judge",
        metric="answers that pass, in percent",
        measure="passes",
        unit=" %",
        judged=judged,
    )
