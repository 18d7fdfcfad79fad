"""stages/benchmarks/arena_hard.py against published judgments, battles and scores, and against the benchmark's own way to fit and resample.

Published data: the folder in REFERENCE_DATA (default ../shared/reference_data beside the repository); tests that need it are
skipped where it is absent.
"""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published import REFERENCE, needed

from stages.benchmarks import arena_hard
from stages.benchmarks.rows import read_rows
from stages.judging.client import Outcome
from stages.lib.errors import UserError

ARENA = REFERENCE / "arena_hard"
OFFICIAL, LOCAL = "judge-gpt-4-1106-preview_baseline-gpt-4-0314", "judge-llama-3-70b-AH_baseline-phi-3-medium"
ITSELF, BAGEL, TURBO = "judge-r1-distill-70b_baseline-vs-itself_151q", "judge-r1-distill-70b_bagel-8b_181q", "judge-gpt-3.5-turbo-0125_108q"
GAP = "\x00"
published = needed("arena_hard")

CONFIG: dict[str, Any] = {
    "system_prompt": "Judge.",
    "prompt_template": ["{question_1}|{answer_1}|{answer_2}"],
    "regex_pattern": r"\[\[([AB<>=]+)\]\]",
}


def rows_of(name: str) -> list[dict[str, Any]]:
    return read_rows(ARENA / f"{name}.jsonl.gz", [])


def published_config() -> dict[str, Any]:
    return arena_hard.read_config(ARENA / "judge/judge_config.yaml")


def points_of(battles: str, model: str) -> np.ndarray:
    """The model's points in a file of battles, in which the baseline is model_a."""
    winners = [row["winner"] for row in rows_of(f"battles/{battles}") if row["model_b"] == model != row["model_a"]]
    return np.array([{"model_a": 0.0, "tie": 0.5, "model_b": 1.0}[winner] for winner in winners])


def answer(number: Any, text: str, model: str = "model", **more: Any) -> dict[str, Any]:
    turn = {"content": text, **more}
    return {"question_id": number, "answer_id": f"a{number}", "model_id": model, "choices": [{"index": 0, "turns": [turn]}]}


def question(number: Any) -> dict[str, Any]:
    return {"question_id": number, "category": "arena-hard-v0.1", "cluster": "c", "turns": [{"content": f"q{number}"}]}


def judged(number: Any, label_1: str | None, label_2: str | None, text: str = "ours", **more: Any) -> dict[str, Any]:
    games = [{"user_prompt": f"… {text} …", "judgment": "", "score": label, **more} for label in (label_1, label_2)]
    return {"question_id": number, "model": "model", "judge": "judge-1", "games": games}


def said(text: Any, **more: Any) -> Outcome:
    return Outcome({"choices": [{"message": {"role": "assistant", "content": text, **more}, "finish_reason": "stop"}]})


# -- the judge's side ----------------------------------------------------------------------------------------------------


@published
def test_published_prompts_come_back_byte_for_byte() -> None:
    """messages(): 302 published prompts of the baseline against itself, from questions, answers and judge_config.yaml."""
    config = published_config()
    questions, baseline = (arena_hard.by_question(rows_of(name), name) for name in ("question", "model_answer/gpt-4-0314"))
    rows = rows_of(f"model_judgment/{ITSELF}")
    for row in rows:
        prompt = questions[row["question_id"]]["turns"][0]["content"]
        text = baseline[row["question_id"]]["choices"][0]["turns"][0]["content"]
        chat = arena_hard.messages(config, prompt, text, text)
        assert [game["user_prompt"] for game in row["games"]] == [chat[1]["content"]] * 2
        assert chat[0] == {"role": "system", "content": config["system_prompt"]}
    assert len(rows) == 151


@published
def test_the_baseline_is_assistant_a_in_game_one_and_b_in_game_two() -> None:
    """messages(): the published prompts against other models, with the model's answer read off game 1, rebuild game 2."""
    config = published_config()
    questions, baseline = (arena_hard.by_question(rows_of(name), name) for name in ("question", "model_answer/gpt-4-0314"))
    rows = rows_of(f"model_judgment/{BAGEL}") + rows_of(f"model_judgment/{TURBO}")
    for row in rows:
        prompt = questions[row["question_id"]]["turns"][0]["content"]
        text = baseline[row["question_id"]]["choices"][0]["turns"][0]["content"]
        first, second = (game["user_prompt"] for game in row["games"])
        before, after = arena_hard.messages(config, prompt, text, GAP)[1]["content"].split(GAP)
        assert first.startswith(before) and first.endswith(after)
        theirs = first[len(before) : len(first) - len(after)]
        assert second == arena_hard.messages(config, prompt, theirs, text)[1]["content"]
    assert len(rows) == 289


@published
@pytest.mark.parametrize("name", [ITSELF, BAGEL, TURBO])
def test_published_verdicts_are_parsed_from_the_published_judgments(name: str) -> None:
    """verdict(): every stored label of 880 games, None among them, and the counts of each."""
    pattern = published_config()["regex_pattern"]
    games = [game for row in rows_of(f"model_judgment/{name}") for game in row["games"]]
    ours = [arena_hard.verdict(game["judgment"], pattern)[0] for game in games]
    assert ours == [game["score"] for game in games]
    expected = json.loads((REFERENCE / "expected.json").read_text())["arena_hard"]["parser_label_counts"][name]
    assert Counter(label or "null" for label in ours) == expected


@pytest.mark.parametrize(
    ("judgment", "label", "failure"),
    [
        ("so [[A>B]], that is [[A>B]]", "A>B", None),
        ("[[A>B]] or [[B>A]]", None, arena_hard.CONTRADICTORY),
        ("[A>B] and A>>B and [[tie]] and [[]]", None, arena_hard.NO_VERDICT),
        ("[[A<B]]", "A<B", None),  # a label to the parser; the score gives it no weight
    ],
)
def test_only_one_distinct_label_is_a_verdict(judgment: str, label: str | None, failure: str | None) -> None:
    assert arena_hard.verdict(judgment, CONFIG["regex_pattern"]) == (label, failure)


def test_braces_in_the_texts_stay_text_and_foreign_templates_are_refused() -> None:
    """messages(): an answer cannot name a gap; a template with other gaps, or a second template, stops by name."""
    hostile = "{question_1} {0} {{}} {answer_2.__class__}"
    assert arena_hard.messages(CONFIG, "{answer_1}", hostile, "b")[1]["content"] == f"{{answer_1}}|{hostile}|b"
    for templates, message in ((["{question_1} {answer_1}"], "answer_2"), (["{question}"], "gaps"), (["a", "b"], "2 templates")):
        with pytest.raises(UserError, match=message):
            arena_hard.messages(CONFIG | {"prompt_template": templates}, "q", "a", "b")


@pytest.mark.parametrize(("text", "message"), [("system_prompt: s", "prompt_template"), ("- a", "system_prompt"), ("a: [", "no YAML")])
def test_a_config_without_the_protocols_keys_is_named(text: str, message: str, tmp_path: Path) -> None:
    """read_config(): what is no judge_config.yaml stops with its name, an absent file as well."""
    path = tmp_path / "judge_config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"judge_config\.yaml.*{message}"):
        arena_hard.read_config(path)
    with pytest.raises(UserError, match="absent"):
        arena_hard.read_config(tmp_path / "absent.yaml")


class Judge:
    """An ``ask`` that plays a script: for each prompt the outcomes of its first and its further request. It keeps what it was asked."""

    def __init__(self, script: dict[str, list[Outcome]]) -> None:
        self.script, self.calls = script, list[list[dict[str, Any]]]()

    def __call__(self, requests: list[dict[str, Any]]) -> list[Outcome]:
        self.calls.append(requests)
        return [self.script[request["messages"][1]["content"]][len(request["messages"]) // 2 - 1] for request in requests]


def annotate(judge: Judge, n: int, **more: Any) -> list[dict[str, Any]]:
    given: dict[str, Any] = {
        "answers": [answer(i, f"m{i}") for i in reversed(range(n))],
        "questions": [question(i) for i in range(n)],
        "baseline": [answer(i, f"b{i}", "base") for i in range(n)],
    }
    return arena_hard.annotate(**(given | more), config=CONFIG, decoding={"temperature": 0}, ask=judge, judge="judge-1")


def test_every_game_has_a_verdict_or_a_reason_and_only_silence_is_asked_again() -> None:
    """annotate(): one call for all first requests, one for the further ones, games in the questions' order, the benchmark's keys."""
    down = Outcome(failure="HTTP 500 in the last of 6 tries")
    script = {
        "q0|b0|m0": [said("[[B>A]]")],
        "q0|m0|b0": [said("[[A>>B]]")],
        "q1|b1|m1": [said("hm"), said("[[A=B]]")],  # asked again, then clear
        "q1|m1|b1": [said("hm"), said("hm")],  # asked again in vain
        "q2|b2|m2": [said("[[A>B]] [[B>A]]")],  # contradictory: never asked again
        "q2|m2|b2": [down],
        "q3|b3|m3": [said("hm"), down],
        "q3|m3|b3": [said("hm"), said("[[A>B]] or [[B>A]]")],
        "q4|b4|m4": [said(None, refusal="I will not")],
        "q4|m4|b4": [Outcome({"choices": []})],
        "q5|b5|m5": [said(None)],
        "q5|m5|b5": [said(" \n")],
    }
    judge = Judge(script)
    rows = annotate(judge, 6)
    assert [(row["question_id"], row["model"], row["judge"]) for row in rows] == [(i, "model", "judge-1") for i in range(6)]
    games = [game for row in rows for game in row["games"]]
    assert [game["user_prompt"] for game in games] == list(script)
    silent = "the judge wrote no text, finish_reason 'stop'"
    assert [(game["judgment"], game["score"], game["attempts"], game["failure"]) for game in games] == [
        ("[[B>A]]", "B>A", 1, None),
        ("[[A>>B]]", "A>>B", 1, None),
        ("hm\n[[A=B]]", "A=B", 2, None),
        ("hm\nhm", None, 2, "no verdict"),
        ("[[A>B]] [[B>A]]", None, 1, "contradictory verdicts"),
        ("", None, 1, down.failure),
        ("hm", None, 2, down.failure),
        ("hm\n[[A>B]] or [[B>A]]", None, 2, "contradictory verdicts"),
        ("", None, 1, "the judge refused: 'I will not'"),
        ("", None, 1, "the response has no choices[0].message.content"),
        ("", None, 1, silent),
        ("", None, 1, silent),
    ]
    first, further = judge.calls
    assert first[0] == {"messages": arena_hard.messages(CONFIG, "q0", "b0", "m0"), "temperature": 0}
    assert [request["messages"][1]["content"] for request in further] == ["q1|b1|m1", "q1|m1|b1", "q3|b3|m3", "q3|m3|b3"]
    assert further[0]["messages"][:2] == arena_hard.messages(CONFIG, "q1", "b1", "m1") and further[0]["temperature"] == 0
    assert further[0]["messages"][2:] == [
        {"role": "assistant", "content": "hm"},
        {"role": "user", "content": "continue your judgment and finish by outputting a final verdict label"},
    ]


def test_no_further_call_where_all_verdicts_came_at_once() -> None:
    judge = Judge({"q0|b0|m0": [said("[[B>A]]")], "q0|m0|b0": [said("[[A>B]]")]})
    annotate(judge, 1)
    assert len(judge.calls) == 1


def test_a_missing_or_double_answer_is_named_before_anything_is_asked() -> None:
    """annotate(): each question needs one answer of the model and one of the baseline."""
    judge = Judge({})
    cases: dict[str, dict[str, Any]] = {
        "the answers have no row for question 1": {"answers": [answer(0, "m0")]},
        "the baseline's answers have no row for question 0": {"baseline": [answer(1, "b1")]},
        "the answers have question 1 more than once": {"answers": [answer(0, "m0"), answer(1, "m1"), answer(1, "x")]},
        "2 values of model_id": {"answers": [answer(0, "m0"), answer(1, "m1", "other")]},
        "question 0 has 2 turns": {"questions": [question(0) | {"turns": [{"content": "a"}, {"content": "b"}]}]},
    }
    for message, given in cases.items():
        with pytest.raises(UserError, match=message):
            annotate(judge, 2, **given)
    assert not judge.calls


# -- the scores ----------------------------------------------------------------------------------------------------------


@published
@pytest.mark.slow
def test_the_official_judges_win_rate_and_interval_of_gpt_4_0613() -> None:
    """rating(), win_rate(), interval(): 37.90 as published; the bounds within 0.5 of the published ones, which another stream drew."""
    expected = json.loads((REFERENCE / "expected.json").read_text())["arena_hard"][OFFICIAL]["gpt-4-0613"]
    points = points_of(OFFICIAL, "gpt-4-0613")
    assert round(arena_hard.win_rate(arena_hard.rating(points)), 2) == expected["score"]
    low, high = arena_hard.interval(points)
    assert low == pytest.approx(expected["rating_q025"], abs=0.5) and high == pytest.approx(expected["rating_q975"], abs=0.5)


@published
def test_a_local_judges_win_rates_and_bootstrapped_ratings() -> None:
    """Four published win rates to their one decimal, and medians and bounds of 100 stored bootstrap ratings within 0.2 and 1 points.

    Two streams of 100 draws have bounds whose difference has a standard deviation of 0.38 (sqrt(2) 0.27 of the rates' own, about 1).
    """
    expected = json.loads((REFERENCE / "expected.json").read_text())["arena_hard"][LOCAL]
    stored = rows_of("battles/judge-llama-3-70b-AH_bootstrap_ratings")
    for model, figure in expected.items():
        points = points_of(LOCAL, model)
        rate = arena_hard.win_rate(arena_hard.rating(points))
        assert round(rate, 1) == figure
        theirs = [arena_hard.win_rate(row[model]) for row in stored]
        assert rate == pytest.approx(np.median(theirs), abs=0.2)
        assert arena_hard.interval(points) == pytest.approx(tuple(np.percentile(theirs, [2.5, 97.5])), abs=1)


@published
@pytest.mark.slow
def test_mean_token_counts_are_the_leaderboards() -> None:
    """score(): the integer part of avg_tokens, and the answers checked against the judged prompts."""
    for model, tokens in json.loads((REFERENCE / "expected.json").read_text())["arena_hard"]["avg_tokens"].items():
        answers = rows_of(f"model_answer/{model}")
        judgments = [judged(row["question_id"], "A>B", "B>A", row["choices"][0]["turns"][0]["content"]) for row in answers]
        scores = arena_hard.score(answers, judgments, baseline="gpt-4-0314")
        assert int(scores["avg_tokens"]) == tokens
        assert scores["win_rate"] == 0 and scores["n_total"] == 1000


def random_points(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice([0, 0.5, 1], n, p=[0.5, 0.1, 0.4])


@pytest.mark.parametrize("n", [5, 60, 1500])
def test_the_win_rate_of_the_fit_is_the_weighted_mean(n: int) -> None:
    """win_rate(rating()) equals 100 mean(points) within 1e-5, which lets the bootstrap do without fits; no warning survives."""
    points = random_points(n, seed=n)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert arena_hard.win_rate(arena_hard.rating(points)) == pytest.approx(100 * points.mean(), abs=1e-5)


def test_the_interval_is_the_benchmarks_own_of_resampled_rows_and_fitted_ratings() -> None:
    """interval() against pandas' sample under numpy's seed 42, a fit a round over baseline and model, and percentiles of ratings."""
    import pandas as pd
    from sklearn.linear_model import LogisticRegression

    points = random_points(200, seed=1)
    frame = pd.DataFrame({"winner": np.select([points == 0, points == 1], ["model_a", "model_b"], "tie")})
    np.random.seed(42)
    ratings = []
    for _ in range(100):
        drawn = frame.sample(frac=1.0, replace=True)["winner"].to_numpy()
        won_by_a = np.concatenate([drawn != "model_b", drawn == "model_a"])
        design = np.tile([np.log(10), -np.log(10)], (len(won_by_a), 1))
        coef = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8).fit(design, won_by_a).coef_[0]
        ratings.append(1000 + 400 * (coef[1] - coef[0]))
    theirs = [arena_hard.win_rate(bound) for bound in np.percentile(ratings, [2.5, 97.5])]
    assert arena_hard.interval(points) == pytest.approx(theirs, abs=1e-3)


def test_a_thousand_games_are_scored_in_well_under_a_second() -> None:
    """rating() and interval() on 3,000 battles, scikit-learn's import aside."""
    points = random_points(3000, seed=2)
    arena_hard.rating(points)
    start = time.perf_counter()
    arena_hard.rating(points)
    arena_hard.interval(points)
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize(("labels", "rate"), [(("B>A", "A>>B"), 100), (("A>>B", "B>A"), 0)])
def test_all_won_or_all_lost_has_a_win_rate_and_no_rating(labels: tuple[str, str], rate: float) -> None:
    """score(): Bradley-Terry has no finite rating there; the win rate is the mean."""
    scores = arena_hard.score([answer(0, "ours")], [judged(0, *labels)], baseline="base")
    assert (scores["win_rate"], scores["win_rate_low"], scores["win_rate_high"], scores["rating"]) == (rate, rate, rate, None)


def test_strong_verdicts_weigh_three_and_game_two_is_inverted() -> None:
    """battles(): the model is Assistant B in game 1 and A in game 2; other labels and failed games give no battle."""
    assert arena_hard.battles(judged(0, "B>>A", "B>A")["games"]) == [1, 1, 1, 0]
    assert arena_hard.battles(judged(0, "A>B", "A>>B")["games"]) == [0, 1, 1, 1]
    assert arena_hard.battles(judged(0, "A=B", "A=B")["games"]) == [0.5, 0.5]
    assert arena_hard.battles(judged(0, "A<B", None)["games"]) == []


def test_scores_count_failures_by_reason_and_carry_their_protocol() -> None:
    """score(): games without a verdict stay out of the rate and are counted; the judgments may come in another order."""
    answers = [answer(0, "ours"), answer(1, "ours, longer"), answer(2, "ours")]
    judgments = [judged(1, None, "A<B", "ours, longer"), judged(2, "B>A", None), judged(0, "B>>A", "B>A")]
    judgments[0]["games"][0]["failure"] = "HTTP 500"
    for row in judgments:
        for game in row["games"]:
            game["attempts"] = 2 if game["score"] is None else 1
    scores = arena_hard.score(answers, judgments, baseline="base")
    assert scores["win_rate"] == pytest.approx(80, abs=1e-5) and scores["rating"] == pytest.approx(1000 + 400 * np.log10(4), abs=1e-3)
    assert (scores["n_total"], scores["n_failed"], scores["n_further"]) == (3, 3, 2)
    assert scores["failures"] == {"HTTP 500": 1, "a label that is none of the five": 1, "no verdict or contradictory verdicts": 1}
    assert (scores["generator"], scores["baseline"], scores["judge"]) == ("model", "base", "judge-1")
    assert scores["protocol"]["version"] == "Arena-Hard v0.1 (arena-hard-auto d99b139)"
    assert scores["avg_tokens"] is None and scores["avg_length"] == pytest.approx(20 / 3)
    assert scores["win_rate_low"] <= scores["win_rate"] <= scores["win_rate_high"]
    json.dumps(scores)


def test_refusals_are_one_reason_whatever_they_say() -> None:
    """score(): the words that a failure quotes are no kind of failure."""
    answers = [answer(0, "ours"), answer(1, "ours")]
    judgments = [judged(0, None, None), judged(1, None, "A>B")]
    for number, game in enumerate([*judgments[0]["games"], judgments[1]["games"][0]]):
        game["failure"] = f"the judge refused: 'No, {number} times: no'"
    assert arena_hard.score(answers, judgments, baseline="base")["failures"] == {"the judge refused": 3}


def test_judgments_that_do_not_belong_to_the_answers_are_refused() -> None:
    """score(): a missing, strange or double question, another answer, a lost game, two judges and failures alone stop by name."""
    answers, whole = [answer(0, "ours"), answer(1, "ours")], [judged(0, "A>B", "A>B"), judged(1, "A>B", "A>B")]
    cases = {
        "the judgments have no row for question 1": whole[:1],
        "the judgments have question 2, the answers do not": [*whole, judged(2, "A>B", "A>B")],
        "the judgments have question 1 more than once": [*whole, whole[1]],
        "question 1 is not two games": [whole[0], judged(1, "A>B", "A>B", "theirs")],
        "question 0 is not two games": [whole[0] | {"games": whole[0]["games"][:1]}, whole[1]],
        "2 values of judge": [whole[0], whole[1] | {"judge": "judge-2"}],
        "all 4 games failed": [judged(0, None, None), judged(1, None, None)],
    }
    for message, judgments in cases.items():
        with pytest.raises(UserError, match=message):
            arena_hard.score(answers, judgments, baseline="base")
