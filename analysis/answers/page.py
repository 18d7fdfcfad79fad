"""A page to look at answers: two runs side by side, what differs marked, and all that is known of each answer.

    python -m analysis.answers.page --results results --out results

Win rates hide what changed. In: tables.yaml, the benchmarks' questions and baselines, each of the tables' runs' eval/loglik.parquet, its
answers and judgments on each benchmark, and the oracle's findings where the scale has it. Out: answers.html, one file that opens from disk
and asks no network for anything; analysis/answers/page.html, .css and .js are what it is made of. What it shows of an answer,

    the judge      AlpacaEval 2: its preference as a win probability against the baseline, in percent; Arena-Hard: the verdicts of both
                   games, and the share of their battles that the run has won; MT-Bench: the rating of each turn
    likelihood     log π(y|x), also a token and under the start model, as in stages/loglik.py; a blank answer has none
    length, end    characters, tokens (with header and end-of-turn), and whether the answer ended by itself or was cut
    oracle         score and findings (stages/mini/oracle.py)

A benchmark's ``value`` of a question comes with a ``weight``, its number of judgments or battles, so that the weighted mean over all
questions is the benchmark's own figure: win_rate in scores.json, MT-Bench's mean.

Models write the texts and judges comment on them, so nothing of theirs is ever markup: it is in the page as data and gets into the document
as text. A policy in the page forbids everything but its one style and its one script, by their hashes. Each run's rows on a benchmark are
a block of their own, deflated, and unpacked when they are looked at. The mini scale's 24 runs, 16 MB of JSON, are a page of 2.1 MB, on
which the first question shows after 0.6 s; with texts as long as the paper's models write, 24 runs are 49 MB and 1.4 s (on two busy cores).
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
from typing import Any, NamedTuple

import numpy as np

from analysis.study import BENCHMARKS, METHODS, SETTINGS, Run, Study, command_line, name_of
from stages.benchmarks import alpacaeval2, arena_hard, mt_bench, paired
from stages.benchmarks.rows import Row, by_question, check_same, read_rows, turns_of
from stages.lib import files
from stages.lib.errors import UserError

HERE = Path(__file__).parent
DIGITS = 3  # ours: one more than the page shows of anything
# What the judge's word on a question is called, and its unit.
MEASURES = {
    "alpacaeval2": ("win probability", " %"),
    "arena_hard": ("share of battles won", " %"),
    "mt_bench": ("rating", ""),
}
# Arena-Hard's labels as the run's verdict; game 1 shows the baseline as A, game 2 the run.
VERDICTS = ("much worse", "worse", "as good", "better", "much better")
GAMES = tuple(dict(zip(arena_hard.POINTS, verdicts, strict=True)) for verdicts in (VERDICTS, VERDICTS[::-1]))
ORACLE = "alpacaeval2"  # conf/benchmark/oracle.yaml: whose answers the oracle reads


class Judged(NamedTuple):
    """The judge on a question: ``value`` in the unit of MEASURES, None where every judgment failed; ``weight``: what it is the mean of.

    ``turns``: of each turn its judgments, with ``verdict`` (None where it failed), ``failure`` and ``text``.
    """

    value: float | None
    weight: int
    turns: list[list[Row]]


def _round(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else round(float(value), DIGITS)


def _find(rows: Mapping[Any, Row], number: Any, path: Path) -> Row:
    if number not in rows:
        raise UserError(f"{path} has no row for question {number!r}; {files.again(path)}")
    return rows[number]


# -- reading -----------------------------------------------------------------------------------------------------------


def questions(study: Study, benchmark: str) -> list[Row]:
    """A benchmark's questions in its order: ``id``, ``category``, and a text a turn in ``prompts`` and ``baseline`` (None without one)."""
    path, named = study.path(study.config["questions"][benchmark]), study.config["baseline"][benchmark]
    baseline = study.path(named) if named else None
    if benchmark == "alpacaeval2":
        rows = read_rows(path, ("instruction",))
        theirs = read_rows(baseline or path, ("instruction", "output"))
        check_same(str(path), [row["instruction"] for row in rows], str(baseline), [row["instruction"] for row in theirs])
        return [
            {"id": str(number), "category": row.get("dataset") or "", "prompts": [row["instruction"]], "baseline": [other["output"]]}
            for number, (row, other) in enumerate(zip(rows, theirs, strict=True))
        ]
    rows = read_rows(path, ("question_id", "turns"))
    given = by_question(read_rows(baseline, ("question_id", "choices")), str(baseline)) if baseline else None
    return [
        {
            "id": str(row["question_id"]),
            "category": row.get("cluster") or row.get("category") or "",
            "prompts": turns_of(row, str(path)),
            "baseline": turns_of(_find(given, row["question_id"], baseline), str(baseline)) if given and baseline else None,
        }
        for row in rows
    ]


def answers(study: Study, run: Run, benchmark: str, asked: list[Row]) -> list[list[Row]]:
    """Of each question of ``asked`` the run's turns: ``text``, and ``finish_reason``, which is ``stop`` where it ended by itself."""
    folder = study.folder(run) / "eval" / benchmark
    if benchmark == "alpacaeval2":
        path = folder / "model_outputs.json"
        rows = read_rows(path, ("instruction", "output", "finish_reason"))
        check_same(str(path), [row["instruction"] for row in rows], "the questions", [row["prompts"][0] for row in asked])
        return [[{"text": row["output"], "finish_reason": row["finish_reason"]}] for row in rows]
    path = folder / "model_answer.jsonl"
    rows = read_rows(path, ("question_id", "choices", "finish_reason"))
    check_same(str(path), [str(row["question_id"]) for row in rows], "the questions", [row["id"] for row in asked])
    return [
        [{"text": text, "finish_reason": reason} for text, reason in zip(turns_of(row, str(path)), row["finish_reason"], strict=True)]
        for row in rows
    ]


def _alpacaeval2(study: Study, run: Run, asked: list[Row]) -> list[Judged]:
    path = study.annotations(run, "alpacaeval2")
    instructions, wins = paired.values(path, "alpacaeval2")
    check_same(str(path), instructions, "the questions", [row["prompts"][0] for row in asked])
    judged = []
    for row, win in zip(read_rows(path, ("preference",)), wins.tolist(), strict=True):
        failure = alpacaeval2.failure_of(row) and (row.get("failure") or alpacaeval2.failure_of(row))
        text = ((row.get("preference_raw_completion") or {}).get("message") or {}).get("content")
        judgment = {"verdict": None if failure else f"{win:.1f} %", "failure": failure, "text": text}
        judged.append(Judged(None if failure else win, 1, [[judgment]]))
    return judged


def _arena_hard(study: Study, run: Run, asked: list[Row]) -> list[Judged]:
    path = study.folder(run) / "eval" / "arena_hard" / "model_judgment.jsonl"
    rows = {str(number): row for number, row in by_question(read_rows(path, ("question_id", "games")), str(path)).items()}
    judged = []
    for question in asked:
        games = _find(rows, question["id"], path)["games"]
        judgments = []
        for game, words in zip(games, GAMES, strict=True):
            failure = arena_hard.failure_of(game) and (game.get("failure") or arena_hard.failure_of(game))
            verdict = None if failure else f"{words[game['score']]} ({game['score']})"
            judgments.append({"verdict": verdict, "failure": failure, "text": game["judgment"]})
        points = arena_hard.battles(games)
        judged.append(Judged(100 * float(np.mean(points)) if points else None, len(points), [judgments]))
    return judged


def _mt_bench(study: Study, run: Run, asked: list[Row]) -> list[Judged]:
    path = study.folder(run) / "eval" / "mt_bench" / "model_judgment.jsonl"
    rows = read_rows(path, ("question_id", "turn", "score", "judgment"))
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:  # as in its score, all of them count where a rerun gave a turn more than one
        found.setdefault((str(row["question_id"]), row["turn"]), []).append(row)
    judged = []
    for question in asked:
        turns, ratings = [], []
        for turn in mt_bench.TURNS:
            if (question["id"], turn) not in found:
                raise UserError(f"{path} has no judgment of turn {turn} of question {question['id']!r}; {files.again(path)}")
            judgments = []
            for row in found[question["id"], turn]:
                failure = mt_bench.failure_of(row) and (row.get("failure") or mt_bench.failure_of(row))
                judgments.append({"verdict": None if failure else f"{row['score']:g}", "failure": failure, "text": row["judgment"]})
                ratings += [] if failure else [float(row["score"])]
            turns.append(judgments)
        judged.append(Judged(float(np.mean(ratings)) if ratings else None, len(ratings), turns))
    return judged


JUDGED = {"alpacaeval2": _alpacaeval2, "arena_hard": _arena_hard, "mt_bench": _mt_bench}


def findings(study: Study, run: Run, asked: list[Row]) -> list[dict[str, float]]:
    """The oracle's score of each of AlpacaEval's answers, and the counts that it is made of."""
    path = study.annotations(run, "oracle")
    rows = read_rows(path, ("instruction", "score"))
    check_same(str(path), [row["instruction"] for row in rows], "the questions", [row["prompts"][0] for row in asked])
    return [{key: round(value, DIGITS) for key, value in row.items() if isinstance(value, int | float)} for row in rows]


def likelihoods(study: Study, run: Run) -> dict[tuple[str, str, int], Row]:
    """``length`` in tokens, ``logp`` and ``reference_logp`` (None where there is none) of each answer, by benchmark, id and turn."""
    frame = study.loglik(run)
    frame = frame[frame["split"] == "answers"]
    keys = zip(frame["benchmark"], frame["id"], frame["turn"], strict=True)
    values = zip(frame["length"], frame["logp"], frame["reference_logp"], strict=True)
    return {
        (benchmark, number, int(turn)): {"length": int(length), "logp": _round(logp), "reference_logp": _round(reference)}
        for (benchmark, number, turn), (length, logp, reference) in zip(keys, values, strict=True)
    }


def rows(study: Study, run: Run, benchmark: str, asked: list[Row], likely: Mapping[tuple[str, str, int], Row]) -> list[Row]:
    """A run on a benchmark, a row a question: ``value``, ``weight``, ``turns``, and ``oracle`` where there is one.

    UserError where a file is missing or is about other questions, or where an answer that is not blank has no likelihood.
    """
    if benchmark not in JUDGED:
        raise UserError(f"benchmark {benchmark!r} has no page; analysis/answers/page.py reads {', '.join(JUDGED)}")
    given, judged = answers(study, run, benchmark, asked), JUDGED[benchmark](study, run, asked)
    made: list[Row] = []
    for question, turns, judgment in zip(asked, given, judged, strict=True):
        for number, (turn, judgments) in enumerate(zip(turns, judgment.turns, strict=True), start=1):
            known = likely.get((benchmark, question["id"], number))
            if known is None and turn["text"].strip():
                path = study.folder(run) / "eval" / "loglik.parquet"
                raise UserError(f"{path} has no answer to {benchmark}'s question {question['id']}, turn {number}; {files.again(path)}")
            turn |= {"judgments": judgments, **(known or {})}
        made.append({"value": _round(judgment.value), "weight": judgment.weight, "turns": turns})
    if benchmark == ORACLE and "oracle" in study.config["benchmarks"]:
        for row, found in zip(made, findings(study, run, asked), strict=True):
            row["oracle"] = found
    return made


# -- writing -----------------------------------------------------------------------------------------------------------


def embedded(value: Any) -> str:
    """``value`` as JSON that holds nothing a parser of HTML takes for markup, whatever its texts say: ASCII without <, > and &."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def packed(value: Any) -> str:
    """``value`` as JSON, deflated, in base64."""
    return base64.b64encode(zlib.compress(json.dumps(value, allow_nan=False, separators=(",", ":")).encode(), 9)).decode()


def source_hash(text: str) -> str:
    """What a Content-Security-Policy names an inline script or style by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def key(run: Run) -> str:
    return f"{run.setting}/{run.run}"


def index(study: Study, runs: list[Run]) -> dict[str, Any]:
    """What the page knows before it unpacks anything: runs, benchmarks, and the two runs that it opens with, the first and SimPO."""
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
        {"key": name, "name": BENCHMARKS[name], "measure": MEASURES[name][0], "unit": MEASURES[name][1]}
        for name in study.config["questions"]
    ]
    simpo = next((run for run in runs if run.method == "simpo"), runs[-1])
    caption = study.caption("Two runs' answers to the same questions, side by side.", runs)
    return {"caption": caption, "runs": named, "benchmarks": benchmarks, "a": key(runs[0]), "b": key(simpo)}


def page(study: Study) -> str:
    """The whole page."""
    runs = study.rows()
    asked = {benchmark: questions(study, benchmark) for benchmark in study.config["questions"]}
    blocks = {benchmark: packed(texts) for benchmark, texts in asked.items()}
    for run in runs:
        likely = likelihoods(study, run)
        for benchmark, texts in asked.items():
            blocks[f"{benchmark}/{key(run)}"] = packed(rows(study, run, benchmark, texts, likely))
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
