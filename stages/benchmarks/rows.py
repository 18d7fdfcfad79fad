"""Answers and judgments in the benchmarks' own formats: JSON or JSON lines, plain or gzipped. Every check names the row that is wrong.

Rows keep the file's order, which is the benchmark's order. ``what`` is a name for the rows in an error's sentence, such as "the answers".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    for where, row in placed(rows, path):
        if missing := [key for key in keys if key not in row]:
            raise UserError(f"{where} has no {missing[0]!r}; every row needs {', '.join(keys)}")
    return rows


def placed(rows: Iterable[Row], what: object) -> Iterator[tuple[str, Row]]:
    """Each row with its place, as an error's sentence names it."""
    return ((f"{what}, row {number} (from 0)", row) for number, row in enumerate(rows))


def as_text(value: Any, where: str) -> str:
    """``value`` if it is a text, else a UserError that names ``where`` it stands. A judge must not be paid for reading the word None."""
    if isinstance(value, str):
        return value
    raise UserError(f"{where} is {_short(value)}; expected a text, which may be empty")


def as_number(value: Any, where: str) -> float:
    """``value`` as a float; NaN for null, which stands for a failure. UserError names ``where`` anything else stands."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value != value or abs(value) < 1e300):
        raise UserError(f"{where} is {_short(value)}; expected a number, or null where there is none")
    return float(value)


def check_texts(rows: list[Row], keys: Iterable[str], what: str) -> None:
    """UserError names the first row in which one of ``keys`` does not hold a text."""
    for where, row in placed(rows, what):
        for key in keys:
            as_text(row[key], f"{where}: {key!r}")


def turns_of(row: Row, what: str, count: int | None = None) -> list[str]:
    """The texts of a question's turns, or of the turns in an answer's first choice. A turn is a text or {"content": text}.

    UserError names the question, and the turn that is not a text. ``count``: how many turns there must be, if that is given.
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
    if count and len(turns) != count:
        raise UserError(f"{where} has {len(turns)} turns; the protocol has {count}: give the benchmark's own files")
    said = [turn.get("content") if isinstance(turn, dict) else turn for turn in turns]
    return [as_text(one, f"{where}, turn {place}") for place, one in enumerate(said, start=1)]


def of_model(rows: list[Row], key: str, model: str, least: int) -> list[Row]:
    """The rows of one model: a benchmark's own file may hold several models.

    Where fewer than ``least`` rows are the model's, all rows must be of one model, and all are returned; UserError names the models.

    key: the key of a row that holds the model's name
    """
    mine = [row for row in rows if str(row[key]) == model]
    if len(mine) >= least:
        return mine
    only(rows, key)
    return rows


def failures_of(judgments: Iterable[Any], failure_of: Callable[[Any], str | None]) -> Counter[str]:
    """How many judgments failed, by the kind of the failure. ``failure_of``: a benchmark's (benchmark.py)."""
    return Counter(filter(None, map(failure_of, judgments)))


def check_same(what: str, ours: list[Any], other: str, theirs: list[Any]) -> None:
    """UserError unless ``ours`` and ``theirs``, named ``what`` and ``other``, are equal; it names the first row that differs."""
    for number, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            seen = f"{_short(a)} and {_short(b)}"
            raise UserError(f"{what} and {other} differ in row {number} (from 0): {seen}; give both in the benchmark's order")
    if len(ours) != len(theirs):
        raise UserError(f"{what} and {other} have {len(ours)} and {len(theirs)} rows; give both for the same instructions")


def only(rows: list[Row], key: str) -> str:
    """The one value that all rows have for ``key``. UserError if there are several: two models, or judges, have no common score."""
    values = sorted({str(row[key]) for row in rows})
    if len(values) != 1:
        raise UserError(f"the rows have {len(values)} values of {key} ({', '.join(values[:3])}); give one model's, by one judge")
    return values[0]


def by_question(rows: list[Row], what: str) -> dict[Any, Row]:
    """The rows by ``question_id``, in their order; UserError where an id is not a number or a text, or comes twice."""
    for where, row in placed(rows, what):
        if not isinstance(row["question_id"], str | int):
            raise UserError(f"{where}: 'question_id' is {_short(row['question_id'])}; expected a number or a text")
    found = {row["question_id"]: row for row in rows}
    if len(found) < len(rows):
        twice = Counter(row["question_id"] for row in rows).most_common(1)[0][0]
        raise UserError(f"{what} have question {twice!r} more than once; keep one row a question")
    return found


def row_of(rows: Mapping[Any, Row], number: Any, what: str) -> Row:
    """The row of question ``number`` among the rows of ``by_question``; UserError where it has none."""
    if number not in rows:
        raise UserError(f"{what} have no row for question {number!r}; every question needs one: answer it, then judge again")
    return rows[number]


def fill(template: str, texts: Mapping[str, str]) -> str:
    """``template`` with a text in each ``{gap}``; braces in the texts stay as they are. UserError where gaps and texts have other names."""
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
