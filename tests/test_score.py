"""stages/score.py by itself: anybody's files in the benchmarks' formats, gzipped, with nothing of this project but its stages."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from test_alpacaeval2 import answers_of, small_world

from stages.benchmarks import BENCHMARKS
from stages.score import shape

Rows = list[dict[str, Any]]


def alpacaeval2(folder: Path) -> tuple[Rows, Rows, str]:
    annotations, gamed = small_world(folder)
    return answers_of(annotations), annotations, gamed.read_text()


def oracle(_: Path) -> tuple[Rows, Rows, str]:
    answers = [{"instruction": f"q{n}", "output": f"a{n}", "generator": "model"} for n in range(3)]
    return answers, [row | {"score": n, "wrong": 1} for n, row in enumerate(answers)], ""


def answered(model: str, turns: list[Any]) -> Rows:
    return [{"question_id": n, "model_id": model, "choices": [{"index": 0, "turns": turns}]} for n in (1, 2)]


def lines(rows: Rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def arena_hard(_: Path) -> tuple[Rows, Rows, str]:
    games = [{"user_prompt": "the answer", "judgment": f"[[{label}]]", "score": label} for label in ("A>B", "A>>B")]
    judgments = [{"question_id": n, "model": "model", "judge": "judge", "games": games} for n in (1, 2)]
    turn = {"content": "the answer", "token_len": 2}
    return answered("model", [turn]), judgments, lines(answered("base", [turn]))


def mt_bench(_: Path) -> tuple[Rows, Rows, str]:
    rated = {"model": "model", "judge": ["judge", "single-v1"], "user_prompt": "one, two", "judgment": ""}
    judgments = [{"question_id": n, **rated, "score": turn, "turn": turn} for n in (1, 2) for turn in (1, 2)]
    questions = [{"question_id": n, "category": "writing", "turns": ["a", "b"]} for n in (1, 2)]
    return answered("model", ["one", "two"]), judgments, lines(questions)


# The rows, the option that takes the third file and its name, and a score that can be had by hand.
CASES: dict[str, tuple[Any, str, str, dict[str, Any]]] = {
    "alpacaeval2": (alpacaeval2, "--gamed", "df_gamed.csv.gz", {"n_total": 60, "n_failed": 0, "baseline": "base"}),
    "arena_hard": (
        arena_hard,
        "--baseline",
        "base.jsonl.gz",
        {"n_total": 4, "baseline": "base", "win_rate": pytest.approx(75)},
    ),  # 1 lost, 3 won
    "mt_bench": (mt_bench, "--questions", "question.jsonl.gz", {"n_total": 4, "judge": "judge", "mean": 1.5}),
    "oracle": (oracle, "", "", {"n": 3, "mean": 1.0, "standard_error": pytest.approx(3**-0.5), "findings": {"wrong": 1.0}}),
}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stages alone: no conf/, no Snakefile, no results."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(ROOT / "stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def score(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {key: text for key, text in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-m", "stages.score", *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("benchmark", CASES)
@pytest.mark.slow
def test_gzipped_files_of_anybodys_are_scored_without_a_config(benchmark: str, elsewhere: Path, tmp_path: Path) -> None:
    """main(): all files gzipped; the scores in the file, and a line that names the protocol's version, the judge and the baseline."""
    rows_of, option, third, expected = CASES[benchmark]
    answers, judgments, needed = rows_of(tmp_path)
    suffix, write = (".jsonl.gz", lines) if benchmark in ("arena_hard", "mt_bench") else (".json.gz", json.dumps)
    for name, text in ((f"answers{suffix}", write(answers)), (f"judgments{suffix}", write(judgments)), (third or "none", needed)):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    words = [f"--answers={tmp_path}/answers{suffix}", f"--judgments={tmp_path}/judgments{suffix}", f"--out={tmp_path}/scores.json"]
    done = score(elsewhere, "--benchmark", benchmark, *words, *([f"{option}={tmp_path / third}"] if option else []))
    assert done.returncode == 0, done.stderr[-2000:]
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {key: scores[key] for key in expected} == expected
    assert scores["protocol"]["version"] == BENCHMARKS[benchmark].version
    assert scores["ended"] is None and scores["repeated_3grams"] == 0  # anybody's files do not say, and these answers are short
    by = [f", {key} {scores[key]}" for key in ("judge", "baseline") if scores.get(key)]
    assert done.stdout.startswith(f"score: model on {benchmark}: ")
    assert done.stdout.endswith(f"; {BENCHMARKS[benchmark].version}{''.join(by)}\n")


LOOP = "a b c " * 4  # twelve words, ten 3-grams, of which three are new


@pytest.mark.parametrize(
    ("answers", "ended", "repeated"),
    [
        ([{"output": LOOP, "finish_reason": "length"}, {"output": "a b c d", "finish_reason": "stop"}], 0.5, 0.35),
        ([{"output": "a b"}, {"output": ""}], None, 0),
        ([{"output": "a\nb  a\tb a", "finish_reason": "stop"}, {"output": LOOP}], None, (1 / 3 + 0.7) / 2),  # one of them does not say
        ([{"choices": [{"turns": [{"content": LOOP}]}], "finish_reason": ["length"]}], 0, 0.7),
        ([{"choices": [{"turns": [LOOP, "one"]}], "finish_reason": ["stop", "stop"]}], 1, 0.35),
        ([{"choices": [{"turns": [LOOP, LOOP]}]}], None, 0.7),
    ],
)
def test_the_answers_shape_is_counted_by_turn(answers: Rows, ended: float | None, repeated: float) -> None:
    """shape(): the share that ended by itself, and the mean share of 3-grams said before, in each benchmark's format."""
    assert shape(answers) == {"ended": ended, "repeated_3grams": pytest.approx(repeated)}


def test_help_names_every_format(elsewhere: Path) -> None:
    """--help: the benchmarks' own files and the keys that they must have."""
    said = score(elsewhere, "--help").stdout
    for word in ("model_outputs.json", "annotations.json", "model_answer.jsonl", "model_judgment", "df_gamed.csv", "question.jsonl", ".gz"):
        assert word in said
    for key in ("generator_2", "preference", "games", "user_prompt", "not_gamed_baseline", "token_len"):
        assert key in said
