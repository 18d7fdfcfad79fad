"""What a benchmark is to planning, to the stages and to analysis/: one frozen object of plain functions and names.

``stages/benchmarks/__init__.py`` lists the objects, one module each. Nothing outside this folder asks which benchmark it deals with. This
module does not import torch, and functions import slow packages where they need them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from stages.benchmarks.rows import ANSWER, MODEL_ANSWER, Row, as_text, check_same, read_rows, turns_of
from stages.judging.client import Ask

Conf = Mapping[str, Any]  # a benchmark's part of conf/, or the judge's, as plain values
Work = Callable[..., list[Row]]  # makes the judgments; its one argument, ``ask``, sends requests to the judge
Values = list[list[float]]  # the values of each question's judgments

REAL, EXCHANGED = "real", "exchanged"  # two works of the controls (stages/controls.py)


class Question(NamedTuple):
    """``id``: its question_id, or its row from 0; ``key``: what its answers are matched by; ``prompts``: a text a turn."""

    id: str
    key: Any
    category: str
    prompts: list[str]
    row: Row


class Turn(NamedTuple):
    """A run's answer to one turn. ``finish_reason`` is ``stop`` if it ended by itself; ``length`` counts the model's own tokens."""

    text: str
    finish_reason: str
    length: int = 0


class Judged(NamedTuple):
    """What the judge said about a question: ``value``, None if every judgment failed; ``weight``, how many judgments it is the mean of.

    ``turns``: the judgments of each turn, with ``verdict`` (None if it failed), ``failure`` and ``text``.
    """

    value: float | None
    weight: int
    turns: list[list[Row]]


@dataclass(frozen=True)
class Format:
    """How questions and answers are written: a text for each instruction (AlpacaEval), or turns (FastChat, Arena-Hard).

    file:        the name of the answers' file
    keys:        the keys that an answer's row must have
    key:         the key that matches a question and its answer
    author:      the key that holds the model's name
    asked:       the keys that a question's row must have
    prompts:     (row, name of the rows) gives a question's texts, one a turn
    texts:       likewise an answer's texts
    answer_row:  (question, the answer to each turn, model, benchmark) gives an answer's row
    """

    file: str
    keys: tuple[str, ...]
    key: str
    author: str
    asked: tuple[str, ...]
    prompts: Callable[[Row, str], list[str]]
    texts: Callable[[Row, str], list[str]]
    answer_row: Callable[[Question, list[Turn], str, str], Row]

    def read_questions(self, path: str | Path) -> list[Question]:
        """The questions in the file's order; UserError names the row that lacks a key or a text."""
        found = []
        for number, row in enumerate(read_rows(path, self.asked)):
            kind = row.get("cluster") or row.get("category") or row.get("dataset") or ""
            found.append(Question(str(row.get("question_id", number)), row[self.key], kind, self.prompts(row, str(path)), row))
        return found

    def read_turns(self, path: str | Path, questions: list[Question], source: str = "the questions") -> list[list[Turn]]:
        """A run's answers to ``questions``. UserError where the file has other questions or another order, or lacks a finish reason."""
        rows = read_rows(path, (*self.keys, "finish_reason"))
        check_same(str(path), [row[self.key] for row in rows], source, [question.key for question in questions])
        found = []
        for row in rows:
            reasons = row["finish_reason"] if isinstance(row["finish_reason"], list) else [row["finish_reason"]]
            found.append([Turn(text, reason) for text, reason in zip(self.texts(row, str(path)), reasons, strict=True)])
        return found


def _output_row(question: Question, turns: list[Turn], model: str, name: str) -> Row:
    row = {"dataset": question.row.get("dataset", name), "instruction": question.key, "output": turns[0].text}
    return row | {"generator": model, "tokens": turns[0].length, "finish_reason": turns[0].finish_reason}


def _turns_row(question: Question, turns: list[Turn], model: str, _: str) -> Row:
    return model_answer(question.key, model, [turn.text for turn in turns]) | {"finish_reason": [turn.finish_reason for turn in turns]}


def _counted_row(question: Question, turns: list[Turn], model: str, _: str) -> Row:
    counted = [{"content": turn.text, "token_len": turn.length} for turn in turns]
    return model_answer(question.key, model, counted) | {"finish_reason": [turn.finish_reason for turn in turns]}


def model_answer(question_id: Any, model: str, turns: list[Any]) -> Row:
    """A row of ``model_answer``, as FastChat and Arena-Hard write it."""
    answer_id = hashlib.sha256(f"{model}\0{question_id}".encode()).hexdigest()[:22]
    return {"question_id": question_id, "answer_id": answer_id, "model_id": model, "choices": [{"index": 0, "turns": turns}]}


def _text(key: str, row: Row, what: str) -> list[str]:
    return [as_text(row[key], f"{what}: {key!r}")]


# AlpacaEval's model_outputs.json; model_answer/<model>.jsonl of FastChat, and of Arena-Hard, which counts a turn's tokens.
_TEXTS = (partial(_text, "instruction"), partial(_text, "output"))
OUTPUTS = Format("model_outputs.json", ANSWER, "instruction", "generator", ("instruction",), *_TEXTS, _output_row)
_TURNS = ("model_answer.jsonl", MODEL_ANSWER, "question_id", "model_id", ("question_id", "category", "turns"), turns_of, turns_of)
TURNS = Format(*_TURNS, _turns_row)
COUNTED_TURNS = Format(*_TURNS, _counted_row)


class Column(NamedTuple):
    """A column of Table 4.

    name:      the column's name
    key:       the key of scores.json that it shows
    head:      its heading in the picture, which leaves out a column without one
    error:     the columns of its standard error, or of both ends of its interval
    digits:    decimals in the picture
    has_best:  whether more is better; then the best value of a setting is bold
    """

    name: str
    key: str
    head: str = ""
    error: tuple[str, ...] = ()
    digits: int = 1
    has_best: bool = True


class Metric(NamedTuple):
    """A number of scores.json that figures draw.

    name:   its name in figures and sweeps
    label:  its label on an axis
    key:    its key in scores.json
    error:  the key of its standard error, or the keys of both ends of its interval
    n:      the key that counts the judgments behind it
    of:     the word for these judgments
    """

    name: str
    label: str
    key: str
    error: tuple[str, ...]
    n: str
    of: str


class Judging(NamedTuple):
    """A run's answers to a benchmark, ready to be judged.

    annotate:   (answers, ask) gives the judgments
    answers:    the run's answers
    constant:   (name, text) gives the answers of a model ``name`` that answers every question with ``text``
    exchanged:  judges the run's answers in the other order; None if the protocol shows one answer, or both orders anyway
    """

    annotate: Callable[..., list[Row]]
    answers: list[Row]
    constant: Callable[[str, str], list[Row]]
    exchanged: Work | None = None


Prepare = Callable[[Conf, Conf, int | None], Judging]  # (benchmark, judge, how many questions; None for all)


def judge_answers(prepare: Prepare, conf: Conf, judge: Conf, ask: Ask) -> list[Row]:
    """The judgments of a run's answers: a benchmark's ``judge``, made from its ``prepare``."""
    judging = prepare(conf, judge, None)
    return judging.annotate(judging.answers, ask=ask)


class Controls(NamedTuple):
    """How a benchmark's judge is controlled (stages/controls.py).

    verdict:  a text that holds a verdict, in the form in which the protocol reads one
    metric:   Table 2's word for ``values``
    prepare:  the answers, ready to be judged
    values:   from the rows of the judgments, each question's values, of which the protocol takes the mean
    first:    (benchmark, judgments by work) gives the points of the answer shown first, for each question judged in both orders; None if
              the judge is shown one answer, which has no order
    """

    verdict: str
    metric: str
    prepare: Prepare
    values: Callable[[list[Row]], Values]
    first: Callable[[Conf, Mapping[str, list[Row]]], Values] | None = None


@dataclass(frozen=True)
class Benchmark:
    """A benchmark. Its name in conf/ is its ``protocol``.

    label:          its name in tables and figures
    form_of:        the benchmark that it asks in another form; conf/scale has it under that one's name. "" if it is none
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
    form_of: str = ""
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


def spread(rows: list[Row], count: int | None) -> list[Row]:
    """``count`` of the rows, evenly spread and in their order; all rows if ``count`` is None or larger than their number."""
    count = len(rows) if count is None else min(count, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]
