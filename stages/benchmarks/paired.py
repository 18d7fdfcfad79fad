"""Two models on the same instructions: the mean difference, and its paired standard error.

An instruction that is hard for one model is hard for the other, so the difference has a smaller error than either mean. With a_i and b_i
the values of instruction i for both models, over the n instructions on which both have a judgment,

    difference     = mean(a_i - b_i)
    standard error = sd(a_i - b_i) / sqrt(n)        (ddof 1)

In: two annotations.json of AlpacaEval 2 or of the oracle. The length-controlled win rate has no such values: its fit gives an instruction
a smooth function of the instruction's difficulty, which no judge observed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.benchmarks.rows import as_number, check_same, placed, read_rows
from stages.lib.errors import UserError

KEYS = {"alpacaeval2": "preference", "oracle": "score"}  # the key of an instruction's value, by protocol


class Difference(NamedTuple):
    """A mean difference over ``n`` instructions. ``standard_error`` is NaN below two instructions."""

    mean: float
    standard_error: float
    n: int


def values(annotations: Path, benchmark: str) -> tuple[list[str], np.ndarray]:
    """The instructions of an annotations.json and their values, (n,): AlpacaEval's win in [0, 100], or the oracle's score in [0, 10].

    A failed judgment is NaN. UserError names the file that is missing, or its row without a value.
    """
    key = KEYS[benchmark]
    rows = read_rows(annotations, ("instruction", key))
    found = np.array([as_number(row[key], f"{where}: {key!r}") for where, row in placed(rows, annotations)])
    if benchmark == "alpacaeval2":
        for place in np.flatnonzero(~(np.isnan(found) | (found == 0) | ((found >= 1) & (found <= 2))))[:1]:
            raise UserError(f"{annotations}, row {place} (from 0): {key!r} is {found[place]}; it must lie in [1, 2], be 0 (a draw) or null")
        found = 100 * (np.where(found == 0, 1.5, found) - 1)  # the package also writes a draw as 0
    return [row["instruction"] for row in rows], found


def difference(ours: Path, theirs: Path, benchmark: str) -> Difference:
    """Ours minus theirs, in the units of ``values``; UserError unless both are annotations of the same instructions in the same order."""
    (asked, a), (asked_too, b) = values(ours, benchmark), values(theirs, benchmark)
    check_same(str(ours), asked, str(theirs), asked_too)
    gaps = (a - b)[~np.isnan(a - b)]
    if not gaps.size:
        raise UserError(f"{ours} and {theirs} have no instruction on which both were judged; their `failure` says why")
    standard_error = gaps.std(ddof=1) / math.sqrt(gaps.size) if gaps.size > 1 else math.nan
    return Difference(float(gaps.mean()), float(standard_error), gaps.size)
