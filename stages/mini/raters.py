"""The annotator of the mini world's preference data, and the judge of its benchmarks.

Both start from the oracle's score and have a temperament of their own, set in conf: both like length, the judge prefers the answer that it
reads first, and both make errors. A model sees nothing of them except the preferences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

from stages.mini.language import words
from stages.mini.oracle import Oracle, load_oracle
from stages.mini.tasks import Conversation

USUAL = 16  # words of an answer whose length does not change the rating


def utility(oracle: Oracle, turns: str | Conversation, answer: str, length_bias: float) -> float:
    """Oracle score plus ``length_bias`` points for each doubling of the answer's words."""
    return oracle.score(turns, answer) + length_bias * math.log2(1 + len(words(answer)))


def rate(oracle: Oracle, turns: str | Conversation, answer: str, *, length_bias: float, noise: float, rng: Random) -> float:
    """The annotator's rating: utility plus ``noise`` times a Gumbel draw, so that the better of two is a Bradley-Terry draw.

    P(a above b) = sigmoid((utility(a) - utility(b)) / noise).
    """
    gumbel = -math.log(-math.log(rng.random() or 0.5))
    return utility(oracle, turns, answer, length_bias) + noise * gumbel


def rate_all(rows: list[dict[str, Any]], world: str, length_bias: float, noise: float, seed: int) -> list[float]:
    """The annotator's rating of sampled answers, as stages/annotate.py reads them (``prompt``: messages, ``response``).

    Its error depends on the conversation alone, so that equal answers get equal ratings.
    """
    oracle = load_oracle(world)
    ratings = []
    for row in rows:
        turns = tuple(message["content"] for message in row["prompt"] if message["role"] != "system")
        rng = Random("\0".join([f"rater-{seed}", *turns, row["response"]]))
        ratings.append(rate(oracle, turns, row["response"], length_bias=length_bias, noise=noise, rng=rng))
    return ratings


def judge_log_odds(
    oracle: Oracle, texts: Sequence[str], *, sharpness: float, length_bias: float, position_bias: float, noise: float, seed: int, **_: Any
) -> float:
    """The judge's log-odds that the second answer is better, as a language model would put them on its answer's token.

    texts: prompt, first and second answer.
    sharpness: log-odds a point of utility.
    length_bias: see ``utility``.
    position_bias: log-odds in favour of the answer that is shown first.
    noise: the standard deviation of an error that depends on the three texts alone, so that the judge repeats its verdict.
    """
    prompt, first, second = texts
    gap = utility(oracle, prompt, second, length_bias) - utility(oracle, prompt, first, length_bias)
    error = Random(f"judge-{seed}\0{prompt}\0{first}\0{second}").gauss(0.0, noise)
    return sharpness * gap - position_bias + error


def label(log_odds: float, *, tie: float, strong: float) -> str:
    """Arena-Hard's verdict from log-odds for B: a tie up to ``tie``, a strong verdict from ``strong`` on."""
    sign = ">>" if abs(log_odds) >= strong else ">"
    return "A=B" if abs(log_odds) <= tie else f"B{sign}A" if log_odds > 0 else f"A{sign}B"


def judge_rating(
    oracle: Oracle, turns: Conversation, answer: str, *, sharpness: float, length_bias: float, noise: float, seed: int, **_: Any
) -> int:
    """MT-Bench's rating, 1 to 10: the utility on that scale, with an error of standard deviation ``noise`` / ``sharpness`` points."""
    error = Random("\0".join([f"rating-{seed}", *turns, answer])).gauss(0.0, noise / sharpness)
    points = utility(oracle, turns, answer, length_bias) - length_bias * math.log2(1 + USUAL)
    return round(min(max(1 + 0.9 * (points + error), 1), 10))
