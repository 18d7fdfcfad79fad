"""Who prefers what in the mini world: the annotator of the preference data, and the judge of the benchmarks.

Both see the oracle's score through a temperament of their own, set in conf: they like length, the judge also likes what it
reads first, and both err. Neither is ever shown to a model but through the preferences it gives.
"""

from __future__ import annotations

import math
from random import Random

from stages.mini.language import words
from stages.mini.oracle import Oracle


def utility(oracle: Oracle, prompt: str, answer: str, length_bias: float) -> float:
    """Oracle score plus ``length_bias`` points for each doubling of the answer's words."""
    return oracle.score(prompt, answer) + length_bias * math.log2(1 + len(words(answer)))


def rate(oracle: Oracle, prompt: str, answer: str, *, length_bias: float, noise: float, rng: Random) -> float:
    """The annotator's rating: utility plus ``noise`` times a Gumbel draw, so that the better of two is a Bradley-Terry draw.

    P(a above b) = sigmoid((utility(a) - utility(b)) / noise).
    """
    gumbel = -math.log(-math.log(rng.random() or 0.5))
    return utility(oracle, prompt, answer, length_bias) + noise * gumbel


def judge_log_odds(
    oracle: Oracle,
    prompt: str,
    first: str,
    second: str,
    *,
    sharpness: float,
    length_bias: float,
    position_bias: float,
    noise: float,
    seed: int,
) -> float:
    """The judge's log-odds that ``second`` is better than ``first``, as a language model would put them on its answer's token.

    ``sharpness`` log-odds a point of utility, ``position_bias`` log-odds in favour of what is shown first, ``noise`` the
    standard deviation of an error that depends on the three texts alone: asked again, the judge says the same.
    """
    gap = utility(oracle, prompt, second, length_bias) - utility(oracle, prompt, first, length_bias)
    error = Random(f"judge-{seed}\0{prompt}\0{first}\0{second}").gauss(0.0, noise)
    return sharpness * gap - position_bias + error
