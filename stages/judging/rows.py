"""Answers and judgments in the benchmarks' own formats: JSON or JSON lines, plain or gzipped, and checks that name the row.

In: a file, the keys that each row must have. Out: the rows, in the file's order, which is the benchmark's order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Formatter
from typing import Any

from stages import files
from stages.errors import UserError
from stages.files import Row

# The keys that an answer must have: AlpacaEval's model_outputs.json; model_answer of Arena-Hard and MT-Bench.
ANSWER = ("instruction", "output", "generator")
MODEL_ANSWER = ("question_id", "model_id", "choices")


def read_rows(path: str | Path, keys: Iterable[str]) -> list[Row]:
    """The rows of ``path`` (files.read_rows); UserError names the first row that lacks one of ``keys``."""
    rows = files.read_rows(path)
    for number, row in enumerate(rows):
        if missing := [key for key in keys if key not in row]:
            raise UserError(f"{path}, row {number} (from 0) has no {missing[0]!r}; every row needs {', '.join(keys)}")
    return rows


def check_same(what: str, ours: list[Any], other: str, theirs: list[Any]) -> None:
    """UserError unless both lists hold the same values in the same order; it names the first row that differs."""
    for number, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            seen = f"{_short(a)} and {_short(b)}"
            raise UserError(f"{what} and {other} differ in row {number} (from 0): {seen}; give both in the benchmark's order")
    if len(ours) != len(theirs):
        raise UserError(f"{what} and {other} have {len(ours)} and {len(theirs)} rows; give both for the same instructions")


def only(rows: list[Row], key: str) -> str:
    """The one value that all rows have for ``key``: two models' rows, or two judges', have no common score."""
    values = sorted({str(row[key]) for row in rows})
    if len(values) != 1:
        raise UserError(f"the rows have {len(values)} values of {key} ({', '.join(values[:3])}); give one model's, by one judge")
    return values[0]


def by_question(rows: list[Row], what: str) -> dict[Any, Row]:
    """The rows by ``question_id``, in their order; UserError where one comes twice."""
    found = {row["question_id"]: row for row in rows}
    if len(found) < len(rows):
        twice = Counter(row["question_id"] for row in rows).most_common(1)[0][0]
        raise UserError(f"{what} have question {twice!r} more than once; keep one row a question")
    return found


def fill(template: str, texts: Mapping[str, str]) -> str:
    """``template`` with each ``{gap}`` filled in; braces in the texts stay as they are. UserError where the gaps are not the texts'."""
    gaps = {gap for _, gap, _, _ in Formatter().parse(template) if gap is not None}
    if gaps != texts.keys():
        raise UserError(f"the judge's template has the gaps {sorted(gaps)}; it must have {sorted(texts)}: take the benchmark's own file")
    return template.format(**texts)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
