"""A page to look at answers: two runs side by side, their differences marked, and everything that is known about each answer.

    python -m analysis.answers.page --results results --out results

A win rate does not show what changed in the answers; this page does. In: tables.yaml, the benchmarks' questions and baselines, and each
run's eval/loglik.parquet, answers and judgments, and the oracle's findings where the scale has it. Out: answers.html, one file made from
page.html, .css and .js. It opens from disk and needs no network. For an answer it shows

    the judge      AlpacaEval 2: its preference as a win probability against the baseline, in percent; Arena-Hard: the verdicts of both
                   games, and the share of their battles that the run has won; MT-Bench: the rating of each turn
    likelihood     log π(y|x), in total and a token, also under the start model (stages/loglik.py); a blank answer has none
    length, end    characters, tokens (with header and end-of-turn), and whether the answer ended by itself or was cut
    oracle         score and findings (stages/mini/oracle.py)

A benchmark's ``value`` of a question comes with a ``weight``, its number of judgments or battles, so that the weighted mean over all
questions is the benchmark's own figure: win_rate in scores.json, MT-Bench's mean.

Models and judges wrote these texts, so the page never treats them as markup: they are data, and enter the document as text. A policy in the
page allows only its one style and its one script, by their hashes. A run's rows on a benchmark are one deflated block, which is unpacked
when it is looked at. The mini scale's 24 runs, 16 MB of JSON, make a page of 2.1 MB, which shows the first question after 0.6 s. With texts
as long as the paper's models write, 24 runs make 49 MB and take 1.4 s (on two busy cores).
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from analysis.study import LOGLIK, METHODS, SETTINGS, Run, Study, command_line, name_of
from stages.benchmarks.benchmark import Question
from stages.benchmarks.rows import Row, check_same, read_rows
from stages.lib import files
from stages.lib.errors import UserError

HERE = Path(__file__).parent
DIGITS = 3  # ours: one more than the page shows of anything
ORACLE = "alpacaeval2"  # conf/benchmark/oracle.yaml: whose answers the oracle reads


def _round(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else round(float(value), DIGITS)


# -- reading -----------------------------------------------------------------------------------------------------------


def questions(study: Study, benchmark: str) -> list[Question]:
    """A benchmark's questions in its order."""
    return study.benchmark(benchmark).format.read_questions(study.path(study.config["questions"][benchmark]))


def asked_of(study: Study, benchmark: str, asked: list[Question]) -> list[Row]:
    """The page's data about the questions: ``id``, ``category``, ``prompts`` and ``baseline`` (a text a turn; None without a baseline)."""
    given: dict[Any, list[str]] = {}
    if named := study.config["baseline"][benchmark]:
        format, path = study.benchmark(benchmark).format, study.path(named)
        rows = read_rows(path, format.keys)
        check_same(str(path), [row[format.key] for row in rows], "the questions", [question.key for question in asked])
        given = {row[format.key]: format.texts(row, str(path)) for row in rows}
    return [{"id": one.id, "category": one.category, "prompts": one.prompts, "baseline": given.get(one.key)} for one in asked]


def findings(study: Study, run: Run, asked: list[Question]) -> list[dict[str, float]]:
    """The oracle's score of each of AlpacaEval's answers, and the counts that it is made of."""
    path = study.annotations(run, "oracle")
    rows = read_rows(path, ("instruction", "score"))
    check_same(str(path), [row["instruction"] for row in rows], "the questions", [question.key for question in asked])
    return [{key: round(value, DIGITS) for key, value in row.items() if isinstance(value, int | float)} for row in rows]


def likelihoods(study: Study, run: Run) -> dict[tuple[str, str, int], Row]:
    """Each answer's ``length`` in tokens, ``logp`` and ``reference_logp`` (None where missing), by benchmark, id and turn."""
    frame = study.loglik(run)
    frame = frame[frame["split"] == "answers"]
    found = {}
    for row in frame.to_dict("records"):
        likely = {"length": int(row["length"]), "logp": _round(row["logp"]), "reference_logp": _round(row["reference_logp"])}
        found[row["benchmark"], row["id"], int(row["turn"])] = likely
    return found


def rows(study: Study, run: Run, benchmark: str, asked: list[Question], likely: Mapping[tuple[str, str, int], Row]) -> list[Row]:
    """A run on a benchmark, a row a question: ``value``, ``weight``, ``turns``, and ``oracle`` where there is one.

    study, run, benchmark: what is read
    asked:                 the benchmark's questions
    likely:                of ``likelihoods``

    UserError where a file is missing or is about other questions, or where an answer that is not blank has no likelihood.
    """
    known, folder = study.benchmark(benchmark), study.evaluated(run, benchmark)
    if known.judged is None:
        raise UserError(f"benchmark {benchmark!r} has no page: its module in stages/benchmarks gives no `judged`")
    given = known.format.read_turns(folder / known.format.file, asked)
    path = folder / known.judgments
    judged = known.judged(read_rows(path, known.judgment_keys), asked, str(path))
    made: list[Row] = []
    for question, turns, judgment in zip(asked, given, judged, strict=True):
        shown = []
        for number, (turn, judgments) in enumerate(zip(turns, judgment.turns, strict=True), start=1):
            likelihood = likely.get((benchmark, question.id, number))
            if likelihood is None and turn.text.strip():
                where = study.evaluated(run, LOGLIK)
                raise UserError(f"{where} has no answer to {benchmark}'s question {question.id}, turn {number}; {files.again(where)}")
            shown.append({**turn._asdict(), "judgments": judgments, **(likelihood or {})})
        made.append({"value": _round(judgment.value), "weight": judgment.weight, "turns": shown})
    if benchmark == ORACLE and "oracle" in study.config["benchmarks"]:
        for row, found in zip(made, findings(study, run, asked), strict=True):
            row["oracle"] = found
    return made


# -- writing -----------------------------------------------------------------------------------------------------------


def embedded(value: Any) -> str:
    """``value`` as JSON in ASCII without <, > and &, so that a parser of HTML finds no markup in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def packed(value: Any) -> str:
    """``value`` as JSON, deflated, in base64."""
    return base64.b64encode(zlib.compress(json.dumps(value, allow_nan=False, separators=(",", ":")).encode(), 9)).decode()


def source_hash(text: str) -> str:
    """The name of an inline script or style in a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def key(run: Run) -> str:
    return f"{run.setting}/{run.run}"


def index(study: Study, runs: list[Run]) -> dict[str, Any]:
    """The page's data outside the blocks: runs, benchmarks, and the two runs that it opens with, the first and SimPO."""
    several = len({run.seed for run in runs if run.seed is not None}) > 1
    named = [
        {
            "key": key(run),
            "setting": name_of(run.setting, SETTINGS),
            "name": name_of(run.method, METHODS) + (f", seed {run.seed}" if several and run.seed is not None else ""),
        }
        for run in runs
    ]
    benchmarks = [
        {"key": name, "name": known.label, "measure": known.measure, "unit": known.unit}
        for name, known in ((name, study.benchmark(name)) for name in study.config["questions"])
    ]
    simpo = next((run for run in runs if run.method == "simpo"), runs[-1])
    caption = study.caption("Two runs' answers to the same questions, side by side.", runs)
    return {"caption": caption, "runs": named, "benchmarks": benchmarks, "a": key(runs[0]), "b": key(simpo)}


def page(study: Study) -> str:
    """The whole page."""
    runs = study.rows()
    asked = {benchmark: questions(study, benchmark) for benchmark in study.config["questions"]}
    blocks = {benchmark: packed(asked_of(study, benchmark, of_one)) for benchmark, of_one in asked.items()}
    for run in runs:
        likely = likelihoods(study, run)
        for benchmark, of_benchmark in asked.items():
            blocks[f"{benchmark}/{key(run)}"] = packed(rows(study, run, benchmark, of_benchmark, likely))
    data = [f'<script type="application/json" id="index">{embedded(index(study, runs))}</script>']
    data += [f'<script type="text/plain" id="{html.escape(name)}">{block}</script>' for name, block in blocks.items()]
    template, style, script = ((HERE / f"page.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "css", "js"))
    hashes = {"style_hash": source_hash(style), "script_hash": source_hash(script)}
    return Template(template).substitute(hashes, style=style, script=script, data="\n".join(data))


def write(study: Study, out: Path) -> None:
    """<out>/answers.html. The same results give the same bytes."""
    text = page(study)
    files.write_text(out / "answers.html", text)
    print(f"{out / 'answers.html'}: {len(study.rows())} runs, {len(text.encode()) / 1e6:.1f} MB")


if __name__ == "__main__":
    command_line(__doc__, write)
