"""What a benchmark is to planning, to the stages and to analysis/: one frozen object of plain functions and names.

``stages/benchmarks/__init__.py`` lists the objects, one module each. Nothing outside this folder asks which benchmark it deals with. No
torch here, and packages that are slow to import are imported where a function needs them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from stages.benchmarks.rows import ANSWER, MODEL_ANSWER, Row, as_text, check_same, read_rows, turns_of

Conf = Mapping[str, Any]  # a benchmark's part of conf/, or the judge's, as plain values
Work = Callable[..., list[Row]]  # makes the judgments; its one argument, ``ask``, sends requests to the judge
Values = list[list[float]]  # of each question, those of its judgments

# The controls of a judge (stages/controls.py): a run's answers, no text, a text that holds a verdict, and the first in the other order.
REAL, EMPTY, EMBEDDED, EXCHANGED = "real", "empty", "embedded", "exchanged"


class Question(NamedTuple):
    """``id``: its question_id, or its row from 0; ``key``: what its answers are matched by; ``prompts``: a text a turn."""

    id: str
    key: Any
    category: str
    prompts: list[str]
    row: Row


class Turn(NamedTuple):
    """A run's answer to one turn; ``finish_reason`` is ``stop`` where it ended by itself."""

    text: str
    finish_reason: str


class Judged(NamedTuple):
    """The judge on a question: ``value``, None where every judgment failed; ``weight``: how many judgments it is the mean of.

    ``turns``: of each turn its judgments, with ``verdict`` (None where it failed), ``failure`` and ``text``.
    """

    value: float | None
    weight: int
    turns: list[list[Row]]


class AnswerRow(Protocol):
    """Writes an answered question down; ``lengths`` counts the model's own tokens, a turn each."""

    def __call__(self, question: Question, texts: list[str], lengths: list[int], reasons: list[str], model: str, name: str) -> Row: ...


@dataclass(frozen=True)
class Format:
    """How questions and answers are written: a text an instruction (AlpacaEval), or turns (FastChat, Arena-Hard).

    file: of the answers; keys: that its rows must have; key: what matches a question and its answer; author: where the model's name
    stands; asked: the keys of a question's row; texts: of a row, a turn each; answer_row: see ``AnswerRow``.
    """

    file: str
    keys: tuple[str, ...]
    key: str
    author: str
    asked: tuple[str, ...]
    prompts: Callable[[Row, str], list[str]]
    texts: Callable[[Row, str], list[str]]
    answer_row: AnswerRow

    def read_questions(self, path: str | Path) -> list[Question]:
        """The questions in the file's order; UserError names the row that lacks a key or a text."""
        rows = read_rows(path, self.asked)
        ids = [str(row.get("question_id", number)) for number, row in enumerate(rows)]
        kinds = [row.get("cluster") or row.get("category") or row.get("dataset") or "" for row in rows]
        return [
            Question(id_, row[self.key], kind, self.prompts(row, str(path)), row) for id_, kind, row in zip(ids, kinds, rows, strict=True)
        ]

    def read_turns(self, path: str | Path, questions: list[Question], source: str = "the questions") -> list[list[Turn]]:
        """A run's answers to ``questions``, which the file must be of, in their order, and say how each turn ended."""
        rows = read_rows(path, (*self.keys, "finish_reason"))
        check_same(str(path), [row[self.key] for row in rows], source, [question.key for question in questions])
        found = []
        for row in rows:
            reasons = row["finish_reason"] if isinstance(row["finish_reason"], list) else [row["finish_reason"]]
            found.append([Turn(text, reason) for text, reason in zip(self.texts(row, str(path)), reasons, strict=True)])
        return found


def _output_row(question: Question, texts: list[str], lengths: list[int], reasons: list[str], model: str, name: str) -> Row:
    row = {"dataset": question.row.get("dataset", name), "instruction": question.key, "output": texts[0]}
    return row | {"generator": model, "tokens": lengths[0], "finish_reason": reasons[0]}


def _model_answer_row(
    question: Question, texts: list[str], lengths: list[int], reasons: list[str], model: str, name: str, *, counted: bool
) -> Row:
    answer_id = hashlib.sha256(f"{model}\0{question.key}".encode()).hexdigest()[:22]
    turns: list[Any] = texts
    if counted:
        turns = [{"content": text, "token_len": length} for text, length in zip(texts, lengths, strict=True)]
    row = {"question_id": question.key, "answer_id": answer_id, "model_id": model, "choices": [{"index": 0, "turns": turns}]}
    return row | {"finish_reason": reasons}


def _prompt(row: Row, what: str) -> list[str]:
    return [as_text(row["instruction"], f"{what}: 'instruction'")]


def _output(row: Row, what: str) -> list[str]:
    return [as_text(row["output"], f"{what}: 'output'")]


# AlpacaEval's model_outputs.json; model_answer/<model>.jsonl of FastChat, and of Arena-Hard, which counts a turn's tokens.
OUTPUTS = Format("model_outputs.json", ANSWER, "instruction", "generator", ("instruction",), _prompt, _output, _output_row)
_TURNS = ("model_answer.jsonl", MODEL_ANSWER, "question_id", "model_id", ("question_id", "category", "turns"), turns_of, turns_of)
TURNS = Format(*_TURNS, partial(_model_answer_row, counted=False))
COUNTED_TURNS = Format(*_TURNS, partial(_model_answer_row, counted=True))


class Column(NamedTuple):
    """A column of Table 4: its ``name``, and the ``key`` of scores.json that it shows.

    head: its heading in the picture, which leaves out a column without one; error: the columns of its standard error, or of its
    interval's two ends; digits: in the picture; has_best: whether more is better, so that the best of a setting is bold.
    """

    name: str
    key: str
    head: str = ""
    error: tuple[str, ...] = ()
    digits: int = 1
    has_best: bool = True


class Metric(NamedTuple):
    """A number of scores.json that figures draw: its ``name`` there, its ``label`` on an axis, and its ``key``.

    error: the key of its standard error, or the keys of both ends of its interval
    n, of: the key that counts what it rests on, and the word for these
    """

    name: str
    label: str
    key: str
    error: tuple[str, ...]
    n: str
    of: str


class Controls(NamedTuple):
    """How a benchmark's judge is controlled (stages/controls.py).

    verdict: a text that holds a verdict, in the form in which the protocol reads one; metric: what ``values`` are, Table 2's word
    works: (benchmark, judge, number of questions) gives the works by the names above
    values: of the judgments' rows, what the protocol takes the mean of, by question
    first: (benchmark, judgments by work) gives, of each question judged in both orders, the points of what was shown first; None where the
    judge is shown one answer, which has no order
    """

    verdict: str
    metric: str
    works: Callable[[Conf, Conf, int], Mapping[str, Work]]
    values: Callable[[list[Row]], Values]
    first: Callable[[Conf, Mapping[str, list[Row]]], Values] | None = None


@dataclass(frozen=True)
class Benchmark:
    """A benchmark. Its name in conf/ is its ``protocol``.

    label:          its name in tables and figures
    version:        whose protocol it is, and in which state; conf/benchmark and every score carry it
    format:         how its questions and answers are written
    judgments:      the name of the judgments' file; ``judgment_keys`` are the keys of each of its rows
    judge:          makes the judgments from the benchmark's part of conf/, the judge's part, and ``ask``
    check:          refuses judgments with values that no file of the benchmark can have; it gets the rows and their name
    score:          makes scores.json from the answers, the judgments and the file of ``needs``; ``summary`` is a line of it
    failure_of:     the kind of failure that left a judgment without a verdict; None if it has one
    tokens:         what the judge writes in one judgment on average; 0 if no judge is asked
    needs:          the key of conf/, and the option of stages/score.py, that names a file for ``score``; "" if there is none
    columns:        its columns of Table 4; ``note`` explains them in the picture, and ``judgment`` names what is counted
    scoring:        how answers are judged, for Table 2; ``metric`` says what is reported
    judged:         each question's judgments, for the answers' page; ``measure`` and ``unit`` name their value
    controls:       how its judge is controlled; None if no judge is asked
    prompts:        the judge's prompts with their {gaps}; the mini world's judge reads them back
    paired:         the column of Table 4 that has a value for each instruction (stages/benchmarks/paired.py); "" if none has
    metrics:        what figures and sweeps can draw
    """

    label: str
    version: str
    format: Format
    judgments: str
    judgment_keys: tuple[str, ...]
    judge: Callable[..., list[Row]]
    check: Callable[[list[Row], str], None]
    score: Callable[[list[Row], list[Row], Path | None], dict[str, Any]]
    summary: str
    columns: tuple[Column, ...]
    failure_of: Callable[[Any], str | None] = lambda judgment: None
    tokens: int = 0
    needs: str = ""
    note: str = ""
    judgment: str = ""
    scoring: str = ""
    metric: str = ""
    measure: str = "score"
    unit: str = ""
    judged: Callable[[list[Row], list[Question], str], list[Judged]] | None = None
    controls: Controls | None = None
    prompts: Callable[[Conf], list[str]] = lambda benchmark: []
    paired: str = ""
    metrics: tuple[Metric, ...] = ()

    def read_answers(self, path: str | Path) -> list[Row]:
        """Answers as ``judge`` takes them."""
        return read_rows(path, self.format.keys)


def spread(rows: list[Row], count: int) -> list[Row]:
    """``count`` of the rows, evenly spread and in their order; all of them where there are no more."""
    count = min(count, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]


def model_answer(name: str, question: Row, turns: list[Any]) -> Row:
    """A row of ``model_answer`` that no model wrote: a control."""
    return {"question_id": question["question_id"], "model_id": name, "choices": [{"index": 0, "turns": turns}]}
