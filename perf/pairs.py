"""The pairs that perf measures with: their lengths, their token ids, the floating-point operations of their training.

**Lengths** are like UltraFeedback's and the same on every machine: log-normal, in Llama-3 tokens. Prompt P, chosen answer L_w and rejected
answer L_l have means 172, 346 and 314. The medians of P + L_w and of P / L_w are near 409 and 0.42, UltraFeedback's in the
dpo-prefix-sharing paper (arXiv 2410.20305). The lengths of the two answers correlate, because a pair's padding depends on that. No sequence
exceeds 2,048 tokens and no prompt 1,800, as in the SimPO paper.

**Operations.** N_b is the number of parameters in the body, h the hidden size, L the number of layers, V the size of the vocabulary, T the
number of tokens through the body, C the number of trained tokens and A the sum of all tokens' causal contexts:

    forward    2 N_b T + 4 h L A + 2 V h C
    training   k_b 2 N_b T + k_a 4 h L A + k_h 2 V h C,    k_b = 3 (4 with checkpointing), k_a = 3.5 (4.5), k_h = 4 (logits computed twice)

DPO with a live reference adds one forward pass. Padding is not counted.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes. ``vocab_size`` x ``hidden_size`` embeddings serve as the output layer too, as in Llama-3.2-1B."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int

    @property
    def body(self) -> int:
        """N_b: the layers' matrices."""
        width = self.hidden_size * self.num_key_value_heads // self.num_attention_heads
        return self.num_hidden_layers * self.hidden_size * (2 * self.hidden_size + 2 * width + 3 * self.intermediate_size)


def flops(shape: Shape, pair: Lengths, *, shared: bool, checkpointing: bool, live_reference: bool, head: float = 4) -> float:
    """Floating-point operations of one pair's training step.

    shape, pair:    the model's sizes and the pair's lengths
    shared:         whether both answers share the prompt
    checkpointing:  whether activations are computed twice
    live_reference: whether the reference is computed in the step
    head:           k_h; 3 where logits are kept instead of computed twice
    """
    prompt, chosen, rejected = pair
    if shared:
        context = (prompt + chosen) ** 2 / 2 + prompt * rejected + rejected**2 / 2
    else:
        context = ((prompt + chosen) ** 2 + (prompt + rejected) ** 2) / 2
    body = 2 * shape.body * (pair.shared if shared else pair.padless)
    attention = 4 * shape.hidden_size * shape.num_hidden_layers * context
    output = 2 * shape.vocab_size * shape.hidden_size * (chosen + rejected)
    training = (3 + checkpointing) * body + (3.5 + checkpointing) * attention + head * output
    return training + live_reference * (body + attention + output)
