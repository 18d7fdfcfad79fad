"""Anybody's benchmark files: what they really hold, in stages/judging, stages/score.py and the mini world's own files.

A judge is never asked about a text that is none; a value of another type is named with its file, row and key; a file that holds more
than was asked for gives the rows of the answers' model.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from checkout import ROOT
from published import REFERENCE, needed
from test_alpacaeval2 import answers_of, small_world
from test_score import lines

from stages import score
from stages.benchmarks import BENCHMARKS, alpacaeval2, arena_hard, mt_bench
from stages.benchmarks.rows import turns_of
from stages.lib import files
from stages.lib.errors import UserError
from stages.mini.world import make_world

Rows = list[dict[str, Any]]


def answered(model: str, turns: list[Any]) -> Rows:
    return [{"question_id": n, "model_id": model, "choices": [{"index": 0, "turns": deepcopy(turns)}]} for n in (1, 2)]


NO_TEXTS = [None, 42, 7.5, True, ["a"], {"text": "a"}]


def never(requests: Any) -> Any:
    raise AssertionError(f"{len(requests)} calls were made")


# -- F2: what is no text is never judged


@pytest.mark.parametrize("value", NO_TEXTS)
@pytest.mark.parametrize(("side", "key"), [("answers", "output"), ("answers", "instruction"), ("baseline", "output")])
def test_alpacaeval_asks_about_texts_alone(side: str, key: str, value: Any) -> None:
    rows = {
        name: [{"instruction": f"q{i}", "output": f"{name}{i}", "generator": name} for i in range(2)] for name in ("answers", "baseline")
    }
    rows[side][1][key] = value
    how = {"template": "", "swap_seed": 0, "decoding": {}, "annotator": "a", "judge": "j"}
    with pytest.raises(UserError, match=rf"the {side}, row 1 \(from 0\): '{key}' is .*expected a text"):
        alpacaeval2.annotate(rows["answers"], rows["baseline"], ask=never, **how)


ARENA = {"system_prompt": "s", "prompt_template": ["{question_1}{answer_1}{answer_2}"], "regex_pattern": r"\[\[(.*?)\]\]"}
PROMPTS = [
    {"name": f"single{math}-v1{turn}", "system_prompt": "s", "prompt_template": text}
    for math, turn, text in (
        ("", "", "{question}{answer}"),
        ("-math", "", "{question}{answer}{ref_answer_1}"),
        ("", "-multi-turn", "{question_1}{answer_1}{question_2}{answer_2}"),
        ("-math", "-multi-turn", "{question_1}{answer_1}{question_2}{answer_2}{ref_answer_1}{ref_answer_2}"),
    )
]


@pytest.mark.parametrize("value", NO_TEXTS)
def test_games_and_ratings_are_asked_for_texts_alone(value: Any) -> None:
    asked = [{"question_id": n, "category": "math", "turns": ["q1", "q2"]} for n in (1, 2)]
    games = [{"question_id": n, "turns": [{"content": "q"}]} for n in (1, 2)]
    good, bad = answered("model", ["a", "b"]), answered("model", ["a", "b"])
    bad[1] = answered("model", ["a", value])[1]
    turn, none = answered("model", [{"content": "a"}]), answered("model", [{"content": value}])
    mt = {"prompts": PROMPTS, "decoding": {}, "ask": never, "judge": "j"}
    arena = {"config": ARENA, "decoding": {}, "ask": never, "judge": "j"}
    with pytest.raises(UserError, match="the answers, question 2, turn 2 is .*expected a text"):
        mt_bench.annotate(bad, asked, good, **mt)
    with pytest.raises(UserError, match="the reference answers, question 2, turn 2 is"):
        mt_bench.annotate(good, asked, bad, **mt)
    with pytest.raises(UserError, match="the questions, question 2, turn 2 is"):
        mt_bench.annotate(good, [asked[0], asked[1] | {"turns": ["q1", value]}], good, **mt)
    with pytest.raises(UserError, match="the answers, question 1, turn 1 is"):
        arena_hard.annotate(none, games, turn, **arena)
    with pytest.raises(UserError, match="the baseline's answers, question 1, turn 1 is"):
        arena_hard.annotate(turn, games, none, **arena)
    with pytest.raises(UserError, match="the questions, question 1, turn 1 is"):
        arena_hard.annotate(turn, [{"question_id": 1, "turns": [{"content": value}]}, games[1]], turn, **arena)


@pytest.mark.parametrize("row", [{"choices": []}, {"choices": None}, {"choices": [{}]}, {"choices": [{"turns": "ab"}]}, {"turns": []}, {}])
def test_an_answer_without_turns_is_named(row: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="f, question 7: '(choices|turns)' is .*expected"):
        turns_of({"question_id": 7} | row, "f")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"system_prompt": None}, "'system_prompt' is None"),
        ({"prompt_template": 5}, "'prompt_template' is 5"),
        ({"prompt_template": "{question"}, "cannot be filled in"),
        ({"prompt_template": "{question!r}{answer}"}, "it must have"),
    ],
)
def test_a_judges_prompt_is_text_with_its_gaps(prompt: dict[str, Any], message: str, tmp_path: Path) -> None:
    """MT-Bench: read and filled in before any call."""
    files.write_jsonl(tmp_path / "prompts.jsonl", [PROMPTS[0] | prompt, *PROMPTS[1:]])
    asked = [{"question_id": 1, "category": "writing", "turns": ["q1", "q2"]}]
    with pytest.raises(UserError, match=message):
        read = list(mt_bench.read_prompts(tmp_path / "prompts.jsonl").values())
        mt_bench.annotate(answered("model", ["a", "b"])[:1], asked, [], prompts=read, decoding={}, ask=never, judge="j")


@pytest.mark.parametrize("pattern", ["[[", "(A)(>)(B)", 5])
def test_arena_hards_pattern_finds_one_label(pattern: Any, tmp_path: Path) -> None:
    files.write_json(tmp_path / "judge_config.yaml", {**ARENA, "regex_pattern": pattern})
    with pytest.raises(UserError, match="judge_config.yaml: 'regex_pattern'"):
        arena_hard.read_config(tmp_path / "judge_config.yaml")


@pytest.mark.parametrize("generator", [None, 5, []])
def test_alpacaevals_generators_are_names(generator: Any) -> None:
    rows = {of: [{"instruction": f"q{i}", "output": f"{of}{i}", "generator": of} for i in range(2)] for of in ("ours", "theirs")}
    how = {"template": "", "swap_seed": 0, "decoding": {}, "annotator": "a", "judge": "j", "ask": never}
    rows["ours"][1]["generator"] = generator
    with pytest.raises(UserError, match="the answers, row 1 .*'generator'"):
        alpacaeval2.annotate(rows["ours"], rows["theirs"], **how)
    rows["ours"][1]["generator"] = "another"
    with pytest.raises(UserError, match="2 values of generator"):
        alpacaeval2.annotate(rows["ours"], rows["theirs"], **how)


def test_an_empty_text_is_a_text() -> None:
    assert turns_of({"question_id": 1, "choices": [{"turns": ["", {"content": ""}]}]}, "f") == ["", ""]


# -- F7 and F8: judgments as other tools write them


def scored(folder: Path, benchmark: str, answers: Rows, judgments: Rows, needed: str) -> dict[str, Any]:
    """What the stage's command line makes of these rows; its sentence as a UserError."""
    for name, text in (("answers.json", json.dumps(answers)), ("judgments.json", lines(judgments)), ("needed", needed)):
        (folder / name).write_text(text)
    paths = ["--answers", str(folder / "answers.json"), "--judgments", str(folder / "judgments.json"), "--out", str(folder / "scores.json")]
    arguments = ["score", "--benchmark", benchmark, *paths, f"--{BENCHMARKS[benchmark].needs or 'gamed'}", str(folder / "needed")]
    before, sys.argv = sys.argv, arguments
    try:
        score.main()
    finally:
        sys.argv = before
    scores: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    return scores


def mt_case(model: str = "model") -> tuple[Rows, Rows, str]:
    rated = {"model": model, "judge": ["gpt-4", "single-v1"], "user_prompt": "one, two", "judgment": ""}
    judgments = [{"question_id": n, **rated, "score": 2 * n, "turn": turn} for n in (1, 2) for turn in (1, 2)]
    return (
        answered(model, ["one", "two"]),
        judgments,
        lines([{"question_id": n, "category": "writing", "turns": ["a", "b"]} for n in (1, 2)]),
    )


def arena_case(model: str = "model", label: str = "B>A") -> tuple[Rows, Rows, str]:
    games = [{"user_prompt": "ours", "judgment": "", "score": label}, {"user_prompt": "ours", "judgment": "", "score": "A>B"}]
    judgments = [{"question_id": n, "model": model, "judge": "gpt-4", "games": [*games]} for n in (1, 2)]
    return answered(model, [{"content": "ours", "token_len": 3}]), judgments, lines(answered("base", [{"content": "base"}]))


@pytest.mark.slow
def test_a_file_of_several_models_gives_the_rows_of_the_answers(tmp_path: Path) -> None:
    """F7: FastChat's gpt-4_single.jsonl and Arena-Hard's judgments hold every model."""
    answers, mine, asked = mt_case()
    assert scored(tmp_path, "mt_bench", answers, [*mt_case("other")[1], *mine], asked)["mean"] == 3
    answers, mine, base = arena_case()
    assert scored(tmp_path, "arena_hard", answers, [*arena_case("other", "A>>B")[1], *mine], base)["win_rate"] == 100
    with pytest.raises(UserError, match=r"2 values of model \(a, b\)"):
        scored(tmp_path, "arena_hard", answers, [*arena_case("a")[1], *arena_case("b")[1]], base)
    with pytest.raises(UserError, match=r"2 values of model \(a, b\)"):
        scored(tmp_path, "mt_bench", mt_case()[0], [*mt_case("a")[1], *mt_case("b")[1]], asked)


@pytest.mark.slow
def test_alpacaevals_annotations_of_several_models_give_those_of_the_answers(tmp_path: Path) -> None:
    annotations, gamed = small_world(tmp_path)
    mixed = [{**row, "generator_2": "other", "output_2": "x"} for row in annotations] + annotations
    found = scored(tmp_path, "alpacaeval2", answers_of(annotations), mixed, gamed.read_text())
    assert found == scored(tmp_path, "alpacaeval2", answers_of(annotations), annotations, gamed.read_text())


def test_a_judge_may_be_a_text_and_its_name_is_whole(tmp_path: Path) -> None:
    answers, judgments, asked = mt_case()
    found = scored(tmp_path, "mt_bench", answers, [row | {"judge": "gpt-4"} for row in judgments], asked)
    assert (found["judge"], found["protocol"]["prompts"]) == ("gpt-4", [])


def test_a_null_score_or_game_failed_and_the_rest_counts(tmp_path: Path) -> None:
    """F8, and a token_len that is null gives no mean length."""
    answers, judgments, asked = mt_case()
    judgments[0]["score"] = None
    found = scored(tmp_path, "mt_bench", answers, judgments, asked)
    assert (found["mean"], found["n_total"], found["failures"]) == (pytest.approx(10 / 3), 3, {"no rating": 1})
    answers, judgments, base = arena_case()
    judgments[0]["games"][0], judgments[1]["games"][1] = None, judgments[1]["games"][1] | {"score": None}
    answers[1] = answered("model", [{"content": "ours", "token_len": None}])[1]
    found = scored(tmp_path, "arena_hard", answers, judgments, base)
    assert (found["n_total"], found["win_rate"], found["avg_tokens"]) == (2, 100, None)
    assert found["failures"] == {"no game": 1, "no verdict or contradictory verdicts": 1}


MT_FAULTS: dict[str, dict[str, Any]] = {
    "'score' is '7'": {"score": "7"},
    "'score' is True": {"score": True},
    "'score' is {}": {"score": {}},
    "'judge' is None": {"judge": None},
    r"'judge' is \[\]": {"judge": []},
    "'score' is 1": {"score": 10**400},
    r"'question_id' is \[1\]": {"question_id": [1]},
    "'turn' is 3": {"turn": 3},
    "'user_prompt' is None": {"user_prompt": None},
    "'model' is 4": {"model": 4},
}
ARENA_FAULTS: dict[str, dict[str, Any]] = {
    "'games' is None": {"games": None},
    "game 1: expected": {"games": [7, None]},
    "game 2: expected": {"games": [None, {"user_prompt": "ours", "score": 3}]},
    "game 1: 'user_prompt' is None": {"games": [{"score": "A>B"}, None]},
    "'judge' is None": {"judge": None},
    "'attempts' is '2'": {"games": [{"user_prompt": "ours", "score": "A>B", "attempts": "2"}, None]},
}


@pytest.mark.parametrize(
    ("benchmark", "case", "message", "fault"),
    [("mt_bench", mt_case, *fault) for fault in MT_FAULTS.items()] + [("arena_hard", arena_case, *fault) for fault in ARENA_FAULTS.items()],
)
def test_a_judgments_value_of_another_type_is_named(
    benchmark: str, case: Callable[[], tuple[Rows, Rows, str]], message: str, fault: dict[str, Any], tmp_path: Path
) -> None:
    answers, judgments, more = case()
    judgments[1] |= fault
    with pytest.raises(UserError, match=rf"judgments\.json, row 1 \(from 0\).*{message}"):
        scored(tmp_path, benchmark, answers, judgments, more)


@pytest.mark.parametrize("fault", [{"choices": []}, {"choices": [{"turns": [{"content": None}]}]}, {"choices": [{"turns": [3]}]}])
def test_an_answers_value_of_another_type_is_named(fault: dict[str, Any], tmp_path: Path) -> None:
    answers, judgments, base = arena_case()
    answers[1] |= fault
    with pytest.raises(UserError, match=r"answers\.json, row 1 \(from 0\), question 2"):
        scored(tmp_path, "arena_hard", answers, judgments, base)


def test_a_token_length_of_another_type_is_named(tmp_path: Path) -> None:
    answers, judgments, base = arena_case()
    answers[1]["choices"][0]["turns"][0] = {"content": "ours", "token_len": "3"}
    with pytest.raises(UserError, match="question 2: 'token_len' is '3'"):
        scored(tmp_path, "arena_hard", answers, judgments, base)


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [("answers", "output", 42), ("answers", "output", None)]
    + [("judgments", "preference", value) for value in ({}, "1.5", True, 3, [1])]
    + [("judgments", key, None) for key in ("output_1", "output_2", "generator_1", "annotator", "instruction")],
)
def test_an_annotations_value_of_another_type_is_named(where: str, key: str, value: Any, tmp_path: Path) -> None:
    annotations, gamed = small_world(tmp_path)
    rows = {"answers": answers_of(annotations), "judgments": annotations}
    rows[where][4] = rows[where][4] | {key: value}
    with pytest.raises(UserError, match=rf"{where}\.json, row 4 \(from 0\).*{key}'? is"):
        scored(tmp_path, "alpacaeval2", rows["answers"], rows["judgments"], gamed.read_text())


@pytest.mark.parametrize(("key", "value"), [("score", None), ("score", "9"), ("wrong", None), ("wrong", "none")])
def test_the_oracles_values_are_numbers(key: str, value: Any, tmp_path: Path) -> None:
    answers = [{"instruction": f"q{n}", "output": f"a{n}", "generator": "model"} for n in range(2)]
    judgments = [row | {"score": 1, "wrong": 0} for row in answers]
    judgments[1][key] = value
    with pytest.raises(UserError, match=rf"judgments\.json, row 1 \(from 0\): '{key}'"):
        scored(tmp_path, "oracle", answers, judgments, "")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *product(("instruction_difficulty", "std_delta_len", "index"), ("", "n/a")),
        ("instruction_difficulty", "inf"),
        ("preference", "1.5"),
        ("preference", "x"),
        ("not_gamed_baseline", ""),
    ],
)
def test_the_gamed_files_values_are_numbers_in_their_range(column: str, value: str, tmp_path: Path) -> None:
    annotations, path = small_world(tmp_path)
    gamed = pd.read_csv(path, dtype=str)
    gamed.loc[3, column] = value
    with pytest.raises(UserError, match=rf"needed, row 3 \(from 0\): '{column}'"):
        scored(tmp_path, "alpacaeval2", answers_of(annotations), annotations, gamed.to_csv(index=False))


@pytest.mark.parametrize("failure", [5, ["x"], {}, True])
def test_a_failure_of_any_type_is_a_failure(failure: Any, tmp_path: Path) -> None:
    answers, judgments, asked = mt_case()
    judgments[0] |= {"score": None, "failure": failure}
    assert scored(tmp_path, "mt_bench", answers, judgments, asked)["n_failed"] == 1


@pytest.mark.parametrize("model_id", [None, 7, ["w"]])
def test_a_baseline_has_a_name(model_id: Any, tmp_path: Path) -> None:
    answers, judgments, base = arena_case()
    rows = [json.loads(line) | {"model_id": model_id} for line in base.splitlines()]
    with pytest.raises(UserError, match="needed, row 0 .*'model_id'"):
        scored(tmp_path, "arena_hard", answers, judgments, lines(rows))


@pytest.mark.parametrize("text", ["", "a,b\n1,2,3\n"])
def test_a_gamed_file_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    annotations, _ = small_world(tmp_path)
    with pytest.raises(UserError, match="needed (is no CSV|has no column)"):
        scored(tmp_path, "alpacaeval2", answers_of(annotations), annotations, text)


# -- F9: answers as long as the baseline's


def test_the_baselines_own_texts_have_half_of_the_wins(tmp_path: Path) -> None:
    annotations, gamed = small_world(tmp_path)
    copied = [row | {"output_2": row["output_1"], "preference": 1.5} for row in annotations]
    found = scored(tmp_path, "alpacaeval2", answers_of(copied), copied, gamed.read_text())
    assert (found["length_controlled_winrate"], found["win_rate"]) == (50, 50)


def test_other_texts_of_the_same_lengths_have_nothing_to_control(tmp_path: Path) -> None:
    """Their LC win rate is near the raw one: the length term is 0 for each of them."""
    annotations, gamed = small_world(tmp_path)
    level = [row | {"output_2": "x" * len(row["output_1"])} for row in annotations]
    found = scored(tmp_path, "alpacaeval2", answers_of(level), level, gamed.read_text())
    assert found["length_controlled_winrate"] == pytest.approx(found["win_rate"], abs=3)


# -- F15: a verdict that the judge did not mean


@pytest.mark.parametrize("key", ["preference_raw_completion", "raw_completion"])
def test_improbable_verdicts_are_counted(key: str, tmp_path: Path) -> None:
    """The judge begins with <think>, and m stands among its likeliest tokens at -7.4: the protocol makes a full win of it."""
    annotations, gamed = small_world(tmp_path)
    for number, row in enumerate(annotations):
        top = [("<think>", -0.001), ("m", -7.4)] if number < 7 else [("m", -0.7), ("M", -0.8)]
        entries = [{"token": token, "logprob": logprob} for token, logprob in top]
        row.pop("preference_raw_completion", None)
        row[key] = {"logprobs": {"content": [{"top_logprobs": entries}]}} if number else None
    found = scored(tmp_path, "alpacaeval2", answers_of(annotations), annotations, gamed.read_text())
    assert found["n_improbable"] == 6


# -- F10 and F11: how files are written


def test_rows_are_told_apart_by_what_the_file_holds(tmp_path: Path) -> None:
    rows = [{"a": "ü\u2028"}, {"a": "b"}]
    listed, lined = json.dumps(rows, indent=1), "\n".join(json.dumps(row) for row in rows)
    for number, (name, text) in enumerate(
        (name, text)
        for name in ("rows.json", "rows.jsonl", "rows.txt", "rows")
        for text in (listed, lined, f"{lined}\n", f"\ufeff{listed}")
    ):
        path = tmp_path / f"{number}" / name
        path.parent.mkdir()
        path.write_text(text, encoding="utf-8")
        assert files.read_rows(path) == rows
        path.write_bytes(gzip.compress(text.replace("\n", "\r\n").encode()))
        assert files.read_rows(path) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"a": ', "is cut off: its last line, 2"),
        ('{"a": 1}\n{"a": \n{"a": 2}', "line 2, is not whole JSON"),
        ('[{"a": 1}, ', "is not whole JSON"),
        ("[]", "holds no rows"),
        ('{"a": %s}' % ("9" * 5000), "is not whole JSON"),
        ("", "is empty"),
        (" \n\n", "is empty"),
        ('[{"a": 1}, 2]', r"row 1 \(from 0\): expected an object, found 2"),
        ('{"a": 1}\n"b"\n', "line 2: expected an object"),
        ('{\n "rows": [1]\n}', "expected an object a line"),
    ],
)
def test_a_broken_file_is_named_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"rows\.json.*{message}"):
        files.read_rows(path)


def test_half_a_surrogate_pair_is_replaced_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """F10: JSON can hold it, UTF-8 and what is written of it cannot. A whole pair is a character."""
    answers, judgments, asked = mt_case()
    answers[0]["choices"][0]["turns"][1] = "two \ud83d"
    answers[1]["choices"][0]["turns"][1] = "two 😀"
    for row in judgments:
        row["user_prompt"] = "one, two \ud83d, two 😀"
    assert scored(tmp_path, "mt_bench", answers, judgments, asked)["mean"] == 3
    assert "answers.json: 1 texts hold half of a surrogate pair" in capsys.readouterr().err
    turns = [row["choices"][0]["turns"][1] for row in files.read_rows(tmp_path / "answers.json")]
    assert turns == ["two �", "two 😀"]
    assert files.replaced[str(tmp_path / "answers.json")] == 1


def test_score_says_one_sentence_of_a_file_with_another_types_value(tmp_path: Path) -> None:
    """The command itself: status 1, one sentence, no traceback."""
    answers, judgments, asked = mt_case()
    for name, text in (("a.jsonl", lines(answers)), ("j.jsonl", lines([row | {"score": "7"} for row in judgments])), ("q.jsonl", asked)):
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "stages.score", "--benchmark", "mt_bench", "--out", str(tmp_path / "s.json")]
    command += ["--answers", str(tmp_path / "a.jsonl"), "--judgments", str(tmp_path / "j.jsonl"), "--questions", str(tmp_path / "q.jsonl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/j.jsonl, row 0 (from 0): 'score' is '7'")
    assert len(done.stderr.splitlines()) == 1


# -- the mini world's own files


@needed("arena_hard")
@pytest.mark.slow
def test_the_worlds_files_have_the_benchmarks_own_keys(tmp_path: Path) -> None:
    """Each file of the world has every key that the published file of its kind has, but for when and by what a row was made."""
    from stages.plan import Plan

    make_world(Plan("smoke").base.world, tmp_path)
    own = {"tstamp", "dataset", "reference"}
    pairs = {
        "arena_hard/question.jsonl": "arena_hard/question.jsonl*",
        "arena_hard/baseline.jsonl": "arena_hard/model_answer/*",
        "mt_bench/question.jsonl": "mt_bench/question.jsonl*",
        "mt_bench/reference_answer.jsonl": "mt_bench/reference_answer/*",
        "mt_bench/judge_prompts.jsonl": "mt_bench/judge_prompts.jsonl*",
        "alpacaeval2/baseline.json": "alpaca_eval/model_outputs/*",
    }
    for ours, theirs in pairs.items():
        published = sorted(REFERENCE.glob(theirs))
        assert published, theirs
        made, given = files.read_rows(tmp_path / ours)[0], files.read_rows(published[0])[0]
        assert not given.keys() - made.keys() - own, ours
        if "choices" in given and isinstance(given["choices"][0]["turns"][0], dict):
            assert given["choices"][0]["turns"][0].keys() <= made["choices"][0]["turns"][0].keys(), ours
