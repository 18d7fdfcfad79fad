"""The floating-point operations of a pair's training, and the speed of this machine's matrix products.

N_b is the number of parameters in the body, h the hidden size, L the number of layers, V the size of the vocabulary, T the number of tokens
through the body, C the number of trained tokens and A the sum of all tokens' causal contexts:

    forward    2 N_b T + 4 h L A + 2 V h C
    training   k_b 2 N_b T + k_a 4 h L A + k_h 2 V h C,    k_b = 3 (4 with checkpointing), k_a = 3.5 (4.5), k_h = 4 (logits computed twice)

DPO with a live reference adds one forward pass. Padding is not counted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from perf.lengths import Lengths


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

    shared: whether both answers share the prompt.
    checkpointing: whether activations are computed twice.
    live_reference: whether the reference is computed in the step.
    head: k_h; 3 where logits are kept instead of computed twice.
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


def matmul_ceiling(device: str, seconds: float = 2.0) -> float:
    """FLOP/s of the fastest square matrix product: bf16 on a GPU, fp32 on a CPU with torch's number of threads."""
    best, sizes = 0.0, (4096, 8192) if device == "cuda" else (512, 1024, 2048)
    for size in sizes:
        a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
        torch.mm(a, b)
        wait(device)
        began, products = time.perf_counter(), 0
        while time.perf_counter() - began < seconds / len(sizes):
            for _ in range(10 if device == "cuda" else 1):
                torch.mm(a, b)
                products += 1
            wait(device)
        best = max(best, products * 2 * size**3 / (time.perf_counter() - began))
    return best


def wait(device: str) -> None:
    """Wait until the GPU has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()
