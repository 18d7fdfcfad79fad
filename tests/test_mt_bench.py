"""stages/benchmarks/mt_bench.py against published judgments and scores.

Published data: the folder in REFERENCE_DATA (default ../shared/reference_data beside the repository); tests that need it are
skipped where it is absent.
"""

from __future__ import annotations

import json
import math
from statistics import fmean
from typing import Any

import pytest
from published import REFERENCE, needed

from stages.benchmarks import mt_bench
from stages.benchmarks.rows import read_rows
from stages.judging.client import Outcome
from stages.lib.errors import UserError

MT_BENCH = REFERENCE / "mt_bench"
LLAMA, ORPO, PHI = "Meta-Llama-3-8B-Instruct-Normal", "mistral-orpo-capybara", "phi-3-dpo"
published = needed("mt_bench")

PROMPTS: list[dict[str, Any]] = [
    {"name": "single-v1", "system_prompt": "s1", "prompt_template": "{question}|{answer}"},
    {"name": "single-math-v1", "system_prompt": "s2", "prompt_template": "{question}|{ref_answer_1}|{answer}"},
    {"name": "single-v1-multi-turn", "system_prompt": "s3", "prompt_template": "{question_1}|{answer_1}|{question_2}|{answer_2}"},
    {
        "name": "single-math-v1-multi-turn",
        "system_prompt": "s4",
        "prompt_template": "{question_1}|{ref_answer_1}|{question_2}|{ref_answer_2}|{answer_1}|{answer_2}",
    },
]


def rows_of(name: str) -> list[dict[str, Any]]:
    return read_rows(MT_BENCH / name, [])


def judgments_of(model: str) -> list[dict[str, Any]]:
    return rows_of(f"model_judgment/gpt-4_single.{model}.jsonl.gz")


def answer(number: Any, *turns: str, model: str = "model") -> dict[str, Any]:
    return {"question_id": number, "answer_id": f"a{number}", "model_id": model, "choices": [{"index": 0, "turns": list(turns)}]}


def question(number: Any, category: str = "writing") -> dict[str, Any]:
    return {"question_id": number, "category": category, "turns": [f"q{number}.1", f"q{number}.2"]}


def judged(number: Any, turn: int, score: float, **more: Any) -> dict[str, Any]:
    row = {"question_id": number, "model": "model", "judge": ["judge-1", "single-v1"], "user_prompt": f"… a{number}.{turn} …"}
    return row | {"judgment": f"[[{score}]]", "score": score, "turn": turn} | more


def said(text: Any, **more: Any) -> Outcome:
    return Outcome({"choices": [{"message": {"role": "assistant", "content": text, **more}, "finish_reason": "stop"}]})


# -- the judge's side ----------------------------------------------------------------------------------------------------


@published
@pytest.mark.parametrize("model", [LLAMA, ORPO, PHI])
def test_published_prompts_come_back_byte_for_byte(model: str) -> None:
    """messages(): every published row's user prompt and prompt name, with gpt-4's own reference answers, which these judgments used."""
    prompts = rows_of("judge_prompts.jsonl")
    questions = {row["question_id"]: row for row in rows_of("question.jsonl")}
    answers = {row["question_id"]: row["choices"][0]["turns"] for row in rows_of(f"model_answer/{model}.jsonl.gz")}
    references = {row["question_id"]: row["choices"][0]["turns"] for row in rows_of("reference_answer/gpt-4.jsonl")}
    rows = judgments_of(model)
    for row in rows:
        asked = questions[row["question_id"]]
        chat = mt_bench.messages(prompts, asked, answers[row["question_id"]], row["turn"], references.get(row["question_id"]))
        assert chat[1] == {"role": "user", "content": row["user_prompt"]}
        name = mt_bench.prompt_name(asked["category"], row["turn"])
        assert row["judge"] == ["gpt-4", name]
        assert chat[0]["content"] == next(prompt["system_prompt"] for prompt in prompts if prompt["name"] == name)
    assert len(rows) == (170 if model == LLAMA else 160)
    assert set(mt_bench.read_prompts(MT_BENCH / "judge_prompts.jsonl")) == {row["judge"][1] for row in rows}


@published
def test_the_reference_answers_that_are_needed_are_there() -> None:
    """NEEDS_REFERENCE: both judges' files hold its 30 questions and no other."""
    needed = {row["question_id"] for row in rows_of("question.jsonl") if row["category"] in mt_bench.NEEDS_REFERENCE}
    for judge in ("gpt-4", "gpt-4-1106-preview"):
        assert {row["question_id"] for row in rows_of(f"reference_answer/{judge}.jsonl")} == needed


@published
@pytest.mark.parametrize("model", [LLAMA, ORPO, PHI])
def test_published_ratings_are_parsed_from_the_published_judgments(model: str) -> None:
    rows = judgments_of(model)
    assert [mt_bench.rating(row["judgment"]) for row in rows] == [row["score"] for row in rows]


@pytest.mark.parametrize(
    ("judgment", "rating"),
    [
        ("Rating: [[5]]", 5),
        ("Rating: [[7.5]], surely not [[9]]", 7.5),
        ("see [1]; Rating: [[8]]", 8),  # double brackets first, wherever they stand
        ("see [1]; Rating: [8]", 1),
        ("Rating: [9.]", 9.0),
        ("[[10]]", 10),
        ("[[12]]", 12),
        ("[[08]]", 8),
        ("Rating: 5 of [[ten]]", -1),
        ("[[-1]]", -1),
        ("$ERROR$", -1),
        (f"[[{'9' * 5000}]]", -1),
    ],
)
def test_ratings_are_read_as_fastchat_reads_them(judgment: str, rating: float) -> None:
    """rating(): the first [[n]], else the first [n], else -1. At 08 and at a number that no float holds FastChat stops, not we."""
    assert mt_bench.rating(judgment) == rating


def test_texts_stay_text_and_unknown_prompts_are_refused() -> None:
    """messages(): braces in an answer fill no gap; a missing prompt, or one with other gaps, stops by name."""
    assert mt_bench.messages(PROMPTS, question(1), ["{question} {x}", "b"], 1, None)[1]["content"] == "q1.1|{question} {x}"
    with pytest.raises(UserError, match="'single-v1-multi-turn'"):
        mt_bench.messages(PROMPTS[:1], question(1), ["a", "b"], 2, None)
    with pytest.raises(UserError, match="gaps"):
        mt_bench.messages([{"name": "single-v1", "system_prompt": "", "prompt_template": "{answer}"}], question(1), ["a", "b"], 1, None)


QUESTIONS = [question(1), question(2, "math"), question(3)]
GIVEN: dict[str, Any] = {
    "answers": [answer(i, f"a{i}.1", f"a{i}.2") for i in (3, 2, 1)],
    "questions": QUESTIONS,
    "references": [answer(2, "r2.1", "r2.2", model="judge-1")],
}


def test_every_turn_has_a_rating_or_a_reason() -> None:
    """annotate(): one call, turn 1 of all questions and then turn 2, FastChat's keys, the reference only where it is needed."""
    down = Outcome(failure="HTTP 500 in the last of 6 tries")
    script = [said("Rating: [[7]]"), said("hm"), down, said(None, refusal="no"), said("[[2.5]]"), Outcome({"choices": []})]
    calls = []

    def ask(requests: list[dict[str, Any]]) -> list[Outcome]:
        calls.append(requests)
        return script

    rows = mt_bench.annotate(**GIVEN, prompts=PROMPTS, decoding={"temperature": 0}, ask=ask, judge="judge-1")
    assert len(calls) == 1
    assert [[message["content"] for message in request["messages"]] for request in calls[0]] == [
        ["s1", "q1.1|a1.1"],
        ["s2", "q2.1|r2.1|a2.1"],
        ["s1", "q3.1|a3.1"],
        ["s3", "q1.1|a1.1|q1.2|a1.2"],
        ["s4", "q2.1|r2.1|q2.2|r2.2|a2.1|a2.2"],
        ["s3", "q3.1|a3.1|q3.2|a3.2"],
    ]
    assert all(request["temperature"] == 0 for request in calls[0])
    assert [(row["question_id"], row["turn"], row["score"], row["judgment"], row["failure"]) for row in rows] == [
        (1, 1, 7, "Rating: [[7]]", None),
        (2, 1, -1, "hm", "no rating"),
        (3, 1, -1, "$ERROR$", down.failure),
        (1, 2, -1, "$ERROR$", "the judge refused: 'no'"),
        (2, 2, 2.5, "[[2.5]]", None),
        (3, 2, -1, "$ERROR$", "the response has no choices[0].message.content"),
    ]
    assert [row["user_prompt"] for row in rows] == [request["messages"][1]["content"] for request in calls[0]]
    assert rows[4]["model"] == "model" and rows[4]["judge"] == ["judge-1", "single-math-v1-multi-turn"]
    scores = mt_bench.score(GIVEN["answers"], rows, QUESTIONS)
    assert (scores["mean"], scores["n_total"], scores["n_failed"]) == (4.75, 2, 4)
    no_content = "the response has no choices[0].message.content"
    assert scores["failures"] == {"no rating": 1, down.failure: 1, "the judge refused": 1, no_content: 1}


def test_a_missing_answer_or_reference_is_named_before_anything_is_asked() -> None:
    """annotate(): each question needs both turns answered, and those of NEEDS_REFERENCE a reference answer."""

    def ask(requests: list[dict[str, Any]]) -> list[Outcome]:
        raise AssertionError("nothing may be asked")

    cases: dict[str, dict[str, Any]] = {
        "the answers have no row for question 1": {"answers": GIVEN["answers"][:2]},
        "the reference answers have no row for question 2": {"references": [answer(9, "r", "r")]},
        "the answers, question 3 has 1 turns": {"answers": [answer(3, "a3.1"), *GIVEN["answers"][1:]]},
        "the answers have question 2 more than once": {"answers": [*GIVEN["answers"], GIVEN["answers"][1]]},
        "question 4 has 1 turns": {"questions": [question(4) | {"turns": ["q"]}]},
        "2 values of model_id": {"answers": [answer(3, "a", "b", model="other"), *GIVEN["answers"][1:]]},
    }
    for message, given in cases.items():
        with pytest.raises(UserError, match=message):
            mt_bench.annotate(**(GIVEN | given), prompts=PROMPTS, decoding={}, ask=ask, judge="judge-1")


# -- the scores ----------------------------------------------------------------------------------------------------------


def published_scores(model: str) -> dict[str, Any]:
    return mt_bench.score(rows_of(f"model_answer/{model}.jsonl.gz"), judgments_of(model), rows_of("question.jsonl"))


@published
def test_category_means_of_phi_3_dpo_are_the_published_ones() -> None:
    scores = published_scores(PHI)
    assert scores["categories"] == pytest.approx(json.loads((REFERENCE / "expected.json").read_text())["mt_bench"][PHI])
    assert scores["mean"] == pytest.approx(8.2) and (scores["n_total"], scores["n_failed"]) == (160, 0)
    assert (scores["generator"], scores["judge"]) == (PHI, "gpt-4")


@published
def test_failed_rows_stay_out_and_doubled_rows_count() -> None:
    """score(): 166 of Llama's 170 rows, means 8.384, 7.263 and 7.843; a mean of the two turns' means would be 7.823."""
    scores = published_scores(LLAMA)
    assert (scores["n_total"], scores["n_failed"], scores["failures"]) == (166, 4, {"the call failed": 4})
    assert (round(scores["turns"]["1"], 3), round(scores["turns"]["2"], 3), round(scores["mean"], 3)) == (8.384, 7.263, 7.843)


@published
def test_rows_out_of_order_have_the_same_means() -> None:
    """score(): mistral-orpo-capybara's file is in the order in which the judge's answers came."""
    scores = published_scores(ORPO)
    assert (scores["turns"]["1"], scores["turns"]["2"]) == (7.125, 6.5125) and round(scores["mean"], 3) == 6.819


def test_the_standard_error_is_over_questions() -> None:
    """score(): a question's two turns are one observation; ddof 1; a turn that failed leaves the other one."""
    answers = [answer(i, f"a{i}.1", f"a{i}.2") for i in (1, 2, 3)]
    judgments = [judged(1, 1, 4), judged(1, 2, 6), judged(2, 1, 8), judged(2, 2, -1, failure="HTTP 500"), judged(3, 1, 2), judged(3, 2, 0)]
    scores = mt_bench.score(answers, judgments, [question(1), question(2, "math"), question(3)])
    of_question = [5, 8, 1]
    variance = sum((value - fmean(of_question)) ** 2 for value in of_question) / 2
    assert scores["standard_error"] == pytest.approx(math.sqrt(variance / 3))
    assert scores["mean"] == 4 and scores["categories"] == {"writing": 3, "math": 8} and scores["turns"] == {"1": fmean([4, 8, 2]), "2": 3}
    assert (scores["n_total"], scores["n_failed"], scores["failures"], scores["n_off_scale"]) == (5, 1, {"HTTP 500": 1}, 1)
    assert scores["avg_length"] == 4
    json.dumps(scores)


def test_a_turn_or_category_without_a_rating_has_no_mean() -> None:
    scores = mt_bench.score([answer(1, "a1.1", "a1.2")], [judged(1, 1, 4), judged(1, 2, -1, judgment="hm")], [question(1)])
    assert scores["turns"] == {"1": 4, "2": None} and scores["standard_error"] is None and scores["failures"] == {"no rating": 1}


def test_judgments_that_do_not_belong_to_the_answers_are_refused() -> None:
    """score(): a missing or strange turn, another answer, two judges, an unknown question and failures alone stop by name."""
    answers, whole = [answer(1, "a1.1", "a1.2")], [judged(1, 1, 4), judged(1, 2, 6)]
    cases = {
        "turn 2 of question 1 is not in both": whole[:1],
        "turn 1 of question 2 is not in both": [*whole, judged(2, 1, 5)],
        "turn 2 of question 1: judged was another answer": [whole[0], whole[1] | {"user_prompt": "another"}],
        "2 values of judge": [whole[0], whole[1] | {"judge": ["judge-2", "single-v1"]}],
        "2 values of model": [whole[0], whole[1] | {"model": "other"}],
        "all 2 judgments failed": [judged(1, 1, -1), judged(1, 2, -1)],
    }
    for message, judgments in cases.items():
        with pytest.raises(UserError, match=message):
            mt_bench.score(answers, judgments, [question(1)])
    with pytest.raises(UserError, match="the questions have no 1"):
        mt_bench.score(answers, whole, [question(2)])
