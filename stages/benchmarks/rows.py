"""Answers and judgments in the benchmarks' own formats: JSON or JSON lines, plain or gzipped, and checks that name the row.

In: a file, the keys that each row must have. Out: the rows, in the file's order, which is the benchmark's order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Formatter
from typing import Any

from stages.lib import files
from stages.lib.errors import UserError
from stages.lib.files import Row

# The keys that an answer must have: AlpacaEval's model_outputs.json; model_answer of Arena-Hard and MT-Bench.
ANSWER = ("instruction", "output", "generator")
MODEL_ANSWER = ("question_id", "model_id", "choices")


def read_rows(path: str | Path, keys: Iterable[str]) -> list[Row]:
    """The rows of ``path`` (files.parse_rows); UserError names the first row that lacks one of ``keys``."""
    rows = files.parse_rows(path)
    for number, row in enumerate(rows):
        if missing := [key for key in keys if key not in row]:
            raise UserError(f"{path}, row {number} (from 0) has no {missing[0]!r}; every row needs {', '.join(keys)}")
    return rows


def as_text(value: Any, where: str) -> str:
    """``value``, which must be a text: a judge would otherwise be paid for reading the word None. UserError names ``where`` it stands."""
    if isinstance(value, str):
        return value
    raise UserError(f"{where} is {_short(value)}; expected a text, which may be empty")


def as_number(value: Any, where: str) -> float:
    """``value``, which must be a number, or null for what failed: NaN."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value != value or abs(value) < 1e300):
        raise UserError(f"{where} is {_short(value)}; expected a number, or null where there is none")
    return float(value)


def check_texts(rows: list[Row], keys: Iterable[str], what: str) -> None:
    """UserError names ``what`` the rows are, and the first row in which one of ``keys`` holds no text."""
    for place, row in enumerate(rows):
        for key in keys:
            as_text(row[key], f"{what}, row {place} (from 0): {key!r}")


def turns_of(row: Row, what: str) -> list[str]:
    """The texts of a question's turns, or of the first of an answer's ``choices``: a turn is a text, or {"content": text}.

    UserError names ``what`` the row is of, its question and the turn that has no text.
    """
    where = f"{what}, question {row.get('question_id')!r}"
    holder = row
    if "choices" in row:
        choices = row["choices"]
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise UserError(f"{where}: 'choices' is {_short(choices)}; expected a list of {{'turns': [...]}}")
        holder = choices[0]
    turns = holder.get("turns")
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: 'turns' is {_short(turns)}; expected a list of texts")
    said = [turn.get("content") if isinstance(turn, dict) else turn for turn in turns]
    return [as_text(one, f"{where}, turn {place}") for place, one in enumerate(said, start=1)]


def of_model(rows: list[Row], key: str, model: str, least: int) -> list[Row]:
    """The rows of ``model``, for a benchmark's own file holds several; UserError names the models where fewer than ``least`` are its."""
    mine = [row for row in rows if str(row[key]) == model]
    if len(mine) >= least:
        return mine
    only(rows, key)
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
    """The rows by ``question_id``, in their order; UserError where one comes twice, or has none."""
    for place, row in enumerate(rows):
        if not isinstance(row["question_id"], str | int):
            raise UserError(f"{what}, row {place} (from 0): 'question_id' is {_short(row['question_id'])}; expected a number or a text")
    found = {row["question_id"]: row for row in rows}
    if len(found) < len(rows):
        twice = Counter(row["question_id"] for row in rows).most_common(1)[0][0]
        raise UserError(f"{what} have question {twice!r} more than once; keep one row a question")
    return found


def fill(template: str, texts: Mapping[str, str]) -> str:
    """``template`` with each ``{gap}`` filled in; braces in the texts stay as they are. UserError where the gaps are not the texts'."""
    try:
        parsed = list(Formatter().parse(as_text(template, "the judge's template")))
    except ValueError as error:
        raise UserError(f"the judge's template cannot be filled in ({error}): take the benchmark's own file") from None
    gaps = {gap for _, gap, _, _ in parsed if gap is not None}
    if gaps != texts.keys() or any(form or conversion for _, _, form, conversion in parsed):
        raise UserError(f"the judge's template has the gaps {sorted(gaps)}; it must have {sorted(texts)}: take the benchmark's own file")
    return template.format(**texts)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
