"""The lengths of the pairs that perf measures with, like UltraFeedback's and the same on every machine.

The lengths are log-normal, in Llama-3 tokens. Prompt P, chosen answer L_w and rejected answer L_l have means 172, 346 and 314. The medians
of P + L_w and of P / L_w are near 409 and 0.42, UltraFeedback's in the dpo-prefix-sharing paper (arXiv 2410.20305). The lengths of the two
answers correlate, because a pair's padding depends on that. No sequence exceeds 2,048 tokens and no prompt 1,800, as in the SimPO paper.
"""

from __future__ import annotations

import math
import random
from statistics import NormalDist
from typing import NamedTuple

ROWS, SEED = 512, 25
MEAN_PROMPT, MEAN_CHOSEN, MEAN_REJECTED = 172, 346, 314
# Standard deviations of the logarithms, and the answers' correlation. They are fitted to the medians above, and to the padding of random
# micro-batches of 1, 2, 4 and 8 such pairs (1.17, 1.53, 1.89, 2.25 padded tokens for each real one).
SIGMA_PROMPT, SIGMA_ANSWER, CORRELATION = 0.95, 0.72, 0.7
MAX_LENGTH, MAX_PROMPT = 2048, 1800


class Lengths(NamedTuple):
    """Numbers of tokens: of the prompt, of the chosen and of the rejected answer."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def longest(self) -> int:
        """Tokens of the pair's longer sequence, to which a padded batch pads both."""
        return self.prompt + max(self.chosen, self.rejected)

    @property
    def padless(self) -> int:
        """Tokens of both sequences, each with the prompt."""
        return 2 * self.prompt + self.chosen + self.rejected

    @property
    def shared(self) -> int:
        """Tokens of a pair whose answers share the prompt."""
        return self.prompt + self.chosen + self.rejected


def generate(divisor: int = 1) -> list[Lengths]:
    """The pairs' lengths divided by ``divisor``, at least two tokens each.

    The normal samplers differ between versions of Python, so this inverts ``random.Random.random``, which does not.
    """
    draw, inverse = random.Random(SEED), NormalDist().inv_cdf

    def normal() -> float:
        return inverse(draw.random() or 0.5)

    def tokens(mean: float, sigma: float, z: float, low: int, high: int) -> int:
        return min(max(round(mean * math.exp(sigma * z - sigma * sigma / 2)), low), high)

    drawn = []
    for _ in range(ROWS):
        common = math.sqrt(CORRELATION) * normal()
        prompt = tokens(MEAN_PROMPT, SIGMA_PROMPT, normal(), 8, MAX_PROMPT)
        answers = [
            tokens(mean, SIGMA_ANSWER, common + math.sqrt(1 - CORRELATION) * normal(), 8, MAX_LENGTH - prompt)
            for mean in (MEAN_CHOSEN, MEAN_REJECTED)
        ]
        drawn.append(Lengths(*(max(2, length // divisor) for length in (prompt, *answers))))
    return drawn


def token_ids(lengths: list[Lengths], vocabulary: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Pairs of random token ids with these lengths; ids 0 and 1 stay for padding and end."""
    draw = random.Random(seed)
    return [{name: draw.choices(range(2, vocabulary), k=count) for name, count in row._asdict().items()} for row in lengths]
