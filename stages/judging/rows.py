"""Answers and judgments in the benchmarks' own formats: JSON or JSON lines, plain or gzipped, and checks that name the row.

In: a file, the keys that each row must have. Out: the rows, in the file's order, which is the benchmark's order.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Formatter
from typing import Any

from stages import files

Row = dict[str, Any]
# The keys that an answer must have: AlpacaEval's model_outputs.json; model_answer of Arena-Hard and MT-Bench.
ANSWER = ("instruction", "output", "generator")
MODEL_ANSWER = ("question_id", "model_id", "choices")


def read_rows(path: str | Path, keys: Iterable[str]) -> list[Row]:
    """The rows of ``path``; ValueError names the file, and the first row that lacks one of ``keys``, where there are none to use."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; {files.again(path)}")
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        if ".jsonl" in path.suffixes:
            if data and not data.endswith(b"\n"):
                raise ValueError("cut off: its last line has no end")
            rows = [json.loads(line) for line in data.splitlines()]
        else:
            rows = json.loads(data)
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not whole JSON ({error or 'empty'}); {files.again(path)}") from None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} holds no rows; expected objects with the keys {', '.join(keys)}; {files.again(path)}")
    for number, row in enumerate(rows):
        missing = [key for key in keys if not isinstance(row, dict) or key not in row]
        if missing:
            raise ValueError(f"{path}, row {number} (from 0) has no {missing[0]!r}; every row needs {', '.join(keys)}")
    return rows


def check_same(what: str, ours: list[Any], other: str, theirs: list[Any]) -> None:
    """ValueError unless both lists hold the same values in the same order; it names the first row that differs."""
    for number, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            seen = f"{_short(a)} and {_short(b)}"
            raise ValueError(f"{what} and {other} differ in row {number} (from 0): {seen}; give both in the benchmark's order")
    if len(ours) != len(theirs):
        raise ValueError(f"{what} and {other} have {len(ours)} and {len(theirs)} rows; give both for the same instructions")


def only(rows: list[Row], key: str) -> str:
    """The one value that all rows have for ``key``: two models' rows, or two judges', have no common score."""
    values = sorted({str(row[key]) for row in rows})
    if len(values) != 1:
        raise ValueError(f"the rows have {len(values)} values of {key} ({', '.join(values[:3])}); give one model's, by one judge")
    return values[0]


def by_question(rows: list[Row], what: str) -> dict[Any, Row]:
    """The rows by ``question_id``, in their order; ValueError where one comes twice."""
    found = {row["question_id"]: row for row in rows}
    if len(found) < len(rows):
        twice = Counter(row["question_id"] for row in rows).most_common(1)[0][0]
        raise ValueError(f"{what} have question {twice!r} more than once; keep one row a question")
    return found


def fill(template: str, texts: Mapping[str, str]) -> str:
    """``template`` with each ``{gap}`` filled in; braces in the texts stay as they are. ValueError where the gaps are not the texts'."""
    gaps = {gap for _, gap, _, _ in Formatter().parse(template) if gap is not None}
    if gaps != texts.keys():
        raise ValueError(f"the judge's template has the gaps {sorted(gaps)}; it must have {sorted(texts)}: take the benchmark's own file")
    return template.format(**texts)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
